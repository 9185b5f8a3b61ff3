"""One file to one array: photographs (JPEG, PNG, TIFF, BMP; 8 and 16 bit) and depth maps (EXR, npy).

Pillow decodes 8-bit pictures, palettes and JPEG. It silently cuts 16-bit RGB down to 8 bit, so 16-bit PNG
goes through imagecodecs and TIFF through tifffile.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from dff_jax.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow too calls it a decompression bomb
_FORMATS = ("JPEG", "PNG", "BMP")
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112  # the EXIF and TIFF tag

# tifffile reports damage both by raising and by logging; the exception is enough.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def read_image(path: str | Path) -> np.ndarray:
    """A photograph as RGB, upright as its EXIF orientation says; grey is repeated, alpha is dropped.

    What the file holds decides, not its suffix.

    Returns:
      [H,W,3] uint8 or uint16 (more than 8 bits a sample, scaled to the full 16; a float TIFF in [0,1] too).

    Raises:
      InputError: missing, unreadable, empty, truncated, corrupt, too large, or none of the formats.
    """
    path = Path(path)
    data = _read_bytes(path)
    try:
        if data[:4] in _TIFF_HEADS:
            return _read_tiff(data)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if data[:8] == _PNG_HEAD and data[24] == 16 and image.mode != "I;16":
                return _read_png16(data, image)
            return _from_pillow(image)
    except Image.UnidentifiedImageError:
        raise InputError(f"{path}: not a JPEG, PNG, TIFF or BMP image; remove it or convert it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{path}: more than {MAX_PIXELS // 10**6} megapixels; scale it down first") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # each decoder has its own exceptions, and all mean this
        raise InputError(f"{path}: truncated or corrupt image ({_one_line(error)}); copy it again") from None


def downscale(image: np.ndarray, max_size: int | None) -> np.ndarray:
    """Brings the longer side of [H,W,3] uint8 or uint16 down to `max_size` (antialiased, Lanczos)."""
    height, width = image.shape[:2]
    if max_size is None or max(height, width) <= max_size:
        return image
    scale = max_size / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    planes = [
        np.asarray(Image.fromarray(image[..., c].astype(np.float32)).resize(size, Image.Resampling.LANCZOS))
        for c in range(3)
    ]
    return np.clip(np.rint(np.stack(planes, axis=-1)), 0, 65535).astype(np.uint16)


def read_depth(path: str | Path) -> np.ndarray:
    """A depth or disparity map from `.npy`, or `.exr` (channel Y, Z, R, or the only one).

    Returns:
      [H,W] float32, with 0 for "no truth here" as the file has it.

    Raises:
      InputError: unreadable, not one map of real numbers, or not finite somewhere.
    """
    path = Path(path)
    values = _read_exr(path) if path.suffix.lower() == ".exr" else _read_npy(path)
    bad = values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        raise InputError(f"{path}: {bad} of {values.size} values are NaN or infinite; write 0 where unknown")
    return values


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not data:
        raise InputError(f"{path}: the file is empty; copy it again or remove it")
    return data


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _from_pillow(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _to_rgb(np.asarray(image).clip(0, 65535).astype(np.uint16))
    if "transparency" in image.info:  # Pillow warns when a transparent palette goes to RGB in one step
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _read_png16(data: bytes, image: Image.Image) -> np.ndarray:
    import imagecodecs

    pixels = imagecodecs.png_decode(data)
    return _turn(_to_rgb(pixels), image.getexif().get(_ORIENTATION, 1))


def _read_tiff(data: bytes) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        plain = (tifffile.PHOTOMETRIC.MINISWHITE, tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)
        if page.photometric not in plain:  # palette, YCbCr, CMYK: 8 bit, and Pillow knows the conversions
            with Image.open(io.BytesIO(data), formats=(TiffImagePlugin.TiffImageFile.format,)) as image:
                return _from_pillow(image)
        if page.imagewidth * page.imagelength > MAX_PIXELS:
            raise InputError(f"more than {MAX_PIXELS // 10**6} megapixels; scale it down first")
        if page.axes not in ("YX", "YXS", "SYX"):
            raise InputError(f"a TIFF of axes {page.axes} is not one picture; save each frame as a file")
        pixels = _full_range(page.asarray(), page.bitspersample)
        pixels = np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = np.iinfo(pixels.dtype).max - pixels
        tag = page.tags.get(_ORIENTATION)
        return _turn(_to_rgb(pixels), int(tag.value) if tag else 1)


def _full_range(pixels: np.ndarray, bits: int) -> np.ndarray:
    """TIFF samples to uint8 or uint16 over the whole range of the type."""
    if pixels.dtype in (np.uint8, np.uint16) and bits in (8, 16):
        return pixels
    if pixels.dtype.kind == "f":
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


def _read_npy(path: Path) -> np.ndarray:
    try:
        values = np.load(io.BytesIO(_read_bytes(path)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: not a .npy file of numbers ({_one_line(error)})") from None
    if not isinstance(values, np.ndarray):
        values.close()
        raise InputError(f"{path}: holds several arrays; save the depth map alone with numpy.save")
    if values.dtype.kind not in "uif":
        raise InputError(f"{path}: holds {values.dtype}, not real numbers; save the depth map as float32")
    values = values.squeeze()
    if values.ndim != 2:
        raise InputError(f"{path}: has shape {values.shape}, where a depth map is height x width")
    return values.astype(np.float32)


def _read_exr(path: Path) -> np.ndarray:
    import OpenEXR

    _read_bytes(path)  # OpenEXR's own message for a missing or empty file names neither
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {name: channel.pixels for name, channel in file.channels().items()}
    except Exception as error:  # OpenEXR raises bare RuntimeErrors and others
        raise InputError(f"{path}: not a readable EXR file ({_one_line(error)})") from None
    name = next((name for name in ("Y", "Z", "R") if name in channels), None)
    if name is None and len(channels) == 1:
        name = next(iter(channels))
    if name is None:
        names = ", ".join(channels)
        raise InputError(f"{path}: has channels {names}; depth is expected in Y, Z, R or a single one")
    return np.asarray(channels[name], dtype=np.float32)
