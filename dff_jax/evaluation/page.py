"""The page of an evaluation: `report.html`, the worst stacks first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dff_jax import focus_axis
from dff_jax.evaluation import calibration, tables
from dff_jax.evaluation.metrics import METRICS
from dff_jax.evaluation.rows import Evaluation, row_maps, row_names
from dff_jax.pictures import page
from dff_jax.pictures import panels as pictures
from dff_jax.pictures.page import Shown, Stage, Table, shown_stack
from dff_jax.types import Batch, Prediction

FILE = "report.html"
STACKS = 24
"""Of which a page holds pictures, unless told otherwise."""
_MOST = 384  # pixels of the longer side


def worst(evaluation: Evaluation, count: int) -> list[int]:
    """Positions in `evaluation.stacks`, the largest MAE of the answer first; a failed prediction before all."""
    errors = [evaluation.of_stack(i)["final"]["MAE"] for i in range(len(evaluation.stacks))]
    order = sorted(range(len(errors)), key=lambda i: -errors[i] if math.isfinite(errors[i]) else -math.inf)
    return order[:count]


def shown(
    name: str, batch: Batch, prediction: Prediction, unit: str, *, rows: dict[str, dict[str, Any]] | None = None
) -> Shown:
    """A stack (B = 1, on the host) for the page; `rows` are its metrics by row, None without truth."""
    maps = dict(zip(row_names(prediction, False), row_maps(prediction, ()), strict=True))
    way = {name: np.asarray(depth[0]) for name, depth in maps.items() if not name.startswith("candidate")}
    answer = way.pop("final")
    if not way or not np.array_equal(list(way.values())[-1], answer, equal_nan=True):
        way["answer"] = answer
    if all(np.array_equal(depth, answer, equal_nan=True) for depth in way.values()):  # no way, only an answer
        way = {"answer": answer}
    mae = {name: rows.get("final" if name == "answer" else name, {}).get("MAE") for name in way} if rows else {}
    titles = {"expected": "Dbar"}
    stages = [Stage(titles.get(name, name), depth, _known(mae.get(name))) for name, depth in way.items()]
    facts = label = f"{batch.frames.shape[1]} frames of {batch.frames.shape[3]} x {batch.frames.shape[2]}"
    if rows:
        numbers = [f"{metric} {rows['final'][metric]:.4g}" for metric in ("MAE", "AbsRel", "Acc_1")
                   if rows["final"][metric] is not None]  # fmt: skip
        facts, label = ", ".join([facts, *numbers]), f"{name}: {numbers[0]}"
    focus = focus_axis.from_q(np.asarray(batch.focus[0], np.float64), unit)
    return shown_stack(
        name, batch.frames[0], focus, [f"frame {i + 1}" for i in range(len(focus))], stages, prediction.confidence[0],
        prediction.all_in_focus[0], truth=batch.depth[0] if rows else None, mask=batch.mask[0], unit=unit,
        facts=facts, label=label, most=_MOST,
    )  # fmt: skip


def write(report: dict[str, Any], stacks: Sequence[Shown], evaluation: Evaluation | None) -> str:
    """The page; `report` is what `metrics.json` holds."""
    meta, found = report["meta"], []
    if evaluation is not None:
        rows, labels = tables.distinct(report["rows"])
        for title, part in (("All valid pixels", rows), ("Pixels within the focus range", _in_range(rows))):
            cells = [[labels[name], *(row[metric] for metric in METRICS)] for name, row in part.items()]
            found.append(Table(title, ["row", *METRICS], cells))
        if evaluation.calibration:
            note = "The mean error of the most confident pixels, and whether it is as large as confidence foretells."
            picture = pictures.pixels(calibration.chart(evaluation.calibration).canvas)
            found.append(Table("Confidence", note=note, picture=picture))
        order = worst(evaluation, len(evaluation.stacks))
        each = [[evaluation.stacks[i], *(_known(evaluation.of_stack(i)["final"][m]) for m in METRICS)] for i in order]
        note = f"The worst first; pictures of {len(stacks)}." + " A click shows them." * (len(stacks) > 1)
        found.append(Table("Stacks", ["stack", *METRICS], each, note=note, stacks=True))
    if meta["notes"]:
        found.append(Table("Notes", ["what to know"], [[note] for note in meta["notes"]]))
    about = f"{meta['stacks'] or len(stacks)} stacks, unit {meta['unit']}, on {meta['device']}"
    return page(f"{meta['label']} on {meta['dataset']}", about, meta["unit"], stacks, found)


def in_order(wanted: Sequence[int], made: Iterable[tuple[int, Shown]]) -> list[Shown]:
    """Shown stacks in the order of their positions in `wanted`."""
    by_position = dict(made)
    return [by_position[i] for i in wanted if i in by_position]


def _in_range(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: row["in_range"] for name, row in rows.items()}


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
