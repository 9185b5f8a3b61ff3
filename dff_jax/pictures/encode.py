"""Arrays to whole numbers, and to PNG files of 8 and 16 bits."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

BAND = 256  # rows that are worked on together


def bands(image: np.ndarray) -> Iterator[slice]:
    """Bands of rows of `image` [H,...]: going through them keeps intermediate arrays small."""
    return (slice(top, top + BAND) for top in range(0, len(image), BAND))


def to_uint8(rgb: np.ndarray) -> np.ndarray:
    """Floats in [0,1] (clipped) or uint16, [H,...], to uint8; uint8 as it is."""
    return rgb if rgb.dtype == np.uint8 else _integers(rgb, np.uint8)


def to_uint16(rgb: np.ndarray) -> np.ndarray:
    """Floats in [0,1] (clipped), [H,...], to uint16."""
    return _integers(rgb, np.uint16)


def _integers(rgb: np.ndarray, kind: type) -> np.ndarray:
    image, scale = np.empty(rgb.shape, kind), np.float32(65535 if rgb.dtype == np.uint16 else 1)
    for rows in bands(rgb):
        image[rows] = np.rint(np.clip(np.nan_to_num(rgb[rows] / scale), 0.0, 1.0) * float(np.iinfo(kind).max))
    return image


def see_through(image: np.ndarray, where: np.ndarray | None) -> np.ndarray:
    """`image` [H,W,3] with an alpha channel, [H,W,4], that is 0 `where` [H,W] holds; as it is for None."""
    if where is None:
        return image
    alpha = np.where(where, 0, np.iinfo(image.dtype).max).astype(image.dtype)
    return np.concatenate([image, alpha[..., None]], axis=-1)


def save_png(path: str | Path | BinaryIO, image: np.ndarray, profile: bytes = b"") -> None:
    """Writes [H,W,3 or 4] or [H,W], uint8 or uint16, as PNG.

    Args:
      profile: ICC profile of an RGB image.
    """
    if image.dtype == np.uint8 or image.ndim == 2:
        picture = Image.fromarray(np.ascontiguousarray(image))
        picture.save(path, format="PNG", compress_level=4, icc_profile=profile or None)
        return
    import imagecodecs  # Pillow has no RGB of 16 bits

    data = bytes(imagecodecs.png_encode(np.ascontiguousarray(image), level=4))
    if profile:
        body = b"iCCPICC profile\0\0" + zlib.compress(profile)
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        data = data[:33] + chunk + data[33:]  # behind the header
    if isinstance(path, str | Path):
        Path(path).write_bytes(data)
    else:
        path.write(data)
