"""Alignment: known motions are found again, nothing is dropped, and what was not seen is said."""

import functools
import json
import sys

import numpy as np
import pytest
from PIL import Image

from dff_jax import cli
from dff_jax.data.files.align import MODELS, align_stack, alignment_sheet, remarks, report
from dff_jax.errors import InputError
from dff_jax.prediction.predict import predict, predict_to_folder

cv2 = pytest.importorskip("cv2", reason="OpenCV is in the extra `align`")

Z, H, W = 5, 180, 240
FREQUENCIES = np.random.default_rng(1).normal(size=(40, 2)) * np.geomspace(0.06, 0.5, 40)[:, None]  # radians a pixel
PHASES = np.random.default_rng(2).uniform(0, 2 * np.pi, 40)


def picture(matrix=None, blur=0.0, size=(H, W)):
    """Waves in closed form, seen through a motion: [H,W,3] float in [0,1]; `blur` is a Gaussian's sigma."""
    matrix = np.eye(3) if matrix is None else np.linalg.inv(matrix)
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(float)
    points = np.stack([x, y, np.ones_like(x)], -1) @ matrix.T
    points = points[..., :2] / points[..., 2:]
    strengths = np.exp(-((blur * np.linalg.norm(FREQUENCIES, axis=1)) ** 2) / 2)
    waves = (np.cos(points @ FREQUENCIES.T + PHASES) * strengths).sum(-1)
    grey = np.clip(0.5 + waves / 25, 0, 1)
    return np.stack([grey, 0.8 * grey, 0.5 * grey + 0.1], -1)


def similarity(scale=1.0, degrees=0.0, shift=(0.0, 0.0)):
    """About the picture's centre: pixel of the reference -> pixel of the frame."""
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    centre = np.array([(W - 1) / 2, (H - 1) / 2])
    linear = np.array([[c, -s], [s, c]])
    return np.vstack([np.column_stack([linear, centre - linear @ centre + shift]), [0, 0, 1]])


MOTIONS = {  # of frame z of a stack, k frames from the reference
    "similarity": lambda k: similarity(1.02**k, 0.3 * k, (1.3 * k, -0.8 * k)),
    "translation": lambda k: similarity(shift=(1.7 * k, -1.2 * k)),
    "affine": lambda k: similarity(1 + 0.01 * k) @ np.array([[1, 0.01 * k, k], [0, 1 - 0.01 * k, 0], [0, 0, 1]]),
    "homography": lambda k: np.array([[1, 0, k], [0, 1, -k], [5e-5 * k, -4e-5 * k, 1]], float),
}


def stack(model="similarity", kind=np.uint8):
    """Frames [Z,H,W,3] with the blur of a focal stack, 0 to 2.4 pixels, and the matrices."""
    frames = taken(model)
    if np.dtype(kind).kind == "u":
        frames = np.rint(frames * np.iinfo(kind).max)
    return frames.astype(kind), [MOTIONS[model](k) for k in range(-2, 3)]


@functools.cache
def taken(model=None):
    """The frames in [0,1]; None: with a camera that stands still."""
    return np.stack([picture(MOTIONS[model](z - 2) if model else None, 0.6 * z) for z in range(Z)])


def furthest(one, two):
    """How far the corners lie apart under the two matrices, pixels."""
    corners = np.array([(x, y, 1.0) for x in (0, W - 1) for y in (0, H - 1)])
    ends = [corners @ matrix.T for matrix in (one, two)]
    ends = [end[:, :2] / end[:, 2:] for end in ends]
    return np.linalg.norm(ends[0] - ends[1], axis=1).max()


# Motions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, kind", [(model, np.uint8) for model in MODELS] + [("similarity", np.uint16), ("similarity", np.float32)]
)
def test_a_known_motion_is_found_again(model, kind):
    frames, matrices = stack(model, kind)
    aligned = align_stack(frames, model)
    assert aligned.frames.shape == frames.shape and aligned.frames.dtype == kind and aligned.reference == 2
    for motion, true in zip(aligned.motions, matrices, strict=True):
        assert motion.ok and furthest(motion.matrix, true) < 0.1
        assert motion.corners == pytest.approx(furthest(true, np.eye(3)), abs=0.1)
        assert motion.correlation > 0.9
    if model == "similarity":
        last = aligned.motions[-1]
        assert last.scale == pytest.approx(1.02**2, abs=2e-3) and last.rotation_degrees == pytest.approx(0.6, abs=0.05)
        assert last.shift == pytest.approx((2.6, -1.6), abs=0.1)
        assert aligned.motions[2].corners == 0 and aligned.motions[2].correlation == 1
    top = 1.0 if kind == np.float32 else np.iinfo(kind).max
    for z, frame in enumerate(aligned.frames):  # as if the camera had not moved
        inside = np.s_[12:-12, 12:-12]
        error, before = (np.abs(f[inside] / top - taken()[z][inside]).mean() for f in (frame, frames[z]))
        assert error < 0.004 and (z == 2 or before > 4 * error)
    np.testing.assert_array_equal(aligned.frames[2], frames[2])


def test_strong_breathing_is_followed_along_the_chain():
    matrices = [similarity(1.022**k, 0.0, (k, 0.5 * k)) for k in range(-3, 5)]
    frames = np.stack([np.rint(255 * picture(m, 0.4 * z)).astype(np.uint8) for z, m in enumerate(matrices)])
    aligned = align_stack(frames)
    assert max(furthest(m.matrix, t) for m, t in zip(aligned.motions, matrices, strict=True)) < 0.3
    assert aligned.motions[-1].scale / aligned.motions[0].scale == pytest.approx(1.022**7, abs=4e-3)


def test_brightness_does_not_matter_and_any_frame_can_be_the_reference():
    frames, matrices = stack(kind=np.float32)
    frames[4] = 0.5 * frames[4] + 0.2
    aligned = align_stack(frames, reference=0)
    for motion, true in zip(aligned.motions, matrices, strict=True):
        assert furthest(motion.matrix, true @ np.linalg.inv(matrices[0])) < 0.15
    np.testing.assert_array_equal(aligned.frames[0], frames[0])


def test_a_stack_that_does_not_move_is_left_as_it_is():
    frames = np.rint(255 * taken()).astype(np.uint8)
    aligned = align_stack(frames)
    np.testing.assert_array_equal(aligned.frames, frames)
    assert aligned.mask.all() and all(motion.ok and motion.corners == 0 for motion in aligned.motions)
    assert "left as they are" in remarks(aligned, [f"{z}.png" for z in range(Z)])[0]


# What was not seen ----------------------------------------------------------------------------------------------


def test_pixels_not_seen_by_all_are_marked_and_filled_from_the_neighbour():
    frames = np.stack([np.rint(255 * picture(similarity(shift=(6.0 * k, 0)))).astype(np.uint8) for k in (-1, 0, 1)])
    aligned = align_stack(frames, "translation")
    columns = np.flatnonzero(aligned.mask.all(0))
    assert columns[0] == 6 and columns[-1] == W - 7 and not aligned.mask[:, [0, 5, W - 6, W - 1]].any()
    np.testing.assert_array_equal(aligned.frames[0][:, :5], frames[1][:, :5])  # frame 0 looks to the right
    np.testing.assert_array_equal(aligned.frames[2][:, -5:], frames[1][:, -5:])
    assert np.abs(aligned.frames[0].astype(int) - frames[1])[4:-4].max() < 8  # nowhere a seam


@pytest.mark.parametrize("odd", ["noise", "flat", "other"])
@pytest.mark.parametrize("where", [1, 4])
def test_a_frame_that_will_not_align_is_reported_and_kept(odd, where):
    frames, matrices = stack()
    rng = np.random.default_rng(0)
    frames[where] = {
        "noise": rng.integers(0, 255, (H, W, 3)),
        "flat": 90,
        "other": np.rot90(frames[0][:, :H], 2, (0, 1))[:, np.arange(W) % H],
    }[odd]
    aligned = align_stack(frames)
    assert [motion.ok for motion in aligned.motions] == [z != where for z in range(Z)] and aligned.failed() == [where]
    assert len(aligned.frames) == Z
    for z, (motion, true) in enumerate(zip(aligned.motions, matrices, strict=True)):
        if z != where:
            assert furthest(motion.matrix, true) < 0.15  # the next frame does not suffer
    if where == 1:  # placed between its neighbours
        assert furthest(aligned.motions[1].matrix, matrices[1]) < 0.5
    names = [f"{z}.png" for z in range(Z)]
    assert any(f"{where}.png would not align" in remark for remark in remarks(aligned, names))
    told = json.loads(json.dumps(report(aligned, names), allow_nan=False))
    assert told["failed"] == [f"{where}.png"] and told["frames"][where]["ok"] is False


def test_another_reference_if_the_middle_frame_is_no_picture():
    frames, matrices = stack()
    frames[2] = 0
    aligned = align_stack(frames)
    assert aligned.reference == 3 and aligned.failed() == [2]
    assert furthest(aligned.motions[0].matrix, matrices[0] @ np.linalg.inv(matrices[3])) < 0.2


def test_frames_that_have_nothing_in_common():
    frames = np.random.default_rng(0).integers(0, 255, (3, H, W, 3), np.uint8)
    aligned = align_stack(frames)
    np.testing.assert_array_equal(aligned.frames, frames)
    assert len(aligned.failed()) == 2 and aligned.mask.all()


# Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": "rigid"}, "'rigid' is unknown; choose one of similarity, translation"),
        ({"reference": 5}, "reference 5 is not one of 5 frames"),
        ({"frames": np.zeros((3, H, W))}, "give \\[Z,H,W,3\\]"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        align_stack(**{"frames": stack()[0], **arguments})


def test_without_opencv_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"dff-jax\[align\]"):
        align_stack(np.zeros((3, H, W, 3), np.uint8))


# Pictures and prediction ----------------------------------------------------------------------------------------


def test_the_sheet_is_grey_where_the_frames_match():
    frames, _ = stack()
    aligned = align_stack(frames)
    sheet = alignment_sheet(frames, aligned, [str(z) for z in range(Z)]).astype(int)
    assert sheet.shape[1:] == (1600, 3)
    before, after = (np.abs(half[..., 0] - half[..., 1])[80:-40, 40:-40].mean() for half in np.split(sheet, 2, axis=1))
    assert before > 1.5 * after > 0


def test_predict_aligns_and_says_so(tmp_path, capsys):
    frames, matrices = stack()
    (tmp_path / "stack").mkdir()
    for z, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "stack" / f"{z}.png")
    arguments = ["predict", str(tmp_path / "stack"), "--method", "sml", "--output"]
    assert cli.main([*arguments, str(tmp_path / "plain")]) == 0
    assert cli.main([*arguments, str(tmp_path / "aligned"), "--align"]) == 0
    assert "frames aligned to 2.png (similarity)" in capsys.readouterr().out
    assert not (tmp_path / "plain" / "alignment.png").exists()
    assert "alignment" not in json.loads((tmp_path / "plain" / "summary.json").read_text())
    with Image.open(tmp_path / "aligned" / "alignment.png") as image:
        assert image.width == 1600
    told = json.loads((tmp_path / "aligned" / "summary.json").read_text())["alignment"]
    assert told["model"] == "similarity" and told["reference"] == "2.png" and told["failed"] == []
    for frame, true in zip(told["frames"], matrices, strict=True):
        assert furthest(np.array(frame["matrix"]), true) < 0.1
    mask = align_stack(frames).mask
    confidence, depth = (np.load(tmp_path / "aligned" / f"{name}.npy") for name in ("confidence", "depth"))
    assert depth.shape == (H, W) and np.isfinite(depth).all() and told["seen_by_all"] == pytest.approx(mask.mean())
    assert (confidence[~mask] == 0).all() and confidence[mask].max() > 0
    result = predict(frames[::-1], [5, 4, 3, 2, 1], method="sml", align="affine")  # sorted, then aligned
    assert result.aligned.model == "affine" and furthest(result.aligned.motions[0].matrix, matrices[0]) < 0.15
    assert "frames aligned to frame 2 (affine)" in result.notes[-1]
    assert predict(frames, method="sml").aligned is None
    with pytest.raises(InputError, match="align: 'rigid' is unknown"):
        predict_to_folder(tmp_path / "stack", tmp_path / "other", align="rigid", progress=False)
    assert not (tmp_path / "other").exists()
