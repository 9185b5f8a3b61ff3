"""Weights of one run as the beginning of another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_fakes as fakes
from flax.traverse_util import flatten_dict
from networks import variables

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.errors import ConfigError, WeightsError
from dff_jax.estimators.weights import read, save_weights
from dff_jax.training.initial_weights import load_matching
from dff_jax.training.loop import train

PLAIN = dataclasses.replace(configs.tiny(), width=0.125, head_width=0.125, num_iterations=1, num_planes=5)
MODEL = dataclasses.replace(PLAIN, measured_candidates=True, refiner_inputs="depth_volume_candidates")


def test_what_fits_is_taken_and_the_rest_is_named(tmp_path):
    fresh, plain = variables(estimators.build(MODEL)), variables(estimators.build(PLAIN), seed=9)
    save_weights(tmp_path / "plain.safetensors", PLAIN, plain, {})
    begun, new = load_matching(tmp_path / "plain.safetensors", fresh)
    assert "params/candidates/attention/" in new
    flat, theirs, before = (flatten_dict(x, sep="/") for x in (begun, plain, fresh))
    taken, more = 0, []
    for key, x in flat.items():
        fits = key in theirs and theirs[key].shape == x.shape
        want = theirs[key] if fits else before[key]
        if key in theirs and key.endswith("kernel") and x.shape[-1] == theirs[key].shape[-1] and not fits:
            inputs = theirs[key].shape[2]  # a kernel with more of them
            want = jnp.zeros_like(x).at[:, :, :inputs].set(theirs[key])
            more.append(key.split("/")[1:3])
        np.testing.assert_array_equal(x, want, err_msg=key)
        taken += fits
    assert len(flat) > taken > len(flat) // 2
    assert ["refiner", "Conv_0"] in more and ["candidates", "attention"] in more and len(more) == 5
    _, new = load_matching(tmp_path / "plain.safetensors", plain)
    assert new == ""


def test_a_refiner_that_sees_the_settings_begins_as_one_that_does_not(tmp_path):
    frames, focus = fakes.batch(1, num_frames=4, side=32)[:2]
    small = dataclasses.replace(
        PLAIN, measure_prior="none", guide="none", num_candidates=2, prox="identity", refiner_steps=1
    )
    before, after = (estimators.build(dataclasses.replace(small, refiner_inputs=x)) for x in
                     ("depth_volume_candidates", "with_settings"))  # fmt: skip
    theirs = variables(before, seed=9)
    save_weights(tmp_path / "before.safetensors", PLAIN, theirs, {})
    begun, new = load_matching(tmp_path / "before.safetensors", variables(after))
    assert new == ""
    answers = [jax.jit(x.apply)(v, frames, focus)[0].depth for x, v in ((before, theirs), (after, begun))]
    np.testing.assert_allclose(answers[0], answers[1], atol=2e-3)


def test_weights_with_nothing_in_common_are_refused(tmp_path):
    save_weights(tmp_path / "other.safetensors", PLAIN, {"params": {"a": np.zeros(2, np.float32)}}, {})
    with pytest.raises(WeightsError, match="other.safetensors: has no array of this network's"):
        load_matching(tmp_path / "other.safetensors", {"params": {"a": jnp.zeros(3)}, "batch_stats": {}})
    with pytest.raises(WeightsError, match="none.safetensors: no such file"):
        load_matching(tmp_path / "none.safetensors", {"params": {"a": jnp.zeros(3)}})


def test_a_run_begins_with_another_and_reads_it_only_then(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(estimators, "build", fakes.build)
    first = fakes.small_config(fakes.write_stacks(tmp_path / "data"), num_steps=3)
    train(first, tmp_path / "first")
    training = dataclasses.replace(first.training, num_steps=1, initial_weights=str(tmp_path / "first"))
    second = dataclasses.replace(
        first, training=training, optimizer=dataclasses.replace(first.optimizer, peak_learning_rate=1e-12)
    )
    train(second, tmp_path / "second")
    assert f"begins with {tmp_path / 'first'}" in capsys.readouterr().err
    a, b = (read(tmp_path / name / "weights.safetensors")[1] for name in ("first", "second"))
    for key, x in a.items():
        if key.startswith("params/"):
            np.testing.assert_allclose(b[key], x, atol=1e-9, err_msg=key)
    (tmp_path / "first" / "weights.safetensors").unlink()
    train(second, tmp_path / "second")  # goes on, and needs it no more
    with pytest.raises(ConfigError, match="training.encoder_weights: give these or initial_weights"):
        dataclasses.replace(training, encoder_weights="encoder.safetensors")
