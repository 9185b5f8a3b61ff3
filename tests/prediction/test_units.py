"""Units of the focus axis from the photographs to the files: offsets, positions, infinity, transparency."""

import json

import numpy as np
import pytest
from PIL import Image

from dff_jax import cli, config
from dff_jax.errors import InputError
from dff_jax.estimators.weights import LoadedEstimator
from dff_jax.prediction import predict as predicting
from dff_jax.prediction.predict import predict, predict_to_folder
from dff_jax.types import Estimator, Prediction

H, W, Z = 32, 48, 4
RNG = np.random.default_rng(0)


def frames():
    """A slope: column by column another frame is the sharp one."""
    texture, out = RNG.random((H, W, 3)), []
    for z in range(Z):
        share = np.clip(1 - np.abs(np.linspace(0, Z - 1, W) - z), 0.1, 1)[None, :, None]
        out.append(np.rint(255 * (0.5 + share * (texture - 0.5))).astype(np.uint8))
    return out


def save(folder, images):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"f{i}.png")
    return folder


@pytest.mark.parametrize("unit", ["micron", "disparity", "-mm"])
def test_an_offset_changes_nothing(unit):
    stack, steps = frames(), np.array([0.0, 0.3, 1.0, 1.5])
    plain = predict(stack, steps, unit=unit, method="sml")
    moved = predict(stack, steps + 1e9, unit=unit, method="sml")
    np.testing.assert_allclose(moved.depth - 1e9, plain.depth, atol=1.5e-4)
    np.testing.assert_allclose(moved.all_in_focus, plain.all_in_focus, atol=1e-5)
    assert moved.depth.dtype == np.float64 and plain.depth.dtype == np.float32


@pytest.mark.parametrize("scale", [1e-320, 1e-40, 1e39, 1e308])
@pytest.mark.parametrize("unit", ["disparity", "metre"])
def test_settings_that_float32_cannot_hold(scale, unit):
    with pytest.raises(InputError, match="focus: settings from .* span too"):
        predict(frames(), np.arange(1, Z + 1) / Z * scale, unit=unit, method="sml")


def test_an_empty_name_is_no_folder_and_no_weights(tmp_path):
    source = save(tmp_path / "stack", frames())
    with pytest.raises(InputError, match="source: an empty name"):
        predict_to_folder("", tmp_path / "out")
    with pytest.raises(InputError):
        predict_to_folder(source, tmp_path / "out", weights="")
    with pytest.raises(InputError, match="no such folder"):
        predict_to_folder("x" * 5000, tmp_path / "out")


def test_a_mean_of_metres_sees_the_distances_themselves(monkeypatch):
    """No offset is taken off for a network that was trained on metres."""

    def apply(variables, frames, focus, *, train=False, num_iterations=None):
        depth = frames[:, 0, ..., 0] * 0 + 1 / (1 / focus).mean()
        return Prediction(depth, depth * 0 + 1, depth * 0, frames[:, 0]), {}

    model = config.DWild(trained_on="metre")
    loaded = LoadedEstimator(model, Estimator(lambda *given: {}, apply), {}, "stub")
    monkeypatch.setattr(predicting, "_choose", lambda *given: (loaded, ()))
    metres = np.array([0.1, 0.1004, 0.1005, 0.1008])
    found = predict(frames(), metres, unit="metre")
    np.testing.assert_allclose(found.depth, metres.mean(), rtol=1e-6)


def test_positions_turn_round(tmp_path):
    source = save(tmp_path / "stack", frames())
    focus = [0, 1, 2, 3]
    summary = predict_to_folder(source, tmp_path / "a", focus=focus, unit="mm", method="sml", progress=False)
    turned = predict_to_folder(
        source, tmp_path / "b", focus=focus, unit="mm", reverse=True, method="sml", progress=False
    )
    assert (summary["unit"], summary["near"]) == ("mm", "larger") and summary["points"]["says"].startswith("mm:")
    assert (turned["unit"], turned["near"]) == ("mm", "smaller") and turned["focus"] == [3, 2, 1, 0]
    np.testing.assert_allclose(np.load(tmp_path / "a/depth.npy"), np.load(tmp_path / "b/depth.npy"), atol=1e-3)
    page = (tmp_path / "b/report.html").read_text()
    assert '"sign": -1' in page and '" mm"' in page


def test_infinity_is_a_setting_and_no_number_of_the_summary(tmp_path, capsys):
    source = save(tmp_path / "stack", frames()[::-1])  # the nearest first
    words = ["predict", str(source), "--output", str(tmp_path / "out"), "--method", "sml"]
    assert cli.main([*words, "--focus", "0.5", "1", "2", "inf", "--unit", "metre"]) == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    depth = np.load(tmp_path / "out/depth.npy")
    assert summary["focus"] == ["infinity", 2, 1, 0.5] and np.isinf(depth).any()
    assert summary["depth"]["max"] <= 1e4 and summary["depth"]["at_infinity"] == pytest.approx(np.isinf(depth).mean())
    assert summary["points"]["count"] <= np.isfinite(depth).sum()
    assert "Infinity" not in (tmp_path / "out/report.html").read_text().split("<script>")[0]


def test_transparent_pixels_are_unsure(tmp_path):
    images = [np.dstack([image, np.full((H, W), 255, np.uint8)]) for image in frames()]
    for z, image in enumerate(images):
        image[:, : 3 + z] = 0
    source = save(tmp_path / "stack", images)
    predict_to_folder(source, tmp_path / "out", method="sml", progress=False)
    confidence = np.load(tmp_path / "out/confidence.npy")
    assert (confidence[:, :6] == 0).all() and (confidence[:, 6:] > 0).any()


def test_a_folder_of_stacks(tmp_path, capsys):
    for name in ("b2", "b10"):
        save(tmp_path / "all" / name, frames())
    words = ["predict", str(tmp_path / "all"), "--output", str(tmp_path / "out"), "--method", "sml"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "| b2 | 4 | 48 x 32 | index |" in shown and shown.index("b2") < shown.index("b10")
    assert (tmp_path / "out/b10/overview.png").exists()
    (tmp_path / "all/b2/f1.png").write_bytes(b"")
    assert cli.main([*words[:3], str(tmp_path / "again"), *words[4:]]) == 2
    assert "1 of 2 stacks cannot be used" in capsys.readouterr().err
    assert (tmp_path / "again/b10/depth.npy").exists() and not (tmp_path / "again/b2").exists()
