"""One update: forward, loss, gradient, AdamW. The same function under jit over a mesh and under pmap."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dff_jax.config import LossConfig, ModelConfig, OptimizerConfig
from dff_jax.network.layers import device_axis
from dff_jax.training import optimizer as optimizers
from dff_jax.training.objective import loss_mask, objective
from dff_jax.training.state import TrainState, averaged, begin, variables
from dff_jax.types import Array, Batch, Estimator, Variables

Metrics = dict[str, Array]


Update = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def training_step(
    estimator: Estimator,
    model: ModelConfig,
    given: Variables,
    *,
    loss: LossConfig | None = None,
    optimizer: OptimizerConfig | None = None,
    num_steps: int = 1000,
) -> tuple[Update, TrainState]:
    """A network's update and the state before the first one, for whoever trains without `loop.train`.

    For shapes alone: `jax.eval_shape(lambda given: training_step(estimator, model, given)[1], shapes)`.

    Args:
      estimator: what `estimators.build(model)` gives.
      given: its variables.
      loss: None: `usual_loss(model)`.
      optimizer: None: `OptimizerConfig()`.
      num_steps: the length of the run, of which the learning rate is a function.
    """
    tx = optimizers.build(optimizer or OptimizerConfig(), num_steps)
    return make_update(estimator, tx, loss or usual_loss(model), model.coordinate), begin(given, tx)


def usual_loss(model: ModelConfig) -> LossConfig:
    """The default loss of the proximal network, and of compared networks the one that fits their number of scales."""
    if model.method == "proximal":
        return LossConfig()
    number = 1 if model.method == "aifdnet" else 4
    return LossConfig(kind="multi_scale", scale_weights=(1.0,) * number, penalty="smooth_l1")


def make_update(
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    loss: LossConfig,
    coordinate: str,
    accumulate: int = 1,
    average: float = 0.0,
) -> Update:
    """The pure update (state, batch) -> (state, metrics).

    Under jit the batch is the global one and the compiler reduces over devices. Under pmap over DEVICE_AXIS it is this
    device's share, and the update sums over that axis. Both divide the global sum by the global count of valid pixels.

    With `accumulate` the batch goes through the network in so many parts, one after the other, and the sum of their
    gradients makes the update; the loss is still divided by the count of the whole batch. Batch statistics are those
    of each part, and move once a part.

    With `average`, `TrainState.average` follows the weights and batch statistics with that decay.

    Metrics, all []: `loss`, the errors of `objective` in q, `grad_norm` (before clipping), `update_norm`,
    `param_norm`, `learning_rate`, `beta1`.
    """

    def over_devices(tree):
        axis = device_axis()
        return jax.lax.psum(tree, axis) if axis else tree

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        masks = batch.mask, loss_mask(batch, loss)
        sizes = over_devices([jnp.sum(mask, dtype=jnp.float32) for mask in masks])
        valid, count = (jnp.maximum(size, 1.0) for size in sizes)

        def mean_loss(params, batch_stats, part):
            given = variables(state._replace(params=params, batch_stats=batch_stats))
            prediction, batch_stats = estimator.apply(given, part.frames, part.focus, train=True)
            sums = objective(prediction, part, loss, coordinate)
            return sums.loss / count, (sums, batch_stats)

        gradient = jax.grad(mean_loss, has_aux=True)

        def add(so_far, part):
            total, batch_stats = so_far
            grads, (sums, batch_stats) = gradient(state.params, batch_stats, part)
            return (jax.tree.map(jnp.add, total, (grads, sums)), batch_stats), None

        if accumulate == 1:
            grads, (sums, batch_stats) = gradient(state.params, state.batch_stats, batch)
        else:
            parts = jax.tree.map(lambda x: _split(x, accumulate), batch)
            first = jax.tree.map(lambda x: x[0], parts)
            sums = jax.eval_shape(lambda: mean_loss(state.params, state.batch_stats, first))[1][0]
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (state.params, sums))
            # XLA on CPU computes gradients of convolutions in a loop many times slower.
            unroll = accumulate if jax.default_backend() == "cpu" else 1
            ((grads, sums), batch_stats), _ = jax.lax.scan(add, (zeros, state.batch_stats), parts, unroll=unroll)
        grads, sums = over_devices((grads, sums))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        metrics = {"loss": sums.loss / count} | {name: total / valid for name, total in sums.errors.items()}
        metrics |= {"grad_norm": optax.global_norm(grads), "update_norm": optax.global_norm(updates)}
        metrics |= {"param_norm": optax.global_norm(params)} | optimizers.hyperparameters(opt_state)
        # The norms see every gradient and parameter, so a single bad number anywhere is noticed at its own
        # step.
        seen = [metrics["loss"], metrics["grad_norm"], metrics["param_norm"], optax.global_norm(batch_stats)]
        bad = ~jnp.all(jnp.isfinite(jnp.stack([jnp.float32(s) for s in seen])))
        bad_step = jnp.where((state.bad_step < 0) & bad, state.step + 1, state.bad_step)
        now = TrainState(state.step + 1, params, batch_stats, opt_state, bad_step, state.average)
        return (averaged(now, average) if average else now), metrics

    return update


def _split(x: Array, parts: int) -> Array:
    """[B,...] -> [parts, B/parts, ...], a part every so many-th stack: what is split over devices stays where it is."""
    return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
