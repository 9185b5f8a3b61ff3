"""What a network's first convolutions see, by name and in order.

Those that lay arrays side by side read the order here, and so does `training.initial_weights`, which carries their
kernels over to a network that sees more or less.
"""

from __future__ import annotations

import jax.numpy as jnp

from dff_jax.classical.candidates import MEASURES, SCALES
from dff_jax.config import Proximal
from dff_jax.types import Array

Counts = dict[str, int | None]
LOOKUP_REACH = 2  # planes to each side of the present depth

ORDER = {
    "features": ("planes", "guide"),
    "heads": ("features", "distance", "sharpness"),
    "prox": ("z", "eta", "regularization", "previous", "log_p"),
    "static": ("features", "confidence"),
    "refiner": ("depth", "features", "candidates", "measured", "settings"),
    "expected_error": ("features", "errors"),
    "decoder": ("up", "volume", "measures"),
}
"""The inputs of each place in order; `features` stands for its own inputs."""


def side_by_side(place: str, **parts: Array | None) -> Array:
    """The parts [...,n] of a place in its order, one after the other; None: there is none of it."""
    found = [parts.pop(name) for name in ORDER[place] if name in parts]
    assert not parts, f"{place} has no {', '.join(parts)}"
    return jnp.concatenate([x for x in found if x is not None], -1)


def counts(config: Proximal) -> Counts:
    """Number of channels of each input, where it is not 1; None: what the others leave."""
    measured = len(MEASURES) * len(SCALES) if config.measured_candidates else 0
    candidates, settings = config.refiner_inputs != "depth_volume", config.refiner_inputs == "with_settings"
    return {
        "planes": config.num_planes, "guide": 3 * (config.guide != "none"),
        "distance": measured, "sharpness": measured,
        "log_p": (2 * LOOKUP_REACH + 1) * (config.prox_inputs == "with_lookup"),
        "confidence": 2 * (config.prox_inputs != "equation_17"),
        "candidates": config.num_candidates * candidates, "measured": measured * candidates, "settings": 3 * settings,
        "errors": 5,
        "up": 0, "volume": None, "measures": 3 * (config.measure_prior == "log_sml_features"),  # `up` is in `volume`
    }  # fmt: skip
