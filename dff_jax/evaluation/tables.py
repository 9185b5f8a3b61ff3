"""The texts that an evaluation writes: `metrics.json`, `per_stack.csv` and `table.md`."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path
from typing import Any

from dff_jax.evaluation import conventions, images, paper
from dff_jax.evaluation.metrics import COUNTS, LARGER_IS_BETTER, METRICS
from dff_jax.evaluation.rows import BASELINES, Evaluation
from dff_jax.runtime import markdown as texts
from dff_jax.runtime.files import finite, machine, write_text

FILES = ("metrics.json", "per_stack.csv", "table.md")
FORMATS = {"Acc_1": ".2f", "Acc_2": ".2f", "Acc_3": ".2f", "Corr": ".4f", "BadPix": ".2f", "PSNR": ".2f", "SSIM": ".4f"}
"""How metrics are written; the others have four digits."""
markdown = functools.partial(texts.table, formats=FORMATS)
_COUNTED = {"valid_pixels": "valid pixels", "clipped_pixels": "clipped"}  # column of a row -> heading


def report(evaluation: Evaluation | None, **meta: Any) -> dict[str, Any]:
    """What `metrics.json` has: `rows`, `dynamics`, `literature`, `calibration`, `all_in_focus`, `paper` and `meta`.

    Metrics are at `rows.<name>.<metric>`, `.in_range.<metric>`, `.pooled.<metric>` and `.in_range.pooled.<metric>`, by
    a variant of the literature at `literature.<variant>.<row>.<metric>`; `paper` holds the tables of `paper.tables`.
    NaN becomes null, which JSON can hold; `meta.notes` says which rows had any.

    Args:
      evaluation: None: the data have no ground truth, and only `meta` says anything.
      meta: what to say of the run: at least label, dataset, unit and iterations.
    """
    out: dict[str, Any] = {"rows": {}, "dynamics": {}, "literature": {}, "calibration": {}, "all_in_focus": {}}
    if evaluation is None:
        notes = ["the dataset has no ground truth: there is nothing to measure, only figures to look at"]
        meta |= {"stacks": 0, "excluded": [], "notes": notes}
    else:
        out = {name: getattr(evaluation, name) for name in out}
        meta |= {
            "stacks": len(evaluation.stacks),
            "excluded": evaluation.excluded,
            "notes": evaluation.notes,
            "seconds": evaluation.seconds,
            "convention": evaluation.convention.name,
        }
    out = finite(out | {"meta": meta | machine()})
    return out | {"paper": paper.tables(out)}


def write(folder: Path, report: dict[str, Any], evaluation: Evaluation | None) -> None:
    """Writes `metrics.json`, `per_stack.csv` (undefined: empty; failed prediction: nan) and `table.md`."""
    text = json.dumps(report, indent=2, allow_nan=False)
    write_text(folder / "metrics.json", text + "\n")
    with open(folder / "per_stack.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, ["stack", "row", "region", *METRICS, *COUNTS])
        writer.writeheader()
        writer.writerows(evaluation.per_stack if evaluation else ())
    write_text(folder / "table.md", summary(report))


def summary(report: dict[str, Any]) -> str:
    """`table.md`: metrics over all valid and over in-range pixels, best in bold, then what the unroll did."""
    meta = report["meta"]
    lines = [f"# {meta['label']} on {meta['dataset']}", ""]
    if not report["rows"]:
        lines += [f"* {note}" for note in meta["notes"]]
        if "figure" in meta:
            lines += ["", f"{meta['figure']['file']} shows {', '.join(meta['figure']['stacks'])}."]
        return "\n".join(lines) + "\n"
    rows, labels = distinct(report["rows"])
    iterations = "-" if meta["iterations"] is None else meta["iterations"]
    lines += [
        f"{meta['stacks']} stacks, unit {meta['unit']}, iterations {iterations}. "
        "Metrics of each stack, averaged over stacks. Best in bold; Acc in percent.",
    ]
    in_range = {name: row["in_range"] for name, row in rows.items()}
    best = {metric: max if metric in LARGER_IS_BETTER else min for metric in METRICS}
    for title, part in (("All valid pixels", rows), ("Pixels within the focus range", in_range)):
        cells = [[labels[name], *(row[key] for key in (*METRICS, *_COUNTED))] for name, row in part.items()]
        lines += ["", f"## {title}", "", *markdown(cells, ["row", *METRICS, *_COUNTED.values()], best=best)]
    lines += _literature(report, rows, labels)
    lines += papers(report["paper"])
    dynamics = report["dynamics"]
    if dynamics and dynamics["step"]:
        stages = {name: gain for name, gain in dynamics["gain"].items() if name.startswith(("D(", "refined"))}
        cells = [[name, dynamics["step"].get(name), gain] for name, gain in stages.items()]
        columns = ["row", "mean change from the stage before", "MAE gained over D(0)"]
        lines += ["", "## What each step does", "", *markdown(cells, columns)]
    if sharp := report["all_in_focus"]:
        cells = [[name, *(row[metric] for metric in images.METRICS)] for name, row in sharp.items()]
        lines += ["", "## All-in-focus image", ""]
        lines += markdown(cells, ["image of", *images.METRICS], best=dict.fromkeys(images.METRICS, max))
    half = report["calibration"].get("half")
    if half is not None:
        lines += ["", f"The most confident half of all pixels has {half:.2f} times the mean error of all."]
    seconds = meta["seconds"]
    speed = f"{seconds['per_stack']:.3g} s per stack on {meta['device']}"
    lines += ["", f"{speed}; {seconds['total']:.3g} s in all, {seconds['compilation']:.3g} s of it compiling."]
    if meta["notes"]:
        lines += ["", "## Notes", "", *(f"* {note}" for note in meta["notes"])]
    return "\n".join(lines) + "\n"


def papers(tables: list[dict[str, Any]]) -> list[str]:
    """The paper's tables with ours, of `paper.tables` or `paper.table_3`."""
    lines = []
    for table in tables:
        lines += ["", f"## Table {table['number']} of the paper: {table['title']}", ""]
        cells = [[row["row"], row["from"], *row["text"]] for row in table["rows"]]
        lines += [*markdown(cells, ["row", "from", *paper.COLUMNS]), "", *(f"* {note}" for note in table["notes"])]
    return lines


def _literature(report: dict[str, Any], rows: dict[str, dict[str, Any]], labels: dict[str, str]) -> list[str]:
    """The answer and the baselines by each variant of the convention, beside our own two regions."""
    if not report["literature"]:
        return []
    convention = conventions.CONVENTIONS[report["meta"]["convention"]]
    answer = next(name for name in rows if rows[name] == report["rows"]["final"])
    chosen = [answer, *(name for name in BASELINES if name in rows and name != answer)]
    ours = {"ours: all valid": report["rows"]}
    ours["ours: within the focus range"] = {name: row["in_range"] for name, row in report["rows"].items()}
    cells = [
        [pixels, labels[name], *(found[name][key] for key in (*METRICS, "stacks", *_COUNTED))]
        for pixels, found in (ours | report["literature"]).items()
        for name in chosen
    ]
    lines = ["", "## As the literature measures", ""]
    lines += markdown(cells, ["pixels", "row", *METRICS, "stacks", *_COUNTED.values()])
    lines += ["", "Definitions and averaging are the same in all rows. Who measures so:", ""]
    lines += [f"* {variant.label}: {variant.who}" for variant in convention.variants]
    return lines + [f"* {note}" for note in convention.notes]


def distinct(rows: dict[str, dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The rows without repetitions of the answer (which is also one of the stages, or all), and what to call each."""
    same = [name for name, row in rows.items() if row == rows["final"]]
    kept = {name: row for name, row in rows.items() if name not in same[1:]}
    return kept, {name: " = ".join(same) if name == same[0] else name for name in kept}
