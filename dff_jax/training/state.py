"""What training carries from step to step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dff_jax.types import Array, Variables


class TrainState(NamedTuple):
    """One pytree: all of it is saved, restored, replicated over devices and donated to the update."""

    step: Array  # [] int32, updates done
    params: Any
    batch_stats: Any  # {} for a network without BatchNorm
    opt_state: Any
    bad_step: Array  # [] int32, the first update that gave a number that is not finite; -1: none did
    average: Any = {}  # running average of `variables`; {}: none is kept


def begin(given: Variables, optimizer: optax.GradientTransformation, average: bool = False) -> TrainState:
    """The state before the first update. With `average` it keeps a running average of the variables, too."""
    params, stats = given["params"], given.get("batch_stats", {})
    # The average is a copy: the update donates the state, so no buffer may be in it twice.
    mean = jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats}) if average else {}
    return TrainState(jnp.int32(0), params, stats, optimizer.init(params), jnp.int32(-1), mean)


def variables(state: TrainState) -> Variables:
    """What `Estimator.apply` takes in training."""
    return {"params": state.params, "batch_stats": state.batch_stats}


def outcome(state: TrainState) -> Variables:
    """What `Estimator.apply` takes to evaluate the trained network: the average, if one is kept."""
    return state.average or variables(state)


def averaged(state: TrainState, decay: float) -> TrainState:
    """The state with its average moved towards its weights, at the start faster than by `decay`."""
    rate = 1 - jnp.minimum(decay, (1 + state.step) / (10 + state.step)).astype(jnp.float32)
    average = jax.tree.map(lambda a, x: a + rate * (x - a), state.average, variables(state))
    return state._replace(average=average)
