"""One HTML page that holds all it needs: no network, no other file.

Maps are PNG files whose red and green bytes are a number of 12 bits: a browser decodes them quickly and can show the
value under the pointer. Images and maps are scaled down to `MOST` pixels.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dff_jax import focus_axis
from dff_jax.pictures import panels
from dff_jax.runtime.files import finite

MOST = 640
"""Longest side of the images of a page, pixels."""
TOGETHER_UP_TO = 2**22
"""Pixels of images whose files are made in parallel; larger ones are made one by one, to save memory."""
_LEVELS = 4094
_THUMBNAIL, _QUALITY = 96, 85


class Stage(NamedTuple):
    """A depth map on the way to the answer."""

    name: str
    depth: np.ndarray  # [H,W] in q
    mae: float | None = None  # in the unit of the page


class Table(NamedTuple):
    """A table of numbers and strings, or an image, below the viewer."""

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    note: str = ""
    stacks: bool = False  # the first column names stacks: a click on a row opens it
    image: np.ndarray | None = None  # [H,W,3] uint8


class Shown(NamedTuple):
    """A stack in the form that a page holds: values for JSON, made by `shown_stack`."""

    content: dict[str, Any]


def shown_stack(
    name: str, frames: np.ndarray, focus: Sequence[float], frame_names: Sequence[str], stages: Sequence[Stage],
    confidence: np.ndarray, sharp: np.ndarray, *, truth: np.ndarray | None = None, mask: np.ndarray | None = None,
    unit: str = "index", facts: str = "", label: str = "", most: int = MOST,
) -> Shown:  # fmt: skip
    """A stack for a page, scaled down.

    Args:
      frames: [Z,H,W,3] uint8, uint16 or float in [0,1], in the order of `focus` [Z], which is in the page's unit.
      stages: at least one; the last is the answer.
      confidence: [H,W] in [0,1].
      sharp: [H,W,3], as `frames`.
      truth: [H,W] in q; None: there is none.
      mask: [H,W] bool, where there is truth; None: everywhere.
      unit: of the page.
      facts, label: a line about the stack, and the text below its thumbnail.
      most: longest side of its images, pixels.
    """
    height, width = confidence.shape
    step = max(1, -(-max(height, width) // most))
    small = (slice(step // 2, None, step), slice(step // 2, None, step))
    depths = [np.asarray(stage.depth)[small] for stage in stages]
    seen = np.concatenate([depth.ravel() for depth in depths])
    known = None
    if truth is not None:
        known = np.asarray(truth if mask is None else np.where(mask, truth, np.nan))[small]
        seen = np.concatenate([seen, known.ravel()])
    seen = seen[np.isfinite(seen)]  # a failed prediction may have no such value
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 1.0)
    high = high if high > low else low + 1.0
    best = known if known is not None and np.isfinite(known).any() else depths[-1]
    colour_low, colour_high = panels.robust_range(best)
    ends = focus_axis.from_q(np.array([colour_low, colour_high]), unit)
    spans = (abs(ends[1] - ends[0]), np.min(ends)) if unit == "metre" else (abs(ends[1] - ends[0]),)
    at_once = 1 if height * width > TOGETHER_UP_TO else min(4, os.cpu_count() or 1)  # each holds an image
    with ThreadPoolExecutor(at_once) as threads:  # encoders release Python's lock
        shown_frames = list(threads.map(lambda frame: _jpeg(_scaled(frame, step)), frames))
        maps = list(threads.map(lambda depth: _coded(depth, low, high), depths))
    return Shown({
        "name": name,
        "label": label or name,
        "facts": facts,
        "size": [height, width],
        "low": colour_low,
        "high": colour_high,
        "digits": 4 + round(math.log10(max(1.0, max(abs(low), abs(high)) / (high - low)))),
        "error": float(min([x for x in spans if np.isfinite(x)], default=1.0)) / 10,
        "frames": [
            {"name": one, "focus": float(at) if np.isfinite(at) else "∞", "image": image}
            for one, at, image in zip(frame_names, focus, shown_frames, strict=True)
        ],
        "stages": [
            {"name": stage.name, "mae": stage.mae, "map": coded}
            for stage, coded in zip(stages, maps, strict=True)
        ],
        "truth": None if known is None else _coded(known, low, high),
        "confidence": _coded(np.asarray(confidence, np.float32)[small], 0.0, 1.0),
        "sharp": _jpeg(_scaled(sharp, step)),
        "thumbnail": _jpeg(_scaled(sharp, max(1, -(-max(height, width) // _THUMBNAIL)))),
    })  # fmt: skip


def page(title: str, about: str, unit: str, stacks: Sequence[Shown], tables: Sequence[Table] = ()) -> str:
    """The page as HTML; `unit` is that of the focus axis, in which values are shown."""
    colours = {"depth": panels.COLOUR_MAP, "error": "inferno", "confidence": "viridis"}
    data = {
        "title": title,
        "about": about,
        "unit": unit,
        "sign": -1 if unit[0] == "-" else 1,
        "symbol": "" if unit == "index" else f" {focus_axis.symbol(unit)}",
        "digits": max([4, *(stack.content["digits"] for stack in stacks)]),
        "colours": {name: _base64(panels.colour_table(cmap).tobytes()) for name, cmap in colours.items()},
        "stacks": [stack.content for stack in stacks],
        "tables": [
            {
                "title": table.title, "note": table.note, "stacks": table.stacks,
                "columns": list(table.columns) or None, "rows": finite(list(table.rows)),
                "image": None if table.image is None else _png(table.image),
            }
            for table in tables
        ],
    }  # fmt: skip
    # "<" must not appear: a name like "</script>" would end the element that holds the data
    text = json.dumps(data, allow_nan=False, ensure_ascii=True).replace("<", "\\u003c")
    read = lambda name: resources.files("dff_jax.pictures").joinpath(name).read_text("utf-8")  # noqa: E731
    escaped = title.replace("&", "&amp;").replace("<", "&lt;")
    parts = {"title": escaped, "style": read("viewer.css"), "script": read("viewer.js"), "data": text}
    return re.sub(r"@(title|style|script|data)@", lambda found: parts[found[1]], read("viewer.html"))


def _scaled(image: np.ndarray, step: int) -> np.ndarray:
    """[H,W,3] as uint8, the mean over step x step pixels."""
    if step == 1:
        return panels.to_uint8(image)
    size = -(-image.shape[1] // step), -(-image.shape[0] // step)
    return np.asarray(Image.fromarray(panels.to_uint8(image)).resize(size, Image.Resampling.BOX))


def _coded(values: np.ndarray, low: float, high: float) -> dict[str, Any]:
    """A map as `viewer.js` decodes it: 0 where there is no value."""
    known = np.isfinite(values)
    share = np.where(known, (values - low) / (high - low), 0.0).clip(0.0, 1.0)
    code = np.where(known, 1 + np.rint(share * _LEVELS), 0).astype(np.uint16)
    rgb = np.stack([code >> 4, (code & 15) << 4, np.zeros_like(code)], -1).astype(np.uint8)
    return {"png": _png(rgb), "low": low, "high": high}


def _png(rgb: np.ndarray) -> str:
    return _uri(rgb, "png", compress_level=4)


def _jpeg(rgb: np.ndarray) -> str:
    return _uri(rgb, "jpeg", quality=_QUALITY)


def _uri(rgb: np.ndarray, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format=kind, **options)
    return f"data:image/{kind};base64,{_base64(file.getvalue())}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
