"""Decoded pictures: colours apart from alpha, turned upright, and scaled down."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from dff_jax.errors import InputError


def fitting(size: tuple[int, int], max_size: int | None) -> tuple[int, int]:
    """H, W brought down until the longer one is `max_size`."""
    scale = 1.0 if max_size is None else min(1.0, max_size / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def downscale(image: np.ndarray, max_size: int | None) -> np.ndarray:
    """Brings the longer side of [H,W,3] uint8 or uint16 down to `max_size` (antialiased, Lanczos)."""
    height, width = image.shape[:2]
    return scaled(image, None, fitting((height, width), max_size))[0]


def scaled(
    pixels: np.ndarray,
    opaque: np.ndarray | None,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels [H,W,C] uint8 or uint16, and where they are opaque [H,W], brought to `size` h, w.

    Transparent pixels have no share in the colours of the others.

    Args:
      box: left, top, right, bottom of what becomes the result; None: all.
    """
    if pixels.shape[:2] == size:
        return pixels, opaque

    def plane(values: np.ndarray) -> np.ndarray:
        image = Image.fromarray(values if values.dtype == np.uint8 else values.astype(np.float32))
        return np.asarray(image.resize((size[1], size[0]), Image.Resampling.LANCZOS, box))

    channels, seen = np.moveaxis(pixels, -1, 0), None
    if opaque is None or opaque.all():
        small = np.stack([plane(channel) for channel in channels], -1)
    else:
        share = plane(opaque)
        seen = share > 0.5
        weight = np.where(seen, 1 / np.maximum(share, 0.5), 0)
        small = np.stack([plane(channel * opaque) * weight for channel in channels], -1)
    return np.rint(small).clip(0, np.iinfo(pixels.dtype).max).astype(pixels.dtype), seen


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """A view of [H,W,...] as a file of this EXIF orientation, 1 to 8, is shown."""
    if orientation in (5, 6, 7, 8):
        stored = stored.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    return stored[:, ::-1] if orientation in (2, 3, 6, 7) else stored


def without_alpha(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """[H,W], or [H,W,C] with grey, grey+alpha, RGB or RGBA: the colours [H,W,1 or 3], and where alpha is not 0."""
    samples = samples.reshape(*samples.shape[:2], -1)
    colours = 1 if samples.shape[-1] < 3 else 3
    return samples[..., :colours], samples[..., colours] > 0 if samples.shape[-1] > colours else None


def from_pillow(image: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """What Pillow opened, as `without_alpha` has it; uint16 where it has more than 8 bits."""
    if image.mode == "F":
        raise InputError("a picture of floats is read as TIFF only; save it as TIFF")
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        pixels = np.asarray(image).clip(0, 65535).astype(np.uint16)
        return pixels[..., None], None if key is None else pixels != key
    mode = "RGB" if key is None and image.mode not in ("LA", "PA", "RGBA") else "RGBA"
    return without_alpha(np.asarray(image if image.mode == mode else image.convert(mode)))


def full_range(samples: np.ndarray, highest: int) -> np.ndarray:
    """Samples up to `highest`, or floats in [0,1], to uint8 or uint16 over the whole range of the type."""
    samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
    if samples.dtype in (np.uint8, np.uint16) and highest == np.iinfo(samples.dtype).max:
        return samples
    floats = samples.dtype.kind == "f"
    if floats and not (samples.min() >= 0 and samples.max() <= 1):  # False for NaN as well
        raise InputError("a float TIFF must lie in [0, 1] with no NaN; rescale it or save it as 16 bit")
    if samples.dtype.kind not in "fub":
        raise InputError(f"samples of type {samples.dtype} are not supported; save it as 8 or 16 bit")
    top, kind = (255, np.uint8) if highest < 255 and not floats else (65535, np.uint16)
    wide = samples * np.float32(top / (1 if floats else highest))
    return np.rint(wide, out=wide).astype(kind)
