"""What was made: statistics, as numbers and as text, and a picture sheet of a few stacks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dff_jax import focus_axis

if TYPE_CHECKING:
    from dff_jax.data.datasets.base import Facts, Inventory
    from dff_jax.data.datasets.reading import Outcome
    from dff_jax.runtime.progress import say
from dff_jax.types import FocalStack

STATISTICS, SHEET = "statistics.json", "overview.png"
STACKS_PER_SPLIT = 2  # on the sheet
LITTLE = 0.02  # of the truth within the focus settings: they are hardly meant so
EDGES = np.linspace(0.0, 1.0, 11)  # of the histogram, in t: 0 at the first plane of the stack, 1 at the last


def fingerprint(source: Path, made: Path) -> str:
    """Of the names and sizes of all files below `source`: what tells other or more files from those there were.

    Args:
      made: the dataset's folder, <name>/<config>/<version>, or another in its place; what lies in <name>, which may be
        below `source`, does not count.
    """
    own = made.resolve().parents[1]
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    files = [path for path in files if own not in path.resolve().parents]
    listed = [f"{path.relative_to(source)} {path.stat().st_size}" for path in files]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


class Digest(NamedTuple):
    """The statistics of one stack."""

    shape: tuple[int, int, int]  # Z, H, W
    focus: tuple[float, ...]  # in the unit of the dataset
    valid: int  # pixels with truth
    low: float  # of the truth, in the unit; 0 where nothing is valid
    high: float
    total: float  # sum over the valid pixels
    histogram: np.ndarray  # [12] valid pixels below the first plane's q, in ten equal parts of q, beyond the last


def digest(stack: FocalStack) -> Digest:
    """Counts over one stack; `in range` includes both ends."""
    shape = stack.frames.shape[:3]
    focus = tuple(map(float, stack.focus))
    if stack.depth is None or not stack.mask.any():
        return Digest(shape, focus, 0, 0.0, 0.0, 0.0, np.zeros(12, np.int64))
    values = stack.depth[stack.mask].astype(np.float64)
    ends = focus_axis.to_q(np.asarray(stack.focus, np.float64)[[0, -1]], stack.unit)
    q = focus_axis.to_q(values, stack.unit)
    inside, _ = np.histogram(q, bins=ends[0] + EDGES * (ends[1] - ends[0]))
    counts = np.array([np.count_nonzero(q < ends[0]), *inside, np.count_nonzero(q > ends[1])])
    return Digest(shape, focus, len(values), float(values.min()), float(values.max()), float(values.sum()), counts)


class Summary:
    """Gathers digests and a few stacks while a dataset is written."""

    def __init__(self, name: str, facts: Facts, inventory: Inventory, source: str):
        self.name, self.facts, self._source = name, facts, source
        self._digests: dict[str, list[Digest]] = {}
        self._details: dict[str, Any] = {}
        self._pictures: dict[str, bytes] = {}
        self._shown: list[dict[str, Any]] = []
        self._chosen = {
            split: {round(i * (len(items) - 1) / (STACKS_PER_SPLIT - 1)) for i in range(STACKS_PER_SPLIT)}
            for split, items in inventory.splits.items()
        }

    def add(self, split: str, outcome: Outcome) -> None:
        """The next stack of `split`."""
        for remark in outcome.remarks:
            say(f"note: {remark}")
        if outcome.details:
            self._details[outcome.name] = outcome.details
        self._pictures |= {f"{key}/{outcome.name}.png": picture for key, picture in outcome.pictures.items()}
        known = self._digests.setdefault(split, [])
        if len(known) in self._chosen[split]:
            from dff_jax.data.datasets.reading import record_features

            record = record_features().deserialize_example_np(outcome.record)
            middle = len(record["stack"]) // 2
            # copies: the frames would keep the whole stack in memory
            frames = record["stack"][[0, middle, -1]].copy()
            self._shown.append(record | {"stack": frames, "name": outcome.name})
        known.append(outcome.digest)

    def statistics(self) -> dict[str, Any]:
        """JSON-able; see `describe` for the words."""
        every = [d for digests in self._digests.values() for d in digests]
        settings = {d.focus for d in every}
        focus: dict[str, Any] = {
            "low": min(min(d.focus) for d in every),
            "high": max(max(d.focus) for d in every),
            "same_in_all": list(settings.pop()) if len(settings) == 1 else None,
        }
        splits = {split: _of_split(digests) for split, digests in self._digests.items()}
        found = {"name": self.name, "unit": self.facts.unit, "focus": focus, "t_edges": EDGES.tolist()}
        found |= {"splits": splits, "source": self._source}
        return found | ({"details": self._details} if self._details else {})

    def sheet(self) -> np.ndarray:
        """A row a stack: first, middle and last frame, and the truth: [H,1600,3] uint8."""
        from dff_jax.pictures import panels as pictures

        unit = self.facts.unit
        rows = []
        for record in self._shown:
            focus, depth, mask = record["focus"], record["depth"], record["mask"]
            at = [focus[0], focus[len(focus) // 2], focus[-1]]
            captions = [f"{record['name']}, first frame: {at[0]:g} {unit}", f"middle: {at[1]:g}", f"last: {at[2]:g}"]
            row = [pictures.Panel(frame, text) for frame, text in zip(record["stack"], captions, strict=True)]
            if mask.any():
                q = np.where(mask, focus_axis.to_q(np.where(mask, depth, 1.0), unit), 0.0)
                low, high = pictures.robust_range(q, mask=mask)
                bar = pictures.depth_bar(low, high, unit)
                row.append(pictures.Panel(pictures.colorize(q, low, high, mask=mask), "truth (grey: none)", bar))
            rows.append(row)
        return pictures.sheet(rows, title=self.name, columns=4)

    def write(self, folder: Path) -> None:
        """Writes `statistics.json`, `overview.png` and the readers' own pictures into `folder`."""
        from dff_jax.pictures.panels import save_png

        (folder / STATISTICS).write_text(json.dumps(self.statistics(), indent=1) + "\n")
        save_png(folder / SHEET, self.sheet())
        for name, picture in self._pictures.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(picture)


def describe(statistics: dict[str, Any]) -> str:
    """`Summary.statistics` in words, with a histogram of the truth drawn in characters."""
    unit, focus = statistics["unit"], statistics["focus"]
    lines = [f"{statistics['name']}, unit {unit}"]
    if focus["same_in_all"]:
        lines.append("focus settings of every stack: " + " ".join(f"{value:.4g}" for value in focus["same_in_all"]))
    else:
        lines.append(f"focus settings differ between stacks, from {focus['low']:.6g} to {focus['high']:.6g}")
    for split, found in statistics["splits"].items():
        shapes = ", ".join(f"{n} of {shape}" for shape, n in found["shapes"].items())
        lines.append(f"{split}: {found['stacks']} stacks ({shapes}: frames x height x width)")
        if not found["valid_share"]:
            lines.append("  no ground truth")
            continue
        truth = found["truth"]
        lines.append(
            f"  truth on {found['valid_share']:.1%} of the pixels, {truth['low']:.4g} to {truth['high']:.4g}, mean "
            f"{truth['mean']:.4g}; {found['in_range_share']:.1%} of it within the focus settings"
        )
        if found["in_range_share"] < LITTLE:
            lines.append(f"  NOTE: almost no truth lies within the focus settings: are they meant in {unit}?")
        lines += _drawn(found["histogram"], focus["same_in_all"], unit)
    return "\n".join(lines)


def shapes_in(folder: Path, split: str) -> dict[tuple[int, int, int], int]:
    """How many stacks of each Z, H, W a split holds, by its `statistics.json`; {} without one."""
    try:
        found = json.loads((Path(folder) / STATISTICS).read_text())["splits"][split]["shapes"]
    except (OSError, ValueError, KeyError):
        return {}
    return {tuple(map(int, shape.split(" x "))): number for shape, number in found.items()}


def _of_split(digests: list[Digest]) -> dict[str, Any]:
    shapes = Counter(" x ".join(map(str, d.shape)) for d in digests)
    histogram = np.sum([d.histogram for d in digests], axis=0)
    valid = sum(d.valid for d in digests)
    pixels = sum(d.shape[1] * d.shape[2] for d in digests)
    with_truth = [d for d in digests if d.valid]
    return {
        "stacks": len(digests),
        "stacks_without_truth": len(digests) - len(with_truth),
        "shapes": dict(shapes.most_common()),
        "valid_share": valid / pixels,
        "in_range_share": float(histogram[1:-1].sum() / valid) if valid else None,
        "truth": {
            "low": min(d.low for d in with_truth),
            "high": max(d.high for d in with_truth),
            "mean": sum(d.total for d in with_truth) / valid,
        }
        if valid
        else None,
        "histogram": histogram.tolist(),
    }


def _drawn(histogram: list[int], settings: list[float] | None, unit: str) -> list[str]:
    """Rows of a bar chart: beyond the first plane, ten parts of the focus range, beyond the last."""
    if settings:
        ends = focus_axis.to_q(np.array([settings[0], settings[-1]]), unit)
        edges = focus_axis.from_q(ends[0] + EDGES * (ends[1] - ends[0]), unit)
        names = [f"{a:.3g} .. {b:.3g}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    else:
        names = [f"t {a:.1f} .. {b:.1f}" for a, b in zip(EDGES[:-1], EDGES[1:], strict=True)]
    names = ["before the first plane", *names, "beyond the last plane"]
    shares = np.array(histogram) / max(sum(histogram), 1)
    bars = np.rint(shares / max(shares.max(), 1e-9) * 40).astype(int)
    return [f"  {n:>22} {s:6.1%} {'#' * b}".rstrip() for n, s, b in zip(names, shares, bars, strict=True)]
