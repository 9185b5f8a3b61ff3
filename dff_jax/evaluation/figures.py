"""The figures of an evaluation: a sheet for each of a few telling stacks, and charts of error and confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dff_jax import focus_axis
from dff_jax.evaluation import tables
from dff_jax.evaluation.rows import BASELINES, Evaluation, row_maps
from dff_jax.pictures import panels
from dff_jax.pictures.panels import Bar, Panel
from dff_jax.types import Array, Batch, Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROLES = ("first", "best", "median", "worst")
FILES = ("mae.png", "confidence.png", *(f"{role}.png" for role in ROLES))
"""How a chart abbreviates a unit."""
_MOST = 6  # panels in a row of a sheet


def choose(evaluation: Evaluation) -> dict[int, str]:
    """Position in `evaluation.stacks` -> role: the first, best, median and worst stack by MAE of the answer.

    A stack has one role only, the most telling one; a failed prediction counts as the worst.
    """
    errors = [
        one["MAE"] if math.isfinite(one["MAE"]) else math.inf
        for one in evaluation.per_stack
        if one["row"] == "final" and one["region"] == "all"
    ]
    order = np.argsort(errors, kind="stable")
    by_role = {"worst": order[-1], "best": order[0], "median": order[len(order) // 2], "first": 0}
    chosen: dict[int, str] = {}
    for role, position in by_role.items():
        chosen.setdefault(int(position), role)
    return chosen


def write(folder: Path, evaluation: Evaluation) -> None:
    """Writes the charts `mae.png` and `confidence.png` into `folder`."""
    panels.save_figure(folder / "mae.png", error_chart(evaluation))
    if evaluation.calibration:
        panels.save_figure(folder / "confidence.png", confidence_chart(evaluation.calibration))


def write_sheet(
    folder: Path, evaluation: Evaluation, position: int, role: str, batch: Batch, prediction: Prediction,
    baselines: Sequence[Array],
) -> None:  # fmt: skip
    """Writes the sheet of one stack as `<role>.png`.

    Args:
      position: of the stack in `evaluation.stacks`.
      batch, prediction, baselines: as for `sheet`.
    """
    mae = {row: values["MAE"] for row, values in evaluation.of_stack(position).items()}
    title = f"{evaluation.stacks[position]}: {role} of {len(evaluation.stacks)} stacks (grey: no ground truth)"
    rows = sheet(batch, prediction, baselines, mae, evaluation.unit)
    panels.save_png(folder / f"{role}.png", panels.sheet(rows, title=title, columns=_MOST + 1))


def sheet(
    batch: Batch, prediction: Prediction, baselines: Sequence[Array], mae: dict[str, Any], unit: str
) -> list[list[Panel]]:
    """One stack: images and truth; depth and error of every stage; candidates with their attention weights.

    Truth and depths share one colour scale, which is linear in q; errors share another, weights a third.

    Args:
      batch, prediction, baselines: of one stack (B = 1), in q, on the host.
      mae: row -> MAE in `unit`, for the captions.
    """
    mask, truth = np.asarray(batch.mask[0]), np.asarray(batch.depth[0])
    maps = {name: np.asarray(depth[0]) for name, depth in row_maps(prediction, baselines).items()}
    stages = _stages(maps)
    in_unit = np.where(mask, focus_axis.from_q(np.where(mask, truth, 1.0), unit), np.nan)
    seen = {name: focus_axis.short_of_infinity(maps[name][None], batch.focus, unit)[0] for name in stages}
    errors = {name: np.abs(np.asarray(focus_axis.from_q(q, unit)) - in_unit) for name, q in seen.items()}
    captions = {name: f"{name}  MAE {mae.get(name, math.nan):.3g}" for name in maps}
    disagreement = np.sqrt(np.maximum(prediction.disagreement[0], 0))
    depth = panels.depth_bar(*panels.robust_range(truth, mask=mask, percentiles=(0.5, 99.5)), unit)._replace(label="")
    error = _bar_from_0(list(errors.values()), 97, "magma")
    images = [
        Panel(panels.to_uint8(np.asarray(batch.frames[0, batch.frames.shape[1] // 2])), "middle frame"),
        Panel(panels.to_uint8(np.asarray(prediction.all_in_focus[0])), "all in focus (estimated)"),
        *_line({f"ground truth [{focus_axis.symbol(unit)}]": np.where(mask, truth, np.nan)}, depth),
        *_line({"confidence": np.asarray(prediction.confidence[0])}, panels.plain_bar(0.0, 1.0, "", cmap="viridis")),
    ]
    if disagreement.any():  # a single candidate agrees with itself
        images += _line({"disagreement, root": disagreement}, _bar_from_0([disagreement], 99, "magma"))
    lines = [
        images,
        _line({captions[name]: maps[name] for name in stages}, depth),
        _line({f"error of {name} [{focus_axis.symbol(unit)}]": values for name, values in errors.items()}, error),
    ]
    candidates = {captions[name]: maps[name] for name in maps if name.startswith("candidate")}
    if len(candidates) > 1 and prediction.history is not None:
        weights = np.moveaxis(np.asarray(prediction.history.weights[0]), -1, 0)
        named = {f"weight of candidate_{i + 1}  mean {w.mean():.2g}": w for i, w in enumerate(weights)}
        lines += [_line(candidates, depth), _line(named, _bar_from_0(list(weights), 99.5, "viridis"))]
    return [line[i : i + _MOST] for line in lines for i in range(0, len(line), _MOST)]


def _stages(maps: dict[str, np.ndarray]) -> list[str]:
    """The rows to draw, without candidates and what repeats the answer."""
    same = [name for name, depth in maps.items() if np.array_equal(depth, maps["final"], equal_nan=True)]
    repeated = {name for name in same if name in BASELINES}  # an evaluation of the baseline itself
    if any(name.startswith(("D(", "refined")) for name in same):
        repeated.add("final")
    stages = [name for name in maps if not name.startswith("candidate") and name not in repeated]
    if "sml" in repeated:  # whose stages are all the same
        stages = ["sml", *(name for name in stages if name in BASELINES)]
    return stages


def _bar_from_0(values: Sequence[np.ndarray], percentile: float, cmap: str) -> Bar:
    """A scale from 0 to a percentile of the values."""
    high = panels.robust_range(np.stack(values), percentiles=(0.0, percentile))[1]
    return panels.plain_bar(0.0, high, "", cmap=cmap)


def _line(values: dict[str, np.ndarray], bar: Bar) -> list[Panel]:
    """Maps [H,W] by caption as panels of one scale, whose bar stands behind the last in each row."""
    found = [Panel(panels.colorize(x, bar.low, bar.high, cmap=bar.cmap), name) for name, x in values.items()]
    last = {*range(_MOST - 1, len(found), _MOST), len(found) - 1}
    return [panel._replace(bar=bar) if i in last else panel for i, panel in enumerate(found)]


def error_chart(evaluation: Evaluation) -> Figure:
    """MAE of every row, over all valid and over in-range pixels, in the order of the method."""
    distinct, names = tables.distinct(evaluation.rows)
    figure = panels.new_figure(max(5.0, 0.75 * len(names) + 1.5), 3.6)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    regions = [list(distinct.values()), [row["in_range"] for row in distinct.values()]]
    labels, colours = ("all valid pixels", "within the focus range"), ("#3b6fb6", "#e0913a")
    for offset, label, colour, rows in zip((-0.2, 0.2), labels, colours, regions, strict=True):
        values = [math.nan if row["MAE"] is None else row["MAE"] for row in rows]
        bars = axes.bar(np.arange(len(names)) + offset, values, width=0.4, label=label, color=colour)
        axes.bar_label(bars, [f"{v:.3g}" for v in values], fontsize=7, padding=1)
    labels = [name.replace(" = ", "\n= ") for name in names.values()]
    axes.set_xticks(range(len(names)), labels, rotation=35 if len(names) > 1 else 0, fontsize=9)
    axes.set_ylabel(f"MAE [{focus_axis.symbol(evaluation.unit)}]")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1.02))
    axes.set_title(f"Mean over {len(evaluation.stacks)} stacks", fontsize=10, loc="left", pad=12)
    return figure


def confidence_chart(found: dict[str, Any]) -> Figure:
    """Error over coverage, and found over expected error; `found` is `calibration.summarize`."""
    figure = panels.new_figure(8.0, 3.4)
    figure.set_layout_engine("constrained")
    left, right = figure.subplots(1, 2)
    left.plot(found["coverage"], found["error"], color="#3b6fb6")
    left.set_xlabel("share of pixels kept, the most confident first")
    left.set_ylabel("mean |error|, share of the focus range")
    left.set_ylim(bottom=0)
    half = found["half"]
    left.set_title("" if half is None else f"most confident half: {half:.2f} of the error", fontsize=10, loc="left")
    right.plot(found["expected"], found["found"], "o-", color="#3b6fb6", markersize=4)
    ends = [min(found["expected"] + found["found"]), max(found["expected"] + found["found"])]
    right.plot(ends, ends, color="0.6", linewidth=1)
    right.set(xscale="log", yscale="log", xlabel="expected error (confidence)", ylabel="error found")
    right.set_title("ten classes of pixels; grey: as expected", fontsize=10, loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
