"""Depth maps and HDF5 files in: exact values, the right way up, or one clear error."""

import os
import subprocess
import sys

import dataset_files as files
import h5py
import imagecodecs
import numpy as np
import OpenEXR
import pytest
import tifffile
from PIL import Image

from dff_jax.data.files import folder, images
from dff_jax.data.files.depth_maps import read_depth_map
from dff_jax.data.files.hdf5 import fits, need, open_h5
from dff_jax.errors import InputError

H, W = 20, 24
DEPTH = np.random.default_rng(0).uniform(-5, 90, (H, W)).astype(np.float32)


def write_pfm_by_hand(path, values, order="<", scale=1.0, colour=False):
    head = f"{'PF' if colour else 'Pf'}\n{values.shape[1]} {values.shape[0]}\n{'-' if order == '<' else ''}{scale}\n"
    path.write_bytes(head.encode() + values[::-1].astype(f"{order}f4").tobytes())


def test_pfm_rows_run_upwards_in_both_byte_orders(tmp_path):
    path = tmp_path / "a.pfm"
    for order, scale in (("<", "1.0"), (">", "1.0"), ("<", "0.003922"), (">", "1e-3")):  # the size means nothing
        write_pfm_by_hand(path, DEPTH, order, scale)
        values, finite = read_depth_map(path)
        np.testing.assert_array_equal(values, DEPTH)
        assert finite.all() and values.dtype == np.float32 and values.flags.c_contiguous and values.flags.writeable
    path.write_bytes(b"Pf\r\n2 1\r\n-1\r\n" + np.array([1, 2], "<f4").tobytes())
    assert read_depth_map(path).values.tolist() == [[1, 2]]
    path.write_bytes(b"Pf\n# made by hand\n1\n2\n-1\n" + np.array([1, 2], "<f4").tobytes())
    assert read_depth_map(path).values.tolist() == [[2], [1]]


def test_pfm_in_colour(tmp_path):
    path = tmp_path / "a.pfm"
    write_pfm_by_hand(path, np.stack([DEPTH] * 3, -1), colour=True)
    np.testing.assert_array_equal(read_depth_map(path).values, DEPTH)
    write_pfm_by_hand(path, np.stack([DEPTH, DEPTH + 1, DEPTH + 2], -1), colour=True)
    with pytest.raises(InputError, match="a.pfm: a colour image"):
        read_depth_map(path)


@pytest.mark.parametrize("kind", ["ZIP", "ZIPS", "RLE", "PIZ", "NO"])
def test_exr_float_and_half(tmp_path, kind):
    compression = getattr(OpenEXR, f"{kind}_COMPRESSION")
    half = DEPTH.astype(np.float16)
    for channels, expected in (
        ({"Y": DEPTH}, DEPTH),
        ({"R": half, "G": half, "B": half}, half),  # as FoD500 has it
        ({"distance": DEPTH}, DEPTH),
        ({"A": DEPTH * 2, "Z": DEPTH}, DEPTH),
    ):
        with OpenEXR.File({"compression": compression, "type": OpenEXR.scanlineimage}, channels) as file:
            file.write(str(tmp_path / "a.exr"))
        values, finite = read_depth_map(tmp_path / "a.exr")
        np.testing.assert_array_equal(values, expected.astype(np.float32))
        assert finite.all() and values.dtype == np.float32


def test_exr_that_is_no_depth_map(tmp_path):
    path = tmp_path / "a.exr"
    files.write_exr(path, {"U": DEPTH, "V": DEPTH})
    with pytest.raises(InputError, match="a.exr: has channels U, V; depth is expected in Y, Z, R"):
        read_depth_map(path)
    files.write_exr(path, {"Y": DEPTH.astype(np.uint32)})
    with pytest.raises(InputError, match="channel Y holds uint32"):
        read_depth_map(path)
    with OpenEXR.File({"type": OpenEXR.scanlineimage, "displayWindow": ((0, 0), (99, 99))}, {"Y": DEPTH}) as file:
        file.write(str(path))
    with pytest.raises(InputError, match="do not cover the image"):
        read_depth_map(path)


@pytest.mark.parametrize("kind", ["f2", "f4", ">f4", "f8", "u1", ">u2", "i4"])
def test_npy_of_any_real_type_and_order(tmp_path, kind):
    values = np.abs(DEPTH).astype(kind)
    for layout in (values, np.asfortranarray(values), values[..., None], values[None]):
        np.save(tmp_path / "a.npy", layout)
        found = read_depth_map(tmp_path / "a.npy").values
        np.testing.assert_array_equal(found, values.astype(np.float32))
        assert found.dtype == np.float32 and found.flags.writeable


def test_a_map_one_pixel_wide_stays_a_map(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((1, 5, 1)))
    assert read_depth_map(tmp_path / "a.npy").values.shape in ((5, 1), (1, 5))
    np.save(tmp_path / "a.npy", np.ones((1, 5)))
    assert read_depth_map(tmp_path / "a.npy").values.shape == (1, 5)


def test_npz_with_one_array(tmp_path):
    path = tmp_path / "a.npz"
    for write in (np.savez, np.savez_compressed):
        write(path, DEPTH)
        np.testing.assert_array_equal(read_depth_map(path).values, DEPTH)
    np.savez(path, depth=DEPTH, confidence=DEPTH * 0)
    with pytest.raises(InputError, match="holds depth.npy, confidence.npy where a single array is expected"):
        read_depth_map(path)


def test_png_of_8_and_16_bit_with_scale(tmp_path):
    path = tmp_path / "a.png"
    eight, sixteen = (np.arange(H * W) % 256).reshape(H, W).astype(np.uint8), (np.abs(DEPTH) * 700).astype(np.uint16)
    for image in (eight, sixteen, np.stack([eight] * 3, -1), np.stack([eight, 255 - eight], -1)):  # the last: alpha
        path.write_bytes(imagecodecs.png_encode(image))
        expected = image if image.ndim == 2 else image[..., 0]
        np.testing.assert_array_equal(read_depth_map(path).values, expected.astype(np.float32))
        np.testing.assert_array_equal(read_depth_map(path, scale=0.25).values, expected / np.float32(4))
    Image.fromarray(eight).save(path)
    np.testing.assert_array_equal(read_depth_map(path, scale=1 / 3).values, eight * np.float32(1 / 3))
    Image.fromarray(eight).quantize(8).save(path)
    with pytest.raises(InputError, match="a.png: has a palette"):
        read_depth_map(path)
    Image.fromarray(eight > 99).save(path)
    with pytest.raises(InputError, match="a.png: has 1 bit"):
        read_depth_map(path)
    path.write_bytes(imagecodecs.png_encode(np.stack([eight, eight, 255 - eight], -1)))
    with pytest.raises(InputError, match="a colour image"):
        read_depth_map(path)


def test_what_is_not_finite_is_told_and_0_stays(tmp_path):
    holes = DEPTH.copy()
    holes[0, :4] = [np.nan, np.inf, -np.inf, 0]
    np.save(tmp_path / "a.npy", holes)
    write_pfm_by_hand(tmp_path / "a.pfm", holes)
    files.write_exr(tmp_path / "a.exr", {"Y": holes})
    for name in ("a.npy", "a.pfm", "a.exr"):
        values, finite = read_depth_map(tmp_path / name)
        assert not values[0, :4].any() and finite[0, :4].tolist() == [False] * 3 + [True]
        np.testing.assert_array_equal(values[1:], DEPTH[1:])
        assert finite[1:].all()
    np.save(tmp_path / "a.npy", np.array([[1e300, 0.0], [5e38, 2.0]]))  # float32 holds neither
    values, finite = read_depth_map(tmp_path / "a.npy")
    assert finite.tolist() == [[False, True], [False, True]] and values.tolist() == [[0, 0], [0, 2]]
    np.save(tmp_path / "a.npy", np.array([[3e38, 2.0]], np.float32))
    assert read_depth_map(tmp_path / "a.npy", scale=10).finite.tolist() == [[False, True]]


def test_slips(tmp_path):
    np.save(tmp_path / "a.npy", DEPTH)
    for scale in (0, -1, np.nan, np.inf):
        with pytest.raises(InputError, match="scale: must be a positive number"):
            read_depth_map(tmp_path / "a.npy", scale=scale)
    (tmp_path / "a.tif").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a.tif: not a depth map by its name; known are .exr, .pfm"):
        read_depth_map(tmp_path / "a.tif")
    with pytest.raises(InputError, match="none.pfm: missing"):
        read_depth_map(tmp_path / "none.pfm")


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="a.npy: not a plain file"):
        read_depth_map(tmp_path / "a.npy")
    with pytest.raises(InputError, match="a.png: not a plain file"):
        images.read_image(tmp_path / "a.png")


def test_pixels_with_a_wrong_checksum_are_refused(tmp_path):
    """Pillow passes over the checksums of pixels and gives other ones."""
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)).save(path, compress_level=0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="a.png: truncated or corrupt image .*checksum"):
        images.read_image(path)


def test_a_tiff_without_all_its_strips_is_refused(tmp_path):
    """tifffile fills up what is missing with zeros."""
    picture = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", compression="deflate")
    data = (tmp_path / "a.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        place = file.pages[0].tags["ImageLength"].valueoffset
    (tmp_path / "a.tif").write_bytes(data[:place] + bytes([H + 8]) + data[place + 1 :])
    with pytest.raises(InputError, match="a.tif: truncated or corrupt image .1 strips"):
        images.read_image(tmp_path / "a.tif")


def test_truth_of_a_stack_may_be_half_an_exr(tmp_path):
    files.write_stack(tmp_path / "s", 10.0, 100.0)
    half = np.abs(files.truth()).astype(np.float16)
    files.write_exr(tmp_path / "s" / "disp.exr", {"R": half, "G": half, "B": half})
    stack = folder.read_labelled_stack(tmp_path / "s", "disparity")
    np.testing.assert_array_equal(stack.depth, half.astype(np.float32))
    np.testing.assert_array_equal(stack.mask, half != 0)  # 0 is none


# HDF5 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def h5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["stack"] = np.arange(2 * 3 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 3, 4, 5, 3)
        file["group/depth"] = np.ones((2, 4, 5), np.float32)
        file.create_dataset("packed", data=np.zeros((50, 60)), compression="gzip", chunks=(20, 20))
        file.create_dataset("chunks", data=np.zeros((50, 60), ">f2"), chunks=(20, 20))
        file["names"] = ["a", "b"]
        file["scalar"] = 3.0
        file["complex"] = np.ones(3, complex)
        file["soft"] = h5py.SoftLink("/stack")
        file["outside"] = h5py.ExternalLink("b.h5", "stack")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["stack"] = np.zeros((2, 3, 4, 5, 3), np.uint8)
    return tmp_path / "a.h5"


def test_arrays_of_an_h5_file(h5):
    with open_h5(h5) as file:
        stack = need(file, "stack", (None, 3, None, None, 3))
        assert stack.shape == (2, 3, 4, 5, 3) and int(stack[1, 0, 0, 0, 0]) == 180
        assert need(file, "group/depth", (2, None, None), "f").dtype == np.float32
        assert need(file, "packed").shape == need(file, "chunks", kinds="f").shape == (50, 60)
        assert need(file, "scalar", ())[()] == 3.0
    assert not file.id.valid  # closed


@pytest.mark.parametrize(
    ("key", "shape", "kinds", "words"),
    [
        ("none", None, "uif", "no none in it, only chunks, complex, group, names"),
        ("group/none", None, "uif", "no group/none in it"),
        ("stack/x", None, "uif", "no stack/x in it"),
        ("group", None, "uif", "group: not an array"),
        ("stack", (None, 10, None, None, 3), "uif", r"has shape .* where \(any, 10, any, any, 3\) is expected"),
        ("stack", (2, 3), "uif", r"where \(2, 3\)"),
        ("stack", None, "f", "stack: holds uint8 where numbers are expected"),
        ("names", None, "uif", "names: holds object"),
        ("complex", None, "uif", "complex: holds complex128"),
        ("soft", None, "uif", "soft: a link"),
        ("outside", None, "uif", "outside: a link"),
    ],
)
def test_what_is_not_as_expected_in_an_h5_file(h5, key, shape, kinds, words):
    with open_h5(h5) as file, pytest.raises(InputError, match=f"a.h5: .*{words}"):
        need(file, key, shape, kinds)


def test_arrays_that_lie_elsewhere_or_were_not_written(tmp_path):
    values = np.ones((4, 5), np.float32)
    (tmp_path / "raw").write_bytes(values.tobytes())
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = values
    layout = h5py.VirtualLayout(values.shape, "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "b.h5"), "x", values.shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("external", (4, 5), "f4", external=[(str(tmp_path / "raw"), 0, values.nbytes)])
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("late", (4, 5), "f4")  # no values: nothing is stored
        half = file.create_dataset("half", (40, 40), "f4", chunks=(20, 20))
        half[:20] = 1.0
        file.create_dataset("huge", (2**31, 2**31), "f4", chunks=(64, 64), compression="gzip")
        file.create_dataset("coarse", (2**15, 2**15), "f4", chunks=(2**14, 2**14))
        file["empty"] = h5py.Empty("f4")
    with open_h5(tmp_path / "a.h5") as file:
        for key, words in {
            "external": "lies in other files", "virtual": "lies in other files", "late": "not written whole",
            "half": "not written whole", "huge": "not written whole", "coarse": "has chunks beyond 256 MiB",
            "empty": "holds nothing",
        }.items():  # fmt: skip
            with pytest.raises(InputError, match=f"a.h5: {key}: .*{words}"):
                need(file, key)


def test_not_an_h5_file(tmp_path):
    for name, data, words in (
        ("none.h5", None, "missing"),
        ("empty.h5", b"", "is empty"),
        ("text.h5", b"hello", "truncated or corrupt HDF5 file"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name}: .*{words}") as caught, open_h5(tmp_path / name):
            pass
        assert "\n" not in str(caught.value)


def test_h5py_is_wanted_only_when_used(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"pip install 'dff-jax\[datasets\]'"), open_h5(tmp_path / "a.h5"):
        pass
    code = "import sys, dff_jax.data.files.hdf5; from dff_jax.data.files import depth_maps as d"
    code += "; print('h5py' in sys.modules, d.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "dff_jax.data.files.depth_maps"]


def test_fits():
    assert fits((2, 3), (None, 3)) and fits((), ()) and not fits((2, 3), (3, 3)) and not fits((2, 3), (None,))
