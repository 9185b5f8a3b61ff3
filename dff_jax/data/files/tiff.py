"""TIFF: which pages of a file are pictures, and the rows of one of them.

tifffile decodes. Palettes, YCbCr and CMYK, which have to be converted, are left to Pillow.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dff_jax.data.files.reading import MAX_BYTES, check_pixels
from dff_jax.data.files.scaling import Rows
from dff_jax.data.files.z_steps import Pages, of_imagej, of_ome
from dff_jax.errors import InputError

if TYPE_CHECKING:
    import tifffile

HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# tifffile reports damage both by raising and by logging; the exception is enough.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class Place(NamedTuple):
    """Where a picture is in its file."""

    page: int  # among all pages, thumbnails too
    tags: int  # offset of its tags
    behind: int  # number of pictures between these tags and it


class Layout(NamedTuple):
    """The pictures of a file."""

    pages: Pages
    places: tuple[Place, ...]
    size: tuple[int, int]  # H, W as stored
    orientation: int
    held: int  # bytes that decoding holds beside the result


def layout(path: str | Path) -> Layout:
    """The pictures of a file, without thumbnails, reduced levels and masks.

    Raises:
      InputError: pages of several sizes, or several channels or time points.
      Exception: many kinds, for damage.
    """
    status = os.stat(path)
    return _layout(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)  # a stack is read page by page
def _layout(path: str, *stamp: int) -> Layout:
    import tifffile

    with tifffile.TiffFile(path) as file:
        _check_chain(file)
        every: Any = file.pages
        pages = [page for page in every if not (page.is_reduced or page.is_mask)]
        if not pages and file.pages.first.subifds:
            raise InputError("only a thumbnail, with the picture below it as in raw files; export it as TIFF")
        pages = pages or [file.pages.first]
        sizes = [(page.imagelength, page.imagewidth) for page in pages]
        size = max(sizes, key=math.prod)
        for page, one in zip(pages, sizes, strict=True):
            if one != size and 2 * math.prod(one) > math.prod(size):  # too large for a thumbnail
                found, wanted = (f"{w} x {h}" for h, w in (one, size))
                raise InputError(f"page {page.index + 1} has {found} pixels, others {wanted}; export it again")
        pages = [page for page, one in zip(pages, sizes, strict=True) if one == size]
        first, images = pages[0], _images(file, pages[0]) if len(pages) == 1 else 1
        check_pixels(*size)
        places = [Place(page.index, page.offset, k) for page in pages for k in range(images)]
        found = Pages(len(places))
        if found.count > 1 and file.is_ome:
            found, order = of_ome(file.ome_metadata or "", first.samplesperpixel, [place.page for place in places])
            places = [places[i] for i in order]
        elif found.count > 1 and file.is_imagej:
            found = of_imagej(file.imagej_metadata or {}, found.count)
        return Layout(found, tuple(places), size, _orientation(first), _held(first))


@contextmanager
def opened(path: str | Path, number: int) -> Iterator[tuple[Rows | int, int, bytes]]:
    """Picture `number` of a file: its rows, or its page for Pillow; its EXIF orientation; its ICC profile.

    Raises:
      InputError: as `layout`; no such picture; a kind of picture that is not read.
      Exception: many kinds, for damage.
    """
    import tifffile

    places = layout(path).places
    if not 0 <= number < len(places):
        raise InputError(f"has {len(places)} pages; page {number + 1} is missing")
    place = places[number]
    with tifffile.TiffFile(path) as file:
        file.filehandle.seek(place.tags)
        page = tifffile.TiffPage(file, index=place.page)
        _check_strips(page)
        plain = _is_plain(page)
        if plain and page.axes not in ("YX", "YXS", "SYX"):
            raise InputError(f"a TIFF of axes {page.axes} is not one image; save each frame as a file")
        yield (_rows(page, place.behind) if plain else place.page), _orientation(page), page.iccprofile or b""


def _check_chain(file: tifffile.TiffFile) -> None:
    """Raises unless the list of pages has an end; tifffile takes what there is, or runs in circles."""
    handle, form, offset, seen = file.filehandle, file.tiff, file.pages.first.offset, set()
    while offset:
        if offset in seen:
            raise ValueError("its pages run in a circle")
        seen.add(offset)
        handle.seek(offset)
        (tags,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
        handle.seek(tags * form.tagsize, 1)
        (offset,) = struct.unpack(form.offsetformat, handle.read(form.offsetsize))


def _images(file: tifffile.TiffFile, page: Any) -> int:
    """How many pictures lie behind the tags of a lone page: ImageJ and tifffile write large stacks so."""
    images = (file.imagej_metadata or {}).get("images", 1)
    if page.is_shaped and page.shaped_description.startswith("{"):
        images = math.prod(json.loads(page.shaped_description)["shape"]) // max(1, math.prod(page.shape))
    if not isinstance(images, int) or images < 2 or not page.is_final:
        return 1
    return images if page.dataoffsets[0] + images * page.nbytes <= file.filehandle.size else 1


def _orientation(page: Any) -> int:
    value = page.tags.valueof(274, 1)
    return int(value) if value in range(1, 9) else 1


def _is_plain(page: Any) -> bool:
    """Whether samples are grey or RGB as they are."""
    return page.photometric in (0, 1, 2)


def _held(page: Any) -> int:
    """Bytes that decoding holds: two rows of strips or tiles and the file's own, or all of it by Pillow."""
    height, width = page.imagelength, page.imagewidth
    if not _is_plain(page):
        return 4 * height * width
    high = page.tilelength if page.is_tiled else min(page.rowsperstrip or height, height)
    return 0 if page.is_final else 3 * high * width * page.samplesperpixel * -(-page.bitspersample // 8)


def _check_strips(page: Any) -> None:
    """Raises unless a TIFF has as many strips or tiles as its size needs, and all their bytes if uncompressed.

    tifffile fills up with zeros what is missing.
    """
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    if height < 1 or width < 1:
        raise ValueError(f"{width} x {height} pixels")
    if height * width * samples * -(-page.bitspersample // 8) > MAX_BYTES:
        raise InputError(f"more than {MAX_BYTES // 10**9} GB of pixels; scale it down first")
    planes = samples if page.planarconfig == 2 else 1
    pixel_bits = samples * page.bitspersample // planes  # in each plane
    if page.is_tiled:
        count = planes * -(-height // page.tilelength) * -(-width // page.tilewidth)
        size = count * page.tilelength * -(-page.tilewidth * pixel_bits // 8)
    else:
        count = planes * -(-height // min(page.rowsperstrip or height, height))
        size = planes * height * -(-width * pixel_bits // 8)
    sizes = page.databytecounts
    wrong = page.compression == 1 and sum(sizes) != size
    if len(page.dataoffsets) != count or len(sizes) != count or min(sizes) == 0 or wrong:
        raise ValueError(f"{len(sizes)} strips of {sum(sizes)} bytes for {width} x {height} pixels")


def _rows(page: Any, behind: int) -> Rows:
    """The rows of a page; `behind`: of the picture so many pictures further on."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    planes = samples if page.planarconfig == 2 else 1
    extra = [i for i, kind in enumerate(page.extrasamples, samples - len(page.extrasamples)) if kind in (1, 2)]
    colours = 3 if page.photometric == 2 else samples - len(extra)
    if colours > 3:
        raise InputError(f"has {samples} channels; export one, or RGB")
    handle, bits = page.parent.filehandle, page.bitspersample
    kind = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    high = page.tilelength if page.is_tiled else min(page.rowsperstrip or height, height)

    def contiguous(top: int, bottom: int) -> np.ndarray:
        size, parts = width * samples // planes * kind.itemsize, []
        for plane in range(planes):
            handle.seek(page.dataoffsets[0] + behind * page.nbytes + (plane * height + top) * size)
            parts.append(np.frombuffer(handle.read((bottom - top) * size), kind).reshape(bottom - top, width, -1))
        return parts[0] if planes == 1 else np.concatenate(parts, axis=-1)

    @functools.lru_cache(maxsize=2)  # bands share rows
    def decoded(row: int) -> np.ndarray:
        """A row of strips or tiles, [h,W,samples]."""
        across, down = -(-width // page.tilewidth) if page.is_tiled else 1, -(-height // high)
        found = np.empty((min(high, height - row * high), width, samples), page.dtype)
        for plane in range(planes):
            for column in range(across):
                index = (plane * down + row) * across + column
                handle.seek(page.dataoffsets[index])
                data = handle.read(page.databytecounts[index])
                if len(data) < page.databytecounts[index]:
                    raise ValueError("the file ends before its pixels")
                part, (*_, left, _), _ = page.decode(
                    data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader
                )
                there = found[:, left : left + part.shape[2], plane : plane + samples // planes]
                there[...] = part[0, : len(found), : there.shape[1]]
        return found

    def read(top: int, bottom: int) -> tuple[np.ndarray, np.ndarray | None]:
        if page.is_final:
            part = contiguous(top, bottom)
        else:
            first = top // high
            found = [decoded(row) for row in range(first, -(-bottom // high))]
            part = found[0] if len(found) == 1 else np.concatenate(found)
            part = part[top - first * high : bottom - first * high]
        opaque = part[..., extra[0]] > 0 if extra else None
        part = _full_range(part[..., : 3 if colours == 3 else 1], bits)
        if page.photometric == 0:  # white is 0
            part = np.iinfo(part.dtype).max - part
        return np.ascontiguousarray(np.broadcast_to(part, (*part.shape[:2], 3))), opaque

    deep = bits > 8 or kind.kind == "f"
    return Rows((height, width), np.uint16 if deep else np.uint8, read)


def _full_range(pixels: np.ndarray, bits: int) -> np.ndarray:
    """TIFF samples to uint8 or uint16 over the whole range of the type."""
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype in (np.uint8, np.uint16) and bits in (8, 16):
        return pixels
    if pixels.dtype.kind == "f":
        if not np.all((pixels >= 0) & (pixels <= 1)):  # False for NaN as well
            raise InputError("a float TIFF must lie in [0, 1] with no NaN; rescale it or save it as 16 bit")
        return np.rint(pixels.astype(np.float64) * 65535.0).astype(np.uint16)  # 65535 is no float16
    if pixels.dtype.kind not in "ub":
        raise InputError(f"samples of type {pixels.dtype} are not supported; save it as 8 or 16 bit")
    top, kind = (255, np.uint8) if bits < 8 else (65535, np.uint16)
    return np.rint(pixels * (top / (2.0**bits - 1))).astype(kind)
