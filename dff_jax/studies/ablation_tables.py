"""What an ablation writes as text: the paper's Table 1 with the rows that it lacks, and several runs compared."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import jax

from dff_jax.evaluation.metrics import COUNTS, METRICS
from dff_jax.evaluation.tables import finite
from dff_jax.studies.ablation_passes import Pass

FILES = ("ablation.json", "per_stack.csv", "table.md")

COLUMNS = ("MAE", "RMS", "logRMS", "AbsRel", "Acc_1", "Acc_2", "Acc_3", "Corr")
_DIGITS = {"logRMS": ".4f", "AbsRel": ".4f", "Acc_1": ".2f", "Acc_2": ".2f", "Acc_3": ".2f", "Corr": ".4f"}
PUBLISHED = {  # the paper's Table 1: its own training, FlyingThings3D's 100 test stacks, disparity
    "Iteration 1": (1.525, 2.952, 0.081, 0.040, 98.89, 99.62, 99.77, 0.996),
    "Iteration 3": (1.475, 2.867, 0.072, 0.036, 99.11, 99.74, 99.85, 0.997),
    "Iteration 5": (1.469, 2.849, 0.069, 0.036, 99.18, 99.77, 99.87, 0.997),
    "Refined": (1.460, 2.842, 0.066, 0.035, 99.28, 99.81, 99.89, 0.997),
}


def report(passes: dict[str, Pass], *, trained: int, iterations: tuple[int, ...], **meta: Any) -> dict[str, Any]:
    """The contents of `ablation.json`.

    `rows` of the run as trained: expected, candidate_i, D(0)..D(K), refined(K), and the methods without training, each
    with the metrics of an evaluation; `schemes.<name>` the same of the other passes; `courses.<name>` how each
    iteration went (`ablation_passes._watch`), means over the stacks. NaN becomes null.

    Args:
      passes: by name of the scheme, the run as trained first.
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
    schemes = {name: _only_iterates(found) for name, found in passes.items() if name != scheme}
    courses = {name: found.course for name, found in passes.items()}
    return finite({"rows": rows, "schemes": schemes, "courses": courses, "meta": meta})


def _only_iterates(found: Pass) -> dict[str, Any]:
    return {name: row for name, row in found.evaluation.rows.items() if name.startswith(("D(", "refined"))}


def write(folder: Path, report: dict[str, Any], passes: dict[str, Pass]) -> None:
    """Writes `FILES` into `folder`."""
    with open(folder / "per_stack.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["scheme", "stack", "row", "region", *METRICS, *COUNTS])
        writer.writeheader()
        for name, found in passes.items():
            kept = ("D(", "refined") if name != report["meta"]["scheme"] else ""
            writer.writerows(
                {"scheme": name} | one for one in found.evaluation.per_stack if one["row"].startswith(kept)
            )
    (folder / "table.md").write_text(markdown(report), encoding="utf-8")
    text = json.dumps(report, indent=2, allow_nan=False)
    (folder / "ablation.json").write_text(text + "\n", encoding="utf-8")


# One run ----------------------------------------------------------------------------------------------


def markdown(report: dict[str, Any]) -> str:
    """`table.md`."""
    meta = report["meta"]
    rows = {name: row for name, row in report["rows"].items() if name not in _left_out(report)}
    lines = [
        f"# {meta['run']}: what the unroll contributes, on {meta['dataset']}",
        "",
        f"{meta['stacks']} stacks, unit {meta['unit']}; trained with {meta['trained_iterations']} iterations of "
        f"{meta['scheme']}. Metrics of each stack, averaged over stacks; Acc in percent.",
        "",
        "## Table 1",
        "",
        *_table("stage", _first_table(report)),
        *(
            f"| *the paper's, on FlyingThings3D: {name}* | {' | '.join(f'*{v:g}*' for v in values)} |"
            for name, values in PUBLISHED.items()
        ),
        "",
        "## The rows that it lacks",
        "",
        "expected: the soft-argmax Dbar. refined(K): after K iterations and the refiner; D(K) is the same without.",
        "",
        *_table("row", rows),
        "",
        "Pixels within the focus range:",
        "",
        *_table("row", {name: row["in_range"] for name, row in rows.items()}),
        "",
        "## What each iteration gains",
        "",
        *_gains(report),
    ]
    if report["schemes"]:
        lines += ["", "## The same parameters through other schemes", "", *_schemes(report)]
    if meta["notes"]:
        lines += ["", "## Notes", "", *(f"* {note}" for note in meta["notes"])]
    lines += ["", f"{meta['seconds']:.0f} s on {meta['device']}, compilation included."]
    return "\n".join(lines) + "\n"


def _left_out(report: dict[str, Any]) -> set[str]:
    """D(k) of a k that nobody asked for."""
    asked = report["meta"]["iterations"]
    return {f"D({k})" for k in range(asked[-1])} - {f"D({k})" for k in asked}


def _first_table(report: dict[str, Any]) -> dict[str, Any]:
    rows, answer = report["rows"], report["meta"]["answer"]
    table = {f"Iteration {k}": rows[f"D({k})"] for k in (1, 3, 5) if f"D({k})" in rows}
    return table | ({"Refined": rows[answer]} if answer.startswith("refined") else {})


def _table(head: str, rows: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"| {head} | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
    return lines + [f"| {name} | {' | '.join(_metric(c, row[c]) for c in COLUMNS)} |" for name, row in rows.items()]


def _gains(report: dict[str, Any]) -> list[str]:
    """One line an iteration: MAE, gains, how far it moved and why."""
    rows, course = report["rows"], report["courses"][report["meta"]["scheme"]]
    mae, start = course["MAE"], course["MAE"][0]
    lines = [
        "Gains are falls of the MAE. Change: mean of abs(D(k) - D(k-1)) over valid pixels. eta S: 0, the data term is "
        "not heard; 1, each step starts again from D(0). Data share: of the path the data step goes, the rest being "
        "the prox's; 0.5 where one undoes the other (proximal gradient only).",
        "",
        "| k | MAE | gain over D(k-1) | gain over D(0) | refined | refiner's gain | change | eta S | data share |",
        "|---:|" + "---:|" * 8,
    ]
    for k, value in enumerate(mae):
        if k > 5 and k not in report["meta"]["iterations"]:
            continue
        refined = rows.get(f"refined({k})", {}).get("MAE")
        gains = [_less(mae[k - 1], value) if k else None, _less(start, value) if k else None]
        cells = [value, *gains, refined, _less(value, refined)]
        cells += [course["change"][k - 1], _at(course, "eta_S", k), data_share(course, k)] if k else [None] * 3
        lines.append(f"| {k} | " + " | ".join(_number(cell) for cell in cells) + " |")
    return lines


def _schemes(report: dict[str, Any]) -> list[str]:
    """One line a scheme: MAE after some k, at the last also refined."""
    last = report["meta"]["iterations"][-1]
    shown = [k for k in report["meta"]["iterations"] if k]
    all_rows = {report["meta"]["scheme"]: report["rows"]} | report["schemes"]
    head = ["D(0)", *(f"D({k})" for k in shown), f"refined({last})", f"RMS of D({last})", f"change in D({last})"]
    lines = [
        "MAE. The trained prox in each; `+identity` has none, so it is the data term alone.",
        "",
        "| scheme | " + " | ".join(head) + " |",
        "|---|" + "---:|" * len(head),
    ]
    for name, rows in all_rows.items():
        cells = [rows["D(0)"]["MAE"], *(rows[f"D({k})"]["MAE"] for k in shown)]
        change = report["courses"][name]["change"]
        cells += [
            rows.get(f"refined({last})", {}).get("MAE"),
            rows[f"D({last})"]["RMS"],
            change[-1] if change else None,
        ]
        lines.append(f"| {name} | " + " | ".join(_number(cell) for cell in cells) + " |")
    return lines


def data_share(course: dict[str, Any], k: int) -> float | None:
    """|z - D(k-1)| / (|z - D(k-1)| + |D(k) - z|), of means; None where it is not known, or nothing moves."""
    data, prox = _at(course, "data_step", k), _at(course, "prox_step", k)
    return None if data is None or prox is None or data + prox == 0 else data / (data + prox)


def _at(course: dict[str, Any], name: str, k: int) -> float | None:
    """Of the step to D(k)."""
    values = course.get(name, ())
    return values[k - 1] if 0 < k <= len(values) else None


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _metric(name: str, value: float | None) -> str:
    return "-" if value is None else format(value, _DIGITS.get(name, ".3f"))


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
    return {
        "Dbar": mae["expected"],
        "best D_i": min(candidates, default=None),
        "D(0)": mae["D(0)"],
        "D(1)": mae.get("D(1)"),
        "D(3)": mae.get("D(3)"),
        "D(last)": course["MAE"][-1],
        "answer": answer,
        "Acc_1": rows[meta["answer"]]["Acc_1"],
        "gain of fusion": _less(mae["expected"], mae["D(0)"]),
        "gain of K steps": _less(mae["D(0)"], mae[f"D({K})"]),
        "gain of refiner": _less(mae[f"D({K})"], answer) if meta["answer"].startswith("refined") else None,
        "mean S": course["S_mean"],
        "spread of S": course["S_std"],
        "change to D(1)": course["change"][0] if course["change"] else None,
        "eta S": _at(course, "eta_S", min(K, len(course["change"]))),
        "data share": data_share(course, min(K, len(course["change"]))),
    }


def comparison(reports: list[dict[str, Any]]) -> str:
    """`comparison.md`: one line a run."""
    summaries = {report["meta"]["run"]: summary(report) for report in reports}
    first, meta = reports[0], reports[0]["meta"]
    columns = list(next(iter(summaries.values())))
    lines = [
        f"# {len(reports)} runs on {meta['dataset']}",
        "",
        f"{meta['stacks']} stacks, unit {meta['unit']}. Columns from Dbar to answer are MAE; gains are falls of it: of "
        "fusion from Dbar to D(0), of K steps (as trained) from D(0) to D(K), of the refiner from D(K) to the answer. "
        f"D(last) is D({max(meta['iterations'])}). S is the total weight of the candidates, its spread over pixels; "
        "change the mean of abs(D(1) - D(0)); eta S and data share those of the last trained step (0: the prox alone, "
        "1: the data term alone).",
        "",
        "| run | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, values in summaries.items():
        lines.append(f"| {name} | " + " | ".join(_number(value) for value in values.values()) + " |")
    untrained = {name: row["MAE"] for name, row in first["rows"].items() if name in ("classical", "sml")}
    if untrained:
        lines += ["", "Without training: " + ", ".join(f"{name} {_number(v)}" for name, v in untrained.items()) + "."]
    lines += [
        "",
        f"What differs from {meta['run']}:",
        "",
        "| run | parameters | steps trained | fields |",
        "|---|---:|---:|---|",
    ]
    for report in reports:
        info = report["meta"]["info"]
        fields = ", ".join(f"{key} = {value}" for key, value in _differences(first, report).items()) or "-"
        steps = info.get("step", "-")
        lines.append(f"| {report['meta']['run']} | {report['meta']['parameters']:,} | {steps} | {fields} |")
    return "\n".join(lines) + "\n"


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
