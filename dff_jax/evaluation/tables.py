"""What an evaluation writes as text: `metrics.json`, `per_stack.csv` and `table.md`."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from dff_jax import __version__
from dff_jax.evaluation import conventions
from dff_jax.evaluation import paper as paper_tables
from dff_jax.evaluation.metrics import COUNTS, LARGER_IS_BETTER, METRICS
from dff_jax.evaluation.rows import BASELINES

if TYPE_CHECKING:
    from dff_jax.evaluation.rows import Evaluation

FILES = ("metrics.json", "per_stack.csv", "table.md")
_COUNTED = ("stacks", "valid_pixels", "clipped_pixels")
_FORMATS = {"Acc_1": ".2f", "Acc_2": ".2f", "Acc_3": ".2f", "Corr": ".4f", "BadPix": ".2f"}


def report(evaluation: Evaluation, **meta: Any) -> dict[str, Any]:
    """The contents of `metrics.json`: `rows`, `dynamics`, `literature`, `paper` and `meta`.

    Metrics are at `rows.<name>.<metric>`, `.in_range.<metric>`, `.pooled.<metric>` and
    `.in_range.pooled.<metric>`, by a variant of the literature at `literature.<variant>.<row>.<metric>`; `paper` holds
    the tables of `paper_tables`. NaN becomes null, which JSON can hold; `meta.notes` says which rows had any.

    Args:
      meta: what to say of the run: at least label, dataset, unit and iterations.
    """
    meta |= {
        "stacks": len(evaluation.stacks),
        "excluded": list(evaluation.excluded),
        "notes": list(evaluation.notes),
        "seconds": evaluation.seconds,
        "convention": evaluation.convention.name,
    }
    out = {"rows": evaluation.rows, "dynamics": evaluation.dynamics, "literature": evaluation.literature}
    out["calibration"] = evaluation.calibration
    out = finite(out | {"meta": meta | machine()})
    return out | {"paper": paper_tables.tables(out)}


def report_without_truth(**meta: Any) -> dict[str, Any]:
    """The same of data without ground truth: no number, but what was run."""
    notes = ["the dataset has no ground truth: there is nothing to measure, only pictures to look at"]
    meta |= {"stacks": 0, "excluded": [], "notes": notes}
    empty = {"rows": {}, "dynamics": {}, "literature": {}, "calibration": {}, "paper": []}
    return finite(empty | {"meta": meta | machine()})


def machine() -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    return {
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), "dff-jax": __version__} | versions,
    }


def finite(value: Any) -> Any:
    """The same with null for every NaN and infinity, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(folder: Path, report: dict[str, Any], per_stack: Iterable[dict[str, Any]]) -> None:
    """Writes `metrics.json`, `per_stack.csv` (undefined: empty; failed prediction: nan) and `table.md`."""
    text = json.dumps(report, indent=2, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    with open(folder / "per_stack.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["stack", "row", "region", *METRICS, *COUNTS])
        writer.writeheader()
        writer.writerows(per_stack)
    (folder / "table.md").write_text(markdown(report), encoding="utf-8")


def markdown(report: dict[str, Any]) -> str:
    """`table.md`: metrics over all valid and over in-range pixels, best in bold, then what the unroll did."""
    if not report["rows"]:
        return _without_truth(report["meta"])
    meta, (rows, labels) = report["meta"], distinct(report["rows"])
    lines = [
        f"# {meta['label']} on {meta['dataset']}",
        "",
        f"{meta['stacks']} stacks, unit {meta['unit']}, iterations {_or_dash(meta['iterations'])}. "
        "Metrics of each stack, averaged over stacks. Best in bold; Acc in percent.",
        "",
        "## All valid pixels",
        "",
        *_table(rows, labels),
        "",
        "## Pixels within the focus range",
        "",
        *_table({name: row["in_range"] for name, row in rows.items()}, labels),
        *_literature(report),
        *paper_tables.markdown(report["paper"]),
    ]
    if report["dynamics"] and report["dynamics"]["step"]:
        lines += ["", "## What each step does", "", *_dynamics_table(report["dynamics"])]
    half = report["calibration"].get("half")
    if half is not None:
        lines += ["", f"The most confident half of all pixels has {half:.2f} times the mean error of all."]
    seconds = meta["seconds"]
    speed = f"{seconds['per_stack']:.3g} s per stack on {meta['device']}"
    lines += ["", f"{speed}; {seconds['total']:.3g} s in all, {seconds['compilation']:.3g} s of it compiling."]
    if meta["notes"]:
        lines += ["", "## Notes", "", *(f"* {note}" for note in meta["notes"])]
    return "\n".join(lines) + "\n"


def _without_truth(meta: dict[str, Any]) -> str:
    lines = [f"# {meta['label']} on {meta['dataset']}", "", *(f"* {note}" for note in meta["notes"])]
    shown = meta.get("figure")
    if shown:
        lines += ["", f"{shown['file']} shows {', '.join(shown['stacks'])}."]
    return "\n".join(lines) + "\n"


def _literature(report: dict[str, Any]) -> list[str]:
    """The answer and the baselines by each variant of the convention, beside our own two regions."""
    convention = conventions.CONVENTIONS[report["meta"]["convention"]]
    if not report["literature"]:
        return []
    rows, labels = distinct(report["rows"])
    answer = next(name for name in rows if rows[name] == report["rows"]["final"])
    chosen = [answer, *(name for name in BASELINES if name in rows and name != answer)]
    lines = ["", "## As the literature measures", ""]
    lines += [f"| pixels | row | {' | '.join(METRICS)} | stacks | valid pixels | clipped |"]
    lines += ["|---|---|" + "---:|" * (len(METRICS) + 3)]
    ours = {"ours: all valid": report["rows"]}
    ours["ours: within the focus range"] = {name: row["in_range"] for name, row in report["rows"].items()}
    for pixels, found in (ours | report["literature"]).items():
        for name in chosen:
            row = found[name]
            cells = [*(_format(metric, row[metric]) for metric in METRICS), *(str(row[n]) for n in _COUNTED)]
            lines.append(f"| {pixels} | {labels[name]} | {' | '.join(cells)} |")
    lines += ["", "Definitions and averaging are the same in all rows; who measures so:", ""]
    lines += [f"* {variant.label}: {variant.who}" for variant in convention.variants]
    return lines + [f"* {note}" for note in convention.notes]


def distinct(rows: dict[str, dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The rows without repetitions of the answer (which is also one of the stages, or all), and what to call each."""
    same = [name for name, row in rows.items() if row == rows["final"]]
    kept = {name: row for name, row in rows.items() if name not in same[1:]}
    return kept, {name: " = ".join(same) if name == same[0] else name for name in kept}


def _table(rows: dict[str, dict[str, Any]], labels: dict[str, str]) -> list[str]:
    best = {}
    for metric in METRICS:
        values = [row[metric] for row in rows.values() if row[metric] is not None]
        if len(values) > 1:
            best[metric] = _format(metric, (max if metric in LARGER_IS_BETTER else min)(values))
    lines = [
        "| row | " + " | ".join(METRICS) + " | valid pixels | clipped |",
        "|---|" + "---:|" * (len(METRICS) + 2),
    ]
    for name, row in rows.items():
        cells = [_format(metric, row[metric]) for metric in METRICS]
        is_best = [cell == best.get(metric) for metric, cell in zip(METRICS, cells, strict=True)]
        cells = [f"**{cell}**" if bold else cell for bold, cell in zip(is_best, cells, strict=True)]
        cells += [str(row["valid_pixels"]), str(row["clipped_pixels"])]
        lines.append(f"| {labels[name]} | {' | '.join(cells)} |")
    return lines


def _dynamics_table(dynamics: dict[str, Any]) -> list[str]:
    lines = ["| row | mean change from the stage before | MAE gained over D(0) |", "|---|---:|---:|"]
    for name, gain in dynamics["gain"].items():
        if name.startswith(("D(", "refined")):
            lines.append(f"| {name} | {_format('', dynamics['step'].get(name))} | {_format('', gain)} |")
    return lines


def _format(metric: str, value: float | None) -> str:
    return _or_dash(value) if value is None else format(value, _FORMATS.get(metric, ".4g"))


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)
