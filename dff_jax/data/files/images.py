"""Photographs from files, one file to one array, of 8 and 16 bits.

Pillow decodes 8 bits, palettes and JPEG. It silently cuts 16-bit RGB down to 8 bits, so 16-bit PNG is decoded by
imagecodecs, 16-bit PPM here, and TIFF by tifffile.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from dff_jax.data.files import tiff
from dff_jax.data.files.reading import check_pixels, read_bytes, reading
from dff_jax.data.files.scaling import fitting, from_pillow, full_range, scaled, upright, without_alpha
from dff_jax.data.files.z_steps import Pages
from dff_jax.errors import InputError

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF", "JPEG2000", "AVIF")
for _plugin in ("Jpeg", "Png", "Bmp", "WebP", "Ppm", "Gif", "Jpeg2K", "Avif", "Tiff"):
    with suppress(ImportError):  # AVIF is younger than the oldest Pillow that will do
        importlib.import_module(f"PIL.{_plugin}ImagePlugin")

IMAGE_SUFFIXES = tuple(".jpg .jpeg .jpe .jfif .png .tif .tiff .bmp .webp .ppm .pgm .pnm .gif .mpo".split())
IMAGE_SUFFIXES += tuple(s for s in (".jp2", ".avif") if s in Image.EXTENSION)
# Photographs that are not read. A note names them, unless there is a frame of the same name: cameras write both.
OTHER_SUFFIXES = frozenset(
    ".heic .heif .avif .jp2 .jxl .dng .cr2 .cr3 .nef .nrw .arw .raf .orf .rw2 .pef .srw .x3f .3fr .iiq .psd "
    ".gpr .rwl .mrw .dcr .kdc .erf .mef .raw .exr .hdr .tga .pcx .dib .czi .lif .nd2 .lsm .stk .mp4 .mov".split()
) - {*IMAGE_SUFFIXES}
_DRAFT = 2**26  # pixels of a JPEG above which a draft saves memory; it is scaled a little less exactly
# Bytes a pixel that decoding holds, 14 in other formats: Pillow's image, one of another mode, and their bytes.
_HELD = {"WEBP": 18, "JPEG2000": 20, "PPM": 24}
_ORIENTATION, _EXIF, _TIME, _FRACTION, _DISTANCE = 0x0112, 0x8769, 0x9003, 0x9291, 0x9206  # tags


class Picture(NamedTuple):
    """One photograph as it is shown."""

    pixels: np.ndarray  # [H,W,3] uint8 or uint16, upright
    opaque: np.ndarray | None = None  # [H,W] bool, False where alpha is 0; None: the file has no such pixel
    orientation: int = 1  # EXIF orientation, 1 to 8, that was applied
    profile: bytes = b""  # ICC profile for RGB as in the file; b"" where there is none


class Header(NamedTuple):
    """What a file says of its photograph before any pixel."""

    size: tuple[int, int]  # H, W, upright
    orientation: int = 1  # EXIF, 1 to 8
    captured: str = ""  # EXIF time such as "2024:05:01 12:00:00.25"; "" where there is none
    subject_distance: float | None = None  # metres, from EXIF
    pages: int = 1  # of full size
    held: int = 0  # bytes that decoding holds at full size, the result not counted; see `decoding_bytes`
    draft: bool = False  # whether the decoder can leave out pixels of a photograph that is scaled down


def read_image(path: str | Path) -> np.ndarray:
    """A photograph as RGB, upright as its EXIF orientation says; grey is repeated, alpha is dropped.

    Returns:
      [H,W,3] uint8 or uint16 (more than 8 bits a sample, scaled to the full 16; a float TIFF in [0,1] too).

    Raises:
      InputError: as `read_picture`; a file of several pages.
    """
    with reading(path):
        if _is_tiff(path) and (count := tiff.layout(path).pages.count) > 1:
            raise InputError(f"holds {count} pages where one picture is needed; save each page as a file")
    return read_picture(path).pixels


def read_picture(
    path: str | Path, *, page: int = 0, orientation: int | None = None, max_size: int | None = None
) -> Picture:
    """A photograph as RGB, upright; grey is repeated. The format follows from the content, not from the suffix.

    Args:
      page: which of the full-size pages of a TIFF.
      orientation: EXIF orientation to apply instead of the file's own.
      max_size: longest side in pixels that the photograph is scaled down to while it is decoded (antialiased).

    Raises:
      InputError: missing, unreadable, empty, truncated, corrupt, too large, an animation, or none of the formats.
    """
    with reading(path):
        box = None
        if _is_tiff(path):
            pixels, opaque, own, profile = tiff.read_page(path, page)
            size = fitting(pixels.shape[:2], max_size)
        else:
            with _opened(path) as image:
                own, profile = _facts(_exif(image))[0], image.info.get("icc_profile")
                size = fitting((image.height, image.width), max_size)
                if max_size is not None and image.width * image.height > _DRAFT:  # JPEG: a half, a quarter or an eighth
                    _, box = image.draft(None, size[::-1]) or (None, None)
                pixels, opaque = _decoded(path, image)
        turn = own if orientation is None else orientation
        pixels, opaque = scaled(pixels, opaque, size, box)
        pixels = np.ascontiguousarray(upright(np.broadcast_to(pixels, (*size, 3)), turn))
        opaque = None if opaque is None or opaque.all() else upright(opaque, turn)
        usable = profile if profile and profile[16:20] == b"RGB " else b""  # as grey and CMYK have become RGB
        return Picture(pixels, opaque, turn, usable)


def read_header(path: str | Path) -> Header:
    """What the header of a photograph says; for a quick check of many files.

    Raises:
      InputError: missing, empty, none of the formats, too large, an animation, or a PNG file without its end.
    """
    with reading(path):
        if _is_tiff(path):
            found, exif = tiff.layout(path), Image.Exif()
            with open(path, "rb") as file, suppress(Exception):
                exif.load_from_fp(file)
                exif.get_ifd(_EXIF)
            _, captured, distance = _facts(exif)
            turn = found.orientation
            size = (found.size[1], found.size[0]) if turn > 4 else found.size
            return Header(size, turn, captured, distance, found.pages.count, found.held)
        with _opened(path) as image:
            turn, captured, distance = _facts(_exif(image))
            size = image.size if turn > 4 else image.size[::-1]
            area = image.width * image.height
            draft = area > _DRAFT and image.format in ("JPEG", "MPO") and "progressive" not in image.info
            return Header(size, turn, captured, distance, 1, _HELD.get(image.format, 14) * area, draft)


def decoding_bytes(header: Header, max_size: int | None = None) -> int:
    """Memory that `read_picture` needs at most, about; also for its result, of up to 16 bits."""
    (height, width), full = fitting(header.size, max_size), header.size
    reduced = min(8, full[0] // height, full[1] // width) if header.draft else 1
    return max(header.held // (1 << reduced.bit_length() - 1) ** 2, 14 * height * width)


def read_pages(path: str | Path) -> Pages:
    """The pictures of a TIFF, as a stack; other files have one.

    Raises:
      InputError: as `read_header`; pages of several sizes, or several channels or time points.
    """
    with reading(path):
        return tiff.layout(path).pages if _is_tiff(path) else Pages(1)


def image_size(path: str | Path) -> tuple[int, int]:
    """H, W of a photograph as `read_image` gives it, from its header alone. Raises InputError as `read_header` does."""
    return read_header(path).size


def check_png(file: BinaryIO) -> tuple[int, int, int, int]:
    """Width, height, bits and colour type of a PNG file, all of whose checksums are right.

    Decoders pass over many of the checksums, and then give wrong pixels. Raises many kinds of errors for damage.
    """
    with Image.OPEN["PNG"][0](file, "") as image:
        check_pixels(image.height, image.width)
        image.verify()
    file.seek(16)
    head = file.read(10)
    return int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big"), head[8], head[9]


def _is_tiff(path: str | Path) -> bool:
    return read_bytes(path, 4) in tiff.HEADS


_GAP = rb"(?:\s|#[^\n]*\n)+"
_DEEP_PPM = re.compile(rb"P([56])" + rb"\d+".join([_GAP] * 3) + rb"(\d+)\s")  # binary, with its largest value


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """One picture as Pillow opens it. Its own bound of the size, which is lower and warns, plays no part."""
    head = read_bytes(path, 16)
    for name in _FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None or accepts is None or accepts(head) is not True:
            continue
        with open(path, "rb") as file, factory(file, "") as image:
            check_pixels(image.height, image.width)
            if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
                raise InputError(f"an animation of {frames} frames, not one picture; save the frames as files")
            if name == "PNG":
                image.info.setdefault("exif", _png_exif(path))
            yield image
            return
    raise Image.UnidentifiedImageError


def _png_exif(path: str | Path) -> bytes:
    """EXIF of a PNG file, which may lie behind the pixels; raises EOFError where it has no end."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            size = int.from_bytes(head[:4], "big")
            if head[4:] == b"eXIf":
                return b"Exif\0\0" + file.read(size)
            file.seek(size + 4, 1)
    if len(head) < 8:
        raise EOFError("it has no end")
    return b""


def _exif(image: Any) -> Image.Exif:
    with suppress(Exception):  # damaged EXIF
        exif = Image.Image.getexif(image)  # that of PNG would decode the pixels
        exif.get_ifd(_EXIF)
        return exif
    return Image.Exif()


def _facts(exif: Image.Exif) -> tuple[int, str, float | None]:
    """Orientation, time, and distance of the subject in metres."""
    turn, details = exif.get(_ORIENTATION, 1), exif.get_ifd(_EXIF)
    time = re.match(r"\d{4}(:\d\d){2} \d\d(:\d\d){2}", str(details.get(_TIME, "")))
    fraction = re.match(r"\d+", str(details.get(_FRACTION, "")))
    captured = (time[0] + (f".{fraction[0]}" if fraction else "")) if time and time[0][:4] != "0000" else ""
    rational = details.get(_DISTANCE, 0)
    try:
        distance = math.inf if getattr(rational, "numerator", 0) == 2**32 - 1 else float(rational)  # as EXIF defines it
    except (TypeError, ValueError, ZeroDivisionError):
        distance = 0.0
    known = 0 < distance < 65535 or distance == math.inf
    return turn if turn in range(1, 9) else 1, captured, distance if known else None


def _decoded(path: str | Path, image: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels of an opened picture, as `without_alpha` has them."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            bits = check_png(file)[2]
        if bits == 16 and image.mode != "I;16":
            import imagecodecs

            return without_alpha(imagecodecs.png_decode(read_bytes(path)))
    if image.format == "PPM" and (head := _DEEP_PPM.match(read_bytes(path, 2**12))) and int(head[2]) > 255:
        shape = image.height, image.width, 3 if head[1] == b"6" else 1
        samples = np.fromfile(path, ">u2", math.prod(shape), offset=head.end()).reshape(shape)
        return full_range(np.minimum(samples, int(head[2])), int(head[2])), None
    return from_pillow(image)
