"""TIFF: which pages of a file are pictures, and the pixels of one of them.

tifffile decodes. Palettes, YCbCr and CMYK, which have to be converted, are left to Pillow.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import operator
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from dff_jax.data.files.reading import MAX_BYTES, check_pixels
from dff_jax.data.files.scaling import from_pillow, full_range
from dff_jax.data.files.z_steps import Pages, of_imagej, of_ome
from dff_jax.errors import InputError

if TYPE_CHECKING:
    import tifffile

HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLAIN = (0, 1, 2)  # kinds of samples: grey with white as 0, grey, RGB
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


def read_page(path: str | Path, number: int) -> tuple[np.ndarray, np.ndarray | None, int, bytes]:
    """Picture `number` of a file: as `scaling.without_alpha` has it; its EXIF orientation; its ICC profile.

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
        page: Any = tifffile.TiffPage(file, index=place.page)
        page.dataoffsets = tuple(offset + place.behind * page.nbytes for offset in page.dataoffsets)
        _check_strips(page)
        facts = _orientation(page), page.iccprofile or b""
        if page.photometric in _PLAIN:
            return *_decoded(page), *facts
    with open(path, "rb") as stream, Image.OPEN["TIFF"][0](stream, "") as image:
        image.seek(place.page)
        return *from_pillow(image), *facts


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


def _held(page: Any) -> int:
    """Bytes that decoding holds: samples, three rows of strips, and a plane in float32 or what `full_range` needs."""
    height, width = page.imagelength, page.imagewidth
    if page.photometric not in _PLAIN:
        return 14 * height * width
    size = -(-page.bitspersample // 8)
    high = page.tilelength if page.is_tiled else min(page.rowsperstrip or height, height)
    strips = 0 if page.is_final else 3 * high * width * size * page.samplesperpixel
    whole = page.bitspersample in (8, 16) and page.sampleformat == 1
    beside = (8 if size > 1 else 1) if whole else (max(size, 4) + 2) * page.samplesperpixel
    return strips + height * width * (size * page.samplesperpixel + beside)


def _check_strips(page: Any) -> None:
    """Raises unless a TIFF has as many strips or tiles as its size needs, and all their bytes.

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
    if max(map(operator.add, page.dataoffsets, sizes)) > page.parent.filehandle.size:
        raise ValueError("the file ends before its pixels")


def _decoded(page: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """The samples of a page, as `without_alpha` has them."""
    if page.axes not in ("YX", "YXS", "SYX"):
        raise InputError(f"a TIFF of axes {page.axes} is not one image; save each frame as a file")
    samples = page.samplesperpixel
    extra = [i for i, kind in enumerate(page.extrasamples, samples - len(page.extrasamples)) if kind in (1, 2)]
    colours = 3 if page.photometric == 2 else samples - len(extra)
    if colours > 3:
        raise InputError(f"has {samples} channels; export one, or RGB")
    found = page.asarray(squeeze=False, maxworkers=1, buffersize=2**24)[:, 0]  # [planes,H,W,samples of a plane]
    found = np.moveaxis(found, 0, 2).reshape(page.imagelength, page.imagewidth, samples)
    opaque = found[..., extra[0]] > 0 if extra else None
    found = full_range(found[..., : 3 if colours == 3 else 1], 2**page.bitspersample - 1)
    return np.iinfo(found.dtype).max - found if page.photometric == 0 else found, opaque
