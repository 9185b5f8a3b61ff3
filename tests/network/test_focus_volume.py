"""The focus volume (1-3) and the measure prior."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_like

from dff_jax import config as cfg
from dff_jax.network.focus_volume import FocusVolume, focus_volume, measure_logits, pool_bins

TINY = dataclasses.replace(cfg.tiny(), width=0.125)


@pytest.mark.parametrize(
    "lengths, bins",
    [
        ((8, 8), [1, 2, 3, 4]), ((7, 7), [1, 1, 2, 3]), ((12, 18), [1, 2, 4, 6]), ((17, 30), [1, 3, 5, 8]),
        ((4, 4), [1, 1, 1, 2]), ((2, 2), [1, 1, 1, 1]), ((10, 12, 18), [1, 2, 3, 5]),
    ],
)  # fmt: skip
def test_pool_bins_are_dfvs(lengths, bins):
    assert pool_bins(*lengths) == bins


def test_measure_logits_peak_at_the_sharp_frame_and_tie_without_texture(key):
    sharp = jax.random.uniform(key, (40, 40, 3))
    blurred = sharp.mean((0, 1), keepdims=True) + 0.1 * (sharp - sharp.mean((0, 1), keepdims=True))
    frames = jnp.stack([blurred, sharp, blurred])[None]
    logits = jax.jit(measure_logits)(frames)
    assert (logits[0, 1] > logits[0, 0] + 1).all()
    np.testing.assert_allclose(logits.sum(1), 0.0, atol=1e-4)
    np.testing.assert_allclose(jax.jit(measure_logits)(jnp.full((1, 3, 30, 30, 3), 0.5)), 0.0, atol=1e-5)


def test_the_focus_volume_is_the_mean_of_its_scores_finest_first():
    config = dataclasses.replace(TINY, candidate_source="per_scale", measure_prior="log_sml")
    frames = jax.random.uniform(jax.random.key(2), (1, 3, 64, 64, 3))
    shapes = jax.eval_shape(lambda key: FocusVolume(config).init(key, frames, False), jax.random.key(0))
    variables = random_like(shapes)
    params, stats = variables["params"], variables["batch_stats"]
    apply = jax.jit(lambda params: focus_volume(config, params, stats, frames, False))
    (volume, scores), same = jax.device_get(apply(params))
    assert len(scores) == 4
    jax.tree.map(np.testing.assert_array_equal, same, stats)
    np.testing.assert_allclose(volume, sum(scores) / 4, rtol=1e-4, atol=1e-3)
    # without the prior each is bilinear between the pixels of its own level: fewer and fewer kinks
    (_, scores), _ = jax.device_get(apply({**params, "measure_scale": np.zeros(3, np.float32)}))
    bends = [np.abs(np.diff(score, 2, axis=-1)) for score in scores]
    kinks = [float((bend > 1e-3 * bend.max()).mean()) for bend in bends]
    assert kinks[0] > 1.5 * kinks[1] > 1.5**2 * kinks[2] > 1.5**3 * kinks[3] > 0, kinks
