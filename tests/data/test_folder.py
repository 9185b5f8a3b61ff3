"""Photographs and focus settings in, in the right order, or one clear error."""

import os
import tempfile
from collections import namedtuple
from pathlib import Path

import imagecodecs
import numpy as np
import OpenEXR
import pytest
from PIL import Image

from dff_jax.data.files.focus_settings import focus_settings
from dff_jax.data.files.folder import find, list_stacks, read_labelled_stack
from dff_jax.data.files.frame_store import allocator, on_disk, release_pages
from dff_jax.data.files.series import natural_key
from dff_jax.data.files.stack import read_stack
from dff_jax.errors import InputError
from dff_jax.runtime import files as output

H, W = 20, 24


def level(value, size=(H, W)):
    return np.full((*size, 3), value, np.uint8)


def save(folder, names, values=None):
    """Flat frames whose grey level says which file they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(level(i if values is None else values[i])).save(folder / name)
    return folder


def levels(stack):
    return stack.frames[:, 0, 0, 0].tolist()


def test_counters_give_only_the_order(tmp_path):
    save(tmp_path, ["frame10.JPG", "frame2.jpg", "frame1.jpeg"], [90, 40, 10])
    save(tmp_path / "reference", ["x.png", "y.png"])
    for name in ("AiF.png", ".hidden.png"):
        Image.fromarray(level(200)).save(tmp_path / name)
    (tmp_path / "Thumbs.db").write_text("x")
    (tmp_path / "focal_length.txt").write_text("0.2")
    stack, read = read_stack(tmp_path)
    assert stack.unit == "index" and stack.focus.tolist() == [0, 1, 2]
    assert list(read.names) == ["frame1.jpeg", "frame2.jpg", "frame10.JPG"]
    assert levels(stack) == [10, 40, 90]
    assert "frame index" in read.notes[0]
    backward, read = read_stack(tmp_path, reverse=True)
    assert levels(backward) == [90, 40, 10] and backward.focus.tolist() == [0, 1, 2]
    assert read.names[0] == "frame10.JPG"
    globbed, _ = read_stack(str(tmp_path / "frame*.jp*g"))
    assert levels(globbed) == [10, 40]


def test_values_in_names_are_sorted_by_value(tmp_path):
    save(tmp_path / "bare", ["16.25.png", "100.0.png", "16.4.png"], [1, 3, 2])
    stack, read = read_stack(tmp_path / "bare")
    assert (
        stack.unit == "disparity"
        and stack.focus.tolist() == [16.25, 16.4, 100.0]
        and levels(stack) == [1, 2, 3]
    )
    assert "disparity" in read.notes[0]
    save(tmp_path / "metres", ["image_1_0.35.png", "image_2_0.50.png", "image_3_2.21.png"], [1, 2, 3])
    stack, read = read_stack(tmp_path / "metres")
    assert stack.unit == "metre" and stack.focus.tolist() == [2.21, 0.5, 0.35]  # far to near, q ascending
    assert levels(stack) == [3, 2, 1]
    stack, _ = read_stack(tmp_path / "metres", unit="diopter")
    assert stack.focus.tolist() == [0.35, 0.5, 2.21]
    save(tmp_path / "mixed", ["10.0.png", "20.png"])
    stack, read = read_stack(tmp_path / "mixed")
    assert stack.unit == "index" and "counter" in read.notes[0]


def test_distance_file(tmp_path):
    save(tmp_path, ["a1.png", "a2.png", "a10.png"], [1, 2, 10])
    (tmp_path / "focus_distance.txt").write_bytes(b"\xef\xbb\xbf0.5\r\n7223525.8\r\n2.0\r\n\r\n")
    stack, read = read_stack(tmp_path)
    assert (
        stack.unit == "metre"
        and stack.focus.tolist() == [7223525.8, 2.0, 0.5]
        and levels(stack) == [2, 10, 1]
    )
    assert "focus_distance.txt" in read.notes[0]
    given, read = read_stack(tmp_path, focus=[3, 1, 2])  # an explicit list comes first, in natural file order
    assert given.unit == "disparity" and levels(given) == [2, 10, 1]
    with pytest.raises(InputError, match="reverse"):
        read_stack(tmp_path, reverse=True)
    (tmp_path / "focus_distance.txt").write_text("0.5\nfar\n2.0\n")
    with pytest.raises(InputError, match="focus_distance.txt, line 2: 'far'"):
        read_stack(tmp_path)
    (tmp_path / "focus_distance.txt").write_text("0.5\n2.0\n")
    with pytest.raises(InputError, match="2 distances for 3 frames"):
        read_stack(tmp_path)
    (tmp_path / "focus_distance.txt").write_text("0.5\n2.0\nnan\n")
    with pytest.raises(InputError, match="focus_distance.txt, line 3: .nan. is not a finite"):
        read_stack(tmp_path)
    (tmp_path / "focus_distance.txt").write_text("0.5\n2.0\n0.5\n")
    with pytest.raises(InputError, match="same focus setting"):
        read_stack(tmp_path)


@pytest.mark.parametrize(
    ("focus", "unit", "message"),
    [
        ([1, 2], None, "2 settings for 3 frames"),
        ([1, 2, "x"], None, "focus: .*'x'"),
        ([1, 2, 2], None, "same focus setting"),
        ([1, 2, np.inf], None, "not a finite number"),
        ([0, 1, 2], "metre", "not positive"),
        ([0, 1, 2], "mile", "choose one of disparity"),
        (None, "metre", "no focus settings in metre"),
    ],
)
def test_bad_focus(tmp_path, focus, unit, message):
    save(tmp_path, ["1.png", "2.png", "3.png"])
    with pytest.raises(InputError, match=message):
        read_stack(tmp_path, focus=focus, unit=unit)


def test_bad_folders(tmp_path):
    save(tmp_path / "sizes", ["1.png", "2.png"])
    Image.fromarray(level(0, (H, W + 1))).save(tmp_path / "sizes" / "3.png")
    save(tmp_path / "one", ["1.png"])
    save(tmp_path / "twice", ["1.png", "1.jpg"])
    save(tmp_path / "link", ["1.png", "2.png"])
    (tmp_path / "link" / "3.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("sizes", r"3.png: 25 x 20 where 1.png is 24 x 20"),
        ("one", "only one image"),
        ("empty", "no images"),
        ("twice", "one frame twice"),
        ("link", "leads nowhere"),
        ("gone", "no such folder"),
        ("*.tif", "no images"),
        ("one/1.png", "one image; a focal stack is"),
    ):
        with pytest.raises(InputError, match=message):
            read_stack(str(tmp_path / name))


def test_mixed_depths_and_max_size(tmp_path):
    save(tmp_path, ["1.png"], [200])
    (tmp_path / "2.png").write_bytes(imagecodecs.png_encode(np.full((H, W, 3), 200 * 257, np.uint16)))
    stack, _ = read_stack(tmp_path)
    assert stack.frames.dtype == np.uint16 and levels(stack) == [200 * 257] * 2
    save(tmp_path / "big", ["1.png", "2.png"])
    for name in ("1.png", "2.png"):
        Image.fromarray(level(7, (40, 80))).save(tmp_path / "big" / name)
    stack, read = read_stack(tmp_path / "big", max_size=40)
    assert stack.frames.shape == (2, 20, 40, 3) and read.full_size == (40, 80) and "scaled" in read.notes[-1]
    with pytest.raises(InputError, match="max_size"):
        read_stack(tmp_path / "big", max_size=4)


def test_natural_order_and_settings_of_a_list(tmp_path):
    names = ["b2", "a10", "a9", "a09b", "a9b"]
    assert sorted(names, key=natural_key) == ["a9", "a09b", "a9b", "a10", "b2"]
    save(tmp_path, ["s_-2.5.png", "s_1e.png"])
    assert focus_settings([tmp_path / "s_-2.5.png", tmp_path / "s_1e.png"]).unit == "index"
    signed = focus_settings([tmp_path / "-2.5.png", tmp_path / "2.2e-16.png"])  # as Python writes floats
    assert signed.values.tolist() == [-2.5, 2.2e-16] and signed.unit == "disparity"


# Ground truth ------------------------------------------------------------


def labelled(folder, depth, name="disp.npy"):
    # natural order would put 55.5 before 55.25
    save(folder, ["10.0.png", "55.5.png", "55.25.png", "AiF.png"], [1, 3, 2, 9])
    if name.endswith(".npy"):
        np.save(folder / name, depth)
    else:
        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        with OpenEXR.File(header, depth) as file:
            file.write(str(folder / name))
    return folder


def test_labelled_stack(tmp_path):
    depth = np.linspace(0, 90, H * W, dtype=np.float32).reshape(H, W)
    for number, (name, data) in enumerate(
        [
            ("disp.npy", depth),
            ("disp.npy", depth.astype(np.float64)[..., None]),
            ("disp.exr", {"Y": depth}),
            ("disp.exr", {"R": depth, "G": depth + 1, "B": depth + 2}),
            ("disp.exr", {"disparity": depth}),
        ]
    ):
        stack = read_labelled_stack(labelled(tmp_path / f"scene{number}", data, name), "disparity")
        assert stack.focus.tolist() == [10, 55.25, 55.5] and levels(stack) == [1, 2, 3]
        np.testing.assert_array_equal(stack.depth, depth)
        np.testing.assert_array_equal(stack.mask, depth > 0)
        assert stack.depth.dtype == np.float32 and stack.name == f"scene{number}"
    assert [path.name for path in list_stacks(tmp_path)] == [f"scene{i}" for i in range(5)]
    assert list_stacks(tmp_path / "scene3") == [tmp_path / "scene3"]


@pytest.mark.parametrize("name", ["disp.npy", "depth.pfm", "Depth.npz", "DISP.PNG", "depth.exr"])
def test_truth_is_read_by_any_reader_and_has_holes(tmp_path, name):
    depth = np.linspace(1, 90, H * W, dtype=np.float32).reshape(H, W).round()
    holes = depth.copy()
    holes[0, :4] = [0, np.nan, np.inf, -np.inf]
    folder = labelled(tmp_path / "train" / "scene", depth)
    (folder / "disp.npy").unlink()
    save(folder, ["depth.jpg"])  # a picture of it
    suffix = name[-4:].lower()
    if suffix == ".npz":
        np.savez(folder / name, holes)
    elif suffix == ".pfm":
        (folder / name).write_bytes(b"Pf\n%d %d\n-1\n" % (W, H) + holes[::-1].tobytes())
    elif suffix == ".png":
        Image.fromarray(np.where(np.isfinite(holes), 2 * holes, 0).astype(np.uint16)).save(folder / name)
        with pytest.raises(InputError, match=f"{name}: a PNG needs a scale"):
            read_labelled_stack(folder, "disparity")
        (tmp_path / "train" / "scale.txt").write_text("1/2\n")
    else:
        labelled(folder, holes if suffix == ".npy" else {"Z": holes}, name)
    assert list_stacks(tmp_path) == [folder]
    stack = read_labelled_stack(folder, "disparity")
    assert stack.focus.tolist() == [10, 55.25, 55.5]
    known = np.arange(H * W).reshape(H, W) > 3
    np.testing.assert_array_equal(stack.mask, known)
    np.testing.assert_array_equal(stack.depth, np.where(known, depth, 0))


def test_bad_truth(tmp_path):
    depth = np.ones((H, W), np.float32)
    cases = {
        "nan": (np.full((H, W), np.nan, np.float32), "every value is NaN or infinite"),
        "size": (np.ones((H, W + 1), np.float32), "disp.npy: 25 x 20"),
        "zero": (np.zeros((H, W), np.float32), "everywhere"),
        "text": (np.full((H, W), "x"), "not real numbers"),
        "many": (np.ones((2, H, W), np.float32), "height x width"),
        "object": (np.array([None] * 4, object), "not real numbers"),
    }
    for name, (data, message) in cases.items():
        with pytest.raises(InputError, match=message):
            read_labelled_stack(labelled(tmp_path / name, data), "disparity")
    with pytest.raises(InputError, match="negative distances"):
        read_labelled_stack(labelled(tmp_path / "metre", -depth), "metre")
    (tmp_path / "zero" / "disp.npy").unlink()
    with pytest.raises(InputError, match="no ground truth; looked for disp.* and depth.*"):
        read_labelled_stack(tmp_path / "zero", "disparity")
    (tmp_path / "zero" / "disp.exr").write_text("hello")
    with pytest.raises(InputError, match="disp.exr: truncated or corrupt EXR"):
        read_labelled_stack(tmp_path / "zero", "disparity")
    Image.fromarray(level(0)).save(tmp_path / "size" / "preview.png")
    with pytest.raises(InputError, match="preview.png: no focus setting in the name"):
        read_labelled_stack(tmp_path / "size", "disparity")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="no focal stack"):
        list_stacks(tmp_path / "nothing")


# Large stacks ------------------------------------------------------------


def test_many_frames_lie_on_disk_and_are_the_same(tmp_path):
    """Also of 8 and 16 bit in one stack, where the array is made anew half way."""
    rng = np.random.default_rng(0)
    (tmp_path / "stack").mkdir()
    for i, kind in enumerate((np.uint8, np.uint8, np.uint16)):
        frame = rng.integers(0, np.iinfo(kind).max, (H, W, 3), kind, endpoint=True)
        (tmp_path / "stack" / f"{i}.png").write_bytes(imagecodecs.png_encode(frame))
    plain, _ = read_stack(tmp_path / "stack")
    size = plain.frames.nbytes
    stored, _ = read_stack(tmp_path / "stack", allocate=allocator(tmp_path / "out", size - 1))
    assert on_disk(stored.frames) and not on_disk(plain.frames) and stored.frames.dtype == np.uint16
    release_pages(stored.frames)
    np.testing.assert_array_equal(stored.frames, plain.frames)
    fitting, _ = read_stack(tmp_path / "stack", allocate=allocator(tmp_path / "out", size))
    assert not on_disk(fitting.frames)
    assert [path.name for path in tmp_path.iterdir()] == ["stack"]  # the file has no name


def test_a_disk_without_room_for_the_frames(tmp_path, monkeypatch):
    save(tmp_path / "stack", ["1.png", "2.png"])

    def full(file, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.os, "posix_fallocate", full)
    with pytest.raises(InputError, match="no room for 0 MB of scratch .*No space left"):
        read_stack(tmp_path / "stack", allocate=allocator(tmp_path / "out", 0))
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 500, 500)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="0 MB free where about 0 MB are needed"):
        read_stack(tmp_path / "stack", allocate=allocator(tmp_path / "out", 0))


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_be_listed_but_not_entered():
    with tempfile.TemporaryDirectory() as outer:  # others may not enter those of pytest
        os.chmod(outer, 0o755)
        source = Path(outer) / "stack"
        source.mkdir()
        for i in range(2):
            Image.fromarray(np.zeros((32, 32), np.uint8)).save(source / f"{i}.png")
        source.chmod(0o444)
        os.seteuid(12345)
        try:
            with pytest.raises(InputError, match="stack: cannot be read"):
                find(source)
            with pytest.raises(InputError, match="no images"):
                find(str(source / "*.png"))
        finally:
            os.seteuid(0)
