"""AdamW with a one-cycle learning rate, after clipping by global norm.

`torch_onecycle` gives the numbers of PyTorch's OneCycleLR with its defaults: cosine in two phases, the peak at the
fractional step 0.3 N - 1, the final value at step N - 1, and beta1 cycled 0.95 -> 0.85 -> 0.95 against the learning
rate (Smith and Topin, "Super-Convergence", 2018). `optax_onecycle` is optax's own: a peak one step later, beta1 0.9.
Most of the compared networks were trained with `constant`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dff_jax.config import OptimizerConfig
from dff_jax.types import Array

HIGH_BETA1, LOW_BETA1 = 0.95, 0.85  # OneCycleLR's max_momentum and base_momentum


def build(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `num_steps` updates. `hyperparameters` reads what it used from its state."""
    adamw = optax.inject_hyperparams(optax.adamw, static_args=("mask",))(
        learning_rate=learning_rate(config, num_steps),
        b1=beta1(config, num_steps),
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=None if config.decay == "all" else is_kernel,
    )
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, adamw)


def hyperparameters(opt_state: Any) -> dict[str, Array]:
    """`learning_rate` and `beta1` of the update that led to this state of `build`'s optimizer."""
    values = opt_state[1].hyperparams
    return {"learning_rate": values["learning_rate"], "beta1": values["b1"]}


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The schedule: number of updates done [] -> learning rate []. After the end it stays at the final value."""
    peak = config.peak_learning_rate
    if config.schedule == "constant":
        return lambda step: jnp.full_like(step, peak, jnp.float32)
    low = peak / config.div_factor
    if config.schedule == "torch_onecycle":
        cycle = _torch_cycle(num_steps, config.warmup_share)
        return lambda step: cycle(step, low, peak, low / config.final_div_factor)
    return optax.cosine_onecycle_schedule(
        num_steps, peak, config.warmup_share, config.div_factor, config.final_div_factor
    )


def beta1(config: OptimizerConfig, num_steps: int) -> float | optax.Schedule:
    """Adam's first decay rate: a schedule under `torch_onecycle`, else the constant 0.9."""
    if config.schedule == "torch_onecycle":
        cycle = _torch_cycle(num_steps, config.warmup_share)
        return lambda step: cycle(step, HIGH_BETA1, LOW_BETA1, HIGH_BETA1)
    return 0.9


def is_kernel(params: Any) -> Any:
    """A tree of bools: which parameters decay. By name, not ndim: stacked untied biases have two axes too."""

    def named_kernel(path, _):
        return getattr(path[-1], "key", None) == "kernel"

    return jax.tree_util.tree_map_with_path(named_kernel, params)


def _torch_cycle(num_steps: int, warmup_share: float) -> Callable[..., Array]:
    """(step, start, middle, end) -> value: two half cosines, start -> middle -> end, timed as OneCycleLR."""
    top = warmup_share * num_steps - 1
    last = num_steps - 1

    def anneal(share, start, end):
        return end + (start - end) / 2 * (1 + jnp.cos(jnp.pi * jnp.clip(share, 0.0, 1.0)))

    def value(step, start, middle, end):
        step = jnp.asarray(step, jnp.float32)
        # In very short runs the peak lies before step 0, and the run starts on the way down, as PyTorch's does.
        up = anneal(step / max(top, 1e-6), start, middle)
        down = anneal((step - top) / max(last - top, 1e-6), middle, end)
        return jnp.where(step <= top, up, down)

    return value
