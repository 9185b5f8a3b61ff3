"""The comparison from end to end with a stand-in network: what is trained, measured, written and not done again."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
import pytest
import training_fakes as fakes
from dataset_samples import write_samples
from PIL import Image

from dff_jax import cli, estimators
from dff_jax import config as cfg
from dff_jax.config.load import load_config
from dff_jax.data import datasets
from dff_jax.errors import ConfigError, InputError
from dff_jax.studies import compare as module
from dff_jax.studies import compare_figures as figures
from dff_jax.studies import compare_report as report
from dff_jax.studies.compare import compare

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def _method(label, data_dir, **loss):
    data = cfg.DataConfig(dataset="procedural/tiny", data_dir=str(data_dir), batch_size=2, crop=(32, 32), eval_limit=1)
    training = cfg.TrainingConfig(
        num_steps=3, log_every=1, eval_every=3, save_every=3, num_devices=1, tensorboard=False, statistics=0
    )
    model = dataclasses.replace(cfg.tiny(), num_iterations=2)
    config = cfg.Config(model=model, loss=cfg.LossConfig(**loss), data=data, training=training)
    return cfg.Method(label, "equal budget", config)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A comparison of two trained methods and one without training, done once."""
    root = tmp_path_factory.mktemp("compare")
    datasets.prepare("procedural/tiny", root / "data")
    world = cfg.WorldConfig(height=32, width=32, num_frames=4, num_objects=2)
    comparison = cfg.Comparison(
        name="two",
        methods=(
            _method("ours", root / "data"),
            _method("theirs", root / "data", kind="mse_final"),
            cfg.Method("sml", "no training", weights="sml"),
        ),
        test=cfg.TestSet(name="test set", dataset="procedural/tiny", data_dir=str(root / "data"), limit=2),
        zero_shot=(
            cfg.TestSet(name="other worlds", world=world, limit=2),
            cfg.TestSet(name="not there", dataset="rgbd/absent", data_dir=str(root / "data")),
        ),
        ratio=("ours", "theirs"),
        figure_stacks=2,
    )
    patch = pytest.MonkeyPatch()
    real = estimators.build
    patch.setattr(
        estimators, "build", lambda model, *a: (fakes.build if model.method == "proximal" else real)(model, *a)
    )
    yield comparison, root / "out", compare(comparison, root / "out")
    patch.undo()


def test_the_table_is_the_mean_over_seeds_of_what_was_measured(setting):
    comparison, output, table = setting
    runs = [json.loads((output / "ours-equal-budget" / f"seed{seed}" / "test-set.json").read_text()) for seed in (0, 1)]
    values = [run["rows"]["final"]["in_range"]["MAE"] for run in runs]
    row = table["rows"][0]
    assert (row["label"], row["seeds"]) == ("ours", 2) and values[0] != values[1]
    cell = row["tests"]["test set"]["in_range"]["MAE"]
    assert cell["mean"] == pytest.approx(np.mean(values))
    assert cell["spread"] == pytest.approx(abs(values[0] - values[1]) / 2)
    means = [table["rows"][i]["tests"]["test set"]["all"]["MAE"]["mean"] for i in (0, 1)]
    assert table["ratios"][0]["MAE"] == pytest.approx(means[0] / means[1])
    assert table["rows"][2]["seeds"] == 1 and "refined" in row["tests"]["test set"]["stages"]
    assert len(table["notes"]) == 1 and table["notes"][0].startswith("not there: left out")


def test_per_stack_lines_add_up_to_the_table(setting):
    comparison, output, table = setting
    lines = list(csv.DictReader(open(output / "per_stack.csv")))
    mine = [x for x in lines if (x["method"], x["test"], x["region"]) == ("ours", "other worlds", "all")]
    assert len(mine) == 4 and {x["seed"] for x in mine} == {"0", "1"}  # two stacks, two seeds
    mean = table["rows"][0]["tests"]["other worlds"]["all"]["RMS"]["mean"]
    assert np.mean([float(x["RMS"]) for x in mine]) == pytest.approx(mean)


def test_text_and_picture(setting):
    comparison, output, table = setting
    text = (output / "table.md").read_text()
    assert "MAE of ours / MAE of theirs" in text and "### other worlds" in text and "not there: left out" in text
    for line in text.splitlines():  # every row of a table has as many cells as its head
        if line.startswith("| ---"):
            width = line.count("|")
        if line.startswith("| ours"):
            assert line.count("|") == width
    assert text.count("**") % 2 == 0 and " ± " in text
    for name in figures.FILES:
        assert (output / name).read_bytes()[:4] == b"\x89PNG"
    methods = table["costs"]["methods"]
    assert methods["ours"]["parameters"] > 100 and methods["sml"]["parameters"] == 0
    assert methods["ours"]["step_GFLOPs"] > methods["ours"]["inference_GFLOPs"] > 0
    assert methods["sml"]["inference_s"] > 0
    assert methods["ours"]["step_shape"] == [2, 5, 32, 32]


def test_stacks_of_the_figures():
    one = cfg.Comparison(methods=(cfg.Method("ours", weights="sml"),))
    assert figures.choose(one, 100) == ([0, 33, 66, 99], 0)
    paper = dataclasses.replace(one, figure_stacks=(12, 28, 54), chart_stack=54)
    assert figures.choose(paper, 100) == ([12, 28, 54], 54)
    assert figures.choose(dataclasses.replace(one, figure_stacks=2, chart_stack=1), 2) == ([0, 1], 1)
    with pytest.raises(ConfigError, match="figure_stacks: numbers from 0 to 49 of the test set, got 12 28 54"):
        figures.choose(paper, 50)
    with pytest.raises(ConfigError, match="comparison.chart_stack: numbers from 0 to 0 of the test set, got 5"):
        figures.choose(dataclasses.replace(one, chart_stack=5), 1)


def test_bars_are_shares_of_the_largest_value_and_carry_their_own():
    found = {"a": dict.fromkeys(module.paper.COLUMNS), "b": dict.fromkeys(module.paper.COLUMNS)}
    found["a"] |= {"MAE": 4.0, "Corr": -0.5}
    found["b"] |= {"MAE": 1.0}
    (axes,) = figures.metrics_chart("x", found).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["MAE ↓", "Corr ↑"]
    heights = [[bar.get_height() for bar in group] for group in axes.containers]
    assert heights == [[1.0, 0.0], [0.25, 0.0]]  # a correlation below 0, and none
    assert [text.get_text() for text in axes.texts] == ["4", "-0.5000", "1", "-"]


@pytest.mark.slow
def test_table_3_on_sample_files(tmp_path):
    """The config for FlyingThings3D with a method that needs no training in the place of each network."""
    name, data_dir = "flyingthings/focal_stack", str(tmp_path / "data")
    datasets.prepare(name, data_dir, source=write_samples(name, tmp_path / "files", (32, 40), train=1, held_out=3))
    wanted = load_config(str(CONFIGS / "compare_ft.py"), cfg.Comparison)
    wanted = dataclasses.replace(
        wanted,
        methods=tuple(cfg.Method(one.label, weights="sml") for one in wanted.methods),
        test=dataclasses.replace(wanted.test, data_dir=data_dir), figure_stacks=(2, 0), chart_stack=1,
    )  # fmt: skip
    table = compare(wanted, tmp_path / "out")
    (three,) = table["paper"]
    rows = [(row["row"], row["from"]) for row in three["rows"]]
    labels = [method.label for method in wanted.methods]
    assert rows[:4] == [("RFVR", "paper"), ("RFVR-like", "ours: gt > 0"), ("AiFDNet", "paper"), (labels[1], rows[1][1])]
    assert [row for row, source in rows if source != "paper"] == labels and rows[-3][0] == "the paper"
    run = json.loads((tmp_path / "out" / "dfv-fv" / "flyingthings3d.json").read_text())
    assert three["rows"][5]["values"]["RMS"] == run["literature"]["gt > 0"]["final"]["RMS"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## Table 3 of the paper" in text and "| DFV-Diff | paper | 5.51 |" in text
    for picture in figures.FILES:
        assert np.asarray(Image.open(tmp_path / "out" / picture)).std() > 20


def test_weights_that_are_not_there_are_told_before_anything_is_trained(setting, tmp_path, monkeypatch):
    comparison, _, _ = setting
    monkeypatch.setattr("dff_jax.training.loop.train", lambda *a, **k: pytest.fail("trained"))
    imported = load_config(f"{CONFIGS / 'compare_ft.py'}:imported", cfg.Comparison).methods[1:5]
    assert {method.weights for method in imported} == {
        f"runs/imported/{name}.safetensors" for name in ("aifdnet", "dfv_fv", "dfv_diff", "dwild")
    }
    with pytest.raises(InputError, match="runs/imported/aifdnet.safetensors: neither one of"):
        compare(dataclasses.replace(comparison, methods=(*comparison.methods, *imported)), tmp_path)


def test_nothing_is_done_twice(setting, monkeypatch):
    comparison, output, table = setting
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    monkeypatch.setattr(module, "evaluated", lambda *a, **k: pytest.fail("measured again"))
    assert compare(comparison, output) == table
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")} == before


def test_new_weights_are_measured_anew(setting, tmp_path, monkeypatch):
    comparison, output, table = setting
    weights = [str(output / f"ours-equal-budget/seed{seed}/weights_last.safetensors") for seed in (0, 1)]
    one = module.Trained(comparison.methods[0], 0, tmp_path, weights[0])
    source = module.pipeline.open_data(comparison.test)
    first = module.measure(one, "test set", source, 1)
    assert module.measure(one._replace(spec=weights[1]), "test set", source, 1)["rows"] != first["rows"]
    (tmp_path / "test-set.json").write_text("{ cut off")
    assert module.measure(one, "test set", source, 1) == first


def test_batch_statistics_for_other_stacks_are_of_training_worlds_of_their_shape(setting):
    comparison, _, _ = setting
    method = comparison.methods[0]
    config = dataclasses.replace(method.config, training=dataclasses.replace(method.config.training, statistics=1))
    one = module.Trained(dataclasses.replace(method, config=config), 0, None, "")
    source = module.pipeline.open_data(comparison.zero_shot[0])  # 4 frames of 32 x 32, in training 5 of 48 x 48
    (frames, focus), *others = module._population(one, None, source).batches()
    assert frames.shape == (1, 4, 32, 32, 3) and focus.shape == (1, 4) and not others
    assert not np.allclose(frames[0], source[0].frames / 255, atol=0.1)  # none of the test's own


def test_only_some(setting, tmp_path):
    comparison, output, _ = setting
    kept = module._restricted(comparison, ["theirs", "sml-no-training"], tmp_path)
    assert [e.label for e in kept.methods] == ["theirs", "sml"] and kept.ratio == ()
    assert module._restricted(comparison, ["theirs"], output) == comparison  # the others are done
    with pytest.raises(ConfigError, match="--only: no method is called 'they'.*theirs"):
        module._restricted(comparison, ["they"], tmp_path)


def test_an_interrupted_training_ends_the_comparison(setting, tmp_path, monkeypatch):
    comparison, _, _ = setting
    monkeypatch.setattr("dff_jax.training.loop.train", lambda *a, **k: {"interrupted": True})
    assert compare(comparison, tmp_path) is None
    assert not (tmp_path / "table.md").exists()


def test_a_method_that_cannot_take_the_stacks_is_named():
    values = {"refused": "weights for stacks of exactly 15 frames"}
    row = {"label": "paper", "recipe": "", "seeds": 2, "tests": {"5 frames": report._joined([values, values])}}
    assert report._refusals([row]) == ["paper cannot take the stacks of 5 frames"]
    assert report._table([row], "5 frames", [("all", "MAE")])[2:] == ["| paper | - | - |"]


@pytest.mark.parametrize(
    "change, match",
    [
        ({"methods": ()}, "at least one method"),
        ({"seeds": ()}, "one seed"),
        ({"seeds": (1, 1)}, "seeds: 1 is there more than once"),
        ({"ratio": ("ours", "nobody")}, "ratio: no method is called 'nobody'"),
        ({"figure_stacks": 0}, "figure_stacks: must be at least 1"),
        ({"figure_stacks": ()}, "figure_stacks: give at least one number"),
        ({"figure_stacks": "all"}, "figure_stacks: expected a whole number, got 'all'"),
    ],
)
def test_errors_name_the_field(change, match):
    base = cfg.Comparison(methods=(cfg.Method("ours", weights="sml"),))
    with pytest.raises(ConfigError, match=match):
        dataclasses.replace(base, **change)


def test_entrants_and_test_sets_are_complete():
    with pytest.raises(ConfigError, match="needs either a config to train or weights"):
        cfg.Method("ours")
    with pytest.raises(ConfigError, match="has nothing to train; give weights='rdf'"):
        cfg.Method("ours", config=cfg.Config(model=cfg.RDF()))
    with pytest.raises(ConfigError, match="exactly one of dataset, source and world"):
        cfg.TestSet(name="x", dataset="a", source="b")


def test_the_command(setting, monkeypatch, tmp_path, capsys):
    file = tmp_path / "c.py"
    file.write_text("from dff_jax.config import Config\ndef config():\n    return Config()\n")
    assert cli.main(["compare", str(file)]) == 2
    assert "returns Config, not a Comparison" in capsys.readouterr().err
