"""The files of one prediction: maps for programs, images for people."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dff_jax import __version__, focus_axis
from dff_jax.data.files.align import Aligned, alignment_sheet
from dff_jax.pictures import page, panels
from dff_jax.pictures.panels import Panel
from dff_jax.pictures.pointcloud import write_points
from dff_jax.prediction.result import Result
from dff_jax.runtime.files import write_text

FILES = (
    "depth.npy", "depth.png", "depth_color.png", "confidence.npy", "disagreement.npy", "all_in_focus.png",
    "overview.png", "report.html", "points.ply", "summary.json",
)  # fmt: skip
ALIGNMENT = "alignment.png"  # also written if the frames were aligned
MAX_FRAMES_SHOWN = 5


def write_maps(
    folder: Path, frames: np.ndarray, names: Sequence[str], result: Result, title: str
) -> dict[str, Any]:
    """Writes every file of FILES except the summary into `folder`; returns their part of the summary.

    Args:
      frames: [Z,H,W,3] in the order of result.focus.
      names: [Z] of the frames.
    """
    q = focus_axis.to_q(result.depth, result.unit)
    sharp, unseen = panels.to_uint8(result.all_in_focus), result.unseen
    coded, scale = sixteen_bit(q, result.unit)

    def encode() -> dict[str, Any]:
        """What needs no matplotlib, which must not run in two threads."""
        np.save(folder / "depth.npy", result.depth)
        np.save(folder / "confidence.npy", result.confidence)
        np.save(folder / "disagreement.npy", result.disagreement)
        picture = panels.to_uint16(result.all_in_focus) if result.deep else sharp
        panels.save_png(folder / "all_in_focus.png", panels.see_through(picture, unseen), result.profile)
        panels.save_png(folder / "depth.png", coded)
        return write_points(folder / "points.ply", q, sharp, result.confidence, result.unit, unseen)

    with ThreadPoolExecutor(1) as other:  # encoders release Python's lock
        encoded = other.submit(encode)
        if q.size > page.TOGETHER_UP_TO:  # memory counts more than time
            encoded.result()
        seen = None if unseen is None else ~unseen
        low, high = panels.robust_range(q, mask=seen)
        bar = panels.depth_bar(low, high, result.unit)
        coloured = panels.colorize(q, low, high, mask=seen)
        panels.save_png(folder / "depth_color.png", panels.beside_bar(panels.see_through(coloured, unseen), bar))
        overview = _overview(frames, names, result, sharp, coloured, bar, title)
        panels.save_png(folder / "overview.png", overview)
        write_text(folder / "report.html", _page(frames, names, result, sharp, q, title))
        cloud = encoded.result()
    return {
        "depth": _range(result),
        "depth_png": scale,
        "points": cloud,
        "disagreement_unit": f"{'diopter' if result.unit == 'metre' else focus_axis.base(result.unit)}^2",
    }


def _range(result: Result) -> dict[str, Any]:
    """Of what is not at infinity, and the share that is."""
    here = result.depth[np.isfinite(result.depth)]
    found = {"min": here.min(), "max": here.max(), "median": np.median(here)} if here.size else {}
    far = {"at_infinity": 1 - here.size / result.depth.size} if here.size < result.depth.size else {}
    return {name: float(x) for name, x in (found | far).items()} | {"unit": focus_axis.base(result.unit)}


def write_alignment(folder: Path, before: np.ndarray, names: Sequence[str], aligned: Aligned) -> None:
    """Writes alignment.png, which shows the frames `before` [Z,H,W,3] and after."""
    panels.save_png(folder / ALIGNMENT, alignment_sheet(before, aligned, list(names)))


def _page(
    frames: np.ndarray, names: Sequence[str], result: Result, sharp: np.ndarray, q: np.ndarray, title: str
) -> str:
    stages = [page.Stage(name, depth) for name, depth in result.stages.items()]
    if not stages or not np.allclose(stages[-1].depth, q, rtol=1e-4, atol=1e-6):
        stages.append(page.Stage("answer", q))
    distinct = [one for i, one in enumerate(stages) if i == 0 or not np.array_equal(one.depth, stages[i - 1].depth)]
    facts = f"{len(frames)} frames of {q.shape[1]} x {q.shape[0]}"
    stack = page.shown_stack(
        title, frames, result.focus.tolist(), names, distinct, result.confidence, sharp, unit=result.unit, facts=facts
    )
    notes = [page.Table("Notes", ["what was assumed"], [[note] for note in result.notes])] if result.notes else []
    return page.page("Depth from focus", f"dff_jax {__version__}, unit {result.unit}", result.unit, [stack], notes)


def sixteen_bit(q: np.ndarray, unit: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Depth as uint16, linear in q over its whole range; in metres, infinity would leave no steps for what is near."""
    low, high = float(q.min()), float(q.max())
    scale = (high - low) / 65535.0 or 1.0
    coded = np.empty(q.shape, np.uint16)
    for rows in panels.bands(q):
        coded[rows] = np.rint((q[rows].astype(np.float64) - low) / scale)
    rule = "metres = 1 / (offset + scale * value)" if unit == "metre" else "depth = offset + scale * value"
    rule = rule.replace("offset + scale * value", "-(offset + scale * value)") if unit[0] == "-" else rule
    return coded, {"offset": low, "scale": scale, "rule": rule}


def _overview(
    frames: np.ndarray, names: Sequence[str], result: Result, sharp: np.ndarray, coloured: np.ndarray,
    bar: panels.Bar, title: str,
) -> np.ndarray:  # fmt: skip
    """Frames above; all-in-focus, depth and confidence below."""
    count = len(frames)
    shown = sorted({round(i) for i in np.linspace(0, count - 1, min(count, MAX_FRAMES_SHOWN))})
    title = f"{title}: {count} frames" + (f", {len(shown)} shown" if count > len(shown) else "")
    suffix = "" if result.unit == "index" else f" {focus_axis.symbol(result.unit)}"
    ends = {} if result.unit == "index" else {0: ", farthest", count - 1: ", nearest"}
    top = []
    for i in shown:
        focus = float(result.focus[i])
        number = f"{focus:.15g}" if 1e4 <= abs(focus) < np.inf else f"{focus:.4g}"
        top.append(Panel(panels.to_uint8(frames[i]), f"{names[i]}\nfocus {number}{suffix}{ends.get(i, '')}"))
    certain = panels.colorize(result.confidence, 0.0, 1.0, cmap="viridis")
    certainty = panels.plain_bar(0.0, 1.0, "0 = guess, 1 = sure", cmap="viridis")
    bottom = [
        Panel(sharp, "all in focus"), Panel(coloured, "depth", bar), Panel(certain, "confidence", certainty)
    ]  # fmt: skip
    return panels.sheet([top, bottom], title=title)
