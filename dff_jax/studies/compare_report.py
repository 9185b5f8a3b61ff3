"""The comparison as text and figure: the paper's Table 3 with what it lacks.

Means over stacks; over seeds, the mean and half the distance between the extremes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dff_jax.config import Comparison
from dff_jax.evaluation import paper
from dff_jax.evaluation.metrics import COUNTS, LARGER_IS_BETTER, METRICS
from dff_jax.runtime.files import finite
from dff_jax.studies.bench.measuring import table as table_lines
from dff_jax.studies.costs import Trained

FILES = ("table.md", "table.json", "per_stack.csv", "figure.png")
TRANSFER = ("MAE", "RMS", "AbsRel", "Acc_1")
STAGES = ("expected", "D(0)", "D(1)", "D(3)", "refined")
"""Of the answer's own stages, those that the table of stages shows where a method has them."""
_FORMATS = {"Acc_1": ".2f", "Acc_2": ".2f", "Acc_3": ".2f", "Corr": ".4f", "BadPix": ".2f"}
_COSTS = {
    "parameters": ("parameters", "d"), "inference_GFLOPs": ("GFLOPs", ".3g"), "inference_s": ("inference, s", ".3g"),
    "inference_MB": ("inference, MB", ".0f"), "step_GFLOPs": ("step, GFLOPs", ".3g"), "step_s": ("step, s", ".3g"),
    "step_MB": ("step, MB", ".0f"),
}  # fmt: skip

Values = dict[str, dict[str, float | None] | None]
"""Metric -> {"mean", "spread", "seeds"}, or None where it is undefined."""


def table(
    comparison: Comparison, found: dict[Trained, dict[str, dict[str, Any]]], costs: dict[str, Any], notes: list[str]
) -> dict[str, Any]:
    """The contents of `table.json`.

    Args:
      found: of each trained method and test set, what `compare.measure` gave.
      costs: what `costs.measure_all` gave.

    Returns:
      {"name", "unit", "rows": [{"label", "recipe", "seeds", "tests": {test: {"refused"} or {"all": Values,
      "in_range": Values, "stages": {stage: Values}}}}], "ratio", "costs", "notes", "test", "zero_shot"}.
    """
    rows = []
    for method in comparison.methods:
        runs = [results for one, results in found.items() if one.method == method]
        tests = {name: _joined([results[name] for results in runs]) for name in runs[0]}
        rows.append({"label": method.label, "recipe": method.recipe, "seeds": len(runs), "tests": tests})
    main = comparison.test.name
    result: dict[str, Any] = {
        "name": comparison.name,
        "unit": next(iter(found.values()))[main]["unit"],
        "test": main,
        "zero_shot": [name for name in rows[0]["tests"] if name != main],
        "rows": rows,
        "costs": costs,
        "notes": notes,
    }
    if comparison.ratio is not None:
        of = [next(row for row in rows if row["label"] == label) for label in comparison.ratio]
        above, below = ((row["tests"][main].get("all") or {}).get("MAE") for row in of)
        value = above["mean"] / below["mean"] if above and below and below["mean"] else None
        result["ratio"] = {"labels": list(comparison.ratio), "MAE": value}
    return finite(result)


def _joined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    refused = [run["refused"] for run in runs if "refused" in run]
    if refused:
        return {"refused": refused[0]}
    stages = [stage for stage in STAGES if stage in runs[0]["rows"]]
    return {
        "all": _values([run["rows"]["final"] for run in runs]),
        "in_range": _values([run["rows"]["final"]["in_range"] for run in runs]),
        "stages": {stage: _values([run["rows"][stage] for run in runs]) for stage in stages},
    }


def _values(rows: list[dict[str, Any]]) -> Values:
    result: Values = {}
    for metric in METRICS:
        values = [row[metric] for row in rows]
        if any(value is None for value in values):
            result[metric] = None
        else:
            spread = (max(values) - min(values)) / 2
            result[metric] = {"mean": float(np.mean(values)), "spread": spread, "seeds": len(values)}
    return result


def write(folder: Path, result: dict[str, Any], found: dict[Trained, dict[str, dict[str, Any]]]) -> None:
    """Writes `table.json`, `table.md` and `per_stack.csv`."""
    (folder / "table.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(markdown(result), encoding="utf-8")
    with open(folder / "per_stack.csv", "w", newline="", encoding="utf-8") as file:
        columns = ["method", "recipe", "seed", "test", "stack", "region", *METRICS, *COUNTS]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for one, tests in found.items():
            about = {"method": one.method.label, "recipe": one.method.recipe, "seed": one.seed}
            for name, of_test in tests.items():
                writer.writerows(about | {"test": name} | line for line in of_test.get("per_stack", ()))


def markdown(result: dict[str, Any]) -> str:
    """`table.md`."""
    rows, main, unit = result["rows"], result["test"], result["unit"]
    seeds = max(row["seeds"] for row in rows)
    lines = [f"# {result['name']}", ""]
    spread = f"; of {seeds} seeds the mean and, behind ±, half the distance between the extremes" if seeds > 1 else ""
    lines += [f"Metrics of each stack, averaged over stacks, in {unit}{spread}. Acc in percent. Best in bold.", ""]
    for region, title in (("all", "all valid pixels"), ("in_range", "pixels within the focus range")):
        lines += [f"## {main}: {title}", "", *_table(rows, main, [(region, metric) for metric in METRICS]), ""]
    if result.get("ratio"):
        first, second = result["ratio"]["labels"]
        lines += [f"MAE of {first} / MAE of {second}: {_number(result['ratio']['MAE'], '.3f')}", ""]
    if stages := _stages(rows, main):
        lines += ["## What its stages contribute", "", *stages, ""]
    transfer = [(region, metric) for region in ("all", "in_range") for metric in TRANSFER]
    if result["zero_shot"]:
        lines += ["## Never seen in training", ""]
    for name in result["zero_shot"]:
        lines += [f"### {name}", "", *_table(rows, name, transfer), ""]
    lines += ["## What each costs", "", *_costs(result["costs"]), ""]
    notes = [*result["notes"], *_refusals(rows)]
    if notes:
        lines += ["## Notes", "", *(f"* {note}" for note in notes), ""]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]], test: str, columns: list[tuple[str, str]]) -> list[str]:
    """A line for each method; columns are (region, metric), the best of each in bold."""
    cells: dict[str, Callable[[dict[str, Any]], str]] = {
        "method": lambda row: row["label"],
        "recipe": lambda row: row["recipe"] or "-",
    }
    for region, metric in columns:
        means = [cell["mean"] for row in rows if (cell := _cell(row, test, region, metric))]
        best = (max if metric in LARGER_IS_BETTER else min)(means) if len(means) > 1 else None
        head = metric + (" in range" if region == "in_range" and ("all", metric) in columns else "")
        cells[head] = lambda row, at=(region, metric), best=best: _text(_cell(row, test, *at), at[1], best)
    return table_lines(rows, cells)


def _cell(row: dict[str, Any], test: str, region: str, metric: str) -> dict[str, Any] | None:
    cell = row["tests"][test].get(region, {}).get(metric)
    return cell if cell and cell["mean"] is not None else None


def _text(cell: dict[str, Any] | None, metric: str, best: float | None) -> str:
    if cell is None:
        return "-"
    text = format(cell["mean"], _FORMATS.get(metric, ".4g"))
    text += f" ± {cell['spread']:.2g}" if cell["seeds"] > 1 else ""
    return f"**{text}**" if cell["mean"] == best else text


def _stages(rows: list[dict[str, Any]], test: str) -> list[str]:
    """MAE of Dbar, D(0), .., refined of the methods that have them."""
    stages = {row["label"] + (f", {row['recipe']}" if row["recipe"] else ""): row["tests"][test].get("stages", {})
              for row in rows}  # fmt: skip
    stages = {name: found for name, found in stages.items() if "refined" in found or "D(1)" in found}
    cells: dict[str, Callable[[str], str]] = {"MAE": str}
    cells |= {stage: lambda name, s=stage: _text((stages[name].get(s) or {}).get("MAE"), "", None) for stage in STAGES}
    return table_lines(stages, cells) if stages else []


def _costs(costs: dict[str, Any]) -> list[str]:
    z, h, w = costs["shape"]
    methods = costs["methods"]
    cells: dict[str, Callable[[str], str]] = {"method": str}
    cells |= {
        head: lambda label, key=key, form=form: _number(methods[label].get(key), form)
        for key, (head, form) in _COSTS.items()
    }
    steps = sorted({tuple(row["step_shape"]) for row in methods.values() if "step_shape" in row})
    shapes = ", ".join(" x ".join(map(str, shape)) for shape in steps)
    versions = ", ".join(f"{name} {version}" for name, version in costs["machine"]["versions"].items())
    told = f"Inference of 1 x {z} x {h} x {w}" + (f", training steps of {shapes}" if shapes else "")
    told += f"; medians of {costs['rounds']} rounds, methods in turn; FLOPs as the program is written, memory beside"
    told += f" arguments and results. {costs['machine']['device']}; {versions}."
    return [*table_lines(methods, cells), "", told]


def _refusals(rows: list[dict[str, Any]]) -> list[str]:
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, of_test in row["tests"].items():
            if "refused" in of_test:
                found.setdefault(row["label"], []).append(name)
    return [f"{label} cannot take the stacks of {', '.join(dict.fromkeys(names))}" for label, names in found.items()]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def draw(folder: Path, columns: list[paper.Column], title: str) -> None:
    """Writes `figure.png`: rows methods, columns stacks."""
    paper.save(folder / "figure.png", paper.PREDICTIONS._replace(title=title), columns)
