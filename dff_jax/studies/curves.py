"""How the methods of a comparison learned: validation MAE against steps, and against the arithmetic spent on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dff_jax import focus_axis
from dff_jax.pictures import panels
from dff_jax.runtime import markdown
from dff_jax.studies.costs import Trained
from dff_jax.training.logging import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAT = 0.05
"""A curve is flat if its last quarter of steps lowers the MAE by less than this share."""


def collect(runs: Sequence[Trained]) -> list[dict[str, Any]]:
    """The validations of each trained method.

    Returns:
      For each method {"label", "recipe", "steps": [n], "MAE": [seeds][n], "gain": [seeds] share by which the last
      quarter of the steps lowers the MAE (None: not measured there), "constant": MAE of the middle of the range}.
    """
    found: dict[str, dict[str, Any]] = {}
    for one in runs:
        config = one.method.config
        if config is None:
            continue
        lines = {x["step"]: x for x in read_log(one.folder) if x["kind"] == "validation" and x["step"]}
        curve = found.setdefault(
            one.method.folder,
            {"label": one.method.label, "recipe": one.method.recipe, "steps": sorted(lines), "MAE": [], "gain": []},
        )
        errors = {step: line["MAE"] for step, line in sorted(lines.items())}
        last = config.training.num_steps
        early = errors.get(max((step for step in errors if step <= 0.75 * last), default=-1))
        curve["MAE"].append(list(errors.values()))
        curve["gain"].append(1 - errors[last] / early if early and last in errors else None)
        curve["constant"] = next((line.get("MAE/constant") for line in lines.values()), None)
    return list(found.values())


def table(curves: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: MAE at the validations (mean of the seeds), and what the last quarter still gained."""
    lines = []
    for curve in curves:
        gains = [x for x in curve["gain"] if x is not None]
        mean = np.nanmean(np.array(curve["MAE"], float), 0) if len({len(x) for x in curve["MAE"]}) == 1 else []
        lines.append(
            {"validation MAE after": _name(curve)}
            | {f"{step} steps": f"{value:.3g}" for step, value in zip(curve["steps"], mean, strict=False)}
            | {"gain of the last quarter": ", ".join(f"{100 * x:.0f} %" for x in gains) or "-"}
            | {"flat": "yes" if gains and max(gains) < FLAT else "no"}
        )
    constant = next((curve["constant"] for curve in curves if curve["constant"]), None)
    told = [] if constant is None else ["", f"The middle of the focus range everywhere has {constant:.4g}."]
    return [*markdown.records(lines), *told] if lines else []


def chart(curves: Sequence[dict[str, Any]], costs: dict[str, Any], unit: str) -> Figure:
    """MAE against steps and against GFLOPs of training: a line for each method, a thin one for each further seed."""
    figure = panels.new_figure(12, 5)
    figure.set_layout_engine("constrained")
    by_steps, by_work = figure.subplots(1, 2)
    for i, curve in enumerate(curves):
        each = costs["methods"].get(curve["label"], {}).get("step_GFLOPs")
        style = panels.line_style(i) | {"marker": ".", "ms": 4}
        for seed, errors in enumerate(curve["MAE"]):
            steps = np.array(curve["steps"][: len(errors)], float)
            told = {"label": _name(curve), "lw": 1.6} if seed == 0 else {"lw": 0.7}
            by_steps.plot(steps, errors, **style, **told)
            if each:
                by_work.plot(steps * each, errors, **style, **told)
    constant = next((curve["constant"] for curve in curves if curve["constant"]), None)
    for axes, label in ((by_steps, "steps"), (by_work, "GFLOPs of training")):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel(label, fontsize=9)
        axes.set_ylabel(f"validation MAE [{focus_axis.symbol(unit)}]", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        if constant:
            axes.axhline(constant, color="0.6", lw=0.8, ls=":", label="middle of the range")
    by_work.set_xscale("log")
    by_work.xaxis.set_minor_formatter("")
    handles, labels = by_steps.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _name(curve: dict[str, Any]) -> str:
    return curve["label"] + (f", {curve['recipe']}" if curve["recipe"] else "")
