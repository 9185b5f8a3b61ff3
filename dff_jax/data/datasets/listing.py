"""What `dff-jax prepare` prints: all names, and what was made."""

from __future__ import annotations

import json
from pathlib import Path

from dff_jax.data.datasets.summary import SHEET, STATISTICS, describe


def describe_all() -> str:
    """Every name with its unit, what it is and where to get it, three lines each."""
    from dff_jax.data.datasets import entries

    lines = []
    for entry in entries():
        lines += [f"{entry.name}  [{entry.unit}]", f"    {entry.about}", f"    get it: {entry.where}"]
    return "\n".join(lines)


def describe_made(path: Path) -> str:
    """Statistics of the dataset in `path`, if it has any, and where to look."""
    lines = [str(path)]
    if (path / STATISTICS).is_file():
        lines = [describe(json.loads((path / STATISTICS).read_text())), f"look at {path / SHEET}", *lines]
    return "\n".join(lines)
