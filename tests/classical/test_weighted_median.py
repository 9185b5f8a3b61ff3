"""The weighted median that follows the refiner."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import on_host, variables

from dff_jax import estimators
from dff_jax.classical import nearest_composite, sharp_composite, weighted_median
from dff_jax.classical.weighted_median import REACH, SIGMA
from dff_jax.config import tiny


def by_sorting(z, guide, confidence, radius):
    """The definition, pixel by pixel; also what z spans in each window."""
    found, span = np.zeros_like(z), np.zeros_like(z)
    steps = [n for n in range(-radius, radius + 1) if n % 2 == 0]
    for y, x in np.ndindex(z.shape):
        seen = [(y + a, x + b, a, b) for a in steps for b in steps]
        seen = [place for place in seen if 0 <= place[0] < z.shape[0] and 0 <= place[1] < z.shape[1]]
        values = np.array([z[j, i] for j, i, _, _ in seen])
        away = [((guide[j, i] - guide[y, x]) ** 2).sum() / SIGMA**2 + (a * a + b * b) / REACH**2 for j, i, a, b in seen]
        weights = np.array([confidence[j, i] for j, i, _, _ in seen]) * np.exp(-np.array(away) / 2)
        order = np.argsort(values)
        found[y, x] = values[order][np.searchsorted(weights[order].cumsum(), 0.5 * weights.sum())]
        window = z[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
        span[y, x] = window.max() - window.min()
    return found, span


@pytest.mark.parametrize("radius", [2, 5])
def test_it_is_the_median_by_its_definition(radius):
    rng = np.random.default_rng(radius)
    z = (rng.random((2, 14, 17)) * [[[1.0]], [[50.0]]]).astype(np.float32)
    guide, confidence = 0.2 * rng.random((2, 14, 17, 3), np.float32), rng.random((2, 14, 17), np.float32)
    found = weighted_median(*map(jnp.asarray, (z, guide, confidence)), radius=radius)
    for i in range(2):
        expected, span = by_sorting(z[i], guide[i], confidence[i], radius)
        assert (np.abs(found[i] - expected) <= span / 512).all()


def test_an_edge_moves_to_where_the_picture_has_it():
    columns = jnp.arange(40.0)
    z = jnp.broadcast_to(jnp.clip((columns - 14) / 8, 0.0, 1.0), (1, 30, 40))  # a ramp around 18
    guide = jnp.broadcast_to(jnp.where(columns < 20, 0.2, 0.8)[:, None], (1, 30, 40, 3))
    unsure = jnp.broadcast_to(jnp.where(jnp.abs(columns - 18) < 5, 0.05, 1.0), (1, 30, 40))
    median = jax.jit(weighted_median)
    found = median(z, guide, unsure)
    np.testing.assert_allclose(found[..., :20], 0.0, atol=0.01)
    np.testing.assert_allclose(found[..., 20:], 1.0, atol=0.01)
    np.testing.assert_allclose(median(jnp.full((1, 9, 9), 3.0), guide[:, :9, :9], unsure[:, :9, :9]), 3.0)


def test_it_makes_the_answer_and_changes_nothing_else(key):
    frames, focus = jax.random.uniform(key, (1, 4, 64, 64, 3)), jnp.linspace(1.0, 2.0, 4)[None]
    narrow = dataclasses.replace(tiny(), width=0.13, head_width=0.13, num_iterations=1, prox_levels=1)
    plain, sharp = (estimators.build(dataclasses.replace(narrow, sharpen=how)) for how in ("none", "weighted_median"))
    weights = variables(plain, frames)
    before, after = on_host(lambda v: [one.apply(v, frames, focus)[0] for one in (plain, sharp)])(weights)
    np.testing.assert_allclose(after.history.refined, before.history.refined, atol=1e-5)
    np.testing.assert_allclose(after.confidence, before.confidence, atol=1e-5)
    guide = nearest_composite(frames, before.depth, focus)
    expected = weighted_median(before.depth - 1, guide, jnp.maximum(before.confidence, 1e-3)) + 1
    np.testing.assert_allclose(after.depth, expected, atol=5e-3)
    assert np.abs(after.depth - before.depth).max() > 0.01


def test_around_an_edge_the_nearer_surface_is_shown():
    """Frames of one grey each, so that the composite says which of them it reads."""
    focus, frames = jnp.array([[1.0, 2.0, 3.0]]), jnp.broadcast_to(jnp.array([0.1, 0.5, 0.9]), (30, 40, 3, 3))
    frames = jnp.moveaxis(frames, -1, 0)[None]
    depth = jnp.full((1, 30, 40), 1.0).at[:, 10:20, 15:30].set(2.5)
    found = nearest_composite(frames, depth, focus, reach=4)
    near = jnp.zeros((30, 40), bool).at[6:24, 11:34].set(True)
    expected = np.where(near, 0.7, 0.1)  # 2.5 is halfway between the frames of 0.5 and 0.9
    np.testing.assert_allclose(found[0], np.stack([expected] * 3, -1), atol=1e-6)
    np.testing.assert_allclose(nearest_composite(frames, depth, focus, reach=0), sharp_composite(frames, depth, focus))
