"""One photograph: 8 and 16 bit, upright, or one clear error."""

import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from dff_jax.data.files import images
from dff_jax.errors import InputError

H, W = 20, 24
RGB16 = (np.arange(H * W * 3).reshape(H, W, 3) * 45).astype(np.uint16)
RGB8 = (RGB16 >> 8).astype(np.uint8)


def chunk(name, data):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_sixteen_bits_survive(tmp_path):
    (tmp_path / "rgb.png").write_bytes(imagecodecs.png_encode(RGB16))
    alpha = np.concatenate([RGB16, RGB16[..., :1]], -1)
    (tmp_path / "rgba.png").write_bytes(imagecodecs.png_encode(alpha))
    tifffile.imwrite(tmp_path / "rgb.tif", RGB16, photometric="rgb", compression="deflate")
    tifffile.imwrite(tmp_path / "big.tif", RGB16, photometric="rgb", byteorder=">")
    tifffile.imwrite(
        tmp_path / "planes.tif", np.moveaxis(RGB16, -1, 0), photometric="rgb", planarconfig="separate"
    )
    for name in ("rgb.png", "rgba.png", "rgb.tif", "big.tif", "planes.tif"):
        picture = images.read_image(tmp_path / name)
        assert picture.dtype == np.uint16, name
        np.testing.assert_array_equal(picture, RGB16, err_msg=name)


def test_grey_palette_and_inverted(tmp_path):
    grey = RGB16[..., 0]
    tifffile.imwrite(tmp_path / "grey.tif", grey)
    tifffile.imwrite(tmp_path / "white.tif", 65535 - grey, photometric="miniswhite")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    tifffile.imwrite(tmp_path / "float.tif", (grey / 65535).astype(np.float32))
    for name in ("grey.tif", "white.tif", "grey.png", "float.tif"):
        np.testing.assert_array_equal(
            images.read_image(tmp_path / name), np.stack([grey] * 3, -1), err_msg=name
        )
    palette = Image.fromarray(RGB8).quantize(8)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(8)))
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(images.read_image(tmp_path / "palette.png"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(RGB8)
    picture.save(tmp_path / "a.png", exif=exif)
    picture.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    tifffile.imwrite(
        tmp_path / "a.tif", RGB8, photometric="rgb", extratags=[(0x0112, "H", 1, orientation, True)]
    )
    with Image.open(tmp_path / "a.png") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(images.read_image(tmp_path / name), expected, err_msg=name)
    difference = images.read_image(tmp_path / "a.jpg").astype(int) - expected
    assert np.abs(difference).mean() < 4
    # 16-bit PNG is decoded by another library, so the turn is ours
    deep = imagecodecs.png_encode(RGB16)
    inserted = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "deep.png").write_bytes(deep[:33] + inserted + deep[33:])  # after the header
    turned = images.read_image(tmp_path / "deep.png")
    np.testing.assert_array_equal((turned >> 8).astype(np.uint8), expected)


def damaged(folder, kind):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    if kind in ("jpg", "png"):
        Image.fromarray(noise).save(folder / f"bad.{kind}")
    if kind == "deep.png":
        (folder / "bad.deep.png").write_bytes(imagecodecs.png_encode(noise.astype(np.uint16) * 257))
    if kind == "tif":
        tifffile.imwrite(folder / "bad.tif", noise, photometric="rgb")
    path = folder / f"bad.{kind}"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    return path


@pytest.mark.parametrize("kind", ["jpg", "png", "deep.png", "tif"])
def test_truncated(tmp_path, kind):
    path = damaged(tmp_path, kind)
    with pytest.raises(InputError, match=rf"{path}: truncated or corrupt"):
        images.read_image(path)


def test_not_images(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    header = struct.pack(">IIBBBBB", 2**30, 2**30, 8, 2, 0, 0, 0)
    absurd = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    (tmp_path / "absurd.png").write_bytes(absurd)
    tifffile.imwrite(tmp_path / "nan.tif", np.full((H, W), np.nan, np.float32))
    tifffile.imwrite(tmp_path / "signed.tif", np.full((H, W), -3, np.int16))
    for name, message in (
        ("text.png", "not a JPEG"),
        ("empty.png", "is empty"),
        ("absurd.png", "megapixels"),
        ("nan.tif", r"\[0, 1\]"),
        ("signed.tif", "int16"),
        ("missing.png", "missing.png: missing"),
    ):
        with pytest.raises(InputError, match=message) as error:
            images.read_image(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_downscale_is_an_average():
    board = np.indices((64, 128)).sum(0)[..., None] % 2 * np.ones(3)
    for kind, top in ((np.uint8, 255), (np.uint16, 65535)):
        small = images.downscale((board * top).astype(kind), 32)
        assert small.shape == (16, 32, 3) and small.dtype == kind
        np.testing.assert_allclose(small / top, 0.5, atol=0.05)  # point sampling would give 0 or 1
        assert images.downscale(small, 32) is small
