"""Weights of one run as the beginning of another."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_fakes as fakes
from flax.traverse_util import flatten_dict
from networks import variables

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.errors import ConfigError, InputError, WeightsError
from dff_jax.estimators.weights import read, save_weights
from dff_jax.training.initial_weights import load_matching
from dff_jax.training.loop import train

PLAIN = dataclasses.replace(
    configs.tiny(), width=0.125, head_width=0.125, num_iterations=1, num_planes=5, prox_levels=1
)
MODEL = dataclasses.replace(PLAIN, measured_candidates=True, refiner_inputs="depth_volume_candidates")


build = functools.cache(estimators.build)  # so that each network is traced once


def begin(tmp_path, before, after, seed=9):
    """Random weights of the network `before`, what a network `after` begins with, and the remark."""
    theirs = variables(build(before), seed=seed)
    save_weights(tmp_path / "theirs.safetensors", before, theirs, {})
    begun, remark = load_matching(tmp_path / "theirs.safetensors", variables(build(after)), after)
    return theirs, begun, remark


def answer(model, given):
    """Depth and confidence of the network for a small stack, [2,B,H,W]."""
    frames, focus = fakes.batch(1, num_frames=4, side=32)[:2]
    found = jax.jit(build(model).apply)(given, frames, focus)[0]
    return np.stack([found.depth, found.confidence])


def test_what_fits_is_taken_and_the_rest_is_named(tmp_path):
    fresh = variables(build(MODEL))
    plain, begun, remark = begin(tmp_path, PLAIN, MODEL)
    assert remark.startswith("new: params/candidates/attention/")
    flat, theirs, before = (flatten_dict(x, sep="/") for x in (begun, plain, fresh))
    taken, more = 0, []
    for key, x in flat.items():
        fits = key in theirs and theirs[key].shape == x.shape
        want = theirs[key] if fits else before[key]
        if key in theirs and key.endswith("Conv_0/Conv_0/kernel") and not fits:
            inputs = theirs[key].shape[2]  # a kernel with more of them, here the last ones
            want = jnp.zeros_like(x).at[:, :, :inputs].set(theirs[key])
            more.append(key.split("/")[1:3])
        np.testing.assert_array_equal(x, want, err_msg=key)
        taken += fits
    assert len(flat) > taken > len(flat) // 2
    assert ["refiner", "Conv_0"] in more and ["candidates", "attention"] in more and len(more) == 5
    _, _, remark = begin(tmp_path, PLAIN, PLAIN)
    assert remark == ""


SEES_LITTLE = dataclasses.replace(
    PLAIN, guide="none", prox_inputs="equation_17", num_iterations=2, uncertainty="learned",
    regularization="per_pixel", refiner_inputs="depth_volume_candidates", measure_prior="log_sml",
)  # fmt: skip
SEES_MORE = {
    "guide": "all_in_focus", "num_planes": 9, "prox_inputs": "with_lookup", "refiner_inputs": "with_settings"
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("prox", "tied"), [("gated_unet", True), ("gru", False)])
def test_further_inputs_do_not_move_the_answer(tmp_path, prox, tied):
    """Further planes lie between the old ones, the guide behind them, log P and settings behind what else is seen."""
    before = dataclasses.replace(SEES_LITTLE, prox=prox, tied=tied)
    after = dataclasses.replace(before, **SEES_MORE)
    theirs, begun, remark = begin(tmp_path, before, after)
    assert remark == ""
    was, fresh = answer(before, theirs), answer(after, variables(build(after), seed=1))
    np.testing.assert_allclose(answer(after, begun), was, rtol=2e-4, atol=1e-5)
    assert np.abs(fresh - was).max() > 0.01 * np.abs(was).max()


def test_columns_go_where_their_names_are(tmp_path):
    """The same without compiling: each column of the kernels is that of its input, or of zeros."""
    before, after = SEES_LITTLE, dataclasses.replace(SEES_LITTLE, **SEES_MORE, measure_prior="log_sml_features")
    theirs, begun, remark = begin(tmp_path, before, after)
    assert remark.startswith("new: batch_stats/decoder4/Residual3d_0/Norm_2")  # a skip that it had not
    planes, guide = [0, None, 1, None, 2, None, 3, None, 4], [None] * 3
    candidates = range(6, 9)
    for key, columns in {
        "candidates/residual1/Conv_0/Conv_0": [*planes, *guide],
        "context/regularization/Conv_0/Conv_0": [*planes, *guide],
        "prox/phi1/Conv_0/Conv_0": [*range(4), *[None] * 5],
        "prox/static/Conv_0": [*planes, *guide, None, None],
        "refiner/Conv_0/Conv_0": [0, *(p if p is None else p + 1 for p in planes), *guide, *candidates, *[None] * 3],
        "expected_error/head/Conv_0/Conv_0": [*planes, *guide, *range(5, 10)],
        "volume/decoder2/Residual3d_0/Conv3d_0": [*range(8), *[None] * 3],
    }.items():
        new, old = (flatten_dict(x, sep="/")[f"params/{key}/kernel"] for x in (begun, theirs))
        want = [np.zeros_like(old[..., 0, :]) if c is None else old[..., c, :] for c in columns]
        np.testing.assert_array_equal(new, np.stack(want, -2), err_msg=key)
    _, _, remark = begin(tmp_path, after, before)
    assert "left out: guide, log_p, confidence, settings, measures" in remark


def test_planes_between_the_old_ones_and_planes_of_the_frames(tmp_path):
    """A kernel over F at 5 planes becomes one over F at 7 by linear interpolation, and at C = Z frames without a scale.
    """
    for num_planes, scale in ((7, 1.0), (None, 0.1)):
        after = dataclasses.replace(SEES_LITTLE, num_planes=num_planes)
        theirs, begun, _ = begin(tmp_path, SEES_LITTLE, after)
        new, old = (x["params"]["candidates"]["residual0"]["Conv_0"]["Conv_0"]["kernel"] for x in (begun, theirs))
        volume = lambda n: 1 + 3 * np.linspace(0, 1, n)  # noqa: E731  linear along the focus axis
        seen = np.einsum("yxcn,c->yxn", old, volume(5))
        np.testing.assert_allclose(np.einsum("yxcn,c->yxn", new, volume(new.shape[2]) / scale), seen, atol=1e-4)
    lookup = dataclasses.replace(SEES_LITTLE, prox_inputs="with_lookup")
    assert begin(tmp_path, lookup, dataclasses.replace(lookup, num_planes=7))[2].startswith("log_p is of other planes")


def pairs(part, ours, theirs):
    """The arrays of a part of two networks, side by side."""
    return zip(*(jax.tree.leaves(each["params"][part]) for each in (ours, theirs)), strict=True)


@pytest.mark.slow
def test_tied_into_untied_and_back(tmp_path):
    """Each iteration gets a copy, so the answer stays; back by the mean; a further iteration repeats the last."""
    tied = dataclasses.replace(SEES_LITTLE, num_iterations=3)
    untied = dataclasses.replace(tied, tied=False)
    theirs, begun, remark = begin(tmp_path, tied, untied)
    assert remark == ""
    for ours, own in pairs("prox", begun, theirs):
        np.testing.assert_array_equal(ours, np.stack([own] * 3))
    np.testing.assert_allclose(answer(untied, begun), answer(tied, theirs), rtol=2e-5, atol=1e-6)
    theirs, begun, remark = begin(tmp_path, untied, tied)
    assert remark == ""
    for ours, own in pairs("prox", begun, theirs):
        np.testing.assert_allclose(ours, own.mean(0), atol=1e-6)
    theirs, begun, remark = begin(tmp_path, untied, dataclasses.replace(untied, num_iterations=4))
    assert remark == ""
    for ours, own in [*pairs("prox", begun, theirs), *pairs("unroll", begun, theirs)]:
        np.testing.assert_array_equal(ours, own[[0, 1, 2, 2]])


def test_a_network_with_little_in_common_is_refused_and_told_how_to_fine_tune():
    """The shipped weights are no `tiny` as it comes."""
    fresh = variables(estimators.build(configs.tiny()))
    with pytest.raises(InputError, match="of the 780,974 numbers of this network, too few") as caught:
        load_matching("pretrained", fresh, configs.tiny())
    advice = "Config(model=load_estimator('pretrained').model, loss=LossConfig(uncertainty=0.02), ...)"
    assert advice in str(caught.value) and "\n" not in str(caught.value)
    page = Path(configs.__file__).parents[1] / "training" / "README.md"
    names = {}
    exec(re.search(r"```python\n(# my_config.py.*?)```", page.read_text(), re.S)[1], names)
    config = names["config"]()
    _, remark = load_matching(config.training.initial_weights, variables(estimators.build(config.model)), config.model)
    assert remark == ""


def test_a_refiner_that_sees_the_settings_begins_as_one_that_does_not(tmp_path):
    frames, focus = fakes.batch(1, num_frames=4, side=32)[:2]
    small = dataclasses.replace(
        PLAIN, measure_prior="none", guide="none", num_candidates=2, prox="identity", refiner_steps=1
    )
    before, after = (estimators.build(dataclasses.replace(small, refiner_inputs=x)) for x in
                     ("depth_volume_candidates", "with_settings"))  # fmt: skip
    theirs = variables(before, seed=9)
    first = dataclasses.replace(small, refiner_inputs="depth_volume_candidates")
    save_weights(tmp_path / "before.safetensors", first, theirs, {})
    model = dataclasses.replace(small, refiner_inputs="with_settings")
    begun, remark = load_matching(tmp_path / "before.safetensors", variables(after), model)
    assert remark == ""
    answers = [jax.jit(x.apply)(v, frames, focus)[0].depth for x, v in ((before, theirs), (after, begun))]
    np.testing.assert_allclose(answers[0], answers[1], atol=2e-3)


def test_weights_with_nothing_in_common_are_refused(tmp_path):
    save_weights(tmp_path / "other.safetensors", PLAIN, {"params": {"a": np.zeros(2, np.float32)}}, {})
    with pytest.raises(WeightsError, match="other.safetensors: has 0 of the 3 numbers of this network"):
        load_matching(tmp_path / "other.safetensors", {"params": {"a": jnp.zeros(3)}, "batch_stats": {}}, PLAIN)
    with pytest.raises(WeightsError, match="none.safetensors: no such file"):
        load_matching(tmp_path / "none.safetensors", {"params": {"a": jnp.zeros(3)}}, PLAIN)


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
