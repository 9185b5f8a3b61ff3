"""The weights that come with the package: what is inside, how they fail, and that they are good."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors import safe_open

from dff_jax import config
from dff_jax.config import DataSpec
from dff_jax.data.live import held_out_stack
from dff_jax.errors import InputError, WeightsError
from dff_jax.estimators import release as packing
from dff_jax.estimators import weights
from dff_jax.evaluation.folder import evaluate_to_folder
from dff_jax.prediction.predict import predict

FILE = weights.PRETRAINED_FILE


def test_the_file_is_small_and_says_where_it_comes_from():
    assert FILE.stat().st_size <= 8e6
    model, tensors, info = weights.read(FILE)
    parameters = {key: x for key, x in tensors.items() if key.startswith("params/")}
    assert sum(x.size for x in parameters.values()) == info["parameters"] <= 2_000_000
    assert {x.dtype.name for x in parameters.values()} == {"float16"}
    assert info["command"].startswith("dff-jax train configs/pretrained.py")
    assert info["step"] == info["config"]["training"]["num_steps"] and "seed" in info["config"]
    assert info["config"]["data"]["source"] == "procedural_live" and model.num_planes  # any number of frames
    for score in info["scores"].values():
        assert score["stacks"] > 0 and score["rows"]["final"]["MAE"] > 0
    procedural = info["scores"]["procedural"]
    assert procedural["rows"]["final"]["MAE"] < procedural["rows"]["classical"]["MAE"]
    assert procedural["most_confident_half"] < 0.5


def test_it_is_the_run_of_its_config():
    from dff_jax.config.load import load_config

    info = weights.read(FILE)[2]
    want = config.to_dict(load_config("configs/pretrained.py"))
    have = config.to_dict(config.from_dict(info["config"]))
    for part in ("model", "loss", "optimizer", "seed"):
        assert have[part] == want[part]
    assert have["data"] == want["data"]


def test_it_fits_its_network_and_is_read_as_float32():
    found = weights.load_estimator("pretrained")
    assert found.label == "pretrained"
    assert {x.dtype.name for x in jax.tree.leaves(found.variables)} == {"float32"}
    checked = weights.load_weights(FILE).variables
    assert jax.tree.structure(found.variables) == jax.tree.structure(checked)
    jax.tree.map(np.testing.assert_array_equal, found.variables, checked)


def damaged(path, change):
    shutil.copy(FILE, path)
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.__setitem__(len(c) - 1000, c[len(c) - 1000] ^ 1), "damaged, the checksum of its tensors"),
        (lambda c: c.__delitem__(slice(len(c) // 2, None)), "not a safetensors file, or truncated"),
        (lambda c: c.__delitem__(slice(0, None)), "not a safetensors file, or truncated"),
    ],
)
def test_damage_is_one_clear_line(tmp_path, monkeypatch, change, says):
    path = damaged(tmp_path / "w.safetensors", change)
    monkeypatch.setattr(weights, "PRETRAINED_FILE", path)
    with pytest.raises(WeightsError, match=says) as caught:
        predict(np.zeros((3, 32, 32, 3), np.uint8))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_another_version_is_one_clear_line(tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    with safe_open(FILE, framework="numpy") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    save_file(tensors, tmp_path / "w.safetensors", metadata | {"version": "2"})
    monkeypatch.setattr(weights, "PRETRAINED_FILE", tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="weights format 2, but this dff-jax reads 1; use the version that wrote it"):
        predict(np.zeros((3, 32, 32, 3), np.uint8))
    monkeypatch.setattr(weights, "PRETRAINED_FILE", tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="this copy of the package has no weights"):
        predict(np.zeros((3, 32, 32, 3), np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("frames", [3, 40])
def test_it_answers_by_default_with_any_number_of_frames_and_says_so(frames):
    world = config.WorldConfig(height=64, width=64, num_frames=frames)
    stack = held_out_stack("test", 3, world)
    found = predict(stack.frames, stack.focus, unit="disparity")
    assert "network of this package" in found.notes[0]
    assert list(found.stages) == ["Dbar", "D(0)", "D(1)", "D(2)", "D(3)", "refined"]
    error = np.abs(found.depth - stack.depth)
    assert error.mean() < (15 if frames == 3 else 8)
    sure = found.confidence > np.median(found.confidence)
    assert error[sure].mean() < 0.8 * error.mean()


def test_a_packed_command_names_no_folder_of_this_machine():
    command = packing._to_repeat("/home/me/bin/cli.py train configs/a.py --output '/home/me/a b' --seed 3")
    assert command == "dff-jax train configs/a.py --seed 3"
    command = packing._to_repeat("cli.py train a.py --training.initial-weights /home/me/first.safetensors")
    assert command == "dff-jax train a.py --training.initial-weights first.safetensors"
    config = {"training": {"initial_weights": "/home/me/w.safetensors", "steps": 3}, "data": [{"dataset": "a/b"}]}
    want = {"training": {"initial_weights": "w.safetensors", "steps": 3}, "data": [{"dataset": "a/b"}]}
    assert packing._without_folders(config) == want


def test_packing_needs_an_evaluation(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="metrics.json"):
        packing.pack(FILE, tmp_path / "out.safetensors", {"some": tmp_path})
    assert not (tmp_path / "out.safetensors").exists()


def test_packing_overwrites_no_file_but_weights(tmp_path):
    path = tmp_path / "notes.safetensors"
    path.write_text("mine")
    with pytest.raises(InputError, match="notes.safetensors: is there, and no weights file of this program"):
        packing.pack("pretrained", path, {})
    assert path.read_text() == "mine"


def test_packing_again_changes_nothing_but_the_scores(tmp_path):
    score = {"MAE": 1.0, "RMS": 2.0, "AbsRel": None, "Acc_1": 99.0}
    found = {
        "rows": {"final": score, "classical": score | {"MAE": 2.0}, "D(0)": score}, "calibration": {"half": 0.3},
        "meta": {"dataset": "some/test", "unit": "disparity", "stacks": 3},
    }  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps(found))
    info = packing.pack(FILE, tmp_path / "out.safetensors", {"some": tmp_path})
    assert info["scores"]["some"]["rows"] == {"final": score, "classical": score | {"MAE": 2.0}}
    again, before = weights.load_weights(tmp_path / "out.safetensors"), weights.load_weights(FILE)
    one, other = (flatten_dict(w.variables, sep="/") for w in (again, before))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_evaluate_takes_it_by_name(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        evaluate_to_folder("pretrained", tmp_path / "out", DataSpec(source=str(tmp_path / "nowhere")))
