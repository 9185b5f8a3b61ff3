"""The benchmark of networks, at a size that only shows that it works."""

import json

import pytest
import training_fakes as fakes

from dff_jax import cli, estimators
from dff_jax.errors import InputError
from dff_jax.studies.bench import model, profile


def test_every_combination_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(estimators, "build", fakes.build)
    report = model.bench_model(
        ("tiny", "sml"), sizes=(32,), frames=(2, 3), iterations=(0, 2), training=True, parts=True, rounds=2,
        output=tmp_path / "out",
    )  # fmt: skip
    assert json.loads((tmp_path / "out/model.json").read_text()) == report
    labels = [(r["preset"], r["Z"], r["K"]) for r in report["rows"]]
    learned = [("tiny", Z, K) for Z in (2, 3) for K in (0, 2)]
    assert labels == [*learned, ("sml", 2, None), ("sml", 3, None)]
    for row in report["rows"]:
        assert row["inference_s"] > 0 and row["compile_s"] > 0 and row["share_of_peak"] > 0
        assert ("step_s" in row) == (row["preset"] == "tiny") == ("unroll_s" in row)
    assert report["memory"]["resident_MB"] > 50 and report["peak_GFLOPs_per_s"]["float32"] > 0
    table = (tmp_path / "out/model.md").read_text()
    assert table == model.markdown(report) and "| tiny, 1 x 3 x 32 x 32, K = 2, N = 3 |" in table
    assert "training step, s" in table and "PyTorch" not in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (16,)}, "--size: must be at least 32, got 16"), ({"frames": (1,)}, "--frames: must be at least 2"),
        ({"dtypes": ("float16",)}, "--dtype: 'float16' is no choice"), ({"rounds": 0}, "--rounds"),
        ({"presets": ("huge",)}, "'huge' is unknown"), ({"iterations": (-1,)}, "--iterations: must be at least 0"),
        ({"against": "torch", "training": True}, "--batch: PyTorch cannot train DFV on one stack"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said_at_once(change, message):
    with pytest.raises(InputError, match=message):
        model.bench_model(**change)


def test_the_command_asks_for_it(monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(model, "bench_model", lambda *a, **k: asked.update(a=a, **k))
    monkeypatch.setattr(model, "markdown", lambda report: "the table")
    assert cli.main(["bench", "--preset", "paper", "dwild", "--frames", "5", "10", "--dtype", "bfloat16"]) == 0
    assert asked["a"] == (["paper", "dwild"],) and asked["frames"] == [5, 10] and asked["sizes"] == [256]
    assert asked["dtypes"] == ["bfloat16"] and "the table" in capsys.readouterr().out
    assert cli.main(["bench", "unroll", "--preset", "dwild"]) == 2
    assert "--preset: unroll takes one of paper, physical, tiny" in capsys.readouterr().err


def test_a_profile_names_operations_and_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(estimators, "build", fakes.build)
    table = profile.profile("tiny", tmp_path, size=64, num_frames=3)
    assert list((tmp_path / "tiny").rglob("*.xplane.pb"))
    assert "tiny, 1 x 3 x 64 x 64" in table and "conv_general_dilated" in table
    assert profile._part("jit(infer)/FocusVolume/encoder/conv1/conv") == "encoder"
    assert profile._part("jit(infer)/closed_call/GatedProximalNetwork/phi1/conv") == "unroll"
    assert profile._part("jit(infer)/reduce_sum") == "elsewhere"


def test_the_pytorch_counterpart_is_the_same_network(key):
    torch = pytest.importorskip("torch")
    import jax
    import numpy as np

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
