"""Weights out and in: exact, atomic, and one clear line for everything that may be wrong with a file."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_fakes as fakes
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.config import own_code
from dff_jax.errors import InputError, WeightsError
from dff_jax.estimators import release
from dff_jax.estimators import weights as weights_module
from dff_jax.estimators.weights import check_frames, load_estimator, load_weights, save_weights
from dff_jax.prediction.predict import predict
from dff_jax.training.initial_weights import load_encoder, load_matching

MODEL = configs.tiny()
BUILD = estimators.build
INFO = {"step": 7, "metric": {"MAE": 1.5}, "num_frames": fakes.FRAMES, "name": "small"}


@pytest.fixture(autouse=True)
def network(monkeypatch):
    monkeypatch.setattr(estimators, "build", fakes.build)
    monkeypatch.setattr(own_code, "_trusted", set())


@pytest.fixture(scope="module")
def variables():
    batch = fakes.batch(1)
    return jax.device_get(fakes.build(MODEL).init(jax.random.key(3), batch.frames, batch.focus))


@pytest.fixture
def path(tmp_path, variables):
    file = tmp_path / "some.safetensors"
    save_weights(file, MODEL, variables, INFO)
    return file


def rewrite(path, tensors=None, **metadata):
    """The same file with other tensors (checksum as it was) or metadata; None takes a field out."""
    with safe_open(path, "numpy") as file:
        known = file.metadata() | metadata
    known = {k: v for k, v in known.items() if v is not None}
    save_file(load_file(path) if tensors is None else tensors, path, known)


def test_round_trip(path, variables):
    found = load_weights(path)
    assert found.model == MODEL and found.info == INFO
    assert jax.tree.structure(found.variables) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, found.variables, variables)
    assert found.variables["params"]["move"].shape == ()  # a scalar stays one
    with safe_open(path, "numpy") as file:
        assert "params/Conv_0/kernel" in file.keys() and "batch_stats/BatchNorm_0/mean" in file.keys()


def test_readable_by_whoever_may_read_other_files(path):
    plain = path.with_name("plain")
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_half_precision_transposed_arrays_and_empty_parts(tmp_path, monkeypatch):
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3).T
    tree = {"params": {"a": {"kernel": kernel, "bias": jnp.ones(3, jnp.bfloat16)}, "unroll": {}}, "batch_stats": {}}
    fake = fakes.build(MODEL)._replace(init=lambda *_: jax.tree.map(jnp.asarray, tree))
    monkeypatch.setattr(estimators, "build", lambda model: fake)
    save_weights(tmp_path / "w.safetensors", MODEL, tree, {})
    found = load_weights(tmp_path / "w.safetensors").variables
    np.testing.assert_array_equal(found["params"]["a"]["kernel"], kernel)
    assert found["params"]["a"]["bias"].dtype == jnp.bfloat16
    assert found["params"]["unroll"] == {} and found["batch_stats"] == {}


@pytest.mark.parametrize("damage", ["truncated", "cut header", "empty", "text", "flipped", "huge header"])
def test_damaged_files(path, damage):
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[-5] ^= 0xFF
    path.write_bytes(
        {
            "truncated": data[:-10],
            "cut header": data[:40],
            "empty": b"",
            "text": b"these are not weights at all",
            "flipped": bytes(flipped),
            "huge header": b"\xff" * 8 + data[8:],
        }[damage]
    )
    words = "checksum" if damage == "flipped" else "not a safetensors file, or truncated"
    with pytest.raises(WeightsError, match=rf"some.safetensors: .*{words}") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.bool_, np.complex64])
@pytest.mark.parametrize("reader", [load_weights, lambda p: load_matching(p, {}, None), lambda p: load_encoder(p, {})])
def test_tensors_that_are_no_floats_are_named(path, kind, reader):
    tensors = load_file(path)
    tensors["params/move"] = np.ones((), kind)
    rewrite(path, tensors, sha256=weights_module._checksum(tensors))
    with pytest.raises(WeightsError, match=rf"not floats, so no weights: params/move \({np.dtype(kind)}\)"):
        reader(path)


def test_text_from_a_file_stays_one_line_without_commands_to_the_terminal(path):
    rewrite(path, version="2\x1b[31m\n\u202e3")
    with pytest.raises(WeightsError, match=r"weights format 2\\x1b\[31m \\u202e3, but"):
        load_weights(path)


def test_foreign_file_and_other_versions(path, tmp_path):
    save_file({"x": np.ones(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsError, match="not weights of dff-jax"):
        load_weights(tmp_path / "foreign.safetensors")
    rewrite(path, version="2")
    with pytest.raises(WeightsError, match="format 2, but this dff-jax reads 1"):
        load_weights(path)


def test_code_that_a_file_names_is_refused_by_all_that_read_weights(path, tmp_path):
    model = {"scheme": "their_module:scheme"}
    with safe_open(path, "numpy") as file:
        model = json.loads(file.metadata()["model"]) | model
    rewrite(path, model=json.dumps(model), sha256_config=None)
    run = tmp_path / "run"
    run.mkdir()
    (run / weights_module.FILE_NAME).write_bytes(path.read_bytes())
    for reader, spec in (
        (load_weights, path), (load_estimator, run), (lambda spec: load_matching(spec, {"params": {}}, None), run),
        (lambda spec: load_encoder(spec, {}), path), (lambda spec: release.pack(spec, tmp_path / "packed", {}), run),
        (lambda spec: predict(np.zeros((3, 8, 8, 3), np.uint8), weights=spec), run),
    ):  # fmt: skip
        with pytest.raises(WeightsError, match="model.scheme: .*add --trust their_module:scheme") as error:
            reader(spec)
        assert "\n" not in str(error.value)
    assert load_estimator(path, trusted=["their_module:scheme"]).model.scheme == "their_module:scheme"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("{", "not valid JSON"),
        (None, "'model'"),
        (json.dumps({"colour": 1}), "colour: unknown field"),
        (json.dumps({"num_candidates": 0}), "num_candidates: must be at least 1"),
    ],
)
def test_config_inside_is_checked(path, model, words):
    rewrite(path, model=model)
    with pytest.raises(WeightsError, match=rf"the config inside cannot be used .*{re.escape(words)}"):
        load_weights(path)


def test_another_architecture_lists_both_sides(path, variables):
    """Written properly, by a network that this config no longer builds."""
    other = jax.tree.map(lambda x: x, variables)
    params = other["params"]
    params["Conv_9"] = params.pop("Conv_1")
    params["Conv_0"]["kernel"] = np.zeros((3, 3, 3, 5), np.float32)
    save_weights(path, MODEL, other, INFO)
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert "missing params/Conv_1/bias, params/Conv_1/kernel;" in message
    assert "unknown params/Conv_9/bias, params/Conv_9/kernel;" in message
    assert "wrong shape params/Conv_0/kernel (3, 3, 3, 5), expected (3, 3, 3, 4)" in message


def test_long_lists_are_shortened(path, variables):
    save_weights(path, MODEL, {"params": {}, "batch_stats": variables["batch_stats"]}, INFO)
    with pytest.raises(WeightsError, match=r"missing (\S+, ){3}\S+ and \d+ more$"):
        load_weights(path)


def test_nothing_half_written(path, variables, monkeypatch):
    """A full disk leaves the file that was there, and no other."""
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="some.safetensors: cannot be written .No space left"):
        save_weights(path, MODEL, variables, INFO)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_load_estimator_by_its_three_names(path, variables):
    batch = fakes.batch(1)
    by_file = load_estimator(path)
    assert by_file.label == "some" and by_file.info == INFO
    run = path.parent / "run"
    run.mkdir()
    path.rename(run / "weights.safetensors")
    by_run = load_estimator(str(run))
    assert by_run.label == "run" and by_run.model == MODEL
    got, _ = by_run.estimator.apply(by_run.variables, batch.frames, batch.focus)
    want, _ = fakes.build(MODEL).apply(variables, batch.frames, batch.focus)
    np.testing.assert_array_equal(got.depth, want.depth)
    assert load_estimator("classical").model == configs.Classical()
    assert load_estimator("sml").model == configs.SML() and load_estimator("sml").label == "sml"


def test_specs_that_lead_nowhere(tmp_path):
    (tmp_path / "run").mkdir()
    for spec, words in (
        (tmp_path / "run", "no weights.safetensors inside"),
        (tmp_path / "absent.safetensors", "neither one of pretrained, classical, sml, .* nor an existing weights file"),
        ("clasical", "neither one of pretrained, classical, sml, .* nor"),
    ):
        with pytest.raises(WeightsError, match=words):
            load_estimator(spec)


def test_frames_of_a_network_tied_to_z(path, variables):
    free = load_estimator(path)
    check_frames(free, fakes.FRAMES + 2)  # resamples its planes: any Z
    save_weights(path, dataclasses.replace(MODEL, num_planes=None, prox_inputs="with_confidence"), variables, INFO)
    tied = load_estimator(path)
    check_frames(tied, fakes.FRAMES)
    with pytest.raises(InputError, match="exactly 3 frames.*the stack has 5"):
        check_frames(tied, 5)


def test_real_tiny(tmp_path, monkeypatch):
    """Structure as `estimators.build` makes it, from shapes alone."""
    monkeypatch.undo()
    model = dataclasses.replace(configs.tiny(), width=0.125)
    shapes = jax.ShapeDtypeStruct((1, 5, 64, 64, 3), jnp.float32), jax.ShapeDtypeStruct((1, 5), jnp.float32)
    tree = jax.eval_shape(estimators.build(model).init, jax.random.key(0), *shapes)
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), tree)
    save_weights(tmp_path / "w.safetensors", model, variables, {"num_frames": 5})
    found = load_weights(tmp_path / "w.safetensors")
    assert jax.tree.structure(found.variables) == jax.tree.structure(variables)
    wider = dataclasses.replace(model, width=0.25)
    save_weights(tmp_path / "w.safetensors", wider, variables, {"num_frames": 5})
    with pytest.raises(WeightsError, match="wrong shape .* and .* more"):
        load_weights(tmp_path / "w.safetensors")


def test_flat_keys_become_flaxs_tree():
    from flax.traverse_util import empty_node, unflatten_dict

    flat = {"params/a/kernel": np.ones(2, np.float16), "params/b": np.zeros(1, np.float32)}
    expected = unflatten_dict(flat | {"batch_stats": empty_node, "params/c/d": empty_node}, sep="/")
    found = weights_module._tree(flat, ["batch_stats", "params/c/d"])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert found["params"]["c"] == {"d": {}} and found["batch_stats"] == {}
    assert found["params"]["a"]["kernel"].dtype == np.float32


def test_a_structure_is_worked_out_once_and_still_checked(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    monkeypatch.setattr(estimators, "build", BUILD)
    try:
        model = dataclasses.replace(configs.tiny(), width=0.125, head_width=0.125, num_iterations=0, refiner_steps=0)
        first = weights_module._structure(model, 15)
        monkeypatch.setattr(jax, "eval_shape", lambda *given: pytest.fail("worked out again"))
        assert weights_module._structure(model, 15) == first and len(first) > 50
        tensors = {key: np.zeros(shape, np.float32) for key, shape in first.items() if shape is not None}
        weights_module.fit("f", tensors, model, 15)
        tensors.popitem()
        with pytest.raises(weights_module.WeightsError, match="missing"):
            weights_module.fit("f", tensors, model, 15)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_code_of_the_users_own_is_not_in_the_cache(monkeypatch):
    monkeypatch.setattr(estimators, "build", BUILD)
    assert weights_module.identity(configs.tiny())
    assert weights_module.identity(configs.SML()) != weights_module.identity(configs.RDF())
    for name in ("scheme", "prox"):
        assert weights_module.identity(dataclasses.replace(configs.tiny(), **{name: "mine:function"})) is None
    monkeypatch.setattr(estimators, "build", lambda model: None)
    assert weights_module.identity(configs.tiny()) is None
