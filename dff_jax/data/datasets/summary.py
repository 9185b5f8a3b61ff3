"""What was made: statistics.json, overview.png with a few stacks, and the text that `dff-jax prepare` prints."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dff_jax import focus_axis
from dff_jax.data.datasets.records import Digest, Outcome, read_record
from dff_jax.pictures import panels

STATISTICS, OVERVIEW = "statistics.json", "overview.png"
LITTLE = 0.02  # a smaller share of the truth inside the focus range suggests a wrong unit


class Summary:
    """Gathers digests and a few stacks while a dataset is written."""

    def __init__(self, name: str, unit: str, counts: dict[str, int], source: str):
        """`counts`: stacks in each split; `source`: the fingerprint of the files that they are read from."""
        self.name, self.unit, self._source = name, unit, source
        self._shown = {split: {0, count - 1} for split, count in counts.items()}
        self._digests: dict[str, list[Digest]] = {}
        self._rows: list[list[panels.Panel]] = []

    def add(self, split: str, outcome: Outcome) -> None:
        """The next stack of `split`."""
        known = self._digests.setdefault(split, [])
        if len(known) in self._shown[split]:
            self._rows.append(self._row(outcome))
        known.append(outcome.digest)

    def _row(self, outcome: Outcome) -> list[panels.Panel]:
        """The first, middle and last frame, and the truth."""
        record = read_record(outcome.record)
        focus, depth, mask = record["focus"], record["depth"], record["mask"]
        row = []
        for what, z in ((f"{outcome.name}, first frame", 0), ("middle", len(focus) // 2), ("last", -1)):
            # a copy: the frame alone would keep the whole stack in memory
            row.append(panels.Panel(record["stack"][z].copy(), f"{what}: {focus[z]:g} {self.unit}"))
        if mask.any():
            q = np.where(mask, focus_axis.to_q(np.where(mask, depth, 1.0), self.unit), 0.0)
            low, high = panels.robust_range(q, mask=mask)
            bar = panels.depth_bar(low, high, self.unit)
            row.append(panels.Panel(panels.colorize(q, low, high, mask=mask), "truth (grey: none)", bar))
        return row

    def statistics(self) -> dict[str, Any]:
        """JSON-able; see `describe` for the words."""
        every = [d for digests in self._digests.values() for d in digests]
        settings = {d.focus for d in every}
        focus = {
            "low": min(min(d.focus) for d in every),
            "high": max(max(d.focus) for d in every),
            "same_in_all": list(settings.pop()) if len(settings) == 1 else None,
        }
        splits = {split: _of_split(digests) for split, digests in self._digests.items()}
        return {"name": self.name, "unit": self.unit, "focus": focus, "splits": splits, "source": self._source}

    def write(self, folder: Path) -> None:
        """Writes `statistics.json`, `overview.png` into `folder`."""
        (folder / STATISTICS).write_text(json.dumps(self.statistics(), indent=1) + "\n")
        panels.save_png(folder / OVERVIEW, panels.sheet(self._rows, title=self.name, columns=4))


def _of_split(digests: list[Digest]) -> dict[str, Any]:
    shapes = Counter(" x ".join(map(str, d.shape)) for d in digests)
    valid = sum(d.valid for d in digests)
    with_truth = [d for d in digests if d.valid]
    found: dict[str, Any] = {
        "stacks": len(digests),
        "stacks_without_truth": len(digests) - len(with_truth),
        "shapes": dict(shapes.most_common()),
        "valid_share": valid / sum(d.shape[1] * d.shape[2] for d in digests),
        "in_range_share": None,
        "truth": None,
    }
    if valid:
        found["in_range_share"] = sum(d.in_range for d in with_truth) / valid
        mean = sum(d.total for d in with_truth) / valid
        found["truth"] = {"low": min(d.low for d in with_truth), "high": max(d.high for d in with_truth), "mean": mean}
    return found


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
