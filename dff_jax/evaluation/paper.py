"""Tables 1 to 3 of the paper, its own figures as printed, with ours beside.

M. T. Mahmood, Learning Depth from Focus with Multi-Candidate Estimation and Proximal Refinement, Electronics 2026,
15, 2548. It does not state its masks; its columns are those of DDL-GRU's evaluation, which takes every pixel with
truth above 0. So ours are of that variant of the convention; of HCI, where that cannot be, of the shifted unit.
"""

from __future__ import annotations

from typing import Any

from dff_jax.evaluation.rows import BASELINES

COLUMNS = ("MAE", "RMS", "logRMS", "AbsRel", "Acc_1", "Acc_2", "Acc_3", "Corr")

# FlyingThings3D, at different stages
TABLE_1 = {
    "D(1)": "1.525 2.952 0.081 0.040 98.89 99.62 99.77 0.996",
    "D(3)": "1.475 2.867 0.072 0.036 99.11 99.74 99.85 0.997",
    "D(5)": "1.469 2.849 0.069 0.036 99.18 99.77 99.87 0.997",
    "refined": "1.460 2.842 0.066 0.035 99.28 99.81 99.89 0.997",
}
TABLE_2 = {
    "middlebury": "23.59 29.94 0.60 1.42 4.92 37.32 93.11 0.76",
    "hci": "0.07 0.16 0.06 0.03 97.78 99.53 99.91 0.97",
}
# FlyingThings3D, compared methods
TABLE_3 = {
    "RFVR": "11.89 23.63 0.79 1.55 72.79 80.81 84.60 0.73",
    "AiFDNet": "6.81 13.14 0.59 0.73 85.43 87.67 88.87 0.93",
    "DFV-FV": "6.33 12.10 0.57 0.89 85.09 87.60 89.52 0.95",
    "DFV-Diff": "5.51 10.65 0.53 0.62 86.18 88.09 89.93 0.97",
    "DWild": "5.54 10.44 0.53 0.61 86.35 88.21 89.84 0.97",
    "the paper": "1.46 2.84 0.07 0.04 99.28 99.81 99.89 0.99",
}
_FORMATS = {"Acc_1": ".2f", "Acc_2": ".2f", "Acc_3": ".2f"}
_SHIFTED = -1  # position of HCI's variant that has every metric


def tables(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The paper's tables that an evaluation can stand beside, by its convention.

    Args:
      report: as `evaluation.tables.report` makes it: `literature` and `meta` (convention, label, dataset, ...).

    Returns:
      Of each table {"number", "title", "rows": [{"row", "from", "values": {column: number or None}, "text": as
      printed}], "notes"}; none for a dataset that the paper has no table of.
    """
    name, literature = report["meta"]["convention"], report["literature"]
    if not literature:
        return []
    variants = list(literature)
    if name == "flyingthings":
        rows = literature[variants[0]]
        return [*([_table_1(rows, variants[0])] if "D(0)" in rows else []), _table_3(rows, variants[0], report["meta"])]
    if name == "middlebury":
        ours = [_ours(report["meta"]["label"], label, rows["final"]) for label, rows in literature.items()]
        notes = [
            "the paper's row is close to what a network gives that answers in FlyingThings3D's units (10 + 90 t where "
            "the truth is 10 + 50 t), as index planes do; 'mapped' converts such answers, and means nothing for others",
            "the paper has 14 of the 15 scenes and does not say which is left out",
        ]
        if tuple(report["meta"].get("resize") or ()) != (512, 512):
            notes.append("the paper resizes the images to 512 x 512, this evaluation did not: --resize 512 512")
        return [_table(2, "Middlebury", [_paper("the paper", TABLE_2[name]), *ours], notes)]
    if name == "hci":
        variant = variants[_SHIFTED]
        ours = [_ours(report["meta"]["label"], variant, literature[variant]["final"])]
        notes = [
            f"ours: {variant}; the paper does not say how it made ratios of a signed disparity, so only MAE, RMS and "
            "Corr can be compared, and these only if its pixels were the same"
        ]
        return [_table(2, "HCI", [_paper("the paper", TABLE_2[name]), *ours], notes)]
    return []


def _table_1(rows: dict[str, dict[str, Any]], variant: str) -> dict[str, Any]:
    lines: list[dict[str, Any]] = []
    for stage, printed in TABLE_1.items():
        lines += [_paper(stage, printed), _ours(stage, variant, rows.get(stage, {}))]
    notes = [f"ours: {variant}, which is probably the paper's"]
    beyond = [stage for stage in TABLE_1 if stage not in rows]
    if beyond:
        notes.append(f"not in this evaluation: {', '.join(beyond)}; evaluate with --iterations 5")
    if "refined" not in beyond:
        last = max(int(name[2:-1]) for name in rows if name.startswith("D("))
        notes.append(f"ours refines D({last}); the paper does not say which iterate it refines")
    return _table(1, "stages, on FlyingThings3D", lines, notes)


def _table_3(rows: dict[str, dict[str, Any]], variant: str, meta: dict[str, Any]) -> dict[str, Any]:
    mine = [_ours(meta["label"], variant, rows["final"])]
    mine += [_ours(name, variant, rows[name]) for name in BASELINES if name in rows and name != meta["label"]]
    lines = [_paper(method, printed) for method, printed in TABLE_3.items()]
    return _table(3, "methods, on FlyingThings3D", lines + mine, [f"ours: {variant}, which is probably the paper's"])


def _table(number: int, title: str, rows: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    return {"number": number, "title": title, "rows": rows, "notes": notes}


def _paper(row: str, printed: str) -> dict[str, Any]:
    text = printed.split()
    return {"row": row, "from": "paper", "values": dict(zip(COLUMNS, map(float, text), strict=True)), "text": text}


def _ours(row: str, variant: str, found: dict[str, Any]) -> dict[str, Any]:
    values = {name: found.get(name) for name in COLUMNS}
    text = ["-" if v is None else format(v, _FORMATS.get(name, ".3f")) for name, v in values.items()]
    return {"row": row, "from": f"ours: {variant}", "values": values, "text": text}
