"""How well confidence predicts error: the error of the most confident pixels, and error found over error expected.

Confidence stands for an expected error, as a share of the focus range (`types.error_of_confidence`). For methods
without training it only orders pixels. A histogram of all valid pixels by expected error is enough, and it adds up over
batches and processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax import focus_axis
from dff_jax.types import Array, error_of_confidence

BINS = 400
_LOW, _HIGH = -4.0, 1.0  # decimal logarithms of the least and largest expected error that are told apart
COVERAGES = tuple(round(0.05 * i, 2) for i in range(1, 21))


@jax.jit
def histogram(confidence: Array, depth: Array, truth: Array, mask: Array, focus: Array) -> Array:
    """[B,H,W] maps in q, focus [B,Z] -> [BINS,3]: pixels, sum of |error| and of expected error, shares of the range."""
    span = focus_axis.span(focus)[:, None, None]
    error = jnp.where(mask, jnp.abs(depth - truth) / span, 0.0)
    expected = error_of_confidence(jnp.clip(confidence, 1e-30, 1.0))
    mask = mask & jnp.isfinite(error) & jnp.isfinite(expected)  # a failed prediction shows in the metrics
    error, expected = (jnp.where(mask, x, 0.0) for x in (error, expected))
    place = (jnp.log10(jnp.maximum(expected, 1e-9)) - _LOW) / (_HIGH - _LOW) * BINS
    place = jnp.clip(place, 0, BINS - 1).astype(jnp.int32)
    values = jnp.stack([mask.astype(jnp.float32), error, jnp.where(mask, expected, 0.0)], -1)
    found = jnp.zeros((mask.shape[0], BINS, 3)).at[jnp.arange(mask.shape[0])[:, None, None], place].add(values)
    return found.sum(0)


def summarize(parts: Sequence[np.ndarray]) -> dict[str, Any]:
    """Summarizes the histograms of batches as JSON-able numbers; {} without a pixel.

    coverage, error: share of the pixels, the most confident first, and their mean |error| as a share of the range.
    half: error of the most confident half over the error of all.
    expected, found: mean expected and mean real error of ten classes of pixels, from sure to unsure.
    """
    total = sum((np.asarray(part, np.float64) for part in parts), np.zeros((BINS, 3)))
    pixels = total[:, 0].cumsum()
    if pixels[-1] <= 0 or not np.isfinite(total).all():
        return {}

    def up_to(share: float) -> np.ndarray:
        """Sums over the most confident pixels; the bin at the border counts in part."""
        wanted = share * pixels[-1]
        last = int(np.searchsorted(pixels, wanted * (1 - 1e-12)))
        before = total[:last].sum(0)
        part = (wanted - before[0]) / max(total[last, 0], 1e-30)
        return before + part * total[last]

    sums = {share: up_to(share) for share in COVERAGES}
    error = [float(s[1] / s[0]) for s in sums.values()]
    tenths = np.diff([np.zeros(3), *(sums[c] for c in COVERAGES[1::2])], axis=0)
    return {
        "coverage": list(COVERAGES),
        "error": error,
        "half": error[COVERAGES.index(0.5)] / error[-1] if error[-1] > 0 else None,
        "expected": [float(x) for x in tenths[:, 2] / tenths[:, 0]],
        "found": [float(x) for x in tenths[:, 1] / tenths[:, 0]],
    }
