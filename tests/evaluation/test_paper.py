"""The paper's tables and figures from an evaluation, and the views of the data that they need."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from dataset_samples import write_samples
from PIL import Image

from dff_jax import cli
from dff_jax.config import DataSpec
from dff_jax.data import datasets, pipeline
from dff_jax.data.parts import StackSource
from dff_jax.errors import InputError
from dff_jax.evaluation import evaluate as module
from dff_jax.evaluation import paper, resampling
from dff_jax.evaluation.folder import evaluate_to_folder
from dff_jax.pictures import panels
from dff_jax.types import Batch, Estimator, FocalStack, Prediction

Z, H, W = 3, 20, 28
X = DataSpec("x")


def answer(variables, frames, focus, *, train=False, num_iterations=None):
    """Knows the truth: low + red of frame 0 times the focus range; half a step too far."""
    low, high = focus[:, :1, None], focus[:, -1:, None]
    depth = low + (high - low) * frames[:, 0, ..., 0] + 0.5
    ones = jnp.ones_like(depth)
    return Prediction(depth, ones, 0 * ones, frames[:, 1], None), {}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    estimator = Estimator(lambda *args: {}, answer)
    monkeypatch.setattr(module, "baseline", lambda name: estimator)


def stack(seed, low, high, has_truth=True):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (Z, H, W, 3), np.uint8)
    depth = (low + (high - low) * frames[0, ..., 0] / 255).astype(np.float32)
    mask = rng.random((H, W)) > 0.2 if has_truth else np.zeros((H, W), bool)
    return FocalStack(frames, np.linspace(low, high, Z), "disparity", np.where(mask, depth, 0), mask, f"test/{seed}")


def opened(monkeypatch, convention, low, high, count=5, has_truth=True):
    """Makes `evaluate_to_folder` find these stacks, whatever it asks for."""
    stacks = [stack(i, low, high, has_truth) for i in range(count)]
    source = StackSource("made up/test", "disparity", "", count, stacks.__getitem__, convention, has_truth)
    monkeypatch.setattr(pipeline, "open_data", lambda *args: source)
    return stacks


def rows_of(table):
    return {(row["row"], row["from"]): row for row in table["rows"]}


# Tables -----------------------------------------------------------------------------------------------------------


def test_the_papers_numbers_are_the_papers():
    """Against its text: the three tables run on, without blanks between the numbers."""
    lines = ["1.4692.8490.0690.03699.1899.7799.870.997", "1.4602.8420.0660.03599.2899.8199.890.997"]
    assert [paper.TABLE_1[row].replace(" ", "") for row in ("D(5)", "refined")] == lines
    assert paper.TABLE_2["middlebury"].replace(" ", "") == "23.5929.940.601.424.9237.3293.110.76"
    assert paper.TABLE_2["hci"].replace(" ", "") == "0.070.160.060.0397.7899.5399.910.97"
    assert paper.TABLE_3["DFV-Diff"].replace(" ", "") == "5.5110.650.530.6286.1888.0989.930.97"
    for table in (paper.TABLE_1, paper.TABLE_2, paper.TABLE_3):
        assert all(len(printed.split()) == len(paper.COLUMNS) == 8 for printed in table.values())


def fake_report(convention, rows, label="mine"):
    def row(i):
        return {name: 0.1 * i + 0.01 * k for k, name in enumerate(paper.COLUMNS)}

    literature = {"first": {name: row(i) for i, name in enumerate(rows)}, "last": {name: row(9) for name in rows}}
    meta = {"convention": convention, "label": label, "resize": None, "stacks": 14, "dataset": "x without y"}
    return {"literature": literature, "meta": meta}


def test_table_1_has_ours_under_each_of_the_papers_rows():
    stages = ["D(0)", *(f"D({k})" for k in range(1, 6)), "refined", "final", "classical", "sml"]
    report = fake_report("flyingthings", stages)
    one, three = paper.tables(report)
    assert (one["number"], three["number"]) == (1, 3)
    assert [row["row"] for row in one["rows"]] == [r for s in ("D(1)", "D(3)", "D(5)", "refined") for r in (s, s)]
    found = rows_of(one)
    assert found["D(3)", "paper"]["values"]["RMS"] == 2.867 and found["D(3)", "paper"]["text"][0] == "1.475"
    assert found["D(3)", "ours: first"]["values"] == report["literature"]["first"]["D(3)"]
    assert any("refines D(5)" in note for note in one["notes"])
    names = [row["row"] for row in three["rows"]]
    assert names == [*paper.TABLE_3, "mine", "classical", "sml"]
    # fewer iterations: the row stays, empty, and the note says how to fill it
    one, _ = paper.tables(fake_report("flyingthings", [s for s in stages if s not in ("D(4)", "D(5)")]))
    assert rows_of(one)["D(5)", "ours: first"]["text"] == ["-"] * 8
    assert any("D(5); evaluate with --iterations 5" in note for note in one["notes"])
    (three,) = paper.tables(fake_report("flyingthings", ["final", "classical", "sml"], label="sml"))
    assert three["number"] == 3 and [row["row"] for row in three["rows"]][-2:] == ["sml", "classical"]


def test_table_2_names_what_cannot_be_compared():
    (table,) = paper.tables(fake_report("middlebury", ["final"]))
    assert [row["from"] for row in table["rows"]] == ["paper", "ours: first", "ours: last"]
    assert any("--resize 512 512" in note for note in table["notes"])
    assert any("ours: 14 stacks of x without y" in note for note in table["notes"])
    report = fake_report("middlebury", ["final"])
    report["meta"]["resize"] = [512, 512]
    assert not any("--resize" in note for note in paper.tables(report)[0]["notes"])
    (table,) = paper.tables(fake_report("hci", ["final"]))
    assert [row["from"] for row in table["rows"]] == ["paper", "ours: last"]
    assert any("signed" in note for note in table["notes"])
    assert paper.tables(fake_report("fod500", ["final"])) == []


# From data to a folder --------------------------------------------------------------------------------------------


def test_middlebury_gives_table_2_and_figure_5(tmp_path, monkeypatch):
    stacks = opened(monkeypatch, "middlebury", 10.0, 60.0)
    report = evaluate_to_folder("sml", tmp_path / "out", X, batch_size=2)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == report
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## Table 2 of the paper: Middlebury" in text and "| 23.59 | 29.94 |" in text
    assert "## As the literature measures" in text and "| 10 <= gt <= 60 |" in text
    ours = rows_of(report["paper"][0])["sml", "ours: gt > 0"]["values"]["MAE"]
    inside = [s.mask & (s.depth > 0) for s in stacks]
    # 5e-7 more than 0.5: as far as the depths themselves are rounded
    assert ours == pytest.approx(0.5, rel=1e-3)
    assert report["literature"]["gt > 0"]["final"]["MAE"] == pytest.approx(0.5, rel=1e-5)
    assert report["literature"]["gt > 0"]["final"]["valid_pixels"] == sum(i.sum() for i in inside)
    assert report["literature"]["gt > 0, affine"]["final"]["MAE"] == pytest.approx(0, abs=1e-4)  # an offset only
    assert report["meta"]["figure"] == {"file": "figures/paper_figure_5.png", "stacks": ["test/0", "test/1", "test/3"]}
    assert np.asarray(Image.open(tmp_path / "out" / "figures" / "paper_figure_5.png")).std() > 20
    with open(tmp_path / "out" / "per_stack.csv", newline="") as file:
        regions = {line["region"] for line in csv.DictReader(file)}
    assert {"all", "in_range", "gt > 0", "gt > 0, mapped"} <= regions

    # another dataset into the same folder: no figure of the first stays
    opened(monkeypatch, "default", 10.0, 60.0, 1)
    report = evaluate_to_folder("sml", tmp_path / "out", X)
    assert report["literature"] == {} and report["paper"] == [] and "figure" not in report["meta"]
    assert not (tmp_path / "out" / "figures" / "paper_figure_5.png").exists()


def test_the_convention_can_be_chosen_and_wrong_ones_are_refused(tmp_path, monkeypatch):
    opened(monkeypatch, "default", 10.0, 100.0, 1)
    call = functools.partial(evaluate_to_folder, "sml", tmp_path / "out", X)
    report = call(convention="flyingthings", figure_stacks=(0,))
    assert report["meta"]["convention"] == "flyingthings" and report["paper"][0]["number"] == 3
    assert report["meta"]["figure"]["file"] == "figures/predictions.png"
    before = sorted(p.name for p in (tmp_path / "out").iterdir())
    for options, match in (
        ({"convention": "kitti"}, "choose one of default"),
        ({"convention": "fod500"}, "measures in metre"),
        ({"resize": (8, 512)}, "--resize: each side"),
        ({"figure_stacks": (0, 5)}, "--figure-stacks: numbers from 0 to 0, got 0 5"),
    ):
        with pytest.raises(InputError, match=match):
            call(**options)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == before


def test_data_without_truth_give_figure_9_and_say_why_there_are_no_numbers(tmp_path, monkeypatch):
    opened(monkeypatch, "ddff12", 0.02, 0.28, 12, has_truth=False)
    report = evaluate_to_folder("sml", tmp_path / "out", X, batch_size=2)
    assert report["rows"] == {} and report["meta"]["stacks"] == 0
    assert report["meta"]["figure"]["stacks"] == [f"test/{i}" for i in (0, 3, 6, 8, 11)]
    assert [p.name for p in (tmp_path / "out" / "figures").iterdir()] == ["paper_figure_9.png"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "no ground truth" in text and "figures/paper_figure_9.png shows test/0" in text
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == report


def test_figure_9_shows_other_methods_above_the_evaluated_one(tmp_path, monkeypatch):
    opened(monkeypatch, "ddff12", 0.02, 0.28, 2, has_truth=False)
    drawn = {}
    monkeypatch.setattr(paper, "save", lambda path, layout, columns: drawn.update({path.name: (layout, columns)}))
    evaluate_to_folder("sml", tmp_path / "out", X, against=("rdf", "sml", "rdf"))
    ((name, (layout, columns)),) = drawn.items()
    assert name == "paper_figure_9.png" and len(columns) == 2
    assert [row[1].caption for row in paper.draw(layout, columns)[:-1]] == [
        "test/1\nframe", "rdf", "sml (2)", "rdf (2)"
    ]  # fmt: skip
    # data with truth, which have no figure of their own, get one
    opened(monkeypatch, "default", 10.0, 60.0, 3)
    report = evaluate_to_folder("sml", tmp_path / "out", X, against=("rdf",))
    assert report["meta"]["figure"]["stacks"] == ["test/0", "test/1", "test/2"]
    assert list(drawn["predictions.png"][1][0].answers) == ["sml", "rdf"]
    with pytest.raises(InputError, match="neither one of"):
        evaluate_to_folder("sml", tmp_path / "other", X, against=("nowhere",))
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_figures_and_tables_on_sample_files(tmp_path, monkeypatch):
    """Middlebury with a scene left out; DDFF-12 and a folder of one's own, both without truth. AiF.png is shown."""
    specs, whose, real = {}, [], paper.save
    monkeypatch.setattr(
        paper, "save", lambda path, layout, columns: whose.append(columns[0].about) or real(path, layout, columns)
    )
    for name in ("middlebury/focal_stack", "ddff12/test"):
        source = write_samples(name, tmp_path / "files" / name, (40, 48), held_out=3)
        datasets.prepare(name, tmp_path / "tfds", source=source)
        specs[name] = DataSpec(dataset=name, data_dir=str(tmp_path / "tfds"))
    data = dataclasses.replace(specs["middlebury/focal_stack"], leave_out=("ArtL",))
    report = evaluate_to_folder("sml", tmp_path / "mb", data, resize=(32, 32))
    assert report["meta"]["stacks"] == 2 and report["meta"]["figure"]["stacks"] == ["test/Adirondack", "test/Jadeplant"]
    text = (tmp_path / "mb" / "table.md").read_text()
    assert text.startswith("# sml on middlebury/focal_stack/test without ArtL\n")
    assert "ours: 2 stacks of middlebury/focal_stack/test without ArtL" in text and "| 23.59 | 29.94 |" in text
    report = evaluate_to_folder("sml", tmp_path / "ddff", specs["ddff12/test"], against=("rdf",), figure_stacks=(2, 0))
    assert report["meta"]["figure"]["stacks"] == ["test/0002", "test/0000"]
    for truth in (tmp_path / "files").rglob("disp.exr"):
        truth.unlink()
    datasets.prepare("stacks/mine", tmp_path / "tfds", source=tmp_path / "files" / "middlebury" / "focal_stack")
    mine = DataSpec(dataset="stacks/mine", data_dir=str(tmp_path / "tfds"))
    evaluate_to_folder("sml", tmp_path / "mine", mine, against=("rdf",), resize=(32, 32))
    pictures = "mb/figures/paper_figure_5.png", "ddff/figures/paper_figure_9.png", "mine/figures/predictions.png"
    assert whose == ["all in focus", "all in focus (estimated)", "all in focus"]
    for picture in pictures:
        assert np.asarray(Image.open(tmp_path / picture)).std() > 20


def test_stacks_are_left_out_by_name(monkeypatch):
    stacks = opened(monkeypatch, "default", 0.0, 1.0, 4)
    source = dataclasses.replace(pipeline.open_data(X), shapes=tuple((Z, H, W + i) for i in range(4)))
    rest = source.without(("1", "test/3"))
    assert [one.name for one in map(rest.__getitem__, range(len(rest)))] == [stacks[0].name, stacks[2].name]
    assert rest.name == "made up/test without 1, test/3" and rest.describe != source.describe
    assert rest.shapes == ((Z, H, W), (Z, H, W + 2))
    with pytest.raises(InputError, match="leave_out: no stack of made up/test is called '4'; choose from 0, 1, 2, 3"):
        source.without(("0", "4"))
    with pytest.raises(InputError, match="leave_out: nothing is left of made up/test"):
        source.without(tuple("0123"))


def test_the_command_line_passes_it_all_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "kept as conftest set it")
    opened(monkeypatch, "default", 10.0, 60.0, 4)
    words = f"evaluate sml --dataset x --output {tmp_path / 'out'} --convention middlebury --resize 32 48"
    assert cli.main([*words.split(), "--figure-stacks", "2", "1"]) == 0
    assert "Table 2 of the paper" in capsys.readouterr().out
    meta = json.loads((tmp_path / "out" / "metrics.json").read_text())["meta"]
    assert (meta["convention"], meta["resize"]) == ("middlebury", [32, 48])
    assert meta["figure"]["stacks"] == ["test/2", "test/1"]
    assert cli.main([*words.replace("middlebury", "nyu").split()]) == 2
    assert re.search(r"^dff-jax: error: --convention: 'nyu' is unknown", capsys.readouterr().err)


# Figures ----------------------------------------------------------------------------------------------------------


def column(name="a", truth=True, about="all in focus (estimated)"):
    rng = np.random.default_rng(0)
    maps = {label: rng.uniform(0, 10, (H, W)) for label in ("mine", "classical", "sml")}
    picture = rng.random((H, W, 3))
    return paper.Column(name, picture, picture, about, maps["sml"] if truth else None, maps, (0.0, 10.0), "disparity")


def test_layouts_have_the_papers_rows():
    for layout, truth, rows in (
        (paper.LAYOUTS["middlebury"], True, ["all in focus (estimated)", "ground truth", "mine"]),
        (paper.LAYOUTS["hci"], True, ["all in focus (estimated)", "ground truth", "mine"]),
        (paper.LAYOUTS["ddff12"], False, ["frame", "classical", "sml", "mine"]),
        (paper.LAYOUTS["ddff12"], True, ["frame", "ground truth", "classical", "sml", "mine"]),
    ):
        one = column("a", truth)
        drawn = paper.draw(layout, [one, column("b", truth)])
        assert [panel.caption for panel in drawn[0]] == [f"a\n{rows[0]}", f"b\n{rows[0]}"]
        low, high = np.percentile(one.truth, [0.5, 99.5]) if truth else (0.0, 10.0)
        captions = [row[1].caption for row in drawn[1:]]
        assert captions == [*rows[1:-1], f"mine, blue {low:.3g} to red {high:.3g} disparity"]
        for name, row in zip(rows[1:], drawn[1:], strict=True):  # truth and answers share a scale
            values = one.truth if name == "ground truth" else one.answers[name]
            np.testing.assert_array_equal(row[0].image, panels.colorize(values, low, high))


def test_figures_5_and_6_show_the_datas_own_picture():
    own, estimated = np.full((1, H, W, 3), 0.25), np.full((1, H, W, 3), 0.75)
    empty = np.zeros((1, H, W))
    prediction = Prediction(empty, empty, empty, estimated, None)
    batch = Batch(np.zeros((1, Z, H, W, 3)), np.arange(Z)[None], empty, empty > 0, own)
    (picture, *_), *_ = paper.draw(paper.LAYOUTS["hci"], [paper.column("a", batch, prediction, {}, "disparity", "m")])
    assert picture.caption == "a\nall in focus" and (picture.image == 64).all()
    without = paper.column("b", batch._replace(all_in_focus=None), prediction, {}, "disparity", "m")
    (picture, *_), *_ = paper.draw(paper.LAYOUTS["hci"], [without])
    assert picture.caption == "b\nall in focus (estimated)" and (picture.image == 191).all()


def test_a_column_without_truth_beside_one_with_it_says_so():
    drawn = paper.draw(paper.LAYOUTS["hci"], [column("a"), column("b", False)])
    assert [panel.caption for panel in drawn[1]] == ["ground truth", "no ground truth"]
    assert (drawn[1][1].image == panels.HOLE).all()


def test_figure_7_has_a_row_for_each_stack_and_a_column_for_each_method():
    drawn = paper.draw_methods([column("a"), column("b"), column("c", False)])
    heads = ["a\ninput", "ground truth", "mine", "classical", "sml"]
    assert [panel.caption for panel in drawn[0]] == heads
    assert [[panel.caption for panel in row] for row in drawn[1:]] == [
        ["b", "", "", "", ""], ["c", "no ground truth", "", "", ""]
    ]  # fmt: skip
    for row, one in zip(drawn, [column("a"), column("b"), column("c", False)], strict=True):
        assert [panel.bar is None for panel in row] == [True] * 4 + [False]
        expected = panels.colorize(one.answers["sml"], row[-1].bar.low, row[-1].bar.high)
        np.testing.assert_array_equal(row[-1].image, expected)


def test_which_stacks_are_shown():
    hci, ddff = paper.LAYOUTS["hci"], paper.LAYOUTS["ddff12"]
    assert paper.choose("hci", True, 4) == (hci, [0, 1, 2, 3]) and paper.choose("hci", True, 2) == (hci, [0, 1])
    assert paper.choose("ddff12", False, 120) == (ddff, [0, 30, 60, 89, 119])
    assert paper.choose("ddff12", False, 1) == (ddff, [0])
    assert paper.choose("ddff12", False, 120, [7, 3, 7]) == (ddff, [7, 3])
    with pytest.raises(InputError, match="0 to 3"):
        paper.choose("hci", True, 4, [])
    assert paper.choose("default", True, 4) is None
    assert paper.choose("hci", True, 1, methods=True) == (hci._replace(methods=True), [0])
    assert paper.choose("default", False, 2) == (paper.PREDICTIONS, [0, 1])
    assert paper.choose("default", True, 4, [2]) == (paper.PREDICTIONS, [2])


# Views of the data ------------------------------------------------------------------------------------------------


def test_resizing_scales_frames_and_leaves_truth_its_values():
    one = stack(0, 10.0, 60.0)
    resized = resampling.resize_stack(one, (40, 14))
    assert resized.frames.shape == (Z, 40, 14, 3) and resized.frames.dtype == np.uint8
    assert resized.depth.shape == resized.mask.shape == (40, 14)
    np.testing.assert_array_equal(resized.depth, np.repeat(one.depth, 2, 0)[:, 1::2])  # values of the truth
    np.testing.assert_array_equal(resized.mask, np.repeat(one.mask, 2, 0)[:, 1::2])
    np.testing.assert_array_equal(resized.focus, one.focus)
    flat = one._replace(frames=np.full((Z, H, W, 3), 77, np.uint8))
    assert (resampling.resize_stack(flat, (32, 32)).frames == 77).all()
    # antialiased: the mean of a picture stays
    assert resized.frames.mean() == pytest.approx(one.frames.mean(), abs=1)
    for frames in (one.frames.astype(np.uint16) * 257, (one.frames / 255).astype(np.float32)):
        other = resampling.resize_stack(one._replace(frames=frames), (40, 14)).frames
        scale = 257.0 if frames.dtype == np.uint16 else 1 / 255
        assert other.dtype == frames.dtype
        np.testing.assert_allclose(other, resized.frames * scale, atol=1.01 * scale)
    assert resampling.resize_stack(one, (H, W)) is one
    pictured = resampling.resize_stack(one._replace(all_in_focus=one.frames[1]), (40, 14))
    np.testing.assert_array_equal(pictured.all_in_focus, resized.frames[1])
    assert resampling.resize_stack(one._replace(depth=None, mask=None), (40, 14)).depth is None


def test_a_single_held_out_split_serves_to_validate_and_to_test(monkeypatch):
    class Builder:
        info = type("Info", (), {"splits": {"train": 0, "test": 0}, "metadata": {
            "unit": "metre", "convention": "fod500", "has_truth": False}, "features": {}})  # fmt: skip
        data_path = "somewhere"

        def as_data_source(self, split):
            return [split] * 3

    from dff_jax.data import datasets

    monkeypatch.setattr(datasets, "open_builder", lambda name, data_dir: Builder())
    for split in ("validation", "test"):
        source = pipeline.tfds_source("x", split)
        assert (source.name, source.convention, source.has_truth, len(source)) == ("x/test", "fod500", False, 3)
    assert pipeline.tfds_source("x", "train").name == "x/train"
    with pytest.raises(InputError, match="no 'dev'"):
        pipeline.tfds_source("x", "dev")
