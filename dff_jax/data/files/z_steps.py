"""What ImageJ and OME-XML, the metadata of microscopes, say of the pages of a TIFF: z steps and positions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple
from xml.etree import ElementTree

from dff_jax.errors import InputError

_MOST_COLOURS = 7  # that ImageJ has; tifffile, not told the axes, calls the pages of a stack channels
_MICRONS = {"å": 1e-4, "nm": 1e-3, "nanometer": 1e-3, "µm": 1, "um": 1, "micron": 1, "micrometer": 1, "mm": 1e3,
            "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4, "inch": 25400, "m": 1e6, "meter": 1e6}  # fmt: skip


class Pages(NamedTuple):
    """A TIFF of several pages as a stack."""

    count: int  # pages of full size
    step: float | None = None  # from page to page, in `unit`; None: not known
    unit: str | None = None  # "micron" or "mm"
    positions: tuple[float, ...] | None = None  # [count] in `unit`, where the file has one for each page


def of_imagej(meta: dict[str, Any], count: int) -> Pages:
    """What ImageJ's metadata say of so many pages. Raises InputError for several channels or time points."""
    unit, scale = _unit(meta.get("unit"))
    step = _step(meta.get("spacing"), scale)
    z, channels, times = (meta.get(axis, 1) for axis in ("slices", "channels", "frames"))
    if channels == count and (step or channels > _MOST_COLOURS):
        z, channels = channels, 1
    _check_axes(count, z, channels, times)
    return Pages(count, step if unit else None, unit)


def of_ome(text: str, samples: int, pages: list[int]) -> tuple[Pages, list[int]]:
    """What OME-XML says of the pages with these numbers, and their order by z. Raises InputError as `of_imagej`."""
    count, order = len(pages), list(range(len(pages)))
    try:
        pixels = None if "<!DOCTYPE" in text else ElementTree.fromstring(text).find(".//{*}Pixels")
    except ElementTree.ParseError:
        pixels = None
    if pixels is None:
        return Pages(count), order
    z, channels, times = (int(pixels.get(f"Size{axis}", 1)) for axis in "ZCT")
    _check_axes(count, z, channels if channels % samples else channels // samples, times)
    named = pixels.get("PhysicalSizeZUnit", "µm")
    unit, scale = _unit(named)
    planes, found = {}, {}  # z by page, position by z
    for data in pixels.iterfind("{*}TiffData"):
        page, start = int(data.get("IFD", 0)), int(data.get("FirstZ", 0))
        planes |= {page + k: start + k for k in range(min(count, int(data.get("PlaneCount", 1))))}
    if {planes.get(page) for page in pages} == set(order):
        order.sort(key=lambda i: planes[pages[i]])
    for plane in pixels.iterfind("{*}Plane"):
        microns = _MICRONS.get(_plain_name(plane.get("PositionZUnit", named)), math.nan)
        position = float(plane.get("PositionZ", "nan")) * (microns / (1000 if unit == "mm" else 1))
        if math.isfinite(position):
            found.setdefault(int(plane.get("TheZ", -1)), position)
    known = unit and len({found.get(k) for k in order} - {None}) == count
    positions = tuple(found[k] for k in range(count)) if known else None
    step = _step(pixels.get("PhysicalSizeZ"), scale) if unit else None
    return Pages(count, step, unit, positions), order


def _check_axes(count: int, z: Any, channels: Any, times: Any) -> None:
    if (channels > 1 or times > 1) and count != z:
        raise InputError(f"{channels} channels, {times} time points; export one channel at one time as pages in z")


def _plain_name(unit: object) -> str:
    text = str(unit).strip().lower().replace("\\u00b5", "µ").replace("μ", "µ").replace("metre", "meter")
    return text if text in _MICRONS else text.removesuffix("s")


def _unit(name: object) -> tuple[str | None, float]:
    """"micron" or "mm", and the scale to it; (None, 1.0) for what is no known length."""
    microns = _MICRONS.get(_plain_name(name))
    if microns is None:
        return None, 1.0
    return ("micron", microns) if microns <= 1 else ("mm", microns / 1000)


def _step(value: Any, scale: float) -> float | None:
    """A z step as metadata have it; None for zero and what is no number."""
    try:
        step = abs(float(value)) * scale
    except (TypeError, ValueError):
        return None
    return step if 0 < step < math.inf else None
