"""From photographs to the files of `dff-jax predict`."""

import errno
import json
import signal
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageCms

from dff_jax import cli, config, estimators
from dff_jax.data.files import images
from dff_jax.errors import InputError
from dff_jax.estimators import weights as weights_module
from dff_jax.pictures import panels
from dff_jax.prediction import files as prediction_files
from dff_jax.prediction import predict as module
from dff_jax.prediction import tiled
from dff_jax.prediction.files import FILES
from dff_jax.prediction.predict import predict, predict_to_folder
from dff_jax.prediction.result import Result, TilingReport
from dff_jax.runtime import files as output
from dff_jax.runtime import stopping
from dff_jax.types import Estimator, Prediction

Z, H, W = 4, 40, 56


def blurred_noise(seed, size, radius):
    """Noise that is the softer the larger `radius`; wraps around."""
    image = np.random.default_rng(seed).random((*size, 3))
    for axis in (0, 1):
        image = np.mean([np.roll(image, k, axis) for k in range(-radius, radius + 1)], axis=0)
    return image


def photographs():
    """Left half in focus in the first frame, right half in the last; uint8 [Z,H,W,3]."""
    size, half = (H, W), W // 2
    frames = []
    for z in range(Z):
        left, right = blurred_noise(0, size, z), blurred_noise(0, size, Z - 1 - z)
        frames.append(np.concatenate([left[:, :half], right[:, half:]], axis=1))
    return np.rint(np.stack(frames) * 255).astype(np.uint8)


def save(folder, frames, names=None):
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / (names[i] if names else f"{i}.png"))
    return folder


# In memory ------------------------------------------------------------


def test_classical_finds_both_planes_in_any_order_and_unit():
    frames = photographs()
    left, right = np.s_[8:-8, 8:20], np.s_[8:-8, 36:-8]
    result = predict(frames, method="classical")
    assert result.unit == "index" and "frame index" in result.notes[-1]
    assert np.median(result.depth[left]) < 0.5 and np.median(result.depth[right]) > Z - 1.5
    for name, shape in (("depth", (H, W)), ("confidence", (H, W)), ("disagreement", (H, W)),
                        ("all_in_focus", (H, W, 3))):  # fmt: skip
        values = getattr(result, name)
        assert isinstance(values, np.ndarray) and values.dtype == np.float32 and values.shape == shape
        assert np.isfinite(values).all()
    metres = predict(frames, [1.0, 2.0, 3.0, 8.0], unit="metre", method="classical")
    assert (
        metres.focus.tolist() == [8, 3, 2, 1] and metres.order.tolist() == [3, 2, 1, 0] and metres.notes == ()
    )
    assert np.median(metres.depth[left]) < 1.2 and np.median(metres.depth[right]) > 5
    shuffled = predict(list(frames[[2, 0, 3, 1]]), [3.0, 1.0, 8.0, 2.0], unit="metre", method="classical")
    np.testing.assert_array_equal(shuffled.depth, metres.depth)
    assert shuffled.order.tolist() == [2, 0, 3, 1]
    floats = predict(frames / 255.0, [1.0, 2.0, 3.0, 8.0], unit="metre", method="classical")
    np.testing.assert_allclose(floats.depth, metres.depth, rtol=1e-3)


def test_grey_frames_are_repeated():
    grey = photographs()[..., 0]
    one, other = predict(grey, method="classical"), predict(np.stack([grey] * 3, -1), method="classical")
    np.testing.assert_array_equal(one.depth, other.depth)


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (photographs() / 200.0, {}, r"\[0, 1\]"),
        (np.full((3, H, W), np.nan), {}, r"NaN"),
        (photographs().astype(int), {}, "int64"),
        (photographs()[:1], {}, "at least 2 frames"),
        (photographs()[0], {}, "at least 16 pixels"),
        ([np.zeros((H, W, 3)), np.zeros((H, W + 1, 3))], {}, "frame 1 has shape"),
        (np.zeros((2, H, W, 5)), {}, "neither"),
        (photographs(), {"focus": [1, 2]}, "2 settings for 4 frames"),
        (photographs(), {"focus": [1, 2, 2, 3]}, "same focus setting"),
        (photographs(), {"unit": "metre"}, "none given in metre"),
        (photographs(), {"unit": "mile"}, "mile"),
        (photographs(), {"method": "magic"}, "magic"),
        (photographs(), {"method": "classical", "weights": "w.safetensors"}, "one of the two"),
        (photographs(), {"weights": "/no/such.safetensors"}, "such"),
        (photographs(), {"iterations": -1}, "iterations"),
        (photographs(), {"tile": 10}, "tile"),
        (photographs(), {"overlap": 600}, "overlap"),
        (photographs(), {"memory": 0}, "memory: must be more than 0 GB"),
        (photographs(), {"memory": 0.1}, "memory: 0.1 GB are too little for the maps .* allow 0.8 GB or more"),
        (photographs(), {"devices": 9}, "devices"),
    ],
)
def test_bad_input(frames, options, message):
    with pytest.raises(InputError, match=message):
        predict(frames, **options)


# To a folder ------------------------------------------------------------


def test_files_and_summary(tmp_path):
    names = [f"shot_{i}_{m}.png" for i, m in enumerate(("0.50", "1.00", "2.00", "4.00"))]
    source = save(tmp_path / "stack", photographs(), names)
    target = tmp_path / "a" / "b"
    summary = predict_to_folder(source, target, method="classical", progress=False)
    assert sorted(p.name for p in target.glob("[!.]*")) == sorted(FILES)
    assert json.loads((target / "summary.json").read_text()) == summary
    assert summary["frames"] == names[::-1] and summary["focus"] == [4, 2, 1, 0.5]
    assert summary["unit"] == "metre" and summary["method"] == "classical" and summary["weights"] is None
    assert summary["size"] == [H, W] and summary["seconds"] > 0 and summary["near"] == "smaller"
    depth = np.load(target / "depth.npy")
    assert depth.dtype == np.float32 and depth.shape == (H, W) and np.isfinite(depth).all()
    assert np.median(depth[8:-8, 8:20]) < 0.6 and np.median(depth[8:-8, 36:-8]) > 3
    with Image.open(target / "depth.png") as image:
        coded = np.asarray(image)
    assert coded.dtype == np.uint16 and coded.min() == 0 and coded.max() == 65535
    scale = summary["depth_png"]
    np.testing.assert_allclose(1 / (scale["offset"] + scale["scale"] * coded), depth, rtol=1e-3)
    assert "1 / (offset + scale * value)" in scale["rule"]
    with Image.open(target / "depth_color.png") as image:  # near is warm
        colours = np.asarray(image)[:, : W * (image.height // H)].astype(int)
    near = colours[:, : colours.shape[1] // 3].mean((0, 1))
    far = colours[:, -colours.shape[1] // 3 :].mean((0, 1))
    assert near[0] > near[2] and far[2] > far[0]
    for name in ("confidence.npy", "disagreement.npy"):
        assert np.load(target / name).shape == (H, W)
    with Image.open(target / "all_in_focus.png") as image:
        assert image.size == (W, H)


def test_existing_output_keeps_other_files_and_takes_new_maps(tmp_path):
    source, target = save(tmp_path / "stack", photographs()), tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    (target / "depth.npy").write_text("mine")
    with pytest.raises(InputError, match=r"depth.npy: was not written here by this program.*, or give --overwrite"):
        predict_to_folder(source, target, progress=False)
    assert (target / "depth.npy").read_text() == "mine" and len(list(target.iterdir())) == 2
    summary = predict_to_folder(source, target, max_size=28, progress=False, iterations=2, overwrite=True)
    assert sorted(p.name for p in target.glob("[!.]*")) == sorted([*FILES, "mine.txt"])
    assert np.load(target / "depth.npy").shape == (20, 28) and summary["photograph_size"] == [H, W]
    notes = " ".join(summary["notes"])
    assert "frame index" in notes and "scaled" in notes and "network of this package" in notes
    assert summary["unit"] == "index" and summary["near"] == "unknown" and summary["iterations"] == 2
    plain = predict(photographs(), method="sml", iterations=2)
    assert "iterations has no effect on sml" in plain.notes


def test_weights_are_used(tmp_path, monkeypatch):
    """The door to a trained network: its iterations, label, NaN and Z, with a network that is none."""
    seen = {}

    def built(value):
        def apply(variables, frames, focus, *, train=False, num_iterations=None):
            seen.update(k=num_iterations, train=train)
            shape = (1, *frames.shape[2:4])
            return Prediction(jnp.full(shape, value), jnp.ones(shape), jnp.zeros(shape), frames[:, 0]), {}

        return Estimator(lambda *_: {}, apply)

    def load(spec):
        model = module.config.paper() if "paper" in str(spec) else module.config.tiny()
        return weights_module.Weights(model, {}, {"num_frames": 15}), "label"

    monkeypatch.setattr(module, "load_named", load)
    monkeypatch.setattr(module, "identity", lambda model: None)  # its programs must not outlive this test
    monkeypatch.setattr(module, "_built", lambda model: built(1.5))
    source = save(tmp_path / "stack", photographs())
    summary = predict_to_folder(source, tmp_path / "out", weights="w.safetensors", progress=False)
    assert summary["iterations"] == 3 == seen["k"] and seen["train"] is False
    assert summary["weights"] == "w.safetensors" and summary["method"] == "proximal"
    predict_to_folder(source, tmp_path / "out", weights="w.safetensors", iterations=7, progress=False)
    assert seen["k"] == 7
    assert np.load(tmp_path / "out" / "depth.npy").tolist() == np.full((H, W), 1.5).tolist()
    with pytest.raises(InputError, match="stacks of exactly 15 frames"):
        predict(photographs(), weights="paper.safetensors")
    monkeypatch.setattr(module, "_built", lambda model: built(jnp.nan))
    with pytest.raises(InputError, match="NaN"):
        predict_to_folder(source, tmp_path / "other", weights="w.safetensors", progress=False)
    assert not (tmp_path / "other").exists()


def test_bad_outputs_are_found_before_the_work(tmp_path, monkeypatch):
    source = save(tmp_path / "stack", photographs())
    (tmp_path / "file").write_text("x")
    (tmp_path / "locked").mkdir(mode=0o555)
    (tmp_path / "taken" / "depth.npy").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(module, "estimate", None)  # reaching it would raise TypeError
    for target, message in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "is a file"),
        (tmp_path / "locked", "read-only"),
        (tmp_path / "locked" / "below", "read-only"),
        (tmp_path / "taken", "depth.npy: is a folder"),
        (tmp_path / ("x" * 300), "cannot be written"),
        (source, "folder of the frames"),
        ("", "empty name"),
    ):
        with pytest.raises(InputError, match=message):
            predict_to_folder(source, target, progress=False)
    with monkeypatch.context() as patch:
        usage = namedtuple("usage", "total used free")(10**9, 10**9 - 5000, 5000)
        patch.setattr(output.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(InputError, match="0 MB free where about 3 MB are needed"):
            predict_to_folder(source, tmp_path / "new", progress=False)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("existing", [True, False])
def test_nothing_half_written(tmp_path, monkeypatch, existing):
    source, target = save(tmp_path / "stack", photographs()), tmp_path / "deep" / "out"
    if existing:
        target.mkdir(parents=True)
        (target / "mine.txt").write_text("old")
    before = sorted(tmp_path.rglob("*"))

    def full(path, picture, profile=b""):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(panels, "save_png", full)
    with pytest.raises(InputError, match="No space left"):
        predict_to_folder(source, target, method="sml", progress=False)
    assert sorted(tmp_path.rglob("*")) == before

    def stop(path, picture, profile=b""):
        raise KeyboardInterrupt

    monkeypatch.setattr(panels, "save_png", stop)
    with pytest.raises(KeyboardInterrupt):
        predict_to_folder(source, target, method="sml", progress=False)
    assert sorted(tmp_path.rglob("*")) == before
    if existing:
        assert (target / "mine.txt").read_text() == "old"


# Large stacks ------------------------------------------------------------


def large(tmp_path, monkeypatch):
    """A stack that is large to `predict_to_folder`: its frames go to disk, and it is cut into tiles."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (3, 140, 280, 3), np.uint8)
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    return frames, save(tmp_path / "stack", frames)


def test_a_large_stack_gives_what_a_small_one_gives(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "kept as conftest set it")
    frames, source = large(tmp_path, monkeypatch)
    whole = predict(frames, method="sml")
    result = predict(frames, method="sml", tile=128, overlap=32)
    summary = predict_to_folder(source, tmp_path / "out", method="sml", tile=128, devices=2, memory=2.5, progress=False)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "depth.npy"), result.depth, atol=1e-6)
    np.testing.assert_allclose(result.depth, whole.depth, atol=1e-4)
    told = summary["memory"]
    assert told["bound_gb"] == 2.5 and told["frames_on_disk"] and told["devices"] == 2
    assert told["tiles"] > 2 and max(told["tile"]) <= 128 and 0 < told["programs_gb"] < 0.1
    assert result.tiling.tiles == told["tiles"] and whole.tiling.tiles == 1
    status = cli.main(["predict", str(source), "--output", str(tmp_path / "out"), "--method", "sml", "--tile", "128",
                       "--memory", "3"])  # fmt: skip
    told = capsys.readouterr().out
    assert status == 0 and "tiles of " in told and "within 3 GB of memory, frames kept on disk" in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "stack"]


def test_frames_on_disk_are_aligned_to_the_same_bits(tmp_path, monkeypatch):
    pytest.importorskip("cv2", reason="OpenCV is in the extra `align`")
    big = np.rint(255 * blurred_noise(0, (70, 90), 2)).astype(np.uint8)
    source = save(tmp_path / "stack", np.stack([big[5 : 5 + H, 5 + k : 5 + k + W] for k in range(0, 6, 2)]))
    told = []
    for name in ("small", "large"):
        told.append(predict_to_folder(source, tmp_path / name, method="sml", align="translation", progress=False))
        monkeypatch.setattr(module, "IN_MEMORY", 0)
    assert [t["memory"]["frames_on_disk"] for t in told] == [False, True]
    assert told[0]["alignment"] == told[1]["alignment"] and told[0]["alignment"]["frames"][0]["corners"] > 1
    for path in sorted((tmp_path / "small").glob("*.n*y")) + sorted((tmp_path / "small").glob("*.png")):
        assert path.read_bytes() == (tmp_path / "large" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_frames_on_disk_are_gone_after_an_error(tmp_path, monkeypatch, error):
    _, source = large(tmp_path, monkeypatch)
    seen = []

    def stop(*args, **kwargs):
        seen.extend(args[2].frames.shape)
        raise error

    monkeypatch.setattr(module, "estimate", stop)
    with pytest.raises(error):
        predict_to_folder(source, tmp_path / "deep" / "out", method="sml", progress=False)
    assert seen == [3, 140, 280, 3]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["0.png", "1.png", "2.png", "stack"]


def test_sixteen_bits_profile_and_holes_go_out_as_they_came_in(tmp_path):
    frames, rng = photographs().astype(np.uint16) * 257, np.random.default_rng(0)
    unseen, sharp = np.indices((H, W))[0] < 10, (frames[0] / 65535).astype(np.float32)
    depth = rng.random((H, W), np.float32)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    result = Result(
        depth, depth, depth, sharp, np.arange(Z, dtype=float), "index", np.arange(Z), (), TilingReport((H, W), 1, 0, 1),
        unseen=unseen, deep=True, profile=profile,
    )  # fmt: skip
    summary = prediction_files.write_maps(tmp_path, frames, ["a"] * Z, result, "a stack")
    picture = images.read_picture(tmp_path / "all_in_focus.png")
    np.testing.assert_array_equal(picture.pixels, frames[0])
    np.testing.assert_array_equal(picture.opaque, ~unseen)
    assert picture.profile == profile and summary["points"]["count"] == (H - 10) * W
    coloured = images.read_picture(tmp_path / "depth_color.png")  # 6 times as large, beside its bar
    assert not coloured.opaque[:60, : 6 * W].any() and coloured.opaque[60:].all() and coloured.opaque[:, 6 * W :].all()
    plain = result._replace(unseen=None, deep=False)
    assert prediction_files.write_maps(tmp_path, frames, ["a"] * Z, plain, "a stack")["points"]["count"] == H * W
    picture = images.read_picture(tmp_path / "all_in_focus.png")
    assert picture.pixels.dtype == np.uint8 and picture.opaque is None and picture.profile == profile


def test_depth_png_of_a_flat_map():
    flat = np.full((4, 4), 2.5, np.float32)
    coded, scale = prediction_files.sixteen_bit(flat, "disparity")
    np.testing.assert_allclose(scale["offset"] + scale["scale"] * coded, flat)


def test_compiling_is_told_once_and_not_when_the_program_is_in_memory_or_on_disk(capsys, tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers")
    frames = np.random.default_rng(0).random((3, 38, 54, 3), np.float32)
    before, depths = jax.config.jax_compilation_cache_dir, []
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        for expected in (1, 0, 0):
            found = module.predict(frames, method="sml", progress=True)
            told = capsys.readouterr().err
            assert told.count("compiling for 3 frames of 54 x 38 pixels, kept for the next time\n") == expected
            depths.append(found.depth)
            if not expected:
                monkeypatch.setattr(tiled, "_programs", {})
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    np.testing.assert_array_equal(depths[0], depths[1])
    np.testing.assert_array_equal(depths[0], depths[2])


def test_interrupts_wait_for_xla_but_are_not_lost(capfd, default_signals):
    done = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        with stopping.interrupt_held_back():
            signal.raise_signal(signal.SIGINT)
            done.append("the block ends first")
    assert done and signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr().err.startswith("stopping as soon as")
    with pytest.raises(KeyboardInterrupt):
        with stopping.interrupt_held_back():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("a second one does not wait")
    assert len(done) == 1


@pytest.mark.parametrize("method", ["proximal", "dfv", "aifdnet", "dwild"])
def test_networks_have_no_global_statistics_which_a_late_built_one_would_lose(method):
    presets = [config.model_preset(name) for name in config.MODEL_PRESETS]
    model = next(preset for preset in presets if preset.method == method)
    late = module._built(model)
    assert late is module._built(model) and late.global_statistics is None
    assert estimators.build(model).global_statistics is None
