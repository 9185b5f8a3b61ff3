"""How the literature measures each dataset: which pixels it takes, and in which unit.

A `Convention` belongs to a dataset (its metadata names it) and lists `Variant`s: masks and conversions as published
code has them. Metric definitions, and the mean over stacks, are those of `metrics` throughout; where published code
differs at the edges (predictions that are zero, negative or not finite, empty masks), ours is the one that cannot
flatter, and the difference is in the convention's notes.

    AiFDNet  albert100121/AiFDepthNet      DDL-GRU  khurramashfaq/ddl-gru-sff
    DWild    wcy199705/DfFintheWild        DDFFNet  soyers/ddff-pytorch        DFV  fuy34/DFV
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp

from dff_jax.errors import InputError
from dff_jax.evaluation import metrics
from dff_jax.types import Array

ROUNDING = 1e-6
"""Bounds are widened by this share: truth in metres comes back from diopters with a rounding error."""


class Variant(NamedTuple):
    """One way to measure. Conversions apply to prediction and truth in the order of the fields."""

    label: str
    who: str  # measures so
    above: float = -math.inf  # only truth > above
    low: float = -math.inf  # only truth >= low
    high: float = math.inf  # only truth <= high
    map_from: tuple[float, float] | None = None  # the prediction, linearly from this range onto the focus range
    align: bool = False  # the prediction, by the line that fits truth best (least squares) in each stack
    clip: tuple[float, float] | None = None  # both
    shift: float = 0.0  # added to both
    ratios: bool = True  # whether logRMS, AbsRel, SqRel and Acc mean anything in this unit


class Convention(NamedTuple):
    """The variants of one dataset."""

    name: str
    unit: str | None = None  # of the bounds above; None: any
    variants: tuple[Variant, ...] = ()
    signed: bool = False  # truth may be negative: no ratio metrics in the dataset's own unit
    notes: tuple[str, ...] = ()  # what else differs in published code


_ANY_POSITIVE = Variant("gt > 0", "DDFFNet, DFV, DDL-GRU, AiFDNet, DWild", above=0.0)
_SUMMED = "AiFDNet's code sums AbsRel and SqRel over the stacks: multiply ours by their number to compare"
_SILENT = (
    "code of the DDFFNet family drops predictions <= 0 from logRMS and counts negative ones as correct in Acc, and "
    "averages stacks without truth in as zeros; ours clips, counts them as wrong, and leaves such stacks out: where no "
    "pixel was clipped and no stack excluded, the numbers are the same"
)
_FRACTION = "DWild prints Acc as a fraction, ours is in percent"

CONVENTIONS = {
    one.name: one
    for one in (
        Convention("default"),
        Convention(
            "flyingthings",
            "disparity",
            (_ANY_POSITIVE, Variant("10 <= gt <= 100", "AiFDNet", low=10.0, high=100.0)),
            notes=(
                _SILENT,
                _SUMMED,
                _FRACTION,
                "DDL-GRU, the code of the paper's group, evaluates maps of 544 x 960, with two rows of edge values "
                "added above and below, in the truth too",
            ),
        ),
        Convention(
            "middlebury",
            "disparity",
            (
                _ANY_POSITIVE._replace(who="AiFDNet; probably the paper"),
                Variant("10 <= gt <= 60", "AiFDNet, DWild", low=10.0, high=60.0),
                Variant("gt > 0, affine", "fitted to the truth of each stack: shape alone", above=0.0, align=True),
                Variant(
                    "gt > 0, mapped",
                    "answers in FlyingThings3D's units, brought from [10, 100] to [10, 60]: for index planes",
                    above=0.0,
                    map_from=(10.0, 100.0),
                ),
            ),
            notes=(_SILENT, _SUMMED, _FRACTION, "the paper resizes to 512 x 512: --resize 512 512"),
        ),
        Convention(
            "hci",
            "disparity",
            (
                Variant("gt > -3.6", "AiFDNet (all)", above=-3.6, ratios=False),
                Variant("-2.5 <= gt <= 2.5", "AiFDNet, DWild", low=-2.5, high=2.5, ratios=False),
                Variant(
                    "-2.5 < gt <= 2.5, unit q + 2.5",
                    "ratio metrics in a shifted unit, ours; probably close to the paper's",
                    above=-2.5,
                    high=2.5,
                    shift=2.5,
                ),
            ),
            signed=True,
            notes=(
                "disparity is signed here, so logRMS, AbsRel, SqRel and Acc are undefined in it; they are given only "
                "after adding 2.5 to truth and answer, a choice that decides their values: compare them with nothing "
                "that does not state the same shift",
                "AiFDNet divides relative errors by |gt| and leaves logRMS at 0; DWild's test.py takes logarithms and "
                "ratios of signed values",
            ),
        ),
        Convention(
            "ddff12",
            "disparity",
            (
                _ANY_POSITIVE._replace(who="DDFFNet, DFV, AiFDNet, DWild"),
                Variant("0.0202 <= gt <= 0.2825", "DDFFNet (its focus range)", low=0.0202, high=0.2825),
            ),
            notes=(_SILENT, _FRACTION),
        ),
        Convention(
            "fod500",
            "metre",
            (
                _ANY_POSITIVE._replace(who="AiFDNet (all)"),
                Variant("0 < gt <= 2", "AiFDNet; DWild in training", above=0.0, high=2.0),
                Variant("0.1 <= gt <= 1.5", "AiFDNet; DWild", low=0.1, high=1.5),
                Variant("gt > 0, clipped to [0, 1.5]", "DFV, both maps", above=0.0, clip=(0.0, 1.5)),
            ),
            notes=(_SILENT, _SUMMED, _FRACTION),
        ),
    )
}


def find(name: str | None, unit: str | None = None) -> Convention:
    """The convention of that name (None: "default").

    Raises:
      InputError: no such convention, or one whose bounds are in another unit than `unit`.
    """
    if (name or "default") not in CONVENTIONS:
        raise InputError(f"--convention: {name!r} is unknown; choose one of {', '.join(CONVENTIONS)}")
    found = CONVENTIONS[name or "default"]
    if unit is not None and found.unit not in (None, unit):
        raise InputError(f"--convention: {name} measures in {found.unit}, but the data are in {unit}")
    return found


def measure(p: Array, g: Array, valid: Array, focus: Array, convention: Convention) -> tuple[metrics.Sums, ...]:
    """Sums and counts of each stack for each variant. Pure; under jit `convention` is static.

    Args:
      p, g: [B,H,W] float32, prediction and truth in the unit of the dataset.
      valid: [B,H,W] bool, where truth holds.
      focus: [B,2] lowest and highest focus setting of each stack, in the unit of the dataset.
    """
    return tuple(_measure(variant, p, g, valid, focus) for variant in convention.variants)


def _measure(variant: Variant, p: Array, g: Array, valid: Array, focus: Array) -> metrics.Sums:
    low, high = variant.low - ROUNDING * abs(variant.low), variant.high + ROUNDING * abs(variant.high)
    region = valid & (g > variant.above) & (g >= low) & (g <= high)
    if variant.map_from is not None:
        start, end = variant.map_from
        first, last = focus[:, :1, None], focus[:, 1:, None]
        p = first + (p - start) / (end - start) * (last - first)
    if variant.align:
        p = metrics.fit(p, g, region)
    if variant.clip is not None:  # an infinite answer is a failure, which clipping must not hide
        p, g = jnp.where(jnp.isfinite(p), jnp.clip(p, *variant.clip), p), jnp.clip(g, *variant.clip)
    p, g = p + variant.shift, g + variant.shift
    # neighbours outside the region count in bumpiness too, as long as they have truth
    return metrics.region_sums(p, g, region, metrics.bumps(p, g, valid))
