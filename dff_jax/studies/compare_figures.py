"""What a comparison draws: depth maps of all methods (the paper's Figure 7) and the metrics of one stack (Figure 8)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dff_jax.config import Comparison
from dff_jax.errors import ConfigError
from dff_jax.evaluation import paper
from dff_jax.evaluation.metrics import LARGER_IS_BETTER
from dff_jax.evaluation.tables import FORMATS
from dff_jax.pictures import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("figure.png", "stack_metrics.png")


def choose(comparison: Comparison, length: int) -> tuple[list[int], int]:
    """The numbers of the stacks in Figure 7, and of the one in Figure 8, of the `length` that are measured.

    Raises:
      ConfigError: a number that does not exist.
    """
    shown, chart = comparison.figure_stacks, comparison.chart_stack
    if isinstance(shown, int):
        numbers = sorted({int(x) for x in np.linspace(0, length - 1, min(shown, length)).round()})
    else:
        numbers = list(dict.fromkeys(shown))
    chart = numbers[0] if chart is None else chart
    for field, given in (("figure_stacks", numbers), ("chart_stack", [chart])):
        if any(not 0 <= number < length for number in given):
            told = " ".join(map(str, given))
            raise ConfigError(f"comparison.{field}: numbers from 0 to {length - 1} of the test set, got {told}")
    return numbers, chart


def write(
    folder: Path, test: str, columns: list[paper.Column], stack: str, metrics: Mapping[str, Mapping[str, Any]]
) -> None:
    """Writes `FILES` into `folder`.

    Args:
      test: name of the test set.
      columns: the stacks of Figure 7.
      stack: name of the stack of Figure 8.
      metrics: label of the method -> metric -> value of that stack, None where undefined; empty: no Figure 8.
    """
    paper.save_methods(folder / FILES[0], test, columns)
    if metrics:
        panels.save_figure(folder / FILES[1], metrics_chart(f"{test}, {stack}", metrics))


def metrics_chart(title: str, metrics: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Figure 8: a group of bars for each of the paper's metrics, a bar for each method, with its value as measured.

    The paper says that values are normalised to [0, 1], not how. Here each is divided by the largest of its metric, so
    that bars keep their ratios; a correlation below 0 is drawn as 0.
    """
    drawn = [name for name in paper.COLUMNS if any(of[name] is not None for of in metrics.values())]
    width = 0.84 / len(metrics)
    figure = panels.new_figure(max(8.0, 1.5 + 0.19 * len(metrics) * len(drawn)), 4.6)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    for i, (label, of) in enumerate(metrics.items()):
        heights, texts = [], []
        for name in drawn:
            value, largest = of[name], max(abs(one[name]) for one in metrics.values() if one[name] is not None)
            heights.append(0.0 if value is None or not largest else max(value / largest, 0.0))
            texts.append("-" if value is None else format(value, FORMATS.get(name, ".3g")))
        at = np.arange(len(drawn)) + (i - (len(metrics) - 1) / 2) * width
        style = panels.line_style(i)
        edge = "none" if style["linestyle"] == "-" else "black"  # where colours repeat
        bars = axes.bar(at, heights, width * 0.92, label=label, color=style["color"], edgecolor=edge)
        axes.bar_label(bars, texts, fontsize=7, padding=2, rotation=90)
    arrows = [f"{name} {'↑' if name in LARGER_IS_BETTER else '↓'}" for name in drawn]
    axes.set_xticks(range(len(drawn)), arrows, fontsize=9)
    axes.set(ylim=(0, 1.18), ylabel="share of the largest value")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(panels.literal(title), fontsize=10, loc="left")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
