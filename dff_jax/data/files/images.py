"""Photographs from files, one file to one array (JPEG, PNG, TIFF, BMP; 8 and 16 bit).

Pillow decodes 8-bit images, palettes and JPEG. It silently cuts 16-bit RGB down to 8 bit, so 16-bit PNG is decoded by
imagecodecs and TIFF by tifffile.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from dff_jax.data.files.reading import MAX_PIXELS, read_bytes, reading
from dff_jax.errors import InputError

if TYPE_CHECKING:
    import tifffile

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
# Photographs that are not read. A note names them, unless there is a frame of the same name: cameras write both.
OTHER_SUFFIXES = frozenset(
    ".heic .heif .avif .webp .gif .jp2 .jxl .dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .pef .srw .x3f".split()
)
_MAX_SAMPLES = 2**29  # of an image that is not decoded by Pillow, so that a few copies fit into 2 GiB
_BAND = 256  # rows
_FORMATS, _TIFF = ("JPEG", "PNG", "BMP"), TiffImagePlugin.TiffImageFile.format or "TIFF"
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_HEAD, _PNG_TAIL = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_ORIENTATION = 0x0112  # the EXIF and TIFF tag

# tifffile reports damage both by raising and by logging; the exception is enough.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class Picture(NamedTuple):
    """One photograph as it is shown."""

    pixels: np.ndarray  # [H,W,3] uint8 or uint16, upright
    opaque: np.ndarray | None = None  # [H,W] bool, False where alpha is 0; None: the file has no such pixel
    orientation: int = 1  # EXIF orientation, 1 to 8, that was applied
    profile: bytes = b""  # ICC profile as in the file; b"" where there is none


class Header(NamedTuple):
    """What a file says of its photograph before any pixel."""

    size: tuple[int, int]  # H, W, upright
    orientation: int = 1  # EXIF, 1 to 8
    captured: str = ""  # EXIF time such as "2024:05:01 12:00:00.25"; "" where there is none
    subject_distance: float | None = None  # metres, from EXIF
    pages: int = 1  # of full size


class Pages(NamedTuple):
    """A TIFF of several pages as a stack."""

    count: int  # pages of full size
    step: float | None = None  # from page to page, in `unit`
    unit: str | None = None  # "micron" or "mm"; None: not known
    positions: tuple[float, ...] | None = None  # [count] in `unit`, where the file has one for each page


def read_picture(
    path: str | Path, *, page: int = 0, orientation: int | None = None, max_size: int | None = None
) -> Picture:
    """A photograph, upright; see `read_image`.

    Args:
      page: which of the full-size pages of a TIFF.
      orientation: EXIF orientation to apply instead of the file's own.
      max_size: longest side in pixels that the photograph is scaled down to.
    """
    return Picture(downscale(read_image(path), max_size))


def read_header(path: str | Path) -> Header:
    """What the header of a photograph says. Raises InputError as `image_size` does."""
    return Header(image_size(path))


def read_pages(path: str | Path) -> Pages:
    """How many pictures a file holds, and the z step between them. Raises InputError as `image_size` does."""
    return Pages(read_header(path).pages)


def read_image(path: str | Path) -> np.ndarray:
    """A photograph as RGB, upright as its EXIF orientation says; grey is repeated, alpha is dropped.

    The format follows from the content, not from the suffix.

    Returns:
      [H,W,3] uint8 or uint16 (more than 8 bits a sample, scaled to the full 16; a float TIFF in [0,1] too).

    Raises:
      InputError: missing, unreadable, empty, truncated, corrupt, too large, or none of the formats.
    """
    data = read_bytes(path)
    with reading(path):
        if data[:4] in _TIFF_HEADS:
            return _read_tiff(data)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if data[:8] == _PNG_HEAD:
                check_png(data)
                if data[24] == 16 and image.mode != "I;16":
                    return _read_png16(data, image)
            return _from_pillow(image)


def image_size(path: str | Path) -> tuple[int, int]:
    """H, W of a photograph as `read_image` gives it, from its header alone; for a quick check of many files.

    Raises:
      InputError: missing, empty, none of the formats, too large, or a PNG file without its end.
    """
    head = read_bytes(path, 8)
    with reading(path):
        if head == _PNG_HEAD:
            with open(path, "rb") as file:
                file.seek(-min(64, file.seek(0, 2)), 2)
                if _PNG_TAIL not in file.read():  # bytes behind it do no harm
                    raise InputError("truncated, it has no end; copy it again")
        with Image.open(path, formats=(*_FORMATS, _TIFF)) as image:
            try:
                turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            except Exception:  # a PNG file may have damaged EXIF behind the pixels, which reading reports
                turned = False
            return (image.width, image.height) if turned else (image.height, image.width)


def downscale(image: np.ndarray, max_size: int | None) -> np.ndarray:
    """Brings the longer side of [H,W,3] uint8 or uint16 down to `max_size` (antialiased, Lanczos)."""
    height, width = image.shape[:2]
    if max_size is None or max(height, width) <= max_size:
        return image
    scale = max_size / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    planes = (Image.fromarray(image[..., c].astype(np.float32)) for c in range(3))
    small = np.stack([np.asarray(plane.resize(size, Image.Resampling.LANCZOS)) for plane in planes], axis=-1)
    return np.clip(np.rint(small), 0, 65535).astype(np.uint16)


def check_png(data: bytes) -> tuple[int, int, int, int]:
    """Width, height, bits and colour type of a PNG file, all of whose checksums are right.

    Decoders pass over many of the checksums, and then give wrong pixels. Raises many kinds of errors for damage.
    """
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.verify()
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return width, height, data[24], data[25]


def _from_pillow(image: Image.Image) -> np.ndarray:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        return _to_rgb(np.asarray(image).clip(0, 65535).astype(np.uint16))
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _BAND):  # whole, the conversions would need several times the memory
        band = image.crop((0, top, image.width, min(top + _BAND, image.height)))
        if "transparency" in image.info:  # Pillow warns when a transparent palette goes to RGB in one step
            band = band.convert("RGBA")
        rgb[top : top + _BAND] = np.asarray(band.convert("RGB"))
    return rgb


def _read_png16(data: bytes, image: Image.Image) -> np.ndarray:
    import imagecodecs

    if image.width * image.height * {2: 3, 6: 4}.get(data[25], 2) > _MAX_SAMPLES:
        raise InputError(f"more than {_MAX_SAMPLES // 10**6} million samples of 16 bit; scale it down first")
    return _turn(_to_rgb(imagecodecs.png_decode(data)), image.getexif().get(_ORIENTATION, 1))


def _read_tiff(data: bytes) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        _check_strips(page)
        plain = (tifffile.PHOTOMETRIC.MINISWHITE, tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)
        if page.photometric not in plain:  # palette, YCbCr, CMYK: 8 bit, and Pillow knows the conversions
            with Image.open(io.BytesIO(data), formats=(_TIFF,)) as image:
                return _from_pillow(image)
        if page.axes not in ("YX", "YXS", "SYX"):
            raise InputError(f"a TIFF of axes {page.axes} is not one image; save each frame as a file")
        pixels = page.asarray()
        if pixels.size != page.imagelength * page.imagewidth * page.samplesperpixel:
            raise ValueError("it holds no whole image")
        pixels = _full_range(pixels, page.bitspersample)
        pixels = np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = np.iinfo(pixels.dtype).max - pixels
        tag = page.tags.get(_ORIENTATION)
        return _turn(_to_rgb(pixels), int(tag.value) if tag else 1)


def _check_strips(page: tifffile.TiffPage) -> None:
    """Raises unless a TIFF has as many strips or tiles as its size needs, and all their bytes if uncompressed.

    tifffile fills up with zeros what is missing.
    """
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    if height < 1 or width < 1:
        raise ValueError(f"{width} x {height} pixels")
    if height * width > MAX_PIXELS or height * width * samples * -(-page.bitspersample // 16) > _MAX_SAMPLES:
        raise InputError(f"more than {MAX_PIXELS // 10**6} megapixels; scale it down first")
    planes = samples if page.planarconfig == 2 else 1
    pixel_bits = samples * page.bitspersample // planes  # in each plane
    if page.is_tiled:
        count = planes * -(-height // page.tilelength) * -(-width // page.tilewidth)
        size = count * page.tilelength * -(-page.tilewidth * pixel_bits // 8)
    else:
        count = planes * -(-height // min(page.rowsperstrip or height, height))
        size = planes * height * -(-width * pixel_bits // 8)
    sizes = page.databytecounts
    if len(page.dataoffsets) != count or len(sizes) != count or (page.compression == 1 and sum(sizes) != size):
        raise ValueError(f"{len(sizes)} strips of {sum(sizes)} bytes for {width} x {height} pixels")


def _full_range(pixels: np.ndarray, bits: int) -> np.ndarray:
    """TIFF samples to uint8 or uint16 over the whole range of the type."""
    if pixels.dtype in (np.uint8, np.uint16) and bits in (8, 16):
        return pixels
    if pixels.dtype.kind == "f":
        if pixels.size > _MAX_SAMPLES // 4:
            raise InputError(f"more than {_MAX_SAMPLES // 4 // 10**6} million float samples; save it as 16 bit")
        if not np.all((pixels >= 0) & (pixels <= 1)):  # False for NaN as well
            raise InputError("a float TIFF must lie in [0, 1] with no NaN; rescale it or save it as 16 bit")
        return np.rint(pixels * 65535.0).astype(np.uint16)
    if pixels.dtype.kind not in "ub":
        raise InputError(f"samples of type {pixels.dtype} are not supported; save it as 8 or 16 bit")
    top, kind = (255, np.uint8) if bits < 8 else (65535, np.uint16)
    return np.rint(pixels * (top / (2.0**bits - 1))).astype(kind)


def _to_rgb(pixels: np.ndarray) -> np.ndarray:
    """[H,W], or [H,W,C] with grey, grey+alpha, RGB or RGBA, to [H,W,3]."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[-1] < 3:
        pixels = np.repeat(pixels[..., :1], 3, axis=-1)
    return np.ascontiguousarray(pixels[..., :3], dtype=pixels.dtype.newbyteorder("="))


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
