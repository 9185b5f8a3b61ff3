"""The rows of an evaluation, and the numbers of each.

`expected` (Dbar), `candidate_1`.. (D_i), `D(0)`..`D(K)` (the iterates), `refined` (the last refined depth;
with more than one refiner step `refined_1`.. before it), `final` (the answer, whichever stage it is), `classical` and
`sml` (the baselines, which need no training). A stage that an estimator does not have has no row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dff_jax.errors import InputError
from dff_jax.evaluation import calibration, images, metrics
from dff_jax.evaluation.conventions import CONVENTIONS, Convention
from dff_jax.types import Array, Prediction

BASELINES = ("classical", "sml")
"""Methods without training that each evaluation measures too."""


class Evaluation(NamedTuple):
    """What an evaluation found. A value is None where truth leaves it undefined, NaN if a prediction failed.

    rows: name -> {metric, pixel counts, "stacks", "pooled": {metric}, "in_range": the same again}.
    dynamics: {"step": {stage: mean |D - the D before|}, "gain": {row: MAE of D(0) - MAE of the row}}.
    literature: label of a variant of the convention -> rows as above, without "in_range".
    """

    rows: dict[str, dict[str, Any]]
    dynamics: dict[str, Any]
    per_stack: tuple[dict[str, Any], ...]  # one of each row, region (or variant) and stack
    stacks: tuple[str, ...]  # evaluated, in order
    excluded: tuple[str, ...]  # no pixel has ground truth
    unit: str
    seconds: dict[str, Any]
    notes: tuple[str, ...]  # what a reader of the numbers must know
    convention: Convention
    literature: dict[str, dict[str, dict[str, Any]]]
    calibration: dict[str, Any] = {}  # of the answer's confidence, see `calibration.summarize`
    all_in_focus: dict[str, Any] = {}  # "final" and the baselines -> PSNR, SSIM, stacks; none without true pictures

    def of_stack(self, position: int, region: str = "all") -> dict[str, dict[str, Any]]:
        """Row -> metrics of one stack, by its position in `stacks`."""
        mine = [one for one in self.per_stack if one["region"] == region][position :: len(self.stacks)]
        return {one["row"]: one for one in mine}


def row_maps(prediction: Prediction, baselines: Sequence[Array] = ()) -> dict[str, Array]:
    """Row -> depth map [B,H,W] in q, in the order of the method; `baselines` are the depths of `BASELINES`, or none."""
    h, depth = prediction.history, prediction.depth
    maps: dict[str, Array] = {}
    if h is not None:
        maps = {"expected": h.expected} | _candidates(h.candidates)
        maps |= {f"D({k})": h.iterates[:, k] for k in range(h.iterates.shape[1])}
        steps = h.refined.shape[1]
        maps |= {f"refined_{t + 1}" if t + 1 < steps else "refined": h.refined[:, t] for t in range(steps)}
    elif prediction.scales is not None:  # the answer stands for Dbar and D(0)
        maps = {"expected": depth} | _candidates(prediction.scales) | {"D(0)": depth}
    return maps | {"final": depth} | dict(zip(BASELINES, baselines, strict=False))


def _candidates(depths: Array) -> dict[str, Array]:
    return {f"candidate_{i + 1}": depths[..., i] for i in range(depths.shape[-1])}


def row_names(prediction: Prediction, baselines: bool) -> tuple[str, ...]:
    """The rows of `row_maps`, from the shapes alone: nothing is computed."""
    empty = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), prediction)
    return tuple(row_maps(empty, [empty.depth] * len(BASELINES) if baselines else ()))


class Measured(NamedTuple):
    """What was measured on one batch, on the host."""

    rows: tuple[str, ...]
    sums: tuple[metrics.Sums, ...]
    """Sums with fields [rows,stacks]: over the two `metrics.Regions`, then for each variant of the convention."""
    changes: np.ndarray | None  # mean |D - the D before| [stages-1,stacks]; None without stages
    stacks: tuple[str, ...]  # the names of those with ground truth
    excluded: tuple[str, ...]  # the names of those without
    confidence: np.ndarray  # `calibration.histogram` of the answer
    shape: tuple[int, ...]  # of the frames
    seconds: dict[str, float]  # "total", "compilation", and what each method took: "answer", "classical", "sml"
    images: np.ndarray | None = None  # `images.measure` of the answer and the baselines; None without true pictures

    @property
    def count(self) -> int:
        """How many stacks the batch has, those that fill it up left out."""
        return len(self.stacks) + len(self.excluded)


def gather(parts: Sequence[Measured], unit: str, convention: Convention = CONVENTIONS["default"]) -> Evaluation:
    """The numbers of all batches, of one process or of several, as one Evaluation.

    Args:
      unit, convention: as they were measured.

    Raises:
      InputError: no stack has ground truth.
    """
    stacks = [name for part in parts for name in part.stacks]
    excluded = [name for part in parts for name in part.excluded]
    if not stacks:
        raise InputError(f"evaluation data: none of its {len(excluded)} stacks has ground truth to evaluate against")
    names, changes = parts[0].rows, [part.changes for part in parts if part.changes is not None]
    sharp = [part.images for part in parts if part.images is not None]
    variants = convention.variants
    regions = (*metrics.Regions._fields, *(variant.label for variant in variants))
    ratios = (*[not convention.signed] * 2, *(variant.ratios for variant in variants))
    sums = {name: [_join(parts, r, i) for i in range(len(regions))] for r, name in enumerate(names)}
    rows: dict[str, dict[str, Any]] = {}
    literature: dict[str, dict[str, dict[str, Any]]] = {variant.label: {} for variant in variants}
    per_stack: list[dict[str, Any]] = []
    for name, of_row in sums.items():
        found = [metrics.summarize(one, has) for one, has in zip(of_row, ratios, strict=True)]
        rows[name] = found[0] | {"in_range": found[1]}
        for variant, summary in zip(variants, found[2:], strict=True):
            literature[variant.label][name] = summary
        for region, of_region, has in zip(regions, of_row, ratios, strict=True):
            for stack, values in zip(stacks, metrics.finalize(of_region, has), strict=True):
                per_stack.append({"stack": stack, "row": name, "region": region} | values)
    dynamics: dict[str, Any] = {}
    if changes:
        stages = [name for name in names if name.startswith(("D(", "refined"))]
        step = np.concatenate(changes, axis=1).mean(axis=1, dtype=np.float64)
        start = rows[stages[0]]["MAE"]
        dynamics = {
            "step": dict(zip(stages[1:], map(float, step), strict=True)),
            "gain": {name: start - row["MAE"] for name, row in rows.items()},
        }
    both = {name: metrics.Regions(*of_row[:2]) for name, of_row in sums.items()}
    notes = tuple(_notes(both, stacks, excluded, convention.signed))
    return Evaluation(
        rows, dynamics, tuple(per_stack), tuple(stacks), tuple(excluded), unit, _seconds(parts), notes, convention,
        literature, calibration.summarize([part.confidence for part in parts]),
        images.summarize(("final", *filter(BASELINES.__contains__, names)), sharp),
    )  # fmt: skip


def _join(parts: Sequence[Measured], row: int, region: int) -> metrics.Sums:
    return metrics.concatenate([metrics.Sums(*(field[row] for field in part.sums[region])) for part in parts])


def _seconds(parts: Sequence[Measured]) -> dict[str, Any]:
    """What all batches took, and each method for one stack.

    The first run of each program warms up: it does not count if there are others.
    """
    shapes = [part.shape for part in parts]
    counted = [part for i, part in enumerate(parts) if part.shape in shapes[:i]] or parts
    stacks = sum(part.shape[0] for part in counted)
    found: dict[str, Any] = {name: sum(part.seconds[name] for part in parts) for name in ("total", "compilation")}
    found["programs"] = len(set(shapes))
    for name in parts[0].seconds.keys() - found:
        label = "per_stack" if name == "answer" else f"per_stack_{name}"
        found[label] = sum(part.seconds[name] for part in counted) / stacks
    return found


def _notes(sums: dict[str, metrics.Regions], stacks: list[str], excluded: list[str], is_signed: bool) -> Iterator[str]:
    def where(counts: np.ndarray) -> list[str]:
        return [name for name, n in zip(stacks, counts, strict=True) if n]

    if excluded:
        yield f"excluded, no ground truth: {len(excluded)} ({_some(excluded)})"
    one = sums["final"]
    outside = where(one.in_range.pixels == 0)
    if outside:
        yield f"no truth within the focus range, so not in the in-range metrics: {_some(outside)}"
    signed = where(one.all.nonpositive)
    if is_signed:
        yield "truth is signed in this unit, where logRMS, AbsRel, SqRel and Acc mean nothing"
    elif signed:
        count = int(one.all.nonpositive.sum())
        yield (
            f"{count} pixels of truth are not positive: logRMS, AbsRel, SqRel and Acc are undefined for "
            f"{len(signed)} of {len(stacks)} stacks, and their means leave these out: {_some(signed)}"
        )
    for row, regions in sums.items():
        bad = where(regions.all.nonfinite)
        if bad:
            count = int(regions.all.nonfinite.sum())
            yield f"WARNING: {row} is not finite at {count} pixels; its metrics are NaN for {_some(bad)}"
        clipped = int(regions.all.clipped.sum())
        if clipped and not is_signed:
            yield f"{row}: {clipped} pixels below {metrics.SMALLEST:g} were clipped inside logRMS and Acc"


def _some(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
