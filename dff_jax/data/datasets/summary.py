"""What was made: statistics.json, overview.png with a few stacks, and the text that `dff-jax prepare` prints."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dff_jax import focus_axis
from dff_jax.data.datasets.records import read_record
from dff_jax.pictures import panels

STATISTICS, OVERVIEW = "statistics.json", "overview.png"
LITTLE = 0.02  # a smaller share of the truth inside the focus range suggests a wrong unit


class _Split:
    """The statistics of a split so far."""

    def __init__(self) -> None:
        self.stacks, self.without_truth, self.shapes = 0, 0, Counter[str]()
        self.pixels = self.valid = self.in_range = 0  # with truth; with truth between first and last setting, in q
        self.low, self.high, self.total = np.inf, -np.inf, 0.0  # of the truth, in its unit

    def add(self, record: dict[str, Any], unit: str) -> None:
        values = record["depth"][record["mask"]].astype(np.float64)
        first, last = focus_axis.to_q(record["focus"][[0, -1]], unit)
        q = focus_axis.to_q(values, unit)
        self.stacks += 1
        self.shapes[" x ".join(map(str, record["stack"].shape[:3]))] += 1
        self.pixels += record["mask"].size
        self.without_truth += not values.size
        self.valid += values.size
        self.in_range += int(np.count_nonzero((q >= first) & (q <= last)))
        self.low, self.high = values.min(initial=self.low), values.max(initial=self.high)
        self.total += values.sum()

    def statistics(self) -> dict[str, Any]:
        truth = {"low": float(self.low), "high": float(self.high), "mean": float(self.total / max(self.valid, 1))}
        return {
            "stacks": self.stacks,
            "stacks_without_truth": self.without_truth,
            "shapes": dict(self.shapes.most_common()),
            "valid_share": self.valid / self.pixels,
            "in_range_share": self.in_range / self.valid if self.valid else None,
            "truth": truth if self.valid else None,
        }


class Summary:
    """Gathers statistics and a few stacks while a dataset is written."""

    def __init__(self, name: str, unit: str, counts: dict[str, int]):
        """`counts`: stacks in each split."""
        self._name, self._unit, self._counts = name, unit, counts
        self._splits = {split: _Split() for split in counts}
        self._settings: set[tuple[float, ...]] = set()
        self._rows: list[list[panels.Panel]] = []

    def add(self, split: str, record: bytes) -> None:
        """The next stack of `split`."""
        arrays, found = read_record(record), self._splits[split]
        if found.stacks in (0, self._counts[split] - 1):
            self._rows.append(self._row(arrays))
        found.add(arrays, self._unit)
        self._settings.add(tuple(float(str(value)) for value in arrays["focus"]))  # 0.1, not 0.10000000149

    def _row(self, record: dict[str, Any]) -> list[panels.Panel]:
        """The first, middle and last frame, and the truth."""
        focus, depth, mask = record["focus"], record["depth"], record["mask"]
        row = []
        for what, z in ((f"{record['name'].decode()}, first frame", 0), ("middle", len(focus) // 2), ("last", -1)):
            # a copy: the frame alone would keep the whole stack in memory
            row.append(panels.Panel(record["stack"][z].copy(), f"{what}: {focus[z]:g} {self._unit}"))
        if mask.any():
            q = np.where(mask, focus_axis.to_q(np.where(mask, depth, 1.0), self._unit), 0.0)
            low, high = panels.robust_range(q, mask=mask)
            bar = panels.depth_bar(low, high, self._unit)
            row.append(panels.Panel(panels.colorize(q, low, high, mask=mask), "truth (grey: none)", bar))
        return row

    def write(self, folder: Path) -> None:
        """Writes `statistics.json` and `overview.png` into `folder`."""
        statistics = {
            "name": self._name,
            "unit": self._unit,
            "focus": {
                "low": min(map(min, self._settings)),
                "high": max(map(max, self._settings)),
                "same_in_all": list(*self._settings) if len(self._settings) == 1 else None,
            },
            "splits": {split: found.statistics() for split, found in self._splits.items()},
        }
        (folder / STATISTICS).write_text(json.dumps(statistics, indent=1) + "\n")
        panels.save_png(folder / OVERVIEW, panels.sheet(self._rows, title=self._name, columns=4))


def describe(path: Path) -> str:
    """The statistics of the dataset in the folder `path` in words, if it has any, and where to look."""
    if not (path / STATISTICS).is_file():
        return str(path)
    statistics = json.loads((path / STATISTICS).read_text())
    unit, focus = statistics["unit"], statistics["focus"]
    lines = [f"{statistics['name']}, unit {unit}"]
    if focus["same_in_all"]:
        lines.append("focus settings of every stack: " + " ".join(f"{value:.4g}" for value in focus["same_in_all"]))
    else:
        lines.append(f"focus settings differ between stacks, from {focus['low']:.6g} to {focus['high']:.6g}")
    for split, found in statistics["splits"].items():
        shapes = ", ".join(f"{n} of {shape}" for shape, n in found["shapes"].items())
        lines.append(f"{split}: {found['stacks']} stacks ({shapes}: frames x height x width)")
        truth = found["truth"]
        if truth is None:
            lines.append("  no ground truth")
            continue
        lines.append(
            f"  truth on {found['valid_share']:.1%} of the pixels, {truth['low']:.4g} to {truth['high']:.4g}, mean "
            f"{truth['mean']:.4g}; {found['in_range_share']:.1%} of it within the focus settings"
        )
        if found["in_range_share"] < LITTLE:
            lines.append(f"  NOTE: almost no truth lies within the focus settings: are they meant in {unit}?")
    return "\n".join([*lines, f"look at {path / OVERVIEW}", str(path)])
