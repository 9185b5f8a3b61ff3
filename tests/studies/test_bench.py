"""The benchmarks, at sizes that only show that they work."""

import json

import jax
import numpy as np
import pytest
import training_fakes as fakes

from dff_jax import estimators
from dff_jax.config import MODEL_PRESETS
from dff_jax.errors import InputError
from dff_jax.studies.bench import bench, loader, measuring, model, subjects, unroll
from dff_jax.studies.bench.measuring import count_gflops, round_robin


@pytest.fixture
def small_networks(monkeypatch):
    """A stand-in for the network of `tiny`; methods without training are real."""
    real = estimators.build
    build = lambda model: fakes.build(model) if model.trained else real(model)  # noqa: E731
    monkeypatch.setattr(estimators, "build", build)
    monkeypatch.setattr(subjects, "_variables", subjects._variables.__wrapped__)
    monkeypatch.setattr(subjects, "_stack_gflops", subjects._stack_gflops.__wrapped__)
    monkeypatch.setattr(measuring, "MATRIX_SIDE", 128)


def test_every_combination_is_measured_once(tmp_path, small_networks):
    options = {"frames": (2,), "iterations": (0, 2), "train": True, "parts": True, "rounds": 2}
    text = bench(preset=("tiny", "sml"), size=(32,), output=str(tmp_path), profile=str(tmp_path / "trace"), **options)
    report = json.loads((tmp_path / "model.json").read_text())
    labels = [(r["preset"], r["Z"], r["K"]) for r in report["rows"]]
    assert labels == [("tiny", 2, 0), ("tiny", 2, 2), ("sml", 2, None)]
    for row in report["rows"]:
        assert row["inference_s"] > 0 and row["compile_s"] > 0 and row["share_of_peak"] > 0
        assert ("step_s" in row) == (row["preset"] == "tiny") == ("unroll_s" in row)
    assert report["memory"]["resident_MB"] > 50 and report["peak_GFLOPs_per_s"]["float32"] > 0
    table = (tmp_path / "model.md").read_text()
    assert text.startswith(table) and "| tiny, 1 x 2 x 32 x 32, K = 2 |" in table
    assert "training step, s" in table and "PyTorch" not in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    assert list((tmp_path / "trace" / "tiny").rglob("*.xplane.pb"))
    assert "tiny, 1 x 2 x 32 x 32" in text and "conv_general_dilated" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (16,)}, "--size: must be at least 32, got 16"), ({"frames": (1,)}, "--frames: must be at least 2"),
        ({"dtype": ("float16",)}, "--dtype: 'float16' is unknown"), ({"rounds": 0}, "--rounds"),
        ({"preset": ("huge",)}, "'huge' is unknown"), ({"iterations": (-1,)}, "--iterations: must be at least 0"),
        ({"against": "torch", "train": True}, "--batch: PyTorch cannot train DFV on one stack"),
        ({"subject": "unroll", "preset": ("dwild",)}, "--preset: dwild has no unroll"),
        ({"subject": "unroll", "size": (100,)}, "--size: must be a multiple of 32"),
        ({"subject": "loader", "size": (64, 96)}, "--size: this subject takes one value, got 2"),
        ({"subject": "loader", "frames": (1,)}, "--frames: must be at least 2"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said_at_once(options, message):
    with pytest.raises(InputError, match=message):
        bench(**options)


def test_the_unroll_is_compiled_over_modes_and_iterations(tmp_path, monkeypatch):
    monkeypatch.setattr(unroll, "_training_step", unroll._unroll_alone)  # the whole network takes a minute
    monkeypatch.setitem(MODEL_PRESETS, "tiny", lambda: fakes.small_model(prox_levels=1))
    unroll.bench_unroll("tiny", (1, 2), 64, 3, tmp_path, modes=("remat", "truncated(1)"))
    rows, text = json.loads((tmp_path / "unroll.json").read_text())["rows"], (tmp_path / "unroll.md").read_text()
    assert len(rows) == 2 * 2 * 2 and all(row["temporary_MB"] > 0 for row in rows)
    assert "| unroll alone | truncated(1) |" in text and "memory ratio" in text


def test_loading_is_measured_in_every_way(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "WAYS", ((1, 0), (2, 0)))  # worker processes have a test of their own
    options = {"size": 16, "num_frames": 3, "stacks": 3, "batches": 3, "full_size": (24, 32)}
    report = loader.bench_loader(**options, output=tmp_path)
    assert json.loads((tmp_path / "loader.json").read_text()) == report
    assert [(row["threads"], row["workers"]) for row in report["rows"]] == [(1, 0), (2, 0)]
    assert all(row["stacks_per_s"] > 0 and row["first_batch_s"] > 0 for row in report["rows"])
    assert "| 2 | 0 |" in (tmp_path / "loader.md").read_text()


def test_flops_count_every_iteration():
    """Where the loop is rolled, XLA's own count sees one of them."""
    changes = {"num_iterations": 3, "prox": "identity", "refiner_steps": 0, "measure_prior": "none"}
    network = fakes.small_model(**changes)
    function, arguments = subjects.inference(network.replace_known(gradient="backprop"), (1, 2, 64))
    unrolled = count_gflops(jax.jit(function), *arguments)
    assert subjects.gflops(network, (1, 2, 64), False) == pytest.approx(unrolled, rel=1e-6)


def test_filled_variables_are_reproducible_and_of_unit_gain():
    shape = jax.ShapeDtypeStruct
    shapes = {"conv": {"kernel": shape((3, 3, 4, 8), "float32")}, "bn": {"var": shape((8,), "float32")}}
    first, again = subjects.fill(shapes), subjects.fill(shapes)
    assert (first["bn"]["var"] == 1).all() and (first["conv"]["kernel"] == again["conv"]["kernel"]).all()
    assert first["conv"]["kernel"].std() == pytest.approx(1 / 6, rel=0.2)


def test_all_take_their_turn_in_each_round():
    order = []
    seconds = round_robin({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == list("ababab") and seconds.keys() == {"a", "b"}


def test_the_pytorch_counterpart_is_the_same_network(key):
    torch = pytest.importorskip("torch")
    from dff_jax.config import dfv_diff
    from dff_jax.estimators.torch_weights import network_shapes, place
    from dff_jax.studies.bench import torch_peers

    net = torch_peers.DFV(difference=True).eval()
    frames = jax.random.uniform(key, (1, 3, 64, 64, 3))
    state = {key: value.numpy() for key, value in net.state_dict().items() if "num_batches" not in key}
    variables, _ = place("here", state, network_shapes(dfv_diff()), "dfv")
    focus = np.linspace(10, 100, 3, dtype=np.float32)[None]
    ours = estimators.build(dfv_diff()).apply(variables, frames, focus)[0].depth
    mean, std = (np.asarray(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = torch.from_numpy(np.moveaxis((np.asarray(frames) - mean) / std, -1, 2).copy())
    with torch.no_grad():
        theirs = net(seen, torch.from_numpy(focus))[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=90e-4)


def test_sizes_without_a_value_are_the_subjects_own(monkeypatch):
    asked = {}
    monkeypatch.setattr(model, "bench_model", lambda presets, **options: asked.update(options, presets=presets))
    monkeypatch.setattr(model, "markdown", lambda report: "the table")
    assert bench(dtype=("bfloat16",)) == "the table"
    assert asked["presets"] == ("physical", "dfv_diff") and asked["sizes"] == (256,) and asked["iterations"] == (None,)
