"""The distribution over planes (4, 5)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax import config as cfg
from dff_jax.network.focus_volume import Scores
from dff_jax.network.planes import VOLUME_SCALE, read_planes, resample_planes

FOCUS = jnp.array([[10.0, 20.0, 40.0], [0.0, 1.0, 2.0]])


def test_resampling_to_as_many_even_planes_is_the_identity(key):
    volume = jax.random.normal(key, (2, 15, 4, 5))
    t = jnp.broadcast_to(jnp.linspace(0, 1, 15), (2, 15))
    np.testing.assert_allclose(resample_planes(volume, t, 15), jnp.moveaxis(volume, 1, -1), atol=1e-5)


def test_resampling_is_linear_interpolation(key):
    volume = jax.random.normal(key, (1, 4, 2, 3))
    t = jnp.array([[0.0, 0.1, 0.7, 1.0]])
    planes = np.linspace(0, 1, 9)
    expected = np.stack([np.interp(planes, t[0], volume[0, :, i, j]) for i in range(2) for j in range(3)])
    np.testing.assert_allclose(resample_planes(volume, t, 9)[0].reshape(6, 9), expected, atol=1e-5)


def test_planes_are_counted_from_one_or_are_the_focus_settings(key):
    """Dbar = sum_z P_z plane_z of each reading, and what the same P says beside."""
    k_volume, k_frames = jax.random.split(key)
    volume, frames = jax.random.normal(k_volume, (2, 3, 4, 5)), jax.random.uniform(k_frames, (2, 3, 4, 5, 3))
    scores = Scores(volume, (volume, 2 * volume, volume, volume))
    P = np.exp(volume) / np.exp(volume).sum(1, keepdims=True)
    t = np.array([[0, 1 / 3, 1], [0, 0.5, 1]])
    for change, planes in (
        ({"planes": "index", "coordinate": "raw"}, np.array([[1, 2, 3], [1, 2, 3]])),
        ({"planes": "focus", "coordinate": "raw"}, np.asarray(FOCUS)),
        ({"planes": "focus", "coordinate": "unit"}, t),
    ):
        config = dataclasses.replace(cfg.paper(), candidate_source="per_scale", num_candidates=2, **change)
        seen = read_planes(config, scores, frames, FOCUS)
        np.testing.assert_allclose(seen.expected, np.einsum("bzhw,bz->bhw", P, planes), rtol=1e-5, atol=1e-6)
        twice = P**2 / (P**2).sum(1, keepdims=True)
        np.testing.assert_allclose(seen.per_scale[..., 0], seen.expected, rtol=1e-5)
        np.testing.assert_allclose(seen.per_scale[..., 1], np.einsum("bzhw,bz->bhw", twice, planes), rtol=1e-5)
        away = (t[..., None, None] - np.einsum("bzhw,bz->bhw", P, t)[:, None]) ** 2
        np.testing.assert_allclose(seen.spread, (P * away).sum(1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(seen.all_in_focus, (P[..., None] * frames).sum(1), rtol=1e-5)
        np.testing.assert_array_equal(seen.features, jnp.moveaxis(volume, 1, -1))  # C = Z, no guide
    guided = read_planes(cfg.physical(), scores, frames, FOCUS)
    assert guided.features.shape == (2, 4, 5, 15 + 3)
    np.testing.assert_allclose(guided.features[..., 15:], 2 * seen.all_in_focus - 1, rtol=1e-5)
    np.testing.assert_allclose(guided.features[..., 0], VOLUME_SCALE * volume[:, 0], rtol=1e-5, atol=1e-6)
