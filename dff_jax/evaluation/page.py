"""The page of an evaluation, `report.html`: the worst stacks first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dff_jax import focus_axis
from dff_jax.evaluation import figures, tables
from dff_jax.evaluation.metrics import METRICS
from dff_jax.evaluation.rows import Evaluation, row_maps
from dff_jax.pictures import panels
from dff_jax.pictures.page import Shown, Stage, Table, page, shown_stack
from dff_jax.types import Batch, Prediction

FILE = "report.html"
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
    maps = {row: np.asarray(x[0]) for row, x in row_maps(prediction).items() if not row.startswith("candidate")}
    answer = maps.pop("final")
    same = [np.array_equal(depth, answer, equal_nan=True) for depth in maps.values()]
    if all(same):  # nothing leads to the answer
        maps = {"answer": answer}
    elif not same[-1]:
        maps["answer"] = answer
    mae = {row: rows.get("final" if row == "answer" else row, {}).get("MAE") for row in maps} if rows else {}
    stages = [Stage("Dbar" if row == "expected" else row, depth, _known(mae.get(row))) for row, depth in maps.items()]
    facts = label = f"{batch.frames.shape[1]} frames of {batch.frames.shape[3]} x {batch.frames.shape[2]}"
    if rows:
        numbers = {metric: _known(rows["final"][metric]) for metric in ("MAE", "AbsRel", "Acc_1")}
        texts = [f"{metric} {value:.4g}" for metric, value in numbers.items() if value is not None]
        facts, label = ", ".join([facts, *texts]), f"{name}: {', '.join(texts[:1])}"
    focus = np.asarray(focus_axis.from_q(np.asarray(batch.focus[0], np.float64), unit)).tolist()
    frames, depth, mask = (np.asarray(x[0]) for x in (batch.frames, batch.depth, batch.mask))
    return shown_stack(
        name, frames, focus, [f"frame {i + 1}" for i in range(len(focus))], stages,
        np.asarray(prediction.confidence[0]), np.asarray(prediction.all_in_focus[0]),
        truth=depth if rows else None, mask=mask, unit=unit, facts=facts, label=label, most=_MOST,
    )  # fmt: skip


def write(report: dict[str, Any], stacks: Sequence[Shown], evaluation: Evaluation | None) -> str:
    """The page; `report` is what `metrics.json` holds."""
    meta, found = report["meta"], []
    if evaluation is not None:
        rows, labels = tables.distinct(report["rows"])
        in_range = {name: row["in_range"] for name, row in rows.items()}
        for title, part in (("All valid pixels", rows), ("Pixels within the focus range", in_range)):
            cells = [[labels[name], *(row[metric] for metric in METRICS)] for name, row in part.items()]
            found.append(Table(title, ["row", *METRICS], cells))
        if evaluation.calibration:
            note = "The mean error of the most confident pixels, and whether it is as large as confidence says."
            chart = figures.confidence_chart(evaluation.calibration)
            found.append(Table("Confidence", note=note, image=panels.pixels(chart)))
        order = worst(evaluation, len(evaluation.stacks))
        each = [[evaluation.stacks[i], *(_known(evaluation.of_stack(i)["final"][m]) for m in METRICS)] for i in order]
        note = f"The worst first; images of {len(stacks)}." + " A click shows them." * (len(stacks) > 1)
        found.append(Table("Stacks", ["stack", *METRICS], each, note=note, stacks=True))
    if meta["notes"]:
        found.append(Table("Notes", ["what to know"], [[note] for note in meta["notes"]]))
    about = f"{meta['stacks'] or len(stacks)} stacks, unit {meta['unit']}, on {meta['device']}"
    return page(f"{meta['label']} on {meta['dataset']}", about, meta["unit"], stacks, found)


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
