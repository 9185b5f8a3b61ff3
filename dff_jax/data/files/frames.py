"""The frames of a stack, decoded one by one into one array; what is odd about single frames is put right or named."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax.data.files.frame_store import Allocate, release_pages
from dff_jax.data.files.images import Header, Picture, read_header, read_picture
from dff_jax.data.files.reading import other_size
from dff_jax.errors import InputError

MIN_SIDE = 16
_BITS = (8, 10, 12, 14)  # of cameras whose 16-bit files do not use the whole range


class Frame(NamedTuple):
    """A frame not yet read."""

    name: str
    size: tuple[int, int]  # H, W upright
    read: Callable[..., Picture]  # takes `max_size`, as `read_picture`
    header: Header
    label: str  # what to call it in an error


def read_frames(files: Sequence[Path]) -> tuple[np.ndarray, tuple[int, int]]:
    """Frames [Z,H,W,3] uint8 or uint16 of files of one size, and their H, W; raises InputError as `of_files`."""
    frames, _ = of_files(files)
    return decode(frames)[0], frames[0].size


def of_files(files: Sequence[Path]) -> tuple[list[Frame], tuple[str, ...]]:
    """One frame a file, all turned as most are; and notes.

    Raises:
      InputError: several sizes, a file with several pages.
    """
    headers = [read_header(file) for file in files]
    turned = Counter(header.orientation for header in headers).most_common(1)[0][0]
    odd = [file.name for file, header in zip(files, headers, strict=True) if header.orientation != turned]
    swapped = [(header.orientation > 4) != (turned > 4) for header in headers]
    sizes = [(h.size[1], h.size[0]) if swap else h.size for h, swap in zip(headers, swapped, strict=True)]
    usual = Counter(sizes).most_common(1)[0][0]
    for file, size, header in zip(files, sizes, headers, strict=True):
        if header.pages > 1:
            raise InputError(f"{file}: has several pages; give such a stack by itself: dff-jax predict {file}")
        if size != usual:
            raise other_size(file, size, usual, f"{files[sizes.index(usual)].name} is")
    note = f"{', '.join(odd[:5])}: EXIF says another orientation than in the other frames; taken as those"
    frames = [
        Frame(file.name, usual, functools.partial(read_picture, file, orientation=turned), header, str(file))
        for file, header in zip(files, headers, strict=True)
    ]
    return frames, (note,) if odd else ()


def decode(
    frames: Sequence[Frame], max_size: int | None = None, allocate: Allocate = np.empty
) -> tuple[np.ndarray, list[Picture]]:
    """Pixels [Z,H,W,3] uint8 or uint16, and all else of the pictures (without pixels)."""
    height, width = frames[0].size
    if min(height, width) < MIN_SIDE:
        raise InputError(f"{frames[0].name}: {width} x {height} pixels; each side needs {MIN_SIDE}")
    pixels, pictures = np.empty((0,)), []
    for z, frame in enumerate(frames):
        picture = frame.read(max_size=max_size)
        image = picture.pixels
        if not z:
            pixels = allocate((len(frames), *image.shape), image.dtype)
        if image.dtype == np.uint16 and pixels.dtype == np.uint8:  # 8 and 16 bit in one stack
            narrow, pixels = pixels, allocate(pixels.shape, np.uint16)
            for k in range(z):
                pixels[k] = _widen(narrow[k])
                release_pages(pixels)
        pixels[z] = image if image.dtype == pixels.dtype else _widen(image)
        pictures.append(picture._replace(pixels=pixels[:0]))
        release_pages(pixels)
    return pixels, pictures


def _widen(image: np.ndarray) -> np.ndarray:
    """uint8 to uint16 over its whole range."""
    return image.astype(np.uint16) * 257


def stretch(pixels: np.ndarray) -> int:
    """Brings frames of fewer bits than their 16 to the whole range, in place; returns the bits, 0 if all are used."""
    top = max(int(frame.max()) for frame in pixels) if pixels.dtype == np.uint16 else 0
    bits = next((bits for bits in _BITS if 0 < top < 2**bits), 0)
    if bits:
        for frame in pixels:
            np.multiply(frame, 65535 / (2**bits - 1), out=frame, casting="unsafe")
            release_pages(pixels)
    return bits


def fill(pixels: np.ndarray, opaque: Sequence[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Fills transparent pixels, in place; returns where every frame, and where no frame, has one that is not."""
    if all(one is None for one in opaque):
        return None, None
    from scipy import ndimage

    masks = [np.ones(pixels.shape[1:3], bool) if one is None else one for one in opaque]
    everywhere, nowhere = np.logical_and.reduce(masks), ~np.logical_or.reduce(masks)
    for z, mask in enumerate(masks):
        for k in sorted(range(len(masks)), key=lambda k: abs(k - z)):
            take = ~mask & masks[k]
            pixels[z][take] = pixels[k][take]  # what frame k has of its own
            mask = mask | masks[k]
        release_pages(pixels)
    if nowhere.any() and not nowhere.all():
        rows, columns = np.asarray(ndimage.distance_transform_edt(nowhere, return_distances=False, return_indices=True))
        for frame in pixels:
            frame[nowhere] = frame[rows[nowhere], columns[nowhere]]
            release_pages(pixels)
    return everywhere, nowhere
