"""One photograph: 8 and 16 bit, upright, or one clear error."""

import struct
import tracemalloc
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from dff_jax.data.files import images, scaling
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


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "ppm", "gif", "tif", "jp2", "avif"])
def test_formats_by_content_and_transparent_pixels(tmp_path, suffix):
    if f".{suffix}" not in images.IMAGE_SUFFIXES:
        pytest.skip("this Pillow does not read it")
    options = {"webp": {"lossless": True}, "gif": {}, "jp2": {"irreversible": False}}.get(suffix, {"quality": 100})
    Image.fromarray(RGB8).save(tmp_path / f"a.{suffix}", **options)
    (tmp_path / f"a.{suffix}").rename(tmp_path / "a.bmp")
    found = images.read_picture(tmp_path / "a.bmp")
    assert np.abs(found.pixels.astype(int) - RGB8).mean() < 5 and found.opaque is None
    assert images.read_header(tmp_path / "a.bmp").size == (H, W) and images.read_pages(tmp_path / "a.bmp").count == 1
    if suffix not in ("jpg", "bmp", "ppm"):
        seen = np.indices((H, W))[1] > 5
        clear = np.dstack([RGB8, np.where(seen, 255, 0).astype(np.uint8)])
        Image.fromarray(clear).save(tmp_path / f"b.{suffix}", **options)
        np.testing.assert_array_equal(images.read_picture(tmp_path / f"b.{suffix}").opaque, seen)


def test_alpha_of_every_kind_leaves_the_colours(tmp_path):
    alpha = np.where(RGB16[..., :1] < 9000, 0, 30000).astype(np.uint16)
    deep, grey = np.concatenate([RGB16, alpha], -1), np.concatenate([RGB16[..., :1], alpha], -1)
    (tmp_path / "rgba.png").write_bytes(imagecodecs.png_encode(deep))
    (tmp_path / "grey.png").write_bytes(imagecodecs.png_encode(grey))
    for kind in ("unassalpha", "assocalpha"):
        tifffile.imwrite(tmp_path / f"{kind}.tif", deep, photometric="rgb", extrasamples=[kind])
    tifffile.imwrite(tmp_path / "grey.tif", grey, photometric="minisblack", extrasamples=["unassalpha"])
    for path in tmp_path.iterdir():
        found = images.read_picture(path)
        np.testing.assert_array_equal(found.opaque, alpha[..., 0] > 0, err_msg=path.name)
        expected = RGB16[..., :1].repeat(3, -1) if "grey" in path.name else RGB16
        np.testing.assert_array_equal(found.pixels, expected, err_msg=path.name)
    tifffile.imwrite(tmp_path / "mask.tif", deep, photometric="rgb", extrasamples=["unspecified"])  # a selection
    assert images.read_picture(tmp_path / "mask.tif").opaque is None
    palette = Image.fromarray(RGB8).quantize(8)
    palette.save(tmp_path / "palette.png", transparency=bytes([0] + [255] * 7))
    seen = np.asarray(palette) != 0
    np.testing.assert_array_equal(images.read_picture(tmp_path / "palette.png").opaque, seen)


def test_floats_and_deep_greys_of_every_kind(tmp_path):
    for kind, steps in ((np.float16, 32), (np.float32, 0), (np.float64, 0)):
        tifffile.imwrite(tmp_path / "a.tif", (RGB16 / 65535).astype(kind), photometric="rgb")
        assert np.abs(images.read_image(tmp_path / "a.tif").astype(int) - RGB16).max() <= steps
        assert images.image_size(tmp_path / "a.tif") == (H, W)
    white = np.ones((H, W), np.float16)  # whose 65535 is infinite
    tifffile.imwrite(tmp_path / "white.tif", white)
    assert (images.read_image(tmp_path / "white.tif") == 65535).all()
    turned = [(0x0112, "H", 1, 6, True)]
    tifffile.imwrite(tmp_path / "t.tif", (RGB16 / 65535).astype(np.float32), photometric="rgb", extratags=turned)
    assert images.image_size(tmp_path / "t.tif") == images.read_image(tmp_path / "t.tif").shape[:2] == (W, H)
    (tmp_path / "a.ppm").write_bytes(b"P6\n# a comment\n24 20\n65535\n" + RGB16.astype(">u2").tobytes())
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.ppm"), RGB16)
    (tmp_path / "a.ppm").write_bytes((tmp_path / "a.ppm").read_bytes()[:-9])
    with pytest.raises(InputError, match="truncated"):
        images.read_image(tmp_path / "a.ppm")


def test_what_the_header_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    details = {0x9003: "2024:05:01 12:00:07", 0x9291: "25", 0x9206: TiffImagePlugin.IFDRational(7, 20)}
    exif.get_ifd(0x8769).update(details)
    data = exif.tobytes()
    exif.load(data)  # only what is loaded gets into a TIFF
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
        Image.fromarray(RGB8).save(tmp_path / name, exif=exif, icc_profile=profile)
        header = images.read_header(tmp_path / name)
        assert header[:4] == ((W, H), 6, "2024:05:01 12:00:07.25", 0.35), name
        found = images.read_picture(tmp_path / name)
        assert found.pixels.shape == (W, H, 3) and found.orientation == 6 and found.profile == profile
        assert images.read_picture(tmp_path / name, orientation=1).pixels.shape == (H, W, 3)
    for distance, read in ((0, None), (65535, None), (2**32 - 1, np.inf)):
        exif.get_ifd(0x8769)[0x9206] = TiffImagePlugin.IFDRational(distance)
        Image.fromarray(RGB8).save(tmp_path / "a.jpg", exif=exif)
        assert images.read_header(tmp_path / "a.jpg").subject_distance == read


def test_scaled_while_decoded_is_scaled_afterwards(tmp_path):
    big = np.kron(RGB16, np.ones((10, 10, 1), np.uint16)) + np.arange(240, dtype=np.uint16)[None, :, None]
    Image.fromarray((big >> 8).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    Image.fromarray((big >> 8).astype(np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(big))
    tifffile.imwrite(tmp_path / "a.tif", big, photometric="rgb", compression="zlib", predictor=True, rowsperstrip=7)
    tifffile.imwrite(tmp_path / "b.tif", big, photometric="rgb", compression="zlib", tile=(32, 32))
    tifffile.imwrite(tmp_path / "c.tif", np.moveaxis(big, -1, 0), photometric="rgb", planarconfig="separate")
    for path in tmp_path.iterdir():
        whole, found = images.read_image(path), images.read_picture(path, max_size=101).pixels
        expected = scaling.downscale(whole, 101)
        assert found.shape == expected.shape == (84, 101, 3)
        error = np.abs(found.astype(float) - expected) / np.iinfo(found.dtype).max
        assert error.max() < 0.005 if path.suffix != ".jpg" else error.mean() < 0.01, path.name
    image = np.full((64, 64, 4), 200, np.uint8)
    image[:, :30] = 0  # transparent, which must not darken what is beside it
    Image.fromarray(image).save(tmp_path / "clear.png")
    found = images.read_picture(tmp_path / "clear.png", max_size=16)
    assert not found.opaque[:, :7].any() and found.opaque[:, 8:].all()
    np.testing.assert_allclose(found.pixels[found.opaque], 200, atol=1)


def test_a_very_large_picture_needs_little_memory_and_gives_no_warning(tmp_path):
    side = 9600  # 92 megapixels, of which Pillow warns
    Image.new("L", (side, side), 7).save(tmp_path / "a.jpg")
    grey = np.full((side, side), 7, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", grey, compression="zlib", rowsperstrip=500)
    for name in ("a.jpg", "a.tif"):
        header = images.read_header(tmp_path / name)
        assert header.size == (side, side) and images.decoding_bytes(header, 100) < 2**28
        tracemalloc.start()
        found = images.read_picture(tmp_path / name, max_size=100).pixels
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.shape == (100, 100, 3) and (found == 7).all() and peak < 2**27


def test_pages_are_a_stack(tmp_path):
    pages = np.stack([RGB8[..., 0] // 2 + 20 * i for i in range(5)])

    def imagej(**metadata):
        return {"imagej": True, "metadata": metadata}

    places = {"Plane": {"PositionZ": [0, 1, 2, 4, 7], "PositionZUnit": ["mm"] * 5}}
    made = {
        "plain.tif": ({}, (5, None, None, None)),
        "lone.tif": ({"truncate": True}, (5, None, None, None)),
        "micro.tif": (imagej(axes="ZYX", spacing=2.5, unit="um"), (5, 2.5, "micron", None)),
        "letter.tif": (imagej(spacing=2.5, unit="\\u00B5m"), (5, 2.5, "micron", None)),
        "nano.tif": (imagej(axes="ZYX", spacing=250, unit="nm"), (5, 0.25, "micron", None)),
        "hyper.tif": (imagej(axes="ZYX", spacing=0.5, unit="mm") | {"truncate": True}, (5, 0.5, "mm", None)),
        "pixel.tif": (imagej(axes="ZYX", spacing=1, unit="pixel"), (5, None, None, None)),
        "a.ome.tif": ({"metadata": {"axes": "ZYX", "PhysicalSizeZ": 3.0}}, (5, 3.0, "micron", None)),
        "b.ome.tif": (
            {"metadata": {"axes": "ZYX", "PhysicalSizeZ": 3.0, "PhysicalSizeZUnit": "mm"} | places},
            (5, 3.0, "mm", (0, 1, 2, 4, 7)),
        ),
    }
    for name, (options, expected) in made.items():
        tifffile.imwrite(tmp_path / name, pages, **options)
        assert images.read_pages(tmp_path / name) == expected, name
        assert images.read_header(tmp_path / name).pages == 5
        for i in (4, 0, 2):
            found = images.read_picture(tmp_path / name, page=i).pixels
            np.testing.assert_array_equal(found[..., 1], pages[i], err_msg=name)
        with pytest.raises(InputError, match="5 pages"):  # never silently the first one
            images.read_image(tmp_path / name)
        with pytest.raises(InputError, match="page 6"):
            images.read_picture(tmp_path / name, page=5)
    for name, options in {"c.tif": imagej(axes="ZCYX"), "d.ome.tif": {"metadata": {"axes": "TZYX"}}}.items():
        tifffile.imwrite(tmp_path / name, np.stack([pages[:3]] * 2), **options)
        with pytest.raises(InputError, match="export one channel at one time"):
            images.read_pages(tmp_path / name)
    data = (tmp_path / "plain.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(InputError, match="truncated"):
        images.read_pages(tmp_path / "cut.tif")


def test_thumbnails_are_no_pictures(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(RGB8[::4, ::4], photometric="rgb", subfiletype=1)
        file.write(RGB8, photometric="rgb", subifds=1)
        file.write(RGB8[::2, ::2], photometric="rgb", subfiletype=1)
        file.write(RGB8[::3, ::3], photometric="rgb")
        file.write(RGB8[..., 0] > 9, photometric=4, subfiletype=4)
    assert images.read_header(path).size == (H, W) and images.read_pages(path).count == 1
    np.testing.assert_array_equal(images.read_image(path), RGB8)
    with tifffile.TiffWriter(path) as file:
        file.write(RGB8, photometric="rgb")
        file.write(RGB8[1:], photometric="rgb")
    with pytest.raises(InputError, match="page 2 has 24 x 19 pixels, others 24 x 20"):
        images.read_pages(path)


@pytest.mark.parametrize("suffix", ["png", "gif", "webp"])
def test_animations_are_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB8).save(path, save_all=True, append_images=[Image.fromarray(255 - RGB8)])
    for read in (images.read_image, images.read_header):
        with pytest.raises(InputError, match="animation of 2 frames.*save the frames as files"):
            read(path)


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
        small = scaling.downscale((board * top).astype(kind), 32)
        assert small.shape == (16, 32, 3) and small.dtype == kind
        np.testing.assert_allclose(small / top, 0.5, atol=0.05)  # point sampling would give 0 or 1
        assert scaling.downscale(small, 32) is small
