"""The comparison as text and figure: the paper's Table 3 with what it lacks.

Means over stacks; over seeds, the mean and half the distance between the extremes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dff_jax.config import Comparison, Method
from dff_jax.config.methods import ComparedNetwork
from dff_jax.evaluation import paper, tables
from dff_jax.evaluation.metrics import COUNTS, LARGER_IS_BETTER, METRICS
from dff_jax.evaluation.tables import FORMATS
from dff_jax.runtime import markdown as texts
from dff_jax.runtime.files import finite, write_text
from dff_jax.studies.costs import Trained
from dff_jax.studies.curves import table as curve_table

FILES = ("table.md", "table.json", "per_stack.csv", "curves.png")
SAME = 0.2
"""Seeds further apart than this share of their mean are named in a note."""
TRANSFER = ("MAE", "RMS", "AbsRel", "Acc_1")
STAGES = ("expected", "D(0)", "D(1)", "D(3)", "refined")
"""Of the answer's own stages, those that the table of stages shows where a method has them."""
_COSTS = {
    "parameters": "parameters", "inference_GFLOPs": "GFLOPs", "inference_s": "inference, s",
    "inference_MB": "inference, MB", "step_GFLOPs": "step, GFLOPs", "step_s": "step, s", "step_MB": "step, MB",
}  # fmt: skip

Values = dict[str, dict[str, float | None] | None]
"""Metric -> {"mean", "spread", "seeds"}, or None where it is undefined."""


def table(
    comparison: Comparison,
    found: dict[Trained, dict[str, dict[str, Any]]],
    costs: dict[str, Any],
    curves: list[dict[str, Any]],
    notes: list[str],
) -> dict[str, Any]:
    """The contents of `table.json`.

    Args:
      found: of each trained method and test set, what `compare.measure` gave.
      costs: what `costs.measure_all` gave.
      curves: what `curves.collect` gave.

    Returns:
      {"name", "unit", "rows": [{"label", "recipe", "seeds", "tests": {test: {"refused"} or {"all": Values,
      "in_range": Values, "stages": {stage: Values}}}}], "ratios": [{"labels", "MAE", "spread"}], "costs", "curves",
      "notes", "test", "zero_shot"}.
    """
    rows = []
    for method in comparison.methods:
        runs = [results for one, results in found.items() if one.method == method]
        tests = {name: _joined([results[name] for results in runs]) for name in runs[0]}
        rows.append({"label": method.label, "recipe": method.recipe, "seeds": len(runs), "tests": tests})
    main = comparison.test.name
    mae = {one: _mae(found[one][main]) for one in found}
    notes = [*notes, *_far_apart(comparison, mae)]
    return finite(
        {
            "name": comparison.name,
            "unit": next(iter(found.values()))[main]["unit"],
            "test": main,
            "zero_shot": [name for name in rows[0]["tests"] if name != main],
            "rows": rows,
            "ratios": list(_ratios(comparison, mae)),
            "costs": costs,
            "curves": curves,
            "notes": notes,
        }
    )


def _mae(measured: dict[str, Any]) -> float | None:
    return measured["rows"]["final"]["MAE"] if "rows" in measured else None


def _by_seed(method: Method, mae: dict[Trained, float | None]) -> list[float]:
    """MAE of each run of a method; [] if one is undefined."""
    values = [value for one, value in mae.items() if one.method == method]
    return [] if None in values else values  # pyright: ignore[reportReturnType]


def _ratios(comparison: Comparison, mae: dict[Trained, float | None]) -> Iterator[dict[str, Any]]:
    """MAE of the first label of `ratio` divided by that of the others and of the best compared network.

    The spread is half the distance between the extremes over all pairs of seeds.
    """
    if not comparison.ratio:
        return
    first, *others = (next(m for m in comparison.methods if m.label == label) for label in comparison.ratio)
    above = _by_seed(first, mae)
    rivals = [m for m in comparison.methods if m.config is not None and isinstance(m.config.model, ComparedNetwork)]
    means = {m.folder: float(np.mean(values)) for m in rivals if (values := _by_seed(m, mae))}
    best = min((m for m in rivals if m.folder in means), key=lambda m: means[m.folder], default=None)
    if best is not None and best not in others:
        others.append(best)
    for other in others:
        below = _by_seed(other, mae)
        if not above or not below or not min(below):
            yield {"labels": [first.label, other.label], "MAE": None, "spread": None}
            continue
        extremes = min(above) / max(below), max(above) / min(below)
        yield {
            "labels": [first.label, other.label + (" (the best compared network)" if other == best else "")],
            "MAE": float(np.mean(above) / np.mean(below)),
            "spread": (extremes[1] - extremes[0]) / 2,
        }


def _far_apart(comparison: Comparison, mae: dict[Trained, float | None]) -> list[str]:
    """Names the methods whose seeds differ too much for two of them to tell."""
    found = []
    for method in comparison.methods:
        values = _by_seed(method, mae)
        if len(values) > 1 and (apart := (max(values) - min(values)) / np.mean(values)) > SAME:
            each = ", ".join(format(value, ".4g") for value in values)
            found.append(f"{method.label}: its seeds have an MAE of {each}, {apart:.0%} of their mean apart")
    return found


def table_3(found: dict[Trained, dict[str, dict[str, Any]]], test: str) -> dict[str, Any]:
    """The paper's Table 3 with what `compare.measure` found on FlyingThings3D; means over seeds."""
    measured: dict[tuple[str, str], list[dict[str, Any]]] = {}
    variant = ""
    for one, tests in found.items():
        if "literature" in tests[test]:
            variant, rows = next(iter(tests[test]["literature"].items()))
            measured.setdefault((one.method.label, one.method.recipe), []).append(rows["final"])
    means = [
        (*method, {name: value and value["mean"] for name, value in _values(of).items()})
        for method, of in measured.items()
    ]
    return paper.table_3(means, variant)


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
    write_text(folder / "table.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    write_text(folder / "table.md", markdown(result))
    with open(folder / "per_stack.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
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
    for ratio in result["ratios"]:
        first, second = ratio["labels"]
        value = "-" if ratio["MAE"] is None else f"{ratio['MAE']:.3f}"
        value += f" ± {ratio['spread']:.2g}" if ratio["spread"] else ""
        lines += [f"MAE of {first} / MAE of {second}: {value}", ""]
    lines += [*tables.papers(result["paper"])[1:], ""] if result.get("paper") else []
    if learned := curve_table(result["curves"]):
        lines += ["## How they learned", "", *learned, ""]
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
    heads = [metric + (" in range" if region == "in_range" and ("all", metric) in columns else "")
             for region, metric in columns]  # fmt: skip
    cells = [[row["label"], row["recipe"] or None] for row in rows]
    for region, metric in columns:
        found = [row["tests"][test].get(region, {}).get(metric) for row in rows]
        means = [one["mean"] for one in found if one and one["mean"] is not None]
        best = (max if metric in LARGER_IS_BETTER else min)(means) if len(means) > 1 else None
        for line, one in zip(cells, found, strict=True):
            line.append(_text(one, metric, best))
    return texts.table(cells, ["method", "recipe", *heads])


def _text(cell: dict[str, Any] | None, metric: str, best: float | None = None) -> str | None:
    if not cell or cell["mean"] is None:
        return None
    text = format(cell["mean"], FORMATS.get(metric, ".4g"))
    text += f" ± {cell['spread']:.2g}" if cell["seeds"] > 1 else ""
    return f"**{text}**" if cell["mean"] == best else text


def _stages(rows: list[dict[str, Any]], test: str) -> list[str]:
    """MAE of Dbar, D(0), .., refined of the methods that have them."""
    lines = []
    for row in rows:
        stages = row["tests"][test].get("stages", {})
        if "refined" in stages or "D(1)" in stages:
            name = row["label"] + (f", {row['recipe']}" if row["recipe"] else "")
            lines.append({"MAE": name} | {stage: _text(found.get("MAE"), "MAE") for stage, found in stages.items()})
    return texts.records(lines)


def _costs(costs: dict[str, Any]) -> list[str]:
    methods = costs["methods"]
    lines = [[label, *map(row.get, _COSTS)] for label, row in methods.items()]
    steps = sorted({tuple(row["step_shape"]) for row in methods.values() if "step_shape" in row})
    shapes = [_shape(1, *costs["shape"]), *(_shape(*shape) for shape in steps)]
    versions = ", ".join(f"{name} {version}" for name, version in costs["machine"]["versions"].items())
    told = (
        f"Inference of {shapes[0]}, training steps of {', '.join(shapes[1:]) or 'none'}; medians of {costs['rounds']} "
        "rounds, methods in turn; FLOPs as the program is written, memory beside arguments and results. "
        f"{costs['machine']['device']}; {versions}."
    )
    return [*texts.table(lines, ["method", *_COSTS.values()]), "", told]


def _shape(*numbers: int) -> str:
    return " x ".join(map(str, numbers))


def _refusals(rows: list[dict[str, Any]]) -> list[str]:
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, of_test in row["tests"].items():
            if "refused" in of_test:
                found.setdefault(row["label"], []).append(name)
    return [f"{label} cannot take the stacks of {', '.join(dict.fromkeys(names))}" for label, names in found.items()]
