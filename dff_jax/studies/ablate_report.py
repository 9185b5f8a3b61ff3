"""What an ablation writes as text: the paper's Table 1 with the rows that it lacks, and several runs compared."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dff_jax.config import Proximal
from dff_jax.evaluation.metrics import COUNTS, METRICS
from dff_jax.evaluation.paper import COLUMNS, TABLE_1
from dff_jax.evaluation.rows import BASELINES, Evaluation
from dff_jax.runtime.files import finite
from dff_jax.studies.bench.measuring import table
from dff_jax.types import Estimator

FILES = ("ablation.json", "per_stack.csv", "table.md")
_DIGITS = {"logRMS": ".4f", "AbsRel": ".4f", "Acc_1": ".2f", "Acc_2": ".2f", "Acc_3": ".2f", "Corr": ".4f"}


class Variant(NamedTuple):
    """One way to use a run's parameters."""

    name: str  # "fista", or "fista+tv" with another prox than the trained one
    model: Proximal
    estimator: Estimator


class Pass(NamedTuple):
    """What one pass over the data found."""

    evaluation: Evaluation  # with rows refined(K) for the refined depth at each K
    course: dict[str, Any]  # means over the stacks, see `ablate._course`
    mean_weights: np.ndarray  # [H,W,N] W_i^2, mean over the stacks of the most frequent size


def renamed(found: Evaluation, iterations: tuple[int, ...]) -> Evaluation:
    """The sweep's refined stages become refined(K); its "final", which is the last of them, is left out."""
    stages = [name for name in found.rows if re.fullmatch(r"refined(_\d+)?", name)]
    names = dict(zip(stages, (f"refined({k})" for k in iterations), strict=True)) if stages else {}
    notes = [re.sub(r"\brefined(_\d+)?\b", lambda m: names.get(m[0], m[0]), note) for note in found.notes]
    rows = {names.get(name, name): row for name, row in found.rows.items() if name != "final"}
    per_stack = [one | {"row": names.get(one["row"], one["row"])} for one in found.per_stack if one["row"] != "final"]
    notes = [note for note in notes if not re.match("(WARNING: )?final[: ]", note)]
    return found._replace(rows=rows, per_stack=tuple(per_stack), notes=tuple(notes))


def report(passes: dict[str, Pass], *, trained: int, iterations: tuple[int, ...], **meta: Any) -> dict[str, Any]:
    """The contents of `ablation.json`.

    `rows` of the run as trained: expected, candidate_i, D(0)..D(K), refined(K), and the baselines, each with the
    metrics of an evaluation. `schemes.<name>`: the same of the other passes. `courses.<name>`: how each iteration went
    (`ablate._course`), means over the stacks. NaN becomes null.

    Args:
      passes: by name of the scheme, the run as trained first.
      trained: K as trained.
      iterations: all K.
      meta: label, model, info, dataset, unit, parameters, seconds.
    """
    scheme, own = next(iter(passes.items()))
    rows = own.evaluation.rows
    refined = f"refined({trained})"
    meta = {
        "run": meta.pop("label"), "scheme": scheme, "trained_iterations": trained, "iterations": list(iterations),
        "answer": refined if refined in rows else f"D({trained})", "stacks": len(own.evaluation.stacks),
        "excluded": list(own.evaluation.excluded), "notes": list(own.evaluation.notes),
        "device": jax.devices()[0].device_kind,
    } | meta  # fmt: skip
    schemes = {name: _iterates(found.evaluation.rows) for name, found in passes.items() if name != scheme}
    courses = {name: found.course for name, found in passes.items()}
    return finite({"rows": rows, "schemes": schemes, "courses": courses, "meta": meta})


def _iterates(rows: dict[str, Any]) -> dict[str, Any]:
    return {name: row for name, row in rows.items() if name.startswith(("D(", "refined"))}


def write(folder: Path, report: dict[str, Any], passes: dict[str, Pass]) -> None:
    """Writes `FILES` into `folder`."""
    with open(folder / "per_stack.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["scheme", "stack", "row", "region", *METRICS, *COUNTS])
        writer.writeheader()
        for name, found in passes.items():
            wanted = ("D(", "refined") if name != report["meta"]["scheme"] else ""
            lines = [one for one in found.evaluation.per_stack if one["row"].startswith(wanted)]
            writer.writerows({"scheme": name} | one for one in lines)
    (folder / "table.md").write_text(markdown(report), encoding="utf-8")
    text = json.dumps(report, indent=2, allow_nan=False)
    (folder / "ablation.json").write_text(text + "\n", encoding="utf-8")


# One run ----------------------------------------------------------------------------------------------


def markdown(report: dict[str, Any]) -> str:
    """`table.md`."""
    meta, rows = report["meta"], report["rows"]
    asked = meta["iterations"]
    others = {f"D({k})" for k in range(asked[-1])} - {f"D({k})" for k in asked}
    rows = {name: row for name, row in rows.items() if name not in others}
    lines = [
        f"# {meta['run']}: what the unroll contributes, on {meta['dataset']}",
        "",
        f"{meta['stacks']} stacks, unit {meta['unit']}; trained with {meta['trained_iterations']} iterations of "
        f"{meta['scheme']}. Metrics of each stack, averaged over stacks; Acc in percent.",
        "", "## Table 1", "", *_metrics("stage", _table_1(report)),
        "", "## The rows that it lacks", "",
        "expected: the soft-argmax Dbar. refined(K): after K iterations and the refiner; D(K) is the same without.",
        "", *_metrics("row", rows),
        "", "Pixels within the focus range:", "", *_metrics("row", {k: row["in_range"] for k, row in rows.items()}),
        "", "## What each iteration gains", "", *_gains(report),
    ]  # fmt: skip
    if report["schemes"]:
        lines += ["", "## The same parameters through other schemes", "", *_schemes(report)]
    if meta["notes"]:
        lines += ["", "## Notes", "", *(f"* {note}" for note in meta["notes"])]
    lines += ["", f"{meta['seconds']:.0f} s on {meta['device']}, compilation included."]
    return "\n".join(lines) + "\n"


def _metrics(head: str, rows: dict[str, dict[str, Any]]) -> list[str]:
    columns: dict[str, Callable[[str], str]] = {head: str}
    columns |= {metric: lambda name, m=metric: _metric(m, rows[name][m]) for metric in COLUMNS}
    return table(rows, columns)


def _metric(name: str, value: float | str | None) -> str:
    """A cell; text stays as it is."""
    if value is None or isinstance(value, str):
        return value or "-"
    return format(value, _DIGITS.get(name, ".3f"))


def _table_1(report: dict[str, Any]) -> dict[str, Any]:
    """The paper's rows of this run, then the paper's own figures in italics."""
    rows, answer = report["rows"], report["meta"]["answer"]
    found = {f"Iteration {k}": rows[f"D({k})"] for k in (1, 3, 5) if f"D({k})" in rows}
    found |= {"Refined": rows[answer]} if answer.startswith("refined") else {}
    for name, printed in TABLE_1.items():
        stage = name.replace("D(", "Iteration ").rstrip(")").capitalize()
        values = [f"*{value}*" for value in printed.split()]
        found[f"*the paper's, on FlyingThings3D: {stage}*"] = dict(zip(COLUMNS, values, strict=True))
    return found


def _gains(report: dict[str, Any]) -> list[str]:
    """A line for each iteration: MAE, gains, how far it moved and why."""
    rows, course, asked = report["rows"], report["courses"][report["meta"]["scheme"]], report["meta"]["iterations"]
    mae = course["MAE"]

    def refined(k: int) -> float | None:
        return rows.get(f"refined({k})", {}).get("MAE")

    columns: dict[str, Callable[[int], Any]] = {
        "MAE": lambda k: mae[k],
        "gain over D(k-1)": lambda k: _less(mae[k - 1], mae[k]) if k else None,
        "gain over D(0)": lambda k: _less(mae[0], mae[k]) if k else None,
        "refined": refined,
        "refiner's gain": lambda k: _less(mae[k], refined(k)),
        "change": lambda k: _at(course, "change", k),
        "eta S": lambda k: _at(course, "eta_S", k),
        "data share": lambda k: data_share(course, k),
    }
    head = (
        "Gains are falls of the MAE. Change: mean of abs(D(k) - D(k-1)) over valid pixels. eta S: 0 = the data term is "
        "ignored, 1 = each step starts again from D(0). Data share: of the path the data step goes, the rest being "
        "the prox's; 0.5 where one undoes the other (proximal gradient only)."
    )
    return [head, "", *_numbers("k", [k for k in range(len(mae)) if k <= 5 or k in asked], columns)]


def _schemes(report: dict[str, Any]) -> list[str]:
    """A line for each scheme: MAE after some k, at the last also refined."""
    last = report["meta"]["iterations"][-1]
    all_rows = {report["meta"]["scheme"]: report["rows"]} | report["schemes"]
    shown = [f"D({k})" for k in (0, *report["meta"]["iterations"])]
    columns: dict[str, Callable[[str], Any]] = {d: lambda name, d=d: all_rows[name][d]["MAE"] for d in shown}
    columns |= {
        f"refined({last})": lambda name: all_rows[name].get(f"refined({last})", {}).get("MAE"),
        f"RMS of D({last})": lambda name: all_rows[name][f"D({last})"]["RMS"],
        f"change in D({last})": lambda name: _at(report["courses"][name], "change", last),
    }
    head = "MAE. The trained prox in each; `+identity` has none, so it is the data term alone."
    return [head, "", *_numbers("scheme", all_rows, columns)]


def _numbers(head: str, rows: Any, columns: dict[str, Callable[[Any], float | None]]) -> list[str]:
    cells: dict[str, Callable[[Any], str]] = {head: str}
    cells |= {name: lambda row, column=column: _number(column(row)) for name, column in columns.items()}
    return table(rows, cells)


def data_share(course: dict[str, Any], k: int) -> float | None:
    """|z - D(k-1)| / (|z - D(k-1)| + |D(k) - z|), of means; None where it is not known, or nothing moves."""
    data, prox = _at(course, "data_step", k), _at(course, "prox_step", k)
    return None if data is None or prox is None or data + prox == 0 else data / (data + prox)


def _at(course: dict[str, Any], name: str, k: int) -> float | None:
    """Value of the step to D(k)."""
    values = course.get(name, ())
    return values[k - 1] if 0 < k <= len(values) else None


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


# Several runs -----------------------------------------------------------------------------------------


def write_comparison(folder: Path, reports: list[dict[str, Any]]) -> None:
    """Writes `comparison.md` and `comparison.json` into `folder`."""
    compared = {report["meta"]["run"]: summary(report) for report in reports}
    (folder / "comparison.md").write_text(comparison(reports), encoding="utf-8")
    (folder / "comparison.json").write_text(json.dumps(compared, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def summary(report: dict[str, Any]) -> dict[str, float | None]:
    """One run in a line of numbers (MAE, unless named otherwise)."""
    rows, meta = report["rows"], report["meta"]
    course, K = report["courses"][meta["scheme"]], meta["trained_iterations"]
    mae = {name: row["MAE"] for name, row in rows.items()}
    candidates = [v for name, v in mae.items() if name.startswith("candidate") and v is not None]
    answer = mae[meta["answer"]]
    last = min(K, len(course["change"]))
    return {
        "Dbar": mae["expected"], "best D_i": min(candidates, default=None), "D(0)": mae["D(0)"],
        "D(1)": mae.get("D(1)"), "D(3)": mae.get("D(3)"), "D(last)": course["MAE"][-1], "answer": answer,
        "Acc_1": rows[meta["answer"]]["Acc_1"],
        "gain of fusion": _less(mae["expected"], mae["D(0)"]),
        "gain of K steps": _less(mae["D(0)"], mae[f"D({K})"]),
        "gain of refiner": _less(mae[f"D({K})"], answer) if meta["answer"].startswith("refined") else None,
        "mean S": course["S_mean"], "spread of S": course["S_std"], "change to D(1)": _at(course, "change", 1),
        "eta S": _at(course, "eta_S", last), "data share": data_share(course, last),
    }  # fmt: skip


def comparison(reports: list[dict[str, Any]]) -> str:
    """`comparison.md`: a line for each run."""
    summaries = {report["meta"]["run"]: summary(report) for report in reports}
    first, meta = reports[0], reports[0]["meta"]
    names = list(summaries[meta["run"]])
    untrained = {name: first["rows"][name]["MAE"] for name in BASELINES if name in first["rows"]}
    about: dict[str, Callable[[dict[str, Any]], str]] = {
        "run": lambda report: report["meta"]["run"],
        "parameters": lambda report: f"{report['meta']['parameters']:,}",
        "steps trained": lambda report: str(report["meta"]["info"].get("step", "-")),
        "fields": lambda report: ", ".join(f"{k} = {v}" for k, v in _differences(first, report).items()) or "-",
    }
    lines = [
        f"# {len(reports)} runs on {meta['dataset']}",
        "",
        f"{meta['stacks']} stacks, unit {meta['unit']}. Columns from Dbar to answer are MAE; gains are falls of it: of "
        "fusion from Dbar to D(0), of K steps (as trained) from D(0) to D(K), of the refiner from D(K) to the answer. "
        f"D(last) is D({max(meta['iterations'])}). S is the total weight of the candidates, its spread over pixels; "
        "change the mean of abs(D(1) - D(0)); eta S and data share those of the last trained step (0: the prox alone, "
        "1: the data term alone).",
        "",
        *_numbers("run", summaries, {column: lambda run, c=column: summaries[run][c] for column in names}),
    ]
    if untrained:
        lines += ["", "Without training: " + ", ".join(f"{name} {_number(v)}" for name, v in untrained.items()) + "."]
    return "\n".join([*lines, "", f"What differs from {meta['run']}:", "", *table(reports, about)]) + "\n"


def _differences(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Config fields in which a run differs from the first, without its name."""
    one, two = (_flat(r["meta"]["info"].get("config") or {"model": r["meta"]["model"]}) for r in (first, other))
    return {key: value for key, value in two.items() if key != "name" and one.get(key, "absent") != value}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found
