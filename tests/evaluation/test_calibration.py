"""Confidence against the errors that were made."""

import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax.evaluation import calibration, figures
from dff_jax.types import confidence_of_error


def test_calibration_of_a_confidence_that_is_right():
    rng = np.random.default_rng(0)
    expected = 10 ** rng.uniform(-3, -1, (2, 64, 64))
    focus = np.array([[10.0, 60.0], [0.0, 2.0]])
    span = np.ptp(focus, axis=1)[:, None, None]
    truth = np.full(expected.shape, 20.0)
    depth = truth + span * expected * rng.choice([-1.0, 1.0], expected.shape)
    mask = rng.random(expected.shape) < 0.8
    depth[~mask] = 1e6
    given = (jnp.float32(x) for x in (confidence_of_error(jnp.asarray(expected)), depth, truth))
    part = np.asarray(calibration.histogram(*given, jnp.asarray(mask), jnp.float32(focus)))
    found = calibration.summarize([np.zeros_like(part), part])
    kept = np.sort(expected[mask])
    for share, error in zip(found["coverage"], found["error"], strict=True):
        assert error == pytest.approx(kept[: round(share * kept.size)].mean(), rel=0.02)
    assert found["half"] == pytest.approx(kept[: kept.size // 2].mean() / kept.mean(), rel=0.02)
    np.testing.assert_allclose(found["expected"], found["found"], rtol=0.02)
    assert figures.confidence_chart(found).axes


def test_calibration_of_nothing_and_of_a_failed_prediction():
    assert calibration.summarize([]) == {} == calibration.summarize([np.zeros((calibration.BINS, 3))])
    bad = np.zeros((calibration.BINS, 3))
    bad[3] = 5, np.nan, 1
    assert calibration.summarize([bad]) == {}
