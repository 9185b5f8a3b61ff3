"""Depth as a mean of focus settings: in q, or of metres."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax.config import DFV, AiFDNet, DWild
from dff_jax.errors import ConfigError
from dff_jax.estimators.soft_depth import answer, in_order
from dff_jax.types import Estimator

METRES = np.float32([[1.5, 0.7, 0.3, 0.15, 0.1]])
FRAMES = np.zeros((1, 5, 2, 3, 3), np.float32)


def shares():
    """Weights of five frames at six pixels."""
    weights = np.float32(np.random.default_rng(0).random((1, 5, 2, 3)) + 0.01)
    return jnp.asarray(weights / weights.sum(1, keepdims=True))


def ordered(weights, frame_order, focus):
    """What a network that gives `weights` for frames in this order answers, trained on metres."""
    apply = lambda variables, frames, focus: (answer(frames, focus, [weights, weights], True), None)  # noqa: E731
    found, _ = in_order(Estimator(None, apply), frame_order).apply({}, FRAMES, focus)
    return found


@pytest.mark.parametrize("frame_order", ["ascending", "descending"])
def test_a_mean_of_metres_is_turned_to_q(frame_order):
    weights = shares()
    found = ordered(weights, frame_order, jnp.asarray(1 / METRES))
    seen = METRES if frame_order == "ascending" else METRES[:, ::-1]
    want = (np.asarray(weights) * seen[..., None, None]).sum(1)
    np.testing.assert_allclose(1 / np.asarray(found.depth), want, rtol=1e-5)
    np.testing.assert_allclose(found.scales, np.stack([1 / want] * 2, -1), rtol=1e-5)
    assert 0 < found.confidence.min() and found.confidence.max() <= 1
    in_q = (np.asarray(weights) / seen[..., None, None]).sum(1)
    assert np.abs(in_q - 1 / want).min() > 0.1  # another answer altogether


def test_a_setting_at_infinity_counts_as_four_times_the_farthest():
    q = 1 / METRES.copy()
    q[0, 0] = 0
    for frame_order in ("ascending", "descending"):
        found = ordered(shares(), frame_order, jnp.asarray(q))
        seen = np.float32([[2.8, 0.7, 0.3, 0.15, 0.1]])
        seen = seen if frame_order == "ascending" else seen[:, ::-1]
        want = (np.asarray(shares()) * seen[..., None, None]).sum(1)
        np.testing.assert_allclose(1 / np.asarray(found.depth), want, rtol=1e-5)


@pytest.mark.parametrize("model", [DFV, AiFDNet, DWild])
def test_which_data_tell_metres(model):
    metres = dataclasses.replace(model(), trained_on="metre")
    for unit in ("metre", "diopter"):
        metres.check_unit(unit)
    for unit in ("disparity", "index", "mm", "-micron"):
        model().check_unit(unit)
        with pytest.raises(ConfigError, match=f"model.trained_on: .*metres or diopters, not {unit}"):
            metres.check_unit(unit)
