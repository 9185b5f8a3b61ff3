"""Preset `paper` against an independent forward pass in NumPy, and faults that the comparison has to notice."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from networks import random_like
from paper_reference import FAULTS, paper

from dff_jax import config, estimators

TOLERANCE = 4e-5  # of the largest value
NARROW = dataclasses.replace(config.paper(), width=0.0625, head_width=0.25, num_iterations=2)


@pytest.fixture(scope="module")
def case():
    """Random variables and frames, and what the library answers."""
    rng = np.random.default_rng(3)
    frames = np.float32(rng.random((1, 6, 64, 64, 3)))
    focus = np.linspace(10, 100, 6, dtype=np.float32)[None]
    estimator = estimators.build(NARROW)
    given = random_like(jax.eval_shape(estimator.init, jax.random.key(0), frames, focus))
    found, _ = jax.jit(estimator.apply)(given, frames, focus)
    h = found.history
    answer = {"expected": h.expected, "candidates": h.candidates, "weights": h.weights, "iterates": h.iterates}
    return flatten_dict(given, sep="/"), frames, jax.device_get(answer | {"depth": found.depth})


def differences(case, fault=""):
    weights, frames, answer = case
    expected = paper(weights, frames, NARROW.num_iterations, fault=fault)
    return {name: np.abs(answer[name] - x).max() / np.abs(x).max() for name, x in expected.items()}


def test_the_network_is_the_equations(case):
    for name, found in differences(case).items():
        assert found < TOLERANCE, name
    h = case[2]["iterates"]
    assert np.abs(np.diff(h, axis=1)).max() > 1e-2 * np.abs(h).max()  # the iterations do something


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_shows(case, fault):
    assert max(differences(case, fault).values()) > 10 * TOLERANCE
