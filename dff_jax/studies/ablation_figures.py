"""What an ablation draws: the iterates and attention maps of the paper's Figures 3 and 4, and how it converges."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dff_jax.evaluation import figures
from dff_jax.evaluation.rows import Evaluation
from dff_jax.pictures import panels as pictures
from dff_jax.studies.ablation_tables import summary
from dff_jax.types import Batch, Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILES = ("iterates.png", "weights.png", "convergence.png")
_ITERATES = (0, 1, 3, 5)  # of Figure 3, and D(0)
_ABBREVIATIONS = {"disparity": "px", "diopter": "dpt", "metre": "m", "index": "frames"}
_COLOURS = "#1b1b1b #3b6fb6 #e0913a #3f9b5b #c0504d #8064a2 #7f7f7f #2aa5a5 #b5a02c #d667a8".split()


def write(
    folder: Path,
    report: dict[str, Any],
    shown: dict[str, tuple[Batch, Prediction]],
    names: dict[str, str],
    mean_weights: np.ndarray | None,
    evaluation: Evaluation,
) -> None:
    """Writes `FILES` into `folder`.

    Args:
      shown: role -> (batch, prediction) of a few stacks, arrays [1,...] in q on the host; the prediction's refined
        stages are those after each of the report's iterations.
      names: role -> stack.
      mean_weights: [H,W,N], over all stacks.
    """
    meta = report["meta"]
    pictures.save_png(folder / "iterates.png", iterates(report, shown, names, evaluation))
    pictures.save_png(
        folder / "weights.png", attention(shown, names, mean_weights, len(evaluation.stacks), meta["run"])
    )
    title = f"{meta['run']} on {meta['dataset']}: the same parameters through each scheme"
    figures.save(
        convergence(report["courses"], meta["unit"], title, meta["trained_iterations"]), folder / "convergence.png"
    )


def iterates(
    report: dict[str, Any],
    shown: dict[str, tuple[Batch, Prediction]],
    names: dict[str, str],
    evaluation: Evaluation,
) -> np.ndarray:
    """Figure 3: truth, D(0), D(1), D(3), D(5), refined; below their errors, and what changed since D(0).

    Drawn in q; errors and changes in percent of the focus range. [H,W,3] uint8.
    """
    meta = report["meta"]
    K = [k for k in _ITERATES if k <= meta["iterations"][-1]]
    rows = []
    for role, (batch, prediction) in shown.items():
        mae = {row: one["MAE"] for row, one in evaluation.of_stack(evaluation.stacks.index(names[role])).items()}
        truth, mask, h = batch.depth[0], batch.mask[0], prediction.history
        width = float(batch.focus[0, -1] - batch.focus[0, 0])
        stages = {f"D({k})": h.iterates[0, k] for k in K}
        if h.refined.shape[1]:
            stages[meta["answer"]] = h.refined[0, meta["iterations"].index(meta["trained_iterations"])]
        low, high = pictures.robust_range(truth, mask=mask)
        off = {name: 100 * np.abs(depth - truth) / width for name, depth in stages.items()}
        worst = pictures.robust_range(np.stack(list(off.values())), mask=np.stack([mask] * len(off)))[1]
        start = stages["D(0)"]
        moved = {name: 100 * (depth - start) / width for name, depth in stages.items() if name != "D(0)"}
        most = max((float(np.percentile(np.abs(x), 99)) for x in moved.values()), default=0.0) or 1e-6
        depth_bar = pictures.depth_bar(low, high, meta["unit"])._replace(label="")
        error_bar = pictures.plain_bar(0.0, worst, "%", cmap="magma")
        change_bar = pictures.plain_bar(-most, most, "%", cmap="coolwarm")

        def panel(values, caption, bar, last, mask=None):
            image = pictures.colorize(values, bar.low, bar.high, mask=mask, cmap=bar.cmap)
            return pictures.Panel(image, caption, bar if last else None)

        final = list(stages)[-1]
        line = [panel(truth, f"truth of {_short(names[role])}, {role}", depth_bar, False, mask)]
        rows.append(
            line + [panel(d, f"{n}  MAE {_text(mae.get(n))}", depth_bar, n == final) for n, d in stages.items()]
        )
        sharp = pictures.to_uint8(prediction.all_in_focus[0])
        line = [pictures.Panel(sharp, "all in focus (estimated)")]
        rows.append(line + [panel(e, f"error of {n}", error_bar, n == final, mask) for n, e in off.items()])
        if moved:
            blank = pictures.Panel(np.full_like(sharp, 255), "")
            line = [blank, pictures.Panel(np.full_like(sharp, 255), "")]
            rows.append(line + [panel(m, f"{n} - D(0)", change_bar, n == final) for n, m in moved.items()])
    title = f"{meta['run']}: iterates; errors and changes in % of the focus range (grey: no truth)"
    return pictures.sheet(rows, title=title, width=2000)


def attention(
    shown: dict[str, tuple[Batch, Prediction]],
    names: dict[str, str],
    mean_weights: np.ndarray | None,
    num_stacks: int,
    label: str,
) -> np.ndarray:
    """Figure 4: W_i^2 of each candidate (a row, on a scale of its own) in a few stacks; last, its mean over all."""
    maps = {role: prediction.history.weights[0] for role, (_, prediction) in shown.items()}
    everything = [*maps.values(), *([] if mean_weights is None else [mean_weights])]
    first = []
    for role, (_, prediction) in shown.items():
        first.append(
            pictures.Panel(pictures.to_uint8(prediction.all_in_focus[0]), f"{_short(names[role])}: all in focus")
        )
    rows = [first]
    for i in range(everything[0].shape[-1]):
        line = [
            (values[..., i], f"W²({i + 1})  mean {values[..., i].mean():.3g}, sd {values[..., i].std():.2g}")
            for values in maps.values()
        ]
        if mean_weights is not None:
            line.append((mean_weights[..., i], f"mean of {num_stacks} stacks {mean_weights[..., i].mean():.3g}"))
        high = pictures.robust_range(np.concatenate([v.ravel() for v, _ in line]), percentiles=(0.0, 99.5))[1]
        bar = pictures.plain_bar(0.0, high, "", cmap="viridis")
        panels = [pictures.Panel(pictures.colorize(v, 0.0, high, cmap="viridis"), text) for v, text in line]
        panels[-1] = panels[-1]._replace(bar=bar)
        rows.append(panels)
    return pictures.sheet(
        rows, title=f"{label}: attention weights, each row on a scale of its own", width=1500, columns=len(rows[-1])
    )


def convergence(courses: dict[str, dict[str, Any]], unit: str, title: str, trained: int | None = None) -> Figure:
    """MAE, data energy, residual and eta S against k, a line for each course (`ablation_passes._watch`).

    Args:
      trained: K as trained, marked; None: not marked.
    """
    figure = _figure(11.5, 7.2)
    figure.suptitle(pictures.literal(title), fontsize=11)
    quantities = (  # key, label, first k, smallest value of a logarithmic axis: below is rounding
        ("MAE", f"MAE of D(k) [{_ABBREVIATIONS[unit]}]", 0, None),
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


def comparison(reports: list[dict[str, Any]]) -> Figure:
    """MAE of every run's stages as bars, run below run."""
    stages = ("Dbar", "best D_i", "D(0)", "D(1)", "D(3)", "answer")
    runs = [pictures.literal(report["meta"]["run"]) for report in reports]
    figure = _figure(8.0, 1.2 + 0.85 * len(runs))
    axes = figure.subplots()
    height = 0.8 / len(stages)
    for i, stage in enumerate(stages):
        values = [summary(report)[stage] for report in reports]
        values = [math.nan if v is None else v for v in values]
        at = np.arange(len(runs)) + (i - len(stages) / 2 + 0.5) * height
        bars = axes.barh(at, values, height=height, label=stage, color=_stage_colour(i, len(stages)))
        axes.bar_label(bars, ["" if math.isnan(v) else f"{v:.4g}" for v in values], fontsize=6, padding=2)
    axes.set_yticks(range(len(runs)), runs, fontsize=9)
    axes.invert_yaxis()
    meta = reports[0]["meta"]
    over = f"{meta['stacks']} stacks of {pictures.literal(meta['dataset'])}"
    axes.set_xlabel(f"MAE [{_ABBREVIATIONS[meta['unit']]}], mean over {over}", fontsize=9)
    _plain(axes)
    axes.legend(frameon=False, fontsize=8, ncols=len(stages), loc="lower left", bbox_to_anchor=(0, 1.0))
    return figure


def _stage_colour(i: int, n: int) -> Any:
    """Colour of stage i of n, from early (pale) to late (dark)."""
    import matplotlib

    return matplotlib.colormaps["YlGnBu"](0.25 + 0.7 * i / max(n - 1, 1))


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _text(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
