"""Parameters of an unroll: shared by every iteration, or stacked with a leading axis K, one slice an iteration.

Tied weights lie in `shared`, untied ones in `per_iteration`; a mixed unroll has some in each (a shared prox and a step
size of its own for each iteration, as in the paper).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dff_jax.types import Array


def stack_init(init: Callable[[Array], Any], key: Array, num_iterations: int) -> Any:
    """K independent initialisations of `init(key)`, leaves [K,...]: untied layers that differ from the start."""
    return jax.vmap(init)(jax.random.split(key, num_iterations))


def resize_stack(params: Any, num_iterations: int) -> Any:
    """Per-iteration parameters [K,...] for another K: the first ones are kept, the last one is repeated beyond."""

    def resize(leaf: Array) -> Array:
        index = jnp.minimum(jnp.arange(num_iterations), leaf.shape[0] - 1)
        return jnp.asarray(leaf)[index]  # weights in NumPy may be closed over

    return jax.tree.map(resize, params)


def repeat_shared(params: Any, num_iterations: int) -> Any:
    """Shared parameters as K equal slices: the untied twin of a tied unroll (to go on training untied)."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_iterations, *jnp.shape(leaf))), params)


def average_stack(params: Any) -> Any:
    """Per-iteration parameters [K,...] as one shared slice, their mean: the inverse of `repeat_shared`."""
    return jax.tree.map(lambda leaf: leaf.mean(0), params)
