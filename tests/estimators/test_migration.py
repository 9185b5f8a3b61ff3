"""Weights files of before still load."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from networks import variables

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.estimators.migration import FIRST_CONVOLUTION, migrate
from dff_jax.estimators.weights import load_weights, save_weights


@pytest.mark.parametrize(
    "change",
    [{}, {"prox": "residual_cnn", "tied": False}, {"prox": "gru", "prox_inputs": "with_confidence"},
     {"prox_inputs": "equation_17", "tied": False}],
    ids=lambda change: "-".join(map(str, change.values())) or "tiny",
)  # fmt: skip
def test_the_first_kernel_of_an_older_file_becomes_two(change, tmp_path):
    """The convolution of z, F, eta, lambda, D(k-1), confidence, log P is the sum of the two; the file then fits."""
    model = dataclasses.replace(configs.tiny(), width=0.125, head_width=0.125, num_planes=4, prox_levels=1, **change)
    given = flatten_dict(variables(estimators.build(model)), sep="/", keep_empty_nodes=True)
    first, static = f"params/prox/{FIRST_CONVOLUTION[model.prox]}", "params/prox/static/Conv_0/kernel"
    rng = np.random.default_rng(0)
    sizes = {"z": 1, "F": 4 + 3, "others": 3, "confidence": 2, "log_P": 5}
    if "prox_inputs" in change:
        del sizes["log_P"]
    if model.prox_inputs == "equation_17":
        del sizes["confidence"]
    lead = () if model.tied else (3,)
    parts = {name: rng.normal(size=(*lead, 3, 3, n, 4)).astype(np.float32) for name, n in sizes.items()}
    inputs = {name: rng.normal(size=(1, 6, 7, n)).astype(np.float32) for name, n in sizes.items()}
    old = {key: x for key, x in given.items() if key != static} | {first: np.concatenate([*parts.values()], -2)}
    new = migrate(model, old)
    assert migrate(model, new) is new and {k: np.shape(x) for k, x in new.items()} == {
        k: np.shape(x) for k, x in given.items()
    }

    def convolved(names, kernel):
        x = np.concatenate([inputs[name] for name in names if name in sizes], -1)
        return jax.lax.conv(x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), (1, 1), "SAME")

    for k in range(1 if model.tied else 3):
        own = (lambda x: x) if model.tied else (lambda x, k=k: x[k])
        want = convolved(sizes, own(old[first]))
        found = convolved(("z", "others", "log_P"), own(new[first])) + convolved(("F", "confidence"), own(new[static]))
        np.testing.assert_allclose(found, want, atol=1e-4)
    save_weights(tmp_path / "old.safetensors", model, unflatten_dict(old, sep="/"), {})
    loaded = flatten_dict(load_weights(tmp_path / "old.safetensors").variables, sep="/")
    np.testing.assert_array_equal(loaded[static], new[static])
    np.testing.assert_array_equal(loaded[first], new[first])
