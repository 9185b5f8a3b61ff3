"""Tables 1 to 3 and Figures 5, 6, 7 and 9 of the paper, its own numbers as printed, with ours beside.

M. T. Mahmood, Learning Depth from Focus with Multi-Candidate Estimation and Proximal Refinement, Electronics 2026,
15, 2548. It does not state its masks; its columns are those of DDL-GRU's evaluation, which takes every pixel with
truth above 0. So ours are of that variant of the convention; of HCI, where that cannot be, of the shifted unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dff_jax import focus_axis
from dff_jax.errors import InputError
from dff_jax.evaluation.rows import BASELINES
from dff_jax.pictures import panels
from dff_jax.pictures.panels import Panel
from dff_jax.types import Array, Batch, Prediction

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
            "the paper has 14 of the 15 scenes and does not say which is left out; "
            f"ours: {report['meta']['stacks']} stacks of {report['meta']['dataset']}",
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


def table_3(rows: Sequence[tuple[str, str, dict[str, Any]]], variant: str) -> dict[str, Any]:
    """Table 3 with methods of a comparison, each below the paper's row of its name, as RFVR-like is below RFVR.

    Args:
      rows: label, recipe and metrics of each method.
      variant: of the convention by which these were measured.
    """
    left, lines = list(rows), []
    for method, printed in TABLE_3.items():
        lines.append(_paper(method, printed))
        mine = [one for one in left if one[0].lower().startswith(method.lower().removeprefix("the "))]
        left = [one for one in left if one not in mine]
        lines += [_ours(", ".join(filter(None, one[:2])), variant, one[2]) for one in mine]
    lines += [_ours(", ".join(filter(None, one[:2])), variant, one[2]) for one in left]
    return _table(3, "methods, on FlyingThings3D", lines, [f"ours: {variant}, which is probably the paper's"])


def _table(number: int, title: str, rows: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    return {"number": number, "title": title, "rows": rows, "notes": notes}


def _paper(row: str, printed: str) -> dict[str, Any]:
    text = printed.split()
    return {"row": row, "from": "paper", "values": dict(zip(COLUMNS, map(float, text), strict=True)), "text": text}


def _ours(row: str, variant: str, found: dict[str, Any]) -> dict[str, Any]:
    values = {name: found.get(name) for name in COLUMNS}
    text = ["-" if v is None else format(v, _FORMATS.get(name, ".3f")) for name, v in values.items()]
    return {"row": row, "from": f"ours: {variant}", "values": values, "text": text}


# Figures 5, 6, 7 and 9 ------------------------------------------------------------------------------------------
#
# The paper does not print its colours or scales. Here truth and answers of a column share one: that of the truth, or
# of the focus range where there is no truth.


class Layout(NamedTuple):
    """One figure."""

    file: str
    title: str
    stacks: tuple[int, ...] | None  # numbers in the split, from 0; None: some, evenly spaced
    methods: bool = False  # whether the other methods have rows too


LAYOUTS = {
    "middlebury": Layout("paper_figure_5.png", "Figure 5: Middlebury", (0, 1, 3)),
    "hci": Layout("paper_figure_6.png", "Figure 6: HCI", (0, 1, 2, 3)),
    "ddff12": Layout("paper_figure_9.png", "Figure 9: DDFF-12", None, methods=True),
}
PREDICTIONS = Layout("predictions.png", "Predictions", None, methods=True)
"""Of other data, without truth or when asked for."""
FILES = (*(layout.file for layout in LAYOUTS.values()), PREDICTIONS.file)
_COLUMNS = 5


class Column(NamedTuple):
    """One stack of a figure; depth maps [H,W] in q, NaN where truth is missing."""

    name: str
    frame: np.ndarray  # [H,W,3], the middle one
    all_in_focus: np.ndarray  # [H,W,3], of `sharp`
    about: str  # whose it is, of `sharp`
    truth: np.ndarray | None
    answers: dict[str, np.ndarray]  # of the evaluated method, then of others
    focus_range: tuple[float, float]  # in q
    unit: str


def choose(
    convention: str, has_truth: bool, length: int, asked: Sequence[int] | None = None, methods: bool = False
) -> tuple[Layout, list[int]] | None:
    """The figure that goes with a dataset, if any, and the numbers of the stacks in it.

    Args:
      length: stacks in the split.
      asked: numbers to show instead of the layout's; then any dataset has a figure.
      methods: whether other methods are to be shown; then too.

    Raises:
      InputError: a number that was asked for and does not exist.
    """
    if convention not in LAYOUTS and has_truth and asked is None and not methods:
        return None
    layout = LAYOUTS.get(convention, PREDICTIONS)
    layout = layout._replace(methods=layout.methods or methods)
    if asked is not None:
        return layout, numbers(asked, length)
    if layout.stacks is not None:
        return layout, [number for number in layout.stacks if number < length] or [0]
    return layout, sorted({int(x) for x in np.linspace(0, length - 1, min(_COLUMNS, length)).round()})


def numbers(asked: Sequence[int], length: int) -> list[int]:
    """Each number of a stack that was asked for, once; raises InputError for one that does not exist, or for none."""
    if not asked or any(not 0 <= number < length for number in asked):
        raise InputError(f"--figure-stacks: numbers from 0 to {length - 1}, got {' '.join(map(str, asked))}")
    return list(dict.fromkeys(asked))


def column(
    name: str, batch: Batch, prediction: Prediction, others: Mapping[str, Array | np.ndarray], unit: str, label: str
) -> Column:
    """The column of one stack: arrays [1,...] in q.

    Args:
      others: depths of other methods, by name.
      label: what to call the evaluated method.
    """
    mask, frames = np.asarray(batch.mask[0]), np.asarray(batch.frames[0])
    truth = np.where(mask, np.asarray(batch.depth[0]), np.nan) if mask.any() else None
    answers = {label: np.asarray(prediction.depth[0])}
    answers |= {other: np.asarray(depth[0]) for other, depth in others.items() if other != label}
    focus_range = float(batch.focus[0, 0]), float(batch.focus[0, -1])
    return Column(name, frames[len(frames) // 2], *sharp(batch, prediction), truth, answers, focus_range, unit)


def sharp(batch: Batch, prediction: Prediction) -> tuple[np.ndarray, str]:
    """The all-in-focus picture [H,W,3] of the first stack, and what to call it: the data's own, or the estimate."""
    if batch.all_in_focus is not None:
        return np.asarray(batch.all_in_focus[0]), "all in focus"
    return np.asarray(prediction.all_in_focus[0]), "all in focus (estimated)"


def draw(layout: Layout, columns: Sequence[Column]) -> list[list[Panel]]:
    """The figure as rows of panels: images, truth if there is any, the answers; a stack in each column."""
    label, *others = columns[0].answers
    images = {"frame": [one.frame for one in columns]}
    if not layout.methods:
        images = {" or ".join(sorted({one.about for one in columns})): [one.all_in_focus for one in columns]}
    rows: dict[str, Sequence[np.ndarray | None]] = {**images}
    if any(one.truth is not None for one in columns):
        rows["ground truth"] = [one.truth for one in columns]
    shown = [*others, label] if layout.methods else [label]  # ours last, as in the paper
    rows |= {name: [one.answers[name] for one in columns] for name in shown}
    found = [[_panel(one, x, name) for one, x in zip(columns, row, strict=True)] for name, row in rows.items()]
    found[0] = [x._replace(caption=f"{one.name}\n{x.caption}") for one, x in zip(columns, found[0], strict=True)]
    found[-1] = [x._replace(caption=f"{x.caption}, {_range(one)}") for one, x in zip(columns, found[-1], strict=True)]
    return found


def draw_methods(columns: Sequence[Column]) -> list[list[Panel]]:
    """Figure 7 as rows of panels: a stack in each row; input, truth if there is any, and the methods in columns."""
    has_truth = any(one.truth is not None for one in columns)
    rows: list[list[Panel]] = []
    for one in columns:
        maps = {"input": one.frame} | ({"ground truth": one.truth} if has_truth else {}) | one.answers
        row = [_panel(one, values, name) for name, values in maps.items()]
        if rows:  # the first row names the columns
            row = [x if x.caption not in maps or maps[x.caption] is None else x._replace(caption="") for x in row]
        row[0] = row[0]._replace(caption=f"{one.name}\n{row[0].caption}".strip())
        row[-1] = row[-1]._replace(bar=panels.depth_bar(*_scale(one), one.unit)._replace(label=""))
        rows.append(row)
    return rows


def _panel(one: Column, values: np.ndarray | None, name: str) -> Panel:
    if values is None:
        return Panel(np.full((*one.frame.shape[:2], 3), panels.HOLE, np.uint8), f"no {name}")
    if values.ndim == 3:
        return Panel(panels.to_uint8(values), name)
    return Panel(panels.colorize(values, *_scale(one)), name)


def _scale(one: Column) -> tuple[float, float]:
    """The q of the first and the last colour."""
    if one.truth is None:
        return one.focus_range
    return panels.robust_range(one.truth, percentiles=(0.5, 99.5))


def _range(one: Column) -> str:
    low, high = (float(focus_axis.from_q(np.float64(q), one.unit)) for q in _scale(one))
    return f"blue {low:.3g} to red {high:.3g} {one.unit}"


def save(path: Path, layout: Layout, columns: list[Column]) -> None:
    """Writes the figure as PNG."""
    rows = draw(layout, columns)
    panels.save_png(path, panels.sheet(rows, title=layout.title, width=max(600, 260 * len(columns))))


def save_methods(path: Path, title: str, columns: list[Column]) -> None:
    """Writes Figure 7 as PNG."""
    rows = draw_methods(columns)
    panels.save_png(path, panels.sheet(rows, title=title, width=max(800, 240 * len(rows[0]))))
