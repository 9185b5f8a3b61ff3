"""Published PyTorch checkpoints: every key finds its place, or one line says which did not; nothing is executed."""

import contextlib
import dataclasses
import importlib
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_fakes as fakes
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from torch_layouts import dfv_shapes, resnet18_shapes, waves

from dff_jax import cli, estimators
from dff_jax import config as configs
from dff_jax.errors import InputError, WeightsError
from dff_jax.estimators.aifdnet import torch_key as aifdnet_key
from dff_jax.estimators.dfv import torch_key
from dff_jax.estimators.torch_weights import import_weights, network_shapes, place, read_checkpoint
from dff_jax.estimators.weights import load_estimator, read, save_weights
from dff_jax.network.encoder import torch_key as encoder_key
from dff_jax.prediction.predict import predict
from dff_jax.training import loop
from dff_jax.training.initial_weights import load_encoder
from dff_jax.training.loop import train

IDLE = {"fc.weight": np.zeros((1000, 512), np.float32), "fc.bias": np.zeros(1000, np.float32)}


def randoms(shapes):
    rng = np.random.default_rng(0)
    return {key: rng.random(shape, np.float32) for key, shape in shapes.items()}


def from_torch(x, ndim):
    """The rule, once more and in other words: the two channel axes go last, in turned order."""
    x = x if x.ndim < 2 else np.moveaxis(x, (0, 1), (-1, -2))
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


def test_dfv_from_end_to_end(tmp_path, capsys):
    """Every tensor in its place, to the bit, through the command and back from the file."""
    tensors = randoms(dfv_shapes())
    stored = {f"module.{key}": x for key, x in tensors.items()}
    stored |= {f"module.feature_extraction.encoder.{key}": x for key, x in IDLE.items()}
    stored["module.feature_extraction.encoder.bn1.num_batches_tracked"] = np.array(7)
    save_file(stored, tmp_path / "DFF-DFV.safetensors")
    output = tmp_path / "dfv.safetensors"
    given = [str(tmp_path / "DFF-DFV.safetensors"), "--model", "dfv_diff", "--output", str(output), "--near-first"]
    assert cli.main(["import-weights", *given]) == 0
    said = capsys.readouterr().out
    assert "note: taken as trained on disparities or diopters; of metres (FoD500), say --trained-on metre" in said
    assert "dfv_diff: 18,988,484 parameters" in said and "feature_extraction.encoder.fc.weight" in said
    loaded = load_estimator(output)
    assert loaded.model == dataclasses.replace(configs.dfv_diff(), frame_order="descending")
    assert loaded.info["source"] == "DFF-DFV.safetensors" and loaded.info["model"] == "dfv_diff"
    flat = flatten_dict(loaded.variables, sep="/")
    assert {torch_key(path) for path in flat} == tensors.keys() and len(flat) == len(tensors)
    for path, x in flat.items():
        np.testing.assert_array_equal(x, from_torch(tensors[torch_key(path)], x.ndim))


@pytest.fixture(scope="module")
def shapes():
    return network_shapes(dataclasses.replace(configs.dfv_fv(), width=0.125))


def test_both_sides_are_listed(shapes):
    tensors = randoms(dfv_shapes(0.125))
    placed, idle = place("x.tar", tensors, shapes, "dfv")
    assert idle == () and jax.tree.structure(placed) == jax.tree.structure(shapes)
    del tensors["decoder3.classify.2.0.bias"]
    tensors["decoder7.up.weight"] = np.zeros(3, np.float32)
    tensors["decoder4.convs.0.conv2.0.weight"] = np.zeros((4, 4, 3, 3), np.float32)
    with pytest.raises(WeightsError) as caught:
        place("x.tar", tensors, shapes, "dfv")
    message = str(caught.value)
    assert message.startswith("x.tar: ") and "\n" not in message
    assert "missing decoder3.classify.2.0.bias; unknown decoder7.up.weight;" in message
    assert "wrong shape decoder4.convs.0.conv2.0.weight (4, 4, 3, 3), expected (4, 4, 3, 3, 3)" in message


def test_values_and_types_are_checked(tmp_path):
    path = tmp_path / "some.safetensors"
    half = {"a": np.array([1, 2.5], np.float16), "b": np.asarray(jnp.ones(2, jnp.bfloat16)), "c": np.ones(1)}
    save_file(half, path)
    found, _ = read_checkpoint(path)
    assert all(x.dtype == np.float32 for x in found.values()) and found["a"].tolist() == [1, 2.5]
    save_file({"fine": np.ones(2), "module.decoder3.bad": np.array([1.0, np.inf])}, path)
    with pytest.raises(WeightsError, match="decoder3.bad: has values that are not finite"):
        read_checkpoint(path)
    save_file({"count": np.ones(2, np.int64)}, path)
    with pytest.raises(WeightsError, match="count: holds int64, not floats"):
        read_checkpoint(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_checkpoint(path)
    with pytest.raises(WeightsError, match="absent.tar: no such file"):
        read_checkpoint(tmp_path / "absent.tar")


class Tensor:
    """What we use of a torch.Tensor."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def is_floating_point(self):
        return self.values.dtype.kind == "f"

    def float(self):
        return Tensor(self.values.astype(np.float32))

    def detach(self):
        return self

    def numpy(self):
        return self.values


@pytest.fixture
def torch(monkeypatch):
    """A PyTorch whose `load` returns `torch.holds`, or raises it."""

    def load(path, map_location, weights_only):
        assert weights_only is True and map_location == "cpu"
        if isinstance(module.holds, Exception):
            raise module.holds
        return module.holds

    safe = types.SimpleNamespace(safe_globals=lambda allowed: contextlib.nullcontext())
    module = types.SimpleNamespace(__version__="2.13.0+cpu", Tensor=Tensor, load=load, serialization=safe, holds=None)
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def test_checkpoints_of_torch(tmp_path, torch):
    path = tmp_path / "it's.tar"
    path.touch()
    state_dict = {"module.a": Tensor(np.ones(2, np.float16)), "module.bn.num_batches_tracked": Tensor(3)}
    for holds in (state_dict, {"epoch": 3, "best": 0.5, "state_dict": state_dict, "optimize": {}}):
        torch.holds = holds
        found, _ = read_checkpoint(path)
        assert {key: (x.dtype, x.tolist()) for key, x in found.items()} == {"a": (np.float32, [1, 1])}
    for holds, words in (
        ([1], "no state dict inside, but list"),
        ({"epoch": 3}, "epoch is not a tensor"),
        (pickle.UnpicklingError("Weights only load failed. Unsupported global: GLOBAL a.B"), "Python objects"),
        (pickle.UnpicklingError("invalid load key"), "not a PyTorch checkpoint, or truncated$"),
        (RuntimeError("PytorchStreamReader failed"), "not a PyTorch checkpoint, or truncated$"),
        (PermissionError(13, "Permission denied"), "cannot be read .Permission denied"),
    ):
        torch.holds = holds
        with pytest.raises(WeightsError, match=words) as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
    torch.__version__ = "2.5.1"
    with pytest.raises(InputError, match="2.5.1 cannot read files safely"):
        read_checkpoint(path)


AIFDNET = dataclasses.replace(configs.AiFDNet(), width=0.0625)


def published_aifdnet(model):
    """Its state dict at some width."""
    shapes = flatten_dict(network_shapes(model), sep="/")
    turned = {p: (*x.shape[:-3:-1], *x.shape[:-2]) if p.endswith("/kernel") else x.shape for p, x in shapes.items()}
    return randoms({aifdnet_key(path): shape for path, shape in turned.items()})


@pytest.mark.parametrize("says", [{"normalize_attention": True}, {"normalize_attention": False}, {}, None])
@pytest.mark.parametrize("told", [None, "softplus"])
def test_attention_of_aifdnet(tmp_path, torch, monkeypatch, says, told):
    """What the checkpoint says of it, or the option; else softmax, with a note. Four channels are seen by the shape."""
    model = dataclasses.replace(AIFDNET, frame_position=says is None)
    monkeypatch.setattr(configs, "model_preset", lambda name: AIFDNET)
    path = tmp_path / "aifdnet.tar"
    path.write_bytes(b"P")
    state = {f"module.{key}": Tensor(x) for key, x in published_aifdnet(model).items()}
    torch.holds = {"args_dict": {}, "args_model": says, "state_dict": state}
    done = import_weights(path, "aifdnet", tmp_path / "ours.safetensors", trained_on="metre", attention=told)
    softplus = told == "softplus" or bool(says and says["normalize_attention"])
    want = dataclasses.replace(model, trained_on="metre", attention="softplus" if softplus else "softmax")
    assert load_estimator(done.output).model == want
    assert len(done.notes) == (told is None and not says)
    assert all("--attention softplus" in note for note in done.notes)


def test_a_unit_that_tells_no_distance(tmp_path):
    path = tmp_path / "metres.safetensors"
    model = dataclasses.replace(AIFDNET, trained_on="metre")
    save_weights(path, model, zeros(model), {})
    with pytest.raises(InputError, match="model.trained_on: .* in metres or diopters, not disparity; .*--trained-on"):
        predict(np.zeros((3, 32, 32, 3), np.uint8), [1, 2, 3], unit="disparity", weights=path)


def test_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "some.pth").touch()
    with pytest.raises(InputError, match=r"pip install .dff-jax\[torch\]"):
        read_checkpoint(tmp_path / "some.pth")


def test_requests_that_make_no_sense(tmp_path):
    path = tmp_path / "resnet18.safetensors"
    save_file(waves(resnet18_shapes()), path)
    with pytest.raises(InputError, match="choose one of dfv_fv, dfv_diff"):
        import_weights(path, "paper")
    with pytest.raises(InputError, match="--attention: dwild has no choice of it"):
        import_weights(path, "dwild", attention="softplus")
    with pytest.raises(InputError, match="--trained-on: an encoder gives no depth"):
        import_weights(path, "resnet18", trained_on="metre")
    with pytest.raises(InputError, match="is the file to import"):
        import_weights(path, "resnet18", path)
    with pytest.raises(WeightsError, match="not a checkpoint of dfv as published: missing .*; unknown bn1.bias"):
        import_weights(path, "dfv_fv", tmp_path / "out.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# An encoder to begin with -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    save_file(waves(resnet18_shapes()) | IDLE, folder / "published.safetensors")
    done = import_weights(folder / "published.safetensors", "resnet18", folder / "encoder.safetensors")
    assert done.idle == ("fc.bias", "fc.weight") and done.parameters == 11_176_512
    return done.output


def zeros(model):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), network_shapes(model))


@pytest.mark.parametrize("preset", ["physical", "dfv_fv"])
def test_encoder_into_a_network(encoder, preset):
    before = zeros(configs.model_preset(preset))
    after = load_encoder(encoder, before)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    published, placed = waves(resnet18_shapes()), 0
    for path, x in flatten_dict(after, sep="/").items():
        kind, _, rest = path.replace("volume/", "").partition("/")
        if rest.startswith("encoder/"):
            key = encoder_key(f"{kind}/{rest.removeprefix('encoder/')}".replace("/BatchNorm_0/", "/TorchBatchNorm_0/"))
            np.testing.assert_array_equal(x, from_torch(published[key], x.ndim))
            placed += 1
        else:
            assert not np.any(x)
    assert placed == len(published)


def test_encoders_that_do_not_fit(encoder, tmp_path):
    for fields in ({"encoder": "tiny"}, {"width": 0.5}, {"norm": "group"}):
        with pytest.raises(WeightsError, match="needs model.encoder=resnet18, model.norm=batch and model.width=1 .*: "):
            load_encoder(encoder, zeros(dataclasses.replace(configs.physical(), **fields)))
    with pytest.raises(WeightsError, match="has no encoder to take it"):
        load_encoder(encoder, {"params": {"Conv_0": {"kernel": np.zeros(3)}}, "batch_stats": {}})
    with pytest.raises(WeightsError, match="an encoder alone.*training.encoder_weights"):
        load_estimator(encoder)
    model, tensors, info = read(encoder)
    del info["part"]
    save_weights(tmp_path / "whole.safetensors", model, {"params": tensors}, info)
    with pytest.raises(WeightsError, match="whole.safetensors: not an encoder; dff-jax import-weights"):
        load_encoder(tmp_path / "whole.safetensors", zeros(configs.dfv_fv()))


def test_read_when_a_run_begins_and_not_when_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(estimators, "build", fakes.build)
    config = fakes.small_config(fakes.write_stacks(tmp_path / "data"), num_steps=2, encoder_weights="encoder")
    with pytest.raises(WeightsError, match="encoder: no such file"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    read_from = []

    def place_fake(path, variables):
        read_from.append(path)
        return jax.tree.map(jnp.zeros_like, variables)

    monkeypatch.setattr(loop, "load_encoder", place_fake)
    train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    assert read_from == ["encoder"]


@pytest.mark.parametrize("name, parameters", [("aifdnet", 16_533_873), ("dwild", 4_038_832)])
def test_the_other_networks_from_end_to_end(tmp_path, name, parameters):
    """Their keys are checked in their own tests."""
    shapes = flatten_dict(network_shapes(configs.model_preset(name)), sep="/")
    key = importlib.import_module(f"dff_jax.estimators.{name}").torch_key
    kernel = {path: path.endswith("/kernel") for path in shapes}
    turned = {path: (*x.shape[:-3:-1], *x.shape[:-2]) if kernel[path] else x.shape for path, x in shapes.items()}
    tensors = randoms({key(path): shape for path, shape in turned.items()})
    save_file({f"module.{k}": x for k, x in tensors.items()}, tmp_path / "theirs.safetensors")
    done = import_weights(tmp_path / "theirs.safetensors", name, tmp_path / "ours.safetensors")
    assert (done.parameters, done.idle) == (parameters, ())
    for path, x in flatten_dict(load_estimator(done.output).variables, sep="/").items():
        np.testing.assert_array_equal(x, from_torch(tensors[key(path)], x.ndim))
    first, *_ = tensors
    del tensors[first]
    tensors["extra"] = np.zeros(1, np.float32)
    save_file(tensors, tmp_path / "theirs.safetensors")
    with pytest.raises(WeightsError, match=f"missing {first}; unknown extra"):
        import_weights(tmp_path / "theirs.safetensors", name, tmp_path / "ours.safetensors")
