"""Population statistics: what they are, over which stacks, and that a network with them answers as in training."""

import dataclasses

import jax
import numpy as np
import pytest
import training_fakes as fakes
from flax.traverse_util import flatten_dict
from networks import on_host, trained
from networks import variables as random_variables

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.data import pipeline
from dff_jax.estimators.weights import load_weights
from dff_jax.training import loop, statistics
from dff_jax.types import Batch


def run(stacks, output, **training):
    """The batch statistics of the last weights of 4 steps, flat."""
    config = fakes.small_config(stacks, **{"num_steps": 4, "eval_every": 2, "statistics": 5} | training)
    loop.train(config, output)
    return flatten_dict(load_weights(output / "weights_last.safetensors").variables["batch_stats"], sep="/")


def test_the_mean_and_variance_of_all_values_from_those_of_batches():
    values = np.random.default_rng(0).normal(7, [1, 30], (6, 50, 2))
    found = [{"a/b": (x.mean(0), x.var(0))} for x in values]
    before = {"a": {"b": {"mean": np.zeros(2), "var": np.zeros(2)}}, "idle": {"mean": np.ones(3)}}
    combined = statistics.combine(found, before)
    assert combined["idle"] is not None and set(combined) == {"a", "idle"}  # DWild has norms that get no values
    whole = combined["a"]["b"]
    np.testing.assert_allclose(whole["mean"], values.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(whole["var"], values.var((0, 1)), rtol=1e-5)


def test_exported_weights_have_the_statistics_of_whole_training_stacks(stacks, tmp_path, network):
    """By hand: every stack whole, not augmented. The running averages of the state stay what training made them."""
    found = run(stacks, tmp_path / "run", statistics=4)
    given = load_weights(tmp_path / "run" / "weights_last.safetensors").variables
    data = dataclasses.replace(
        fakes.small_config(stacks).data, crop=(fakes.SIZE,) * 2, flips=False, colour=0.0, noise=0.0, batch_size=4
    )
    loader = pipeline.training_loader(data, 0)
    frames = next(loader).batch.frames
    loader.close()
    kernel = given["params"]["Conv_0"]["kernel"]
    seen = jax.lax.conv_general_dilated(
        frames.reshape(-1, *frames.shape[2:]), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found["BatchNorm_0/mean"], seen.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["BatchNorm_0/var"], seen.var((0, 1, 2)), rtol=1e-4)
    best = load_weights(tmp_path / "run" / "weights.safetensors")
    if best.info["step"] == 4:
        np.testing.assert_array_equal(best.variables["batch_stats"]["BatchNorm_0"]["var"], found["BatchNorm_0/var"])
    running = run(stacks, tmp_path / "running", statistics=0)
    assert not np.allclose(running["BatchNorm_0/var"], found["BatchNorm_0/var"], rtol=0.05)
    other = load_weights(tmp_path / "running" / "weights_last.safetensors").variables
    jax.tree.map(np.testing.assert_array_equal, given["params"], other["params"])


def test_an_interrupted_run_and_pmap_export_the_same(stacks, tmp_path, network, default_signals):
    whole = run(stacks, tmp_path / "whole")
    with fakes.interrupting(after=3):
        loop.train(fakes.small_config(stacks, num_steps=4, eval_every=2, statistics=5), tmp_path / "again")
    again = run(stacks, tmp_path / "again")
    for name, x in whole.items():
        np.testing.assert_array_equal(again[name], x)
    for name, x in run(stacks, tmp_path / "pmap", parallel="pmap", num_devices=2).items():
        np.testing.assert_allclose(x, whole[name], rtol=1e-4)


def test_small_stacks_are_shown_whole_and_only_like_ones_share_a_batch(tmp_path, network):
    root = fakes.write_stacks(tmp_path / "large", train=1, val=1)
    small = fakes.write_stacks(tmp_path / "small", train=4, val=1)
    for i in range(3):
        source = small / "train" / f"stack{i + 1}"
        for file in source.glob("*.png"):
            import imagecodecs

            file.write_bytes(imagecodecs.png_encode(imagecodecs.png_decode(file.read_bytes())[:20, :18].copy()))
        np.save(source / "disp.npy", np.load(source / "disp.npy")[:20, :18])
        source.rename(root / "train" / f"small{i}")
    config = fakes.small_config(root, statistics=8)
    population = statistics.Population(config, None, pipeline.open_source(config.data, "validation"))
    shapes = [frames.shape for frames, _ in population.batches()]
    z = fakes.FRAMES
    assert sorted(shapes) == [(2, z, 20, 18, 3), (2, z, 24, 24, 3), (4, z, 20, 18, 3)]


def test_a_note_names_maps_with_few_values(capsys, stacks, tmp_path, network):
    estimator = estimators.build(configs.tiny())
    given = random_variables(estimator, (1, 3, 24, 24))
    assert statistics.note_small_maps(estimator, given, (2, 3, 24, 24, 3)) is None
    assert "1 of 1 BatchNorms fewer than 8" in statistics.note_small_maps(estimator, given, (1, 3, 1, 2, 3))
    run(stacks, tmp_path / "run")
    assert "BatchNorms" not in capsys.readouterr().err


def test_the_coarsest_bin_of_pyramid_pooling_has_a_value_a_stack():
    estimator = estimators.build(dataclasses.replace(configs.paper(), width=0.0625, head_width=0.25, num_iterations=1))
    note = statistics.note_small_maps(estimator, random_variables(estimator, (1, 3, 64, 64)), (2, 3, 64, 64, 3))
    assert "a batch of 2 crops of 64 x 64" in note and "(the fewest: 2, in decoder" in note


def textured(number: int, side: int, seed: int) -> Batch:
    """Noise that is sharpest where the frame's focus, its number, is the depth; a ramp of depth."""
    rng = np.random.default_rng(seed)
    focus = np.arange(1.0, 5.0)
    depth = np.linspace(1, 4, side)[None, None] * np.ones((number, side, 1)) + rng.normal(0, 0.3, (number, 1, 1))
    texture = rng.uniform(-0.5, 0.5, (number, 1, side, side, 3))
    near = np.exp(-((depth[:, None] - focus[:, None, None]) ** 2))[..., None]
    frames = rng.uniform(0.3, 0.7, (number, 1, 1, 1, 1)) + 0.5 * near * texture
    return Batch(*map(np.float32, (frames.clip(0, 1), np.tile(focus, (number, 1)), depth)), np.ones(depth.shape, bool))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "dfv_diff"])
def test_inference_is_as_good_as_batch_statistics(preset):
    """At another size than that of the training crops, where running averages fail."""
    model = configs.model_preset(preset).replace_known(width=0.0625, head_width=0.0625, num_iterations=1)
    loss = configs.LossConfig(kind="mse_final") if preset == "paper" else configs.LossConfig(
        kind="multi_scale", scale_weights=(1.0,) * 4, penalty="smooth_l1"
    )  # fmt: skip
    estimator = estimators.build(model)
    begun = random_variables(estimator, (2, 4, 64, 64))
    given, _ = trained(estimator, begun, model, (textured(2, 64, step) for step in range(30)), loss, 3e-3)
    found = [statistics.moments(estimator, given, *textured(4, 128, 100 + i)[:2]) for i in range(10)]
    population = {**given, "batch_stats": statistics.combine(jax.device_get(found), given["batch_stats"])}
    apply = on_host(estimator.apply, static_argnames="train")

    def error(variables, train):
        tests = [textured(4, 128, 200 + i) for i in range(6)]
        answers = [apply(variables, x.frames, x.focus, train=train)[0].depth for x in tests]
        return np.mean([np.abs(depth - x.depth).mean() for depth, x in zip(answers, tests, strict=True)])

    batch = error(given, True)
    assert error(population, False) == pytest.approx(batch, rel=0.1)
    assert error(given, False) != pytest.approx(batch, rel=0.1)
