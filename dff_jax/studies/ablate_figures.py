"""What an ablation draws: the iterates and attention maps of the paper's Figures 3 and 4, and how it converges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dff_jax import focus_axis
from dff_jax.data.parts import StackSource
from dff_jax.errors import InputError
from dff_jax.evaluation import figures
from dff_jax.evaluation.paper import numbers, sharp
from dff_jax.evaluation.rows import Evaluation
from dff_jax.pictures import panels
from dff_jax.pictures.panels import Bar, Panel
from dff_jax.types import Batch, History, Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("iterates.png", "weights.png", "convergence.png")
ROLES = ("best", "median", "worst")  # of the stacks drawn, by MAE of the answer
_ITERATES = (0, 1, 3, 5)  # of Figure 3, and D(0)


class Shown(NamedTuple):
    """One stack to draw: arrays [1,...] in q, on the host."""

    role: str  # one of ROLES, or "stack 16"
    name: str
    rows: dict[str, dict[str, Any]]  # row -> metrics
    batch: Batch
    prediction: Prediction  # its refined stages are those after each of the report's iterations

    @property
    def title(self) -> str:
        """The stack's own name, without that of its dataset."""
        return self.name.rpartition("/")[2]

    @property
    def history(self) -> History:
        """Of the unroll, which every method here has."""
        assert self.prediction.history is not None
        return self.prediction.history


def named(source: StackSource, asked: Sequence[int], length: int) -> dict[str, str]:
    """Name -> role of the stacks that were asked for, by their numbers in the `length` that are measured.

    Raises:
      InputError: a number that does not exist; a stack without ground truth.
    """
    found = {number: source[number] for number in numbers(asked, length)}
    for number, stack in found.items():
        if stack.mask is None or not stack.mask.any():
            raise InputError(f"--figure-stacks: stack {number}, {stack.name}, has no ground truth; choose another")
    return {stack.name: f"stack {number}" for number, stack in found.items()}


def choose(evaluation: Evaluation, answer: str, asked: dict[str, str] | None = None) -> dict[int, str]:
    """Position in `evaluation.stacks` -> role of the stacks to draw: those `asked`, or three by the row `answer`."""
    if asked is not None:
        return {evaluation.stacks.index(name): role for name, role in asked.items()}
    final = tuple(one | {"row": "final"} for one in evaluation.per_stack if one["row"] == answer)
    chosen = figures.choose(evaluation._replace(per_stack=final))
    return {position: role for role in ROLES for position, found in chosen.items() if found == role}


def write(folder: Path, report: dict[str, Any], shown: Sequence[Shown], mean_weights: np.ndarray) -> None:
    """Writes `FILES` into `folder`.

    Args:
      mean_weights: [H,W,N], over all stacks.
    """
    meta = report["meta"]
    panels.save_png(folder / "iterates.png", iterates(meta, shown))
    panels.save_png(folder / "weights.png", attention(meta, shown, mean_weights))
    title = f"{meta['run']} on {meta['dataset']}: the same parameters through each scheme"
    chart = convergence(report["courses"], meta["unit"], title, meta["trained_iterations"])
    panels.save_figure(folder / "convergence.png", chart)


def write_comparison(folder: Path, reports: list[dict[str, Any]]) -> None:
    """Writes `convergence.png` of several runs into `folder`."""
    courses = {report["meta"]["run"]: report["courses"][report["meta"]["scheme"]] for report in reports}
    panels.save_figure(folder / "convergence.png", convergence(courses, reports[0]["meta"]["unit"], "as trained"))


def iterates(meta: dict[str, Any], shown: Sequence[Shown]) -> np.ndarray:
    """Figure 3: truth, D(0), D(1), D(3), D(5), refined; below their errors in percent of the focus range.

    Drawn in q. [H,W,3] uint8.
    """
    rows: list[list[Panel]] = []
    for one in shown:
        truth, mask = np.asarray(one.batch.depth[0]), np.asarray(one.batch.mask[0])
        width = float(one.batch.focus[0, -1] - one.batch.focus[0, 0])
        stages = _stages(meta, one.history)
        error = {f"error of {name}": 100 * np.abs(depth - truth) / width for name, depth in stages.items()}
        worst = panels.robust_range(np.stack(list(error.values())), mask=np.stack([mask] * len(error)))[1]
        bar = panels.depth_bar(*panels.robust_range(truth, mask=mask), meta["unit"])._replace(label="")
        head = Panel(panels.colorize(truth, bar.low, bar.high, mask=mask), f"truth of {one.title}, {one.role}")
        depths = {f"{name}  MAE {one.rows[name]['MAE']:.3g}": depth for name, depth in stages.items()}
        rows.append([head, *_line(depths, bar)])
        image, told = sharp(one.batch, one.prediction)
        wrong = _line(error, panels.plain_bar(0.0, worst, "%", cmap="magma"), mask)
        rows.append([Panel(panels.to_uint8(image), told), *wrong])
    title = f"{meta['run']}: iterates; errors in % of the focus range (grey: no truth)"
    return panels.sheet(rows, title=title, width=2000)


def _stages(meta: dict[str, Any], history: History) -> dict[str, np.ndarray]:
    found = {f"D({k})": np.asarray(history.iterates[0, k]) for k in _ITERATES if k <= meta["iterations"][-1]}
    if history.refined.shape[1]:
        at = meta["iterations"].index(meta["trained_iterations"])
        found[meta["answer"]] = np.asarray(history.refined[0, at])
    return found


def _line(maps: dict[str, np.ndarray], bar: Bar, mask: np.ndarray | None = None) -> list[Panel]:
    """Maps by caption on one scale, whose bar stands beside the last."""
    line = [
        Panel(panels.colorize(values, bar.low, bar.high, mask=mask, cmap=bar.cmap), caption)
        for caption, values in maps.items()
    ]
    return [*line[:-1], line[-1]._replace(bar=bar)]


def attention(meta: dict[str, Any], shown: Sequence[Shown], mean_weights: np.ndarray) -> np.ndarray:
    """Figure 4: W_i^2 of each candidate (a row) in a few stacks, its mean over these, as in the paper, and over all; on
    one scale."""
    images = [(one.title, *sharp(one.batch, one.prediction)) for one in shown]
    rows = [[Panel(panels.to_uint8(image), f"{title}: {told}") for title, image, told in images]]
    weights = [np.asarray(one.history.weights[0]) for one in shown]
    drawn = {f"of {one.role}": values for one, values in zip(shown, weights, strict=True)}
    if len(shown) > 1 and len({values.shape for values in weights}) == 1:
        drawn["mean of these"] = np.mean(weights, 0)
    drawn[f"mean of all {meta['stacks']} stacks"] = mean_weights
    every = np.concatenate([values.ravel() for values in drawn.values()])
    bar = panels.plain_bar(0.0, panels.robust_range(every, percentiles=(0.0, 99.5))[1], "", cmap="viridis")
    for i in range(mean_weights.shape[-1]):
        maps = {name: values[..., i] for name, values in drawn.items()}
        told = {f"W²({i + 1}) {name}\n{x.mean():.3g}, sd {x.std():.2g}": x for name, x in maps.items()}
        rows.append(_line(told, bar))
    title = f"{meta['run']}: attention weights on one scale"
    return panels.sheet(rows, title=title, width=1500, columns=len(rows[-1]))


def convergence(courses: dict[str, dict[str, Any]], unit: str, title: str, trained: int | None = None) -> Figure:
    """MAE, data energy, residual and eta S against k, a line for each course (`ablate._course`).

    Args:
      trained: K as trained, marked; None: not marked.
    """
    figure = panels.new_figure(11.5, 7.2)
    figure.set_layout_engine("constrained")
    figure.suptitle(panels.literal(title), fontsize=11)
    quantities = (  # key, label, first k, smallest value of a logarithmic axis: below is rounding
        ("MAE", f"MAE of D(k) [{focus_axis.symbol(unit)}]", 0, None),
        ("data_energy", "data term above its minimum at D(0)\n½ S (D(k) - D(0))², mean per pixel", 0, 1e-12),
        ("residual", "root mean square of D(k) - D(k-1)\nshare of the focus range", 1, 1e-7),
        ("eta_S", "mean of η S", 1, None),
    )
    for axes, (key, label, first, least) in zip(figure.subplots(2, 2).flat, quantities, strict=True):
        for i, (name, course) in enumerate(courses.items()):
            values = [math.nan if v is None or (least and v < least) else v for v in course.get(key, ())]
            steps, style = range(first, first + len(values)), panels.line_style(i)
            axes.plot(steps, values, marker=".", ms=4, lw=1.3, label=name, **style)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if least and any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            axes.set_yscale("log")
        if trained is not None:
            axes.axvline(trained, color="0.7", lw=0.8, zorder=0)
        axes.set_xlabel("k", fontsize=9)
        axes.set_ylabel(label, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    return figure
