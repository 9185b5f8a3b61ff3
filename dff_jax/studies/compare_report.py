"""The comparison as text and picture: the paper's Table 3 with what it lacks.

Means over stacks as everywhere; over seeds, the mean and half the distance between the extremes.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dff_jax.config import Comparison
from dff_jax.evaluation import paper_figures
from dff_jax.evaluation.figures import save
from dff_jax.evaluation.metrics import COUNTS, LARGER_IS_BETTER, METRICS
from dff_jax.evaluation.tables import finite

if TYPE_CHECKING:
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
    for entrant in comparison.methods:
        runs = [results for one, results in found.items() if one.method == entrant]
        tests = {name: _joined([results[name] for results in runs]) for name in runs[0]}
        rows.append({"label": entrant.label, "recipe": entrant.recipe, "seeds": len(runs), "tests": tests})
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
        lines += [f"## {main}: {title}", "", *_table(rows, main, region, METRICS), ""]
    if result.get("ratio"):
        first, second = result["ratio"]["labels"]
        lines += [f"MAE of {first} / MAE of {second}: {_number(result['ratio']['MAE'], '.3f')}", ""]
    if stages := _stages(rows, main):
        lines += ["## What its stages contribute", "", *stages, ""]
    if result["zero_shot"]:
        lines += ["## Never seen in training", ""]
    for name in result["zero_shot"]:
        lines += [f"### {name}", "", *_table(rows, name, "all", TRANSFER, in_range=True), ""]
    lines += ["## What each costs", "", *_costs(result["costs"]), ""]
    notes = [*result["notes"], *_refusals(rows)]
    if notes:
        lines += ["## Notes", "", *(f"* {note}" for note in notes), ""]
    return "\n".join(lines)


def _table(
    rows: list[dict[str, Any]], test: str, region: str, metrics: tuple[str, ...], in_range: bool = False
) -> list[str]:
    columns = [(region, metric) for metric in metrics] + ([("in_range", m) for m in metrics] if in_range else [])
    best = {}
    for column in columns:
        means = [cell["mean"] for row in rows if (cell := _cell(row, test, *column))]
        if len(means) > 1:
            best[column] = (max if column[1] in LARGER_IS_BETTER else min)(means)
    heads = [metric + (" in range" if in_range and where == "in_range" else "") for where, metric in columns]
    lines = [f"| method | recipe | {' | '.join(heads)} |", "|---|---|" + "---:|" * len(columns)]
    for row in rows:
        cells = []
        for column in columns:
            cell = _cell(row, test, *column)
            text = "-" if cell is None else _number(cell["mean"], _FORMATS.get(column[1], ".4g"))
            if cell is not None and cell["seeds"] > 1:
                text += f" ± {_number(cell['spread'], '.2g')}"
            cells.append(f"**{text}**" if cell is not None and cell["mean"] == best.get(column) else text)
        lines.append(f"| {row['label']} | {row['recipe'] or '-'} | {' | '.join(cells)} |")
    return lines


def _cell(row: dict[str, Any], test: str, region: str, metric: str) -> dict[str, Any] | None:
    cell = row["tests"][test].get(region, {}).get(metric)
    return cell if cell and cell["mean"] is not None else None


def _stages(rows: list[dict[str, Any]], test: str) -> list[str]:
    """MAE of Dbar, D(0), .., refined of the methods that have them."""
    lines = [f"| MAE | {' | '.join(STAGES)} |", "|---|" + "---:|" * len(STAGES)]
    for row in rows:
        stages = row["tests"][test].get("stages", {})
        if "refined" in stages or "D(1)" in stages:
            cells = [_number(((stages.get(s) or {}).get("MAE") or {}).get("mean"), ".4g") for s in STAGES]
            lines.append(f"| {row['label']}{', ' + row['recipe'] if row['recipe'] else ''} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


def _costs(costs: dict[str, Any]) -> list[str]:
    z, h, w = costs["shape"]
    steps = {tuple(row["step_shape"]) for row in costs["methods"].values() if "step_shape" in row}
    lines = [f"| method | {' | '.join(head for head, _ in _COSTS.values())} |", "|---|" + "---:|" * len(_COSTS)]
    for label, row in costs["methods"].items():
        cells = [_number(row.get(key), form) for key, (_, form) in _COSTS.items()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    shapes = ", ".join(" x ".join(map(str, shape)) for shape in sorted(steps))
    told = f"Inference of 1 x {z} x {h} x {w}" + (f", training steps of {shapes}" if shapes else "")
    versions = ", ".join(f"{name} {version}" for name, version in costs["machine"]["versions"].items())
    told += f"; medians of {costs['rounds']} rounds, methods in turn; FLOPs as the program is written, memory beside"
    return [*lines, "", f"{told} arguments and results. {costs['machine']['device']}; {versions}."]


def _refusals(rows: list[dict[str, Any]]) -> list[str]:
    found = {}
    for row in rows:
        for name, of_test in row["tests"].items():
            if "refused" in of_test:
                found.setdefault(row["label"], []).append(name)
    return [f"{label} cannot take the stacks of {', '.join(dict.fromkeys(names))}" for label, names in found.items()]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def draw(folder: Path, columns: list[paper_figures.Column], title: str) -> None:
    """Writes `figure.png`: rows methods, columns stacks."""
    save(paper_figures.draw(paper_figures.PREDICTIONS._replace(title=title), columns), folder / "figure.png")
