"""What an evaluation draws: a sheet for each of a few telling stacks, and the error of every row as a chart.

Matplotlib is imported only when something is drawn, and without pyplot: no global state, no display.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dff_jax import focus_axis
from dff_jax.evaluation import calibration, tables
from dff_jax.evaluation.rows import BASELINES, Evaluation, row_maps, row_names
from dff_jax.pictures.panels import any_script, literal
from dff_jax.types import Batch, Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROLES = ("first", "best", "median", "worst")
FILES = ("mae.png", "confidence.png", *(f"{role}.png" for role in ROLES))

_ABBREVIATIONS = {"disparity": "px", "diopter": "dpt", "metre": "m", "index": "frames"}
_NO_TRUTH = "0.6"  # grey
_PANEL, _GAP, _BAR, _HEADING = 2.3, 0.1, 0.62, 0.32  # inches: image width, space, colour bar, title


class _Panel(NamedTuple):
    title: str
    values: np.ndarray  # [H,W] or [H,W,3]
    scale: str | None = None  # key of `_Scale`; None for a picture


class _Scale(NamedTuple):
    low: float
    high: float
    colours: str
    label: str


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
    """Writes `mae.png` and `confidence.png` into `folder`."""
    save(error_chart(evaluation), folder / "mae.png")
    if evaluation.calibration:
        save(calibration.chart(evaluation.calibration), folder / "confidence.png")


def write_sheet(
    folder: Path, evaluation: Evaluation, position: int, role: str, batch: Batch, prediction: Prediction,
    baselines: list[np.ndarray],
) -> None:  # fmt: skip
    """Writes the sheet of one stack as `<role>.png`.

    Args:
      position: of the stack in `evaluation.stacks`.
      batch, prediction, baselines: as for `sheet`.
    """
    mae = {row: values["MAE"] for row, values in evaluation.of_stack(position).items()}
    title = f"{evaluation.stacks[position]}: {role} of {len(evaluation.stacks)} stacks (grey: no ground truth)"
    save(sheet(batch, prediction, baselines, mae, evaluation.unit, title), folder / f"{role}.png")


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG."""
    with any_script():
        figure.savefig(path, dpi=100, format="png")


def error_chart(evaluation: Evaluation) -> Figure:
    """MAE of every row, over all valid and over in-range pixels, in the order of the method."""
    distinct, names = tables.distinct(evaluation.rows)
    figure = new_figure(max(5.0, 0.75 * len(names) + 1.5), 3.6)
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
    axes.set_ylabel(f"MAE [{_ABBREVIATIONS[evaluation.unit]}]")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1.02))
    axes.set_title(f"Mean over {len(evaluation.stacks)} stacks", fontsize=10, loc="left", pad=12)
    return figure


def sheet(
    batch: Batch, prediction: Prediction, baselines: list[np.ndarray], mae: dict[str, Any], unit: str, title: str
) -> Figure:
    """One stack: pictures and truth; depth and error of every stage; candidates with their attention weights.

    Truth and depths share one colour scale, errors another, weights a third.

    Args:
      batch, prediction, baselines: of one stack (B = 1), in q, on the host.
      mae: row -> MAE in `unit`, for the captions.
    """
    mask = np.asarray(batch.mask[0])
    truth = np.where(mask, focus_axis.from_q(np.asarray(batch.depth[0]), unit), np.nan)
    names = row_names(prediction, True)
    maps = dict(zip(names, (np.asarray(m[0]) for m in row_maps(prediction, baselines)), strict=True))
    maps = {name: focus_axis.from_q(depth, unit) for name, depth in maps.items()}
    stages = [name for name in names if not name.startswith("candidate")]
    if _answered_before(maps):
        stages.remove("final")
    repeated = [name for name in BASELINES if np.array_equal(maps[name], maps["final"], equal_nan=True)]
    stages = [name for name in stages if name not in repeated]  # an evaluation of the baseline itself
    if "sml" in repeated:  # whose stages are all the same
        stages = ["sml", *(name for name in stages if name in BASELINES)]

    def caption(name: str) -> str:
        value = mae.get(name, math.nan)
        return f"{name}  MAE {value:.3g}"

    spread = np.sqrt(np.maximum(prediction.disagreement[0], 0))
    lines = [
        [
            _Panel("middle frame", batch.frames[0, batch.frames.shape[1] // 2]),
            _Panel("all in focus (estimated)", prediction.all_in_focus[0]),
            _Panel("ground truth", truth, "depth"),
            _Panel("confidence", prediction.confidence[0], "confidence"),
        ],
    ]
    if prediction.disagreement.any():  # a single candidate agrees with itself
        lines[0].append(_Panel("disagreement, root", spread, "disagreement"))
    depths = [_Panel(caption(name), maps[name], "depth") for name in stages]
    errors = [_Panel(f"error of {name}", np.abs(maps[name] - truth), "error") for name in stages]
    lines += [depths, errors] if len(stages) > 1 else [depths + errors]
    candidates = [name for name in names if name.startswith("candidate")]
    if len(candidates) > 1:
        weights = np.moveaxis(prediction.history.weights[0], -1, 0)
        lines += [
            [_Panel(caption(name), maps[name], "depth") for name in candidates],
            [_Panel(f"$W_{{{i + 1}}}^2$  mean {w.mean():.2g}", w, "weight") for i, w in enumerate(weights)],
        ]
    return _draw(lines, _scales(lines, truth, spread, unit), title)


def _answered_before(maps: dict[str, np.ndarray]) -> bool:
    """Whether the answer is also one of the stages (it is for every estimator with a history)."""
    return any(
        np.array_equal(depth, maps["final"], equal_nan=True)
        for name, depth in maps.items()
        if name.startswith(("D(", "refined"))
    )


def _scales(lines, truth, spread, unit) -> dict[str, _Scale]:
    short = _ABBREVIATIONS[unit]
    depth_colours = "turbo_r" if focus_axis.larger_is_nearer(unit) is False else "turbo"  # warm is near
    errors = np.concatenate([p.values.ravel() for line in lines for p in line if p.scale == "error"])
    weights = [p.values for line in lines for p in line if p.scale == "weight"]
    return {
        "depth": _Scale(*_range(truth, 0.5, 99.5), depth_colours, f"depth [{short}]"),
        "error": _Scale(0.0, _range(errors, 0, 97)[1], "magma", f"error [{short}]"),
        "weight": _Scale(0.0, _range(np.array(weights), 0, 99.5)[1], "viridis", "$W_i^2$"),
        "confidence": _Scale(0.0, 1.0, "viridis", ""),
        "disagreement": _Scale(0.0, _range(spread, 0, 99)[1], "magma", f"[{short}]"),
    }


def _range(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    a, b = (float(x) for x in np.percentile(finite, [low, high]))
    return (a, b) if b > a else (a, a + max(abs(a), 1.0) * 1e-3)


def _draw(lines: list[list[_Panel]], scales: dict[str, _Scale], title: str) -> Figure:
    """Lines of panels; neighbours of one scale share a colour bar, which stands behind the last of them."""
    import matplotlib

    height, width = lines[0][0].values.shape[:2]
    panel_height = _PANEL * min(max(height / width, 0.4), 2.0)
    ends = [[_wants_bar(line, i) for i in range(len(line))] for line in lines]
    figure_width = _GAP + max(len(e) * (_PANEL + _GAP) + sum(e) * _BAR for e in ends)
    figure_height = len(lines) * (panel_height + _HEADING) + 0.35
    figure = new_figure(figure_width, figure_height)
    figure.suptitle(literal(title), fontsize=11, x=_GAP / figure_width, ha="left", y=1 - 0.08 / figure_height, va="top")

    def axes_at(x: float, bottom: float, w: float) -> Any:
        box = (x / figure_width, bottom / figure_height, w / figure_width, panel_height / figure_height)
        return figure.add_axes(box)

    for row, (line, has_bar) in enumerate(zip(lines, ends, strict=True)):
        x, bottom = _GAP, figure_height - 0.35 - (row + 1) * (panel_height + _HEADING) + _GAP
        for panel, bar in zip(line, has_bar, strict=True):
            axes = axes_at(x, bottom, _PANEL)
            axes.set_title(panel.title, fontsize=9, pad=3)
            axes.set_xticks([])
            axes.set_yticks([])
            x += _PANEL + _GAP
            if panel.scale is None:
                axes.imshow(np.clip(np.asarray(panel.values, np.float32), 0, 1), aspect="auto")
                continue
            scale = scales[panel.scale]
            colours = matplotlib.colormaps[scale.colours].with_extremes(bad=_NO_TRUTH)
            image = axes.imshow(panel.values, cmap=colours, vmin=scale.low, vmax=scale.high, aspect="auto")
            if bar:
                beside = figure.colorbar(image, cax=axes_at(x - _GAP / 2, bottom, 0.12))
                beside.ax.tick_params(labelsize=7, pad=2, length=2)
                beside.set_label(scale.label, fontsize=8, labelpad=2)
                x += _BAR
    return figure


def _wants_bar(line: list[_Panel], i: int) -> bool:
    following = line[i + 1].scale if i + 1 < len(line) else None
    return line[i].scale is not None and line[i].scale != following


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure
