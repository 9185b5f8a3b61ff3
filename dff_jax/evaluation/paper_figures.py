"""The layouts of the paper's Figures 5 (Middlebury), 6 (HCI) and 9 (DDFF-12): a column a stack, a row a map.

The paper does not print its colours or scales: here truth and answers of a column share one, that of the truth, or of
the focus range where there is no truth. Figure 9 shows the methods at hand where the paper shows the compared ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dff_jax import focus_axis
from dff_jax.errors import InputError
from dff_jax.pictures.panels import literal
from dff_jax.types import Batch, Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE, _HEADING, _MARGIN, _GAP, _FOOT = 2.3, 0.3, 0.75, 0.06, 0.4  # inches


class Layout(NamedTuple):
    """One figure."""

    file: str
    title: str
    stacks: tuple[int, ...] | None  # numbers in the split, from 0; None: some, evenly spaced
    methods: bool = False  # whether the other methods have rows too


LAYOUTS = {
    "middlebury": Layout("paper_figure_5.png", "Figure 5: Middlebury", (0, 1, 3)),
    "hci": Layout("paper_figure_6.png", "Figure 6: HCI", (0, 1, 2, 3)),
    "ddff12": Layout("paper_figure_9.png", "Figure 9: DDFF-12", None, methods=True),
}
PREDICTIONS = Layout("predictions.png", "Predictions", None, methods=True)
"""Of other data, without truth or when asked for."""
FILES = (*(layout.file for layout in LAYOUTS.values()), PREDICTIONS.file)
_COLUMNS = 5


class Column(NamedTuple):
    """One stack of a figure; maps [H,W] in `unit`, NaN where truth is missing."""

    name: str
    frame: np.ndarray  # [H,W,3] in [0,1], the middle one
    all_in_focus: np.ndarray  # [H,W,3] in [0,1], estimated
    truth: np.ndarray | None
    answers: dict[str, np.ndarray]  # of the evaluated method, then of others
    focus_range: tuple[float, float]
    unit: str


def layout_of(convention: str, has_truth: bool) -> Layout | None:
    """The figure that goes with a dataset, if any."""
    return LAYOUTS.get(convention, None if has_truth else PREDICTIONS)


def choose(layout: Layout, length: int, asked: list[int] | None = None) -> list[int]:
    """Numbers of the stacks to show.

    Args:
      length: stacks in the split.
      asked: instead of the layout's.

    Raises:
      InputError: a number that was asked for and does not exist.
    """
    if asked is not None:
        if not asked or any(not 0 <= number < length for number in asked):
            raise InputError(f"--figure-stacks: numbers from 0 to {length - 1}, got {' '.join(map(str, asked))}")
        return list(dict.fromkeys(asked))
    if layout.stacks is not None:
        return [number for number in layout.stacks if number < length] or [0]
    return sorted({int(x) for x in np.linspace(0, length - 1, min(_COLUMNS, length)).round()})


def column(
    name: str, batch: Batch, prediction: Prediction, others: dict[str, np.ndarray], unit: str, label: str
) -> Column:
    """A column of one stack: arrays [1,...] in q, on the host; `label` is what to call the evaluated method, `others`
    are the depths of more."""
    mask = np.asarray(batch.mask[0])
    truth = np.where(mask, focus_axis.from_q(np.asarray(batch.depth[0]), unit), np.nan) if mask.any() else None
    answers = {label: focus_axis.from_q(np.asarray(prediction.depth[0]), unit)}
    for other, depth in others.items():
        answers.setdefault(other, focus_axis.from_q(np.asarray(depth[0]), unit))
    low, high = sorted(float(focus_axis.from_q(np.asarray(q), unit)) for q in (batch.focus[0, 0], batch.focus[0, -1]))
    frames = np.asarray(batch.frames[0])
    return Column(name, frames[len(frames) // 2], prediction.all_in_focus[0], truth, answers, (low, high), unit)


def draw(layout: Layout, columns: list[Column]) -> Figure:
    """The figure: pictures, truth if there is any, the answers, and each column's colour bar."""
    from dff_jax.evaluation.figures import new_figure

    label, *others = columns[0].answers
    rows: list[tuple[str, list[np.ndarray | None]]]
    if layout.methods:
        rows = [("frame", [one.frame for one in columns])]
    else:
        rows = [("all in focus\n(estimated)", [one.all_in_focus for one in columns])]
    if any(one.truth is not None for one in columns):
        rows.append(("ground truth", [one.truth for one in columns]))
    shown = [*others, label] if layout.methods else [label]  # ours last, as in the paper
    rows += [(name, [one.answers[name] for one in columns]) for name in shown]

    heights = [_SIDE * max(min(max(c.frame.shape[0] / c.frame.shape[1], 0.4), 2.0) for c in columns)] * len(rows)
    width = _MARGIN + len(columns) * (_SIDE + _GAP)
    height = 2 * _HEADING + sum(heights) + _GAP * len(rows) + _FOOT
    figure = new_figure(width, height)
    figure.suptitle(literal(layout.title), fontsize=11, x=_GAP / width, ha="left", y=1 - 0.05 / height, va="top")
    top = height - 2 * _HEADING
    for (name, pictures), tall in zip(rows, heights, strict=True):
        top -= tall
        for i, (one, values) in enumerate(zip(columns, pictures, strict=True)):
            left = _MARGIN + i * (_SIDE + _GAP)
            axes = figure.add_axes((left / width, top / height, _SIDE / width, tall / height))
            axes.set_xticks([])
            axes.set_yticks([])
            if name == rows[0][0]:
                axes.set_title(literal(one.name), fontsize=8, pad=3)
            if i == 0:
                axes.set_ylabel(literal(name), fontsize=9)
            _show(axes, one, values)
        top -= _GAP
    for i, one in enumerate(columns):
        left = _MARGIN + i * (_SIDE + _GAP)
        _draw_scale(figure.add_axes((left / width, (_FOOT - 0.14) / height, _SIDE / width, 0.1 / height)), one)
    return figure


def _scale(one: Column) -> tuple[float, float, str]:
    """Lowest and highest value shown of the maps of a column, and the name of the colours."""
    low, high = one.focus_range
    if one.truth is not None:
        low, high = (float(x) for x in np.nanpercentile(one.truth, [0.5, 99.5]))
    warm_is_near = focus_axis.larger_is_nearer(one.unit) is not False
    return low, max(high, low + 1e-6), "turbo" if warm_is_near else "turbo_r"


def _draw_scale(axes, one: Column) -> None:
    low, high, colours = _scale(one)
    axes.imshow(np.linspace(low, high, 256)[None], cmap=colours, aspect="auto", extent=(0, 1, 0, 1))
    axes.set_yticks([])
    axes.set_xticks([0, 1], [f"{low:.3g}", f"{high:.3g} {one.unit}"], fontsize=7)
    for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
        label.set_horizontalalignment(side)


def _show(axes, one: Column, values: np.ndarray | None) -> None:
    import matplotlib

    if values is None:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
    elif values.ndim == 3:
        axes.imshow(np.clip(np.asarray(values, np.float32), 0, 1), aspect="auto")
    else:
        low, high, name = _scale(one)
        colours = matplotlib.colormaps[name].with_extremes(bad="0.6")
        axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
