"""What an ablation writes as text: the paper's Table 1 with the rows that it lacks, and several runs compared."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from dff_jax.config import Proximal
from dff_jax.evaluation.metrics import COUNTS, METRICS
from dff_jax.evaluation.paper import COLUMNS, TABLE_1
from dff_jax.evaluation.rows import BASELINES, Evaluation
from dff_jax.runtime import markdown as texts
from dff_jax.runtime.files import finite, write_text
from dff_jax.types import Estimator

FILES = ("ablation.json", "per_stack.csv", "table.md")
_FORMATS = {
    **dict.fromkeys(COLUMNS, ".3f"), "logRMS": ".4f", "AbsRel": ".4f", "Acc_1": ".2f", "Acc_2": ".2f", "Acc_3": ".2f",
    "Corr": ".4f",
}  # fmt: skip


class Variant(NamedTuple):
    """One way to use a run's parameters."""

    name: str  # "fista", or "fista+tv" with another prox than the trained one
    model: Proximal
    estimator: Estimator


class Pass(NamedTuple):
    """What one pass over the data found."""

    evaluation: Evaluation  # with rows refined(K) for the refined depth at each K
    course: dict[str, Any]  # means over the stacks, see `ablate._course`
    mean_weights: np.ndarray  # [H,W,N] W_i^2, mean over the stacks of the first one's size


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
    metrics of an evaluation. `schemes.<name>`: the iterates and refined depths of the other passes.
    `courses.<name>`: how each iteration went (`ablate._course`), means over the stacks. NaN becomes null.

    Args:
      passes: by name of the scheme, the run as trained first.
      trained: K as trained.
      iterations: all K.
      meta: run, model, info, dataset, unit, parameters, seconds.
    """
    (scheme, own), *others = passes.items()
    rows, refined = own.evaluation.rows, f"refined({trained})"
    meta |= {
        "scheme": scheme, "trained_iterations": trained, "iterations": list(iterations),
        "answer": refined if refined in rows else f"D({trained})", "stacks": len(own.evaluation.stacks),
        "excluded": list(own.evaluation.excluded), "notes": list(own.evaluation.notes),
        "device": jax.devices()[0].device_kind,
    }  # fmt: skip
    schemes = {
        name: {row: found for row, found in one.evaluation.rows.items() if row.startswith(("D(", "refined"))}
        for name, one in others
    }
    courses = {name: found.course for name, found in passes.items()}
    return finite({"rows": rows, "schemes": schemes, "courses": courses, "meta": meta})


def write(folder: Path, report: dict[str, Any], passes: dict[str, Pass]) -> None:
    """Writes `FILES` into `folder`."""
    with open(folder / "per_stack.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, ["scheme", "stack", "row", "region", *METRICS, *COUNTS])
        writer.writeheader()
        for name, found in passes.items():
            wanted = ("D(", "refined") if name != report["meta"]["scheme"] else ""
            lines = [one for one in found.evaluation.per_stack if one["row"].startswith(wanted)]
            writer.writerows({"scheme": name} | one for one in lines)
    write_text(folder / "table.md", markdown(report))
    text = json.dumps(report, indent=2, allow_nan=False)
    write_text(folder / "ablation.json", text + "\n")


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
        "", "## Table 1", "", *_metrics(_table_1(report)),
        "", "## The rows that it lacks", "",
        "expected: the soft-argmax Dbar. refined(K): after K iterations and the refiner; D(K) is the same without.",
        "", *_metrics(rows),
        "", "Pixels within the focus range:", "", *_metrics({name: row["in_range"] for name, row in rows.items()}),
        "", "## What each iteration gains", "",
        "Gains are falls of the MAE. Change: mean of abs(D(k) - D(k-1)) over valid pixels. eta S: 0 = the data term is "
        "ignored, 1 = each step starts again from D(0). Data share: of the path the data step goes, the rest being "
        "the prox's; 0.5 where one undoes the other (proximal gradient only).",
        "", *texts.records(_gains(report)),
    ]  # fmt: skip
    if report["schemes"]:
        lines += ["", "## The same parameters through other schemes", ""]
        lines += ["MAE. The trained prox in each; `+identity` has none, so it is the data term alone.", ""]
        lines += texts.records(_schemes(report))
    if meta["notes"]:
        lines += ["", "## Notes", "", *(f"* {note}" for note in meta["notes"])]
    lines += ["", f"{meta['seconds']:.0f} s on {meta['device']}, compilation included."]
    return "\n".join(lines) + "\n"


def _metrics(rows: dict[str, dict[str, Any]]) -> list[str]:
    return texts.table([[name, *map(row.get, COLUMNS)] for name, row in rows.items()], ["row", *COLUMNS], _FORMATS)


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


def _gains(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each iteration: MAE, gains, how far it moved and why."""
    rows, course, asked = report["rows"], report["courses"][report["meta"]["scheme"]], report["meta"]["iterations"]
    mae, lines = course["MAE"], []
    for k in range(len(mae)):
        if k <= 5 or k in asked:
            refined = rows.get(f"refined({k})", {}).get("MAE")
            lines.append({
                "k": k, "MAE": mae[k],
                "gain over D(k-1)": _less(mae[k - 1], mae[k]) if k else None,
                "gain over D(0)": _less(mae[0], mae[k]) if k else None,
                "refined": refined, "refiner's gain": _less(mae[k], refined),
                "change": _at(course, "change", k), "eta S": _at(course, "eta_S", k),
                "data share": data_share(course, k),
            })  # fmt: skip
    return lines


def _schemes(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each scheme: MAE after some k, at the last also refined."""
    last = report["meta"]["iterations"][-1]
    shown = dict.fromkeys(f"D({k})" for k in (0, *report["meta"]["iterations"]))
    lines = []
    for name, rows in ({report["meta"]["scheme"]: report["rows"]} | report["schemes"]).items():
        line = {"scheme": name} | {d: rows[d]["MAE"] for d in shown}
        line[f"refined({last})"] = rows.get(f"refined({last})", {}).get("MAE")
        lines.append(line | {f"change in D({last})": _at(report["courses"][name], "change", last)})
    return lines


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


# Several runs -----------------------------------------------------------------------------------------


def write_comparison(folder: Path, reports: list[dict[str, Any]]) -> None:
    """Writes `comparison.md` and `comparison.json` into `folder`."""
    compared = {report["meta"]["run"]: summary(report) for report in reports}
    write_text(folder / "comparison.md", comparison(reports, compared))
    write_text(folder / "comparison.json", json.dumps(compared, indent=2, allow_nan=False) + "\n")


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


def comparison(reports: list[dict[str, Any]], summaries: dict[str, dict[str, float | None]]) -> str:
    """`comparison.md`: a line for each run."""
    first, meta = reports[0], reports[0]["meta"]
    untrained = [f"{name} {first['rows'][name]['MAE']:.4g}" for name in BASELINES if name in first["rows"]]
    about = [
        {
            "run": one["meta"]["run"], "parameters": f"{one['meta']['parameters']:,}",
            "steps trained": one["meta"]["info"].get("step", "-"), "fields": _differences(first, one) or "-",
        }
        for one in reports
    ]  # fmt: skip
    lines = [
        f"# {len(reports)} runs on {meta['dataset']}",
        "",
        f"{meta['stacks']} stacks, unit {meta['unit']}. Columns from Dbar to answer are MAE; gains are falls of it: of "
        "fusion from Dbar to D(0), of K steps (as trained) from D(0) to D(K), of the refiner from D(K) to the answer. "
        f"D(last) is D({max(meta['iterations'])}). S is the total weight of the candidates, its spread over pixels; "
        "change the mean of abs(D(1) - D(0)); eta S and data share those of the last trained step (0: the prox alone, "
        "1: the data term alone).",
        "",
        *texts.records([{"run": run, **numbers} for run, numbers in summaries.items()]),
        *(["", f"Without training: {', '.join(untrained)}."] if untrained else []),
        "", f"What differs from {meta['run']}:", "", *texts.records(about),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _differences(first: dict[str, Any], other: dict[str, Any]) -> str:
    """Config fields in which a run differs from the first, without its name."""
    one, two = (
        {
            keystr(path, simple=True, separator="."): value
            for path, value in tree_leaves_with_path(
                report["meta"]["info"].get("config") or {"model": report["meta"]["model"]},
                is_leaf=lambda x: not isinstance(x, dict),
            )
        }
        for report in (first, other)
    )
    different = {key: value for key, value in two.items() if key != "name" and one.get(key, "absent") != value}
    return ", ".join(f"{key} = {value}" for key, value in different.items())
