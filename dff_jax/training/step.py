"""One update: forward, loss, gradient, optimizer. The same function under jit over a mesh and under pmap."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dff_jax.config import LossConfig
from dff_jax.network.layers import device_axis
from dff_jax.training.objective import loss_mask, objective
from dff_jax.training.optimizer import hyperparameters
from dff_jax.training.state import TrainState, averaged, variables
from dff_jax.types import Array, Batch, Estimator

Metrics = dict[str, Array]
Update = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


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
    device's share, and the update sums over that axis. Both divide the global sum by the global count of valid pixels,
    and the sums of pictures by that of all pixels.

    Args:
      coordinate: "unit" or "raw", see `objective`.
      accumulate: the number of parts in which the batch goes through the network, one after the other. The update takes
        the sum of their gradients; the loss is still divided by the count of the whole batch. Batch statistics are
        those of each part, and move once a part.
      average: decay with which `TrainState.average` follows the weights and batch statistics; 0: none is kept.

    The metrics, all []: `loss`, the errors of `objective` in q and of pictures, `grad_norm` (before clipping),
    `update_norm`, `param_norm`, `learning_rate`, `beta1`.
    """

    def over_devices(tree):
        axis = device_axis()
        return jax.lax.psum(tree, axis) if axis else tree

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        masks = batch.mask, loss_mask(batch, loss)
        sizes = over_devices([*(jnp.sum(mask, dtype=jnp.float32) for mask in masks), jnp.float32(batch.mask.size)])
        valid, count, pixels = (jnp.maximum(size, 1.0) for size in sizes)

        def mean_loss(params, batch_stats, part):
            given = variables(state._replace(params=params, batch_stats=batch_stats))
            prediction, batch_stats = estimator.apply(given, part.frames, part.focus, train=True)
            sums = objective(prediction, part, loss, coordinate)
            return sums.mean_loss(loss, count, pixels), (sums, batch_stats)

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

        metrics = {"loss": sums.mean_loss(loss, count, pixels)}
        metrics |= {name: total / valid for name, total in sums.errors.items()}
        metrics |= {name: total / pixels for name, total in sums.images.items()}
        metrics |= {"grad_norm": optax.global_norm(grads), "update_norm": optax.global_norm(updates)}
        metrics |= {"param_norm": optax.global_norm(params)} | hyperparameters(opt_state)
        # The norms contain every gradient and parameter, so a single bad number is noticed at its own step.
        checked = [metrics["loss"], metrics["grad_norm"], metrics["param_norm"], optax.global_norm(batch_stats)]
        bad = ~jnp.all(jnp.isfinite(jnp.stack([jnp.float32(x) for x in checked])))
        bad_step = jnp.where((state.bad_step < 0) & bad, state.step + 1, state.bad_step)
        now = TrainState(state.step + 1, params, batch_stats, opt_state, bad_step, state.average)
        return (averaged(now, average) if average else now), metrics

    return update


def _split(x: Array, parts: int) -> Array:
    """[B,...] -> [parts, B/parts, ...]. Part i has every `parts`-th stack from i on: each stays on its device."""
    return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
