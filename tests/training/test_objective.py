"""The loss against numpy; its independence of units and of masked pixels; sums that add."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_fakes as fakes

from dff_jax.config import LossConfig
from dff_jax.data.parts import Wanted
from dff_jax.training import logging, loop
from dff_jax.training.objective import objective, smoothness, stage_weights, stages, wanted
from dff_jax.types import Batch, History, Prediction

BATCH = jax.tree.map(jnp.asarray, fakes.batch(3))


def prediction(batch: Batch, iterations: int = 2, refined: int = 1, seed: int = 1) -> Prediction:
    b, h, w = batch.depth.shape
    keys = jax.random.split(jax.random.key(seed), 4)
    low, high = 5.0, 110.0
    draw = lambda key, *shape: jax.random.uniform(key, shape, minval=low, maxval=high)  # noqa: E731
    history = History(
        expected=draw(keys[0], b, h, w),
        candidates=draw(keys[1], b, h, w, 2),
        weights=jnp.ones((b, h, w, 2)),
        iterates=draw(keys[2], b, iterations + 1, h, w),
        refined=draw(keys[3], b, refined, h, w),
    )
    depth = history.refined[:, -1] if refined else history.iterates[:, -1]
    return Prediction(depth, jnp.ones((b, h, w)), jnp.zeros((b, h, w)), jnp.zeros((b, h, w, 3)), history)


PENALTIES = {
    "mse": lambda e: e**2,
    "l1": np.abs,
    "charbonnier": lambda e: np.sqrt(e**2 + 1e-6) - 1e-3,
    "log_l1": lambda e: 0.1 * np.log1p((np.sqrt(e**2 + 1e-6) - 1e-3) / 0.1),
}


@pytest.mark.parametrize("coordinate", ["unit", "raw"])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("iterations", "refined"), [(2, 1), (1, 0), (0, 0), (0, 2)])
def test_sequence_loss_is_the_weighted_sum_over_stages(coordinate, penalty, iterations, refined):
    found = prediction(BATCH, iterations, refined)
    config = LossConfig(kind="sequence", gamma=0.8, penalty=penalty)
    sums = objective(found, BATCH, config, coordinate)
    h, mask, truth = found.history, np.asarray(BATCH.mask), np.asarray(BATCH.depth, np.float64)
    maps = [h.expected, *np.moveaxis(h.iterates, 1, 0), *np.moveaxis(h.refined, 1, 0)]
    span = np.asarray(BATCH.focus[:, -1] - BATCH.focus[:, 0], np.float64)[:, None, None]
    scale = span if coordinate == "unit" else 1.0
    weights = 0.8 ** np.arange(len(maps) - 1, -1, -1)
    weights /= weights.sum()
    want = sum(
        w * PENALTIES[penalty]((np.asarray(m) - truth) / scale)[mask].sum()
        for w, m in zip(weights, maps, strict=True)
    )
    np.testing.assert_allclose(sums.loss, want, rtol=1e-4)
    assert 0 < mask.sum() < mask.size


def test_stage_weights_are_normalised_and_grow():
    assert stage_weights(1, 0.8) == [1.0]
    weights = stage_weights(6, 0.8)
    assert sum(weights) == pytest.approx(1.0) and weights == sorted(weights)
    assert weights[-2] / weights[-1] == pytest.approx(0.8)


def test_mse_final_is_the_papers():
    """(26): squared errors of the answer only, whatever the penalty of the sequence."""
    found = prediction(BATCH)
    sums = objective(found, BATCH, LossConfig(kind="mse_final", penalty="l1"), "raw")
    error = np.asarray(found.depth - BATCH.depth)[np.asarray(BATCH.mask)]
    np.testing.assert_allclose(sums.loss / BATCH.mask.sum(), np.mean(error.astype(np.float64) ** 2), rtol=1e-5)


@pytest.mark.parametrize("kind", ["sequence", "mse_final"])
def test_unit_coordinate_makes_the_loss_independent_of_the_unit(kind):
    found, config = prediction(BATCH), LossConfig(kind=kind)
    scaled = jax.tree.map(lambda x: 7.0 * x, found)
    other = BATCH._replace(focus=7.0 * BATCH.focus, depth=7.0 * BATCH.depth)
    one, two = objective(found, BATCH, config, "unit"), objective(scaled, other, config, "unit")
    np.testing.assert_allclose(one.loss, two.loss, rtol=1e-5)
    np.testing.assert_allclose(7.0 * one.errors["mae"], two.errors["mae"], rtol=1e-5)  # logged in q
    raw = objective(scaled, other, config, "raw").loss / objective(found, BATCH, config, "raw").loss
    assert raw > 6


def test_logged_errors():
    found = prediction(BATCH)
    sums = objective(found, BATCH, LossConfig(), "unit")
    mask, h = np.asarray(BATCH.mask), found.history

    def mean(x):
        return np.abs(np.asarray(x))[mask].mean()

    want = {
        "mae": mean(found.depth - BATCH.depth),
        "mae_Dbar": mean(h.expected - BATCH.depth),
        "mae_D0": mean(h.iterates[:, 0] - BATCH.depth),
        "mae_DK": mean(h.iterates[:, 2] - BATCH.depth),
        "mae_refined": mean(h.refined[:, 0] - BATCH.depth),
        "update": (mean(h.iterates[:, 1] - h.iterates[:, 0]) + mean(h.iterates[:, 2] - h.iterates[:, 1])) / 2,
    }
    got = {name: float(x / BATCH.mask.sum()) for name, x in sums.errors.items()}
    assert got == pytest.approx(want, rel=1e-5)
    bare = objective(prediction(BATCH, 0, 0), BATCH, LossConfig(), "unit")
    assert "update" not in bare.errors and "mae_refined" not in bare.errors


@pytest.mark.parametrize("penalty", PENALTIES)
def test_masked_pixels_have_no_say(penalty):
    """Neither in the loss nor in the gradient, even where the prediction is not finite."""
    config = LossConfig(penalty=penalty)
    found = prediction(BATCH)

    def loss(depth, mask):
        history = found.history._replace(expected=depth)
        given = found._replace(history=history)
        return objective(given, BATCH._replace(mask=mask), config, "unit").loss

    depth = jnp.where(BATCH.mask, found.history.expected, jnp.nan)
    value, gradient = jax.value_and_grad(loss)(depth, BATCH.mask)
    np.testing.assert_allclose(value, loss(found.history.expected, BATCH.mask))
    assert np.all(np.asarray(gradient)[~np.asarray(BATCH.mask)] == 0)
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


def test_sums_over_parts_are_the_sums_of_the_whole():
    found, config = prediction(BATCH), LossConfig()
    whole = objective(found, BATCH, config, "unit")
    parts = []
    for i in range(3):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], (found, BATCH))
        parts.append(objective(*one, config, "unit"))
    total = jax.tree.map(lambda *x: sum(x), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, total)


def test_estimator_without_history_has_one_stage():
    found = prediction(BATCH)._replace(history=None)
    assert len(stages(found)) == 1
    config = LossConfig(penalty="mse")
    final = dataclasses.replace(config, kind="mse_final")
    a, b = objective(found, BATCH, config, "unit"), objective(found, BATCH, final, "unit")
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-6)
    assert set(a.errors) == {"mae"}


def flat(image: float = 0.5) -> Batch:
    """BATCH with the same picture everywhere."""
    return BATCH._replace(all_in_focus=jnp.full((*BATCH.depth.shape, 3), image))


def test_picture_is_compared_with_the_attentions_and_with_the_answers():
    batch, found = flat(), prediction(BATCH)
    found = found._replace(all_in_focus=batch.all_in_focus + jnp.array([0.1, -0.2, 0.3]).reshape(1, 1, 1, 3))
    config = LossConfig(image=2.0, depth=0.0)
    bare = objective(found._replace(history=None), batch, config, "unit")
    np.testing.assert_allclose(bare.images["image"] / batch.depth.size, 0.2, rtol=1e-5)
    np.testing.assert_allclose(bare.mean_loss(config, 1.0, batch.depth.size), 0.4, rtol=1e-5)  # no depth in it
    # the answer lies on the second frame, which then is the image, and outside the range, where it is the last
    for depth, frame in ((batch.focus[:, 1], batch.frames[:, 1]), (batch.focus[:, -1] + 9, batch.frames[:, -1])):
        on_frame = found._replace(depth=jnp.broadcast_to(depth[:, None, None], batch.depth.shape))
        both = objective(on_frame, batch, config, "unit").images["image"] / batch.depth.size
        np.testing.assert_allclose(both, (0.2 + jnp.abs(frame - 0.5).mean()) / 2, rtol=1e-4)


def test_picture_and_depth_together_are_their_sum():
    batch, found = flat(), prediction(BATCH)
    config = LossConfig(image=0.5, smoothness=0.25, depth=3.0)
    sums, depth = objective(found, batch, config, "unit"), objective(found, BATCH, LossConfig(), "unit")
    assert set(sums.images) == {"image", "smoothness"} and depth.images == {}
    want = 3 * depth.loss / 7 + (0.5 * sums.images["image"] + 0.25 * sums.images["smoothness"]) / 11
    np.testing.assert_allclose(sums.mean_loss(config, 7.0, 11.0), want, rtol=1e-5)


def test_smoothness_counts_slopes_except_at_edges():
    """Slopes 0.3 along x and 0 along y, with an edge of the picture between two columns."""
    y, x = jnp.mgrid[:6, :9]
    depth, picture = jnp.tile(0.3 * x, (2, 1, 1)), jnp.zeros((2, 6, 9, 3))
    plain = (jnp.sqrt(0.3**2 + 1e-6) + 1e-3) / 2
    np.testing.assert_allclose(smoothness(depth, picture) / depth.size, plain, rtol=1e-5)
    edge = picture.at[:, :, 4:].set(1.0)
    want = (jnp.sqrt(0.3**2 + 1e-6) * 7 / 8 + 1e-3) / 2
    np.testing.assert_allclose(smoothness(depth, edge) / depth.size, want, rtol=1e-5)
    faint = picture.at[:, :, 4:, 0].set(0.01)  # (150 x 0.01)^2 / 3 channels
    want = (jnp.sqrt(0.3**2 + 1e-6) * (7 + jnp.exp(-0.75)) / 8 + 1e-3) / 2
    np.testing.assert_allclose(smoothness(depth, faint) / depth.size, want, rtol=1e-5)


def test_what_a_loss_needs_of_its_batches():
    assert wanted(LossConfig()) == Wanted(depth=True, all_in_focus=False)
    assert wanted(LossConfig(smoothness=0.1)) == Wanted(depth=True, all_in_focus=True)
    assert wanted(LossConfig(image=1.0, depth=0.0)) == Wanted(depth=False, all_in_focus=True)


def test_depth_is_learned_without_depth(network, tmp_path):
    """A_FS: stacks whose sharp picture is known, and whose truth the training never sees."""
    loss = LossConfig(image=1.0, depth=0.0)
    stacks = fakes.write_stacks(tmp_path / "stacks", pictures=True)
    config = fakes.small_config(stacks, num_steps=120, eval_every=60, save_every=120)
    optimizer = dataclasses.replace(config.optimizer, peak_learning_rate=3e-2)
    loop.train(dataclasses.replace(config, loss=loss, optimizer=optimizer), tmp_path / "run")
    lines = logging.read_log(tmp_path / "run")
    first, *_, last = (line for line in lines if line["kind"] == "train")
    assert last["image"] < 0.8 * first["image"] and last["loss"] < 0.8 * first["loss"]
    assert last["mae"] < 0.8 * first["mae"]
