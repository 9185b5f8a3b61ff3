"""What an ablation draws: the iterates and attention maps of the paper's Figures 3 and 4, and how it converges."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dff_jax.evaluation import figures
from dff_jax.evaluation.rows import Evaluation
from dff_jax.pictures import panels
from dff_jax.pictures.panels import Bar, Panel
from dff_jax.types import Batch, History, Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILES = ("iterates.png", "weights.png", "convergence.png")
ROLES = ("best", "median", "worst")  # of the stacks drawn, by MAE of the answer
_ITERATES = (0, 1, 3, 5)  # of Figure 3, and D(0)
_COLOURS = "#1b1b1b #3b6fb6 #e0913a #3f9b5b #c0504d #8064a2 #7f7f7f #2aa5a5 #b5a02c #d667a8".split()
Shown = dict[str, tuple[Batch, Prediction]]
"""Role -> batch and prediction of one stack: arrays [1,...] in q, on the host."""


def choose(evaluation: Evaluation, answer: str) -> dict[int, str]:
    """Position in `evaluation.stacks` -> role of the stacks to draw, by the row `answer`."""
    final = tuple(one | {"row": "final"} for one in evaluation.per_stack if one["row"] == answer)
    chosen = figures.choose(evaluation._replace(per_stack=final))
    return {position: role for position, role in chosen.items() if role in ROLES}


def write(
    folder: Path, report: dict[str, Any], shown: Shown, chosen: dict[int, str], mean_weights: np.ndarray,
    evaluation: Evaluation,
) -> None:  # fmt: skip
    """Writes `FILES` into `folder`.

    Args:
      shown: the chosen stacks; their refined stages are those after each of the report's iterations.
      chosen: as `choose`.
      mean_weights: [H,W,N], over all stacks.
    """
    meta = report["meta"]
    names = {role: evaluation.stacks[position] for position, role in chosen.items()}
    errors = {role: evaluation.of_stack(position) for position, role in chosen.items()}
    shown = {role: shown[role] for role in ROLES if role in shown}
    panels.save_png(folder / "iterates.png", iterates(meta, shown, names, errors))
    panels.save_png(
        folder / "weights.png", attention(shown, names, mean_weights, len(evaluation.stacks), meta["run"])
    )
    title = f"{meta['run']} on {meta['dataset']}: the same parameters through each scheme"
    chart = convergence(report["courses"], meta["unit"], title, meta["trained_iterations"])
    panels.save_figure(folder / "convergence.png", chart)


def write_comparison(folder: Path, reports: list[dict[str, Any]]) -> None:
    """Writes `convergence.png` of several runs into `folder`."""
    courses = {report["meta"]["run"]: report["courses"][report["meta"]["scheme"]] for report in reports}
    panels.save_figure(folder / "convergence.png", convergence(courses, reports[0]["meta"]["unit"], "as trained"))


def iterates(
    meta: dict[str, Any], shown: Shown, names: dict[str, str], errors: dict[str, dict[str, dict[str, Any]]]
) -> np.ndarray:
    """Figure 3: truth, D(0), D(1), D(3), D(5), refined; below their errors, and what changed since D(0).

    Drawn in q; errors and changes in percent of the focus range. [H,W,3] uint8.
    """
    rows: list[list[Panel]] = []
    for role, (batch, prediction) in shown.items():
        mae = {row: one["MAE"] for row, one in errors[role].items()}
        truth, mask = np.asarray(batch.depth[0]), np.asarray(batch.mask[0])
        width = float(batch.focus[0, -1] - batch.focus[0, 0])
        stages = _stages(meta, _history(prediction))
        error = {name: 100 * np.abs(depth - truth) / width for name, depth in stages.items()}
        moved = {name: 100 * (depth - stages["D(0)"]) / width for name, depth in stages.items() if name != "D(0)"}
        low, high = panels.robust_range(truth, mask=mask)
        worst = panels.robust_range(np.stack(list(error.values())), mask=np.stack([mask] * len(error)))[1]
        most = max((float(np.percentile(np.abs(x), 99)) for x in moved.values()), default=0.0) or 1e-6
        depth_bar = panels.depth_bar(low, high, meta["unit"])._replace(label="")
        captions = {name: f"{name}  MAE {_text(mae.get(name))}" for name in stages}
        head = _colored(truth, f"truth of {_short(names[role])}, {role}", depth_bar, mask)
        rows.append([head, *_line({captions[name]: depth for name, depth in stages.items()}, depth_bar)])
        sharp = panels.to_uint8(np.asarray(prediction.all_in_focus[0]))
        bar = panels.plain_bar(0.0, worst, "%", cmap="magma")
        maps = {f"error of {name}": x for name, x in error.items()}
        rows.append([Panel(sharp, "all in focus (estimated)"), *_line(maps, bar, mask)])
        if moved:
            bar = panels.plain_bar(-most, most, "%", cmap="coolwarm")
            blank = Panel(np.full_like(sharp, 255), "")
            rows.append([blank, blank, *_line({f"{name} - D(0)": x for name, x in moved.items()}, bar)])
    title = f"{meta['run']}: iterates; errors and changes in % of the focus range (grey: no truth)"
    return panels.sheet(rows, title=title, width=2000)


def _stages(meta: dict[str, Any], history: History) -> dict[str, np.ndarray]:
    found = {f"D({k})": np.asarray(history.iterates[0, k]) for k in _ITERATES if k <= meta["iterations"][-1]}
    if history.refined.shape[1]:
        at = meta["iterations"].index(meta["trained_iterations"])
        found[meta["answer"]] = np.asarray(history.refined[0, at])
    return found


def _colored(values: np.ndarray, caption: str, bar: Bar, mask: np.ndarray | None = None) -> Panel:
    return Panel(panels.colorize(values, bar.low, bar.high, mask=mask, cmap=bar.cmap), caption)


def _line(maps: dict[str, np.ndarray], bar: Bar, mask: np.ndarray | None = None) -> list[Panel]:
    """Maps by caption on one scale, whose bar stands beside the last."""
    line = [_colored(values, caption, bar, mask) for caption, values in maps.items()]
    return [*line[:-1], line[-1]._replace(bar=bar)]


def _history(prediction: Prediction) -> History:
    assert prediction.history is not None  # every unroll has one
    return prediction.history


def attention(
    shown: Shown, names: dict[str, str], mean_weights: np.ndarray, num_stacks: int, label: str
) -> np.ndarray:
    """Figure 4: W_i^2 of each candidate (a row, on a scale of its own) in a few stacks; last, its mean over all."""
    rows = [
        [
            Panel(panels.to_uint8(np.asarray(prediction.all_in_focus[0])), f"{_short(names[role])}: all in focus")
            for role, (_, prediction) in shown.items()
        ]
    ]
    for i in range(mean_weights.shape[-1]):
        maps = [np.asarray(_history(prediction).weights[0, ..., i]) for _, prediction in shown.values()]
        texts = [f"W²({i + 1})  mean {values.mean():.3g}, sd {values.std():.2g}" for values in maps]
        maps.append(mean_weights[..., i])
        texts.append(f"mean of {num_stacks} stacks {maps[-1].mean():.3g}")
        high = panels.robust_range(np.concatenate([x.ravel() for x in maps]), percentiles=(0.0, 99.5))[1]
        bar = panels.plain_bar(0.0, high, "", cmap="viridis")
        line = [_colored(values, text, bar) for values, text in zip(maps, texts, strict=True)]
        rows.append([*line[:-1], line[-1]._replace(bar=bar)])
    title = f"{label}: attention weights, each row on a scale of its own"
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
        ("MAE", f"MAE of D(k) [{figures.UNITS[unit]}]", 0, None),
        ("data_energy", "data term above its minimum at D(0)\n½ S (D(k) - D(0))², mean per pixel", 0, 1e-12),
        ("residual", "root mean square of D(k) - D(k-1)\nshare of the focus range", 1, 1e-7),
        ("eta_S", "mean of η S", 1, None),
    )
    for axes, (key, label, first, least) in zip(figure.subplots(2, 2).flat, quantities, strict=True):
        for i, (name, course) in enumerate(courses.items()):
            values = [math.nan if v is None or (least and v < least) else v for v in course.get(key, ())]
            style = {"color": _COLOURS[i % len(_COLOURS)], "linestyle": ("-", "--", ":")[i // len(_COLOURS) % 3]}
            axes.plot(range(first, first + len(values)), values, marker=".", ms=4, lw=1.3, label=name, **style)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if least and any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            axes.set_yscale("log")
        if trained is not None:
            axes.axvline(trained, color="0.7", lw=0.8, zorder=0)
        axes.set_xlabel("k", fontsize=9)
        axes.set_ylabel(label, fontsize=9)
        _plain(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _text(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3g}"
