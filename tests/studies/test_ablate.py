"""The ablation: its numbers against the estimator's own at each K, its tables and pictures, and bad input."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
import training_fakes as fakes
from dataset_samples import write_samples
from networks import variables
from PIL import Image

from dff_jax import cli, estimators
from dff_jax import config as configs
from dff_jax.config import DataSpec
from dff_jax.data import datasets, pipeline
from dff_jax.errors import InputError
from dff_jax.estimators.weights import load_estimator, save_weights
from dff_jax.evaluation import metrics
from dff_jax.pictures import panels
from dff_jax.studies import ablate_figures, ablate_report
from dff_jax.studies.ablate import COMPARISON_FILES, FILES, ablate
from dff_jax.types import Batch, History, Prediction

MODEL = fakes.small_model(prox_levels=1, measure_prior="none")


def save_run(folder, model, estimator, **info):
    """A run folder with random weights, so that every part of the network moves something."""
    given = variables(estimator, (1, fakes.FRAMES, 32, 32))
    rng = np.random.default_rng(2)
    given["params"] = jax.tree.map(lambda x: np.float32(x + 0.03 * rng.normal(size=np.shape(x))), given["params"])
    save_weights(folder / "weights.safetensors", model, given, {"num_frames": fakes.FRAMES, **info})
    return folder


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    """Three stacks to measure on."""
    return DataSpec(source=str(fakes.write_stacks(tmp_path_factory.mktemp("stacks"), train=0, val=3) / "val"))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("small") / "run", MODEL, estimators.build(MODEL))


def fake(monkeypatch, build):
    """`build` in the place of the real network, which takes long to compile; the methods without training are real."""
    real = estimators.build
    monkeypatch.setattr(estimators, "build", lambda model: (build if model.method == "proximal" else real)(model))


@pytest.fixture
def faked(monkeypatch):
    fake(monkeypatch, fakes.build)


def depths(model, variables, batch, K):
    """Prediction of an estimator of `model` at K, by itself."""
    apply = jax.jit(lambda v, f, s: estimators.build(model).apply(v, f, s, num_iterations=K)[0])
    return apply(variables, batch.frames, batch.focus)


@pytest.mark.slow
def test_every_number_is_the_estimators_own(tmp_path, stacks, small_run):
    run = small_run
    schemes = ["exact_prox", "proximal_gradient+identity"]
    (report,) = ablate([run], tmp_path / "out", data=stacks, iterations=[2], schemes=schemes, batch_size=2)
    assert sorted(p.name for p in (tmp_path / "out").glob("[!.]*")) == sorted(FILES)
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == report
    assert report["meta"]["iterations"] == [1, 2] and report["meta"]["answer"] == "refined(1)"

    loaded = load_estimator(run)
    (everything,) = pipeline.evaluation_batches(pipeline.open_data(stacks), 3)
    batch = everything.batch

    def mae(depth):
        found = [metrics.compute(np.asarray(depth[i]), batch.depth[i], batch.mask[i])["MAE"] for i in range(3)]
        return float(np.mean(found))

    def close(value):
        return pytest.approx(value, rel=2e-4)

    rows, at = report["rows"], {K: depths(MODEL, loaded.variables, batch, K) for K in (1, 2)}
    for K, prediction in at.items():
        assert rows[f"refined({K})"]["MAE"] == close(mae(prediction.depth))
        assert rows[f"D({K})"]["MAE"] == close(mae(prediction.history.iterates[:, -1]))
    assert len({round(rows[f"refined({K})"]["MAE"], 3) for K in at}) == 2  # they differ
    assert rows["candidate_2"]["MAE"] == close(mae(at[1].history.candidates[..., 1]))
    assert rows["expected"]["MAE"] == close(mae(at[1].history.expected)) and "classical" in rows

    other = depths(dataclasses.replace(MODEL, scheme="exact_prox"), loaded.variables, batch, 2)
    exact = report["schemes"]["exact_prox"]
    assert exact["D(2)"]["MAE"] == close(mae(other.history.iterates[:, -1]))
    assert exact["D(2)"]["MAE"] != pytest.approx(rows["D(2)"]["MAE"], rel=1e-3)
    assert exact["refined(2)"]["MAE"] == close(mae(other.depth)) and "candidate_1" not in exact
    data_term = report["schemes"]["proximal_gradient+identity"]
    assert data_term["D(2)"]["MAE"] == close(rows["D(0)"]["MAE"])

    # the course, by hand: z = D(1) - eta (S D(1) - b), eta = u / (1 + u S), in shares of the focus range
    course, h = report["courses"]["proximal_gradient"], jax.device_get(at[2].history)
    S, D = h.weights.sum(-1), h.iterates / (batch.focus[:, -1] - batch.focus[:, 0])[:, None, None, None]
    raw = loaded.variables["params"]["unroll"]["per_iteration"]["step_size"]
    for k in (1, 2):  # the last trained step size repeats
        u = np.log1p(np.exp(float(raw[0])))
        eta = u / (1 + u * S)
        z = D[:, k - 1] - eta * S * (D[:, k - 1] - D[:, 0])
        data, prox = np.abs(z - D[:, k - 1]).mean(), np.abs(D[:, k] - z).mean()
        assert course["data_step"][k - 1] == pytest.approx(data, rel=1e-3, abs=1e-7)
        assert course["eta_S"][k - 1] == pytest.approx((eta * S).mean(), rel=1e-3)
        assert course["prox_step"][k - 1] == pytest.approx(prox, rel=1e-3)
        assert ablate_report.data_share(course, k) == pytest.approx(data / (data + prox), rel=1e-3, abs=1e-4)
        residual = np.sqrt(((D[:, k] - D[:, k - 1]) ** 2).mean((1, 2))).mean()
        assert course["residual"][k - 1] == pytest.approx(residual, rel=1e-3)
        energy = (0.5 * S * (D[:, k] - D[:, 0]) ** 2).mean()
        assert course["data_energy"][k] == pytest.approx(energy, rel=1e-3)
    assert course["S_mean"] == pytest.approx(S.mean(), rel=1e-4)
    assert course["weights"] == pytest.approx(h.weights.mean((0, 1, 2)), rel=1e-4)

    text = (tmp_path / "out" / "table.md").read_text()
    assert f"| Iteration 1 | {rows['D(1)']['MAE']:.3f} |" in text
    assert f"| Refined | {rows['refined(1)']['MAE']:.3f} |" in text
    assert "| *the paper's, on FlyingThings3D: Iteration 3* | *1.475* | *2.867* |" in text
    gain = rows["D(0)"]["MAE"] - rows["D(2)"]["MAE"]
    line = next(line for line in text.splitlines() if line.startswith("| 2 |"))
    assert f"| {gain:.4g} |" in line and f"| {rows['refined(2)']['MAE']:.4g} |" in line
    with open(tmp_path / "out" / "per_stack.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    wanted = ("exact_prox", "D(2)", "all")
    mine = [float(one["MAE"]) for one in lines if (one["scheme"], one["row"], one["region"]) == wanted]
    assert len(mine) == 3 and np.mean(mine) == close(exact["D(2)"]["MAE"])


def test_runs_side_by_side(tmp_path, stacks, faked):
    """Two runs of one name; what differs between them; pictures that can be opened."""
    one = configs.Config(model=dataclasses.replace(MODEL, step_size="per_pixel"))
    two = dataclasses.replace(one, model=dataclasses.replace(one.model, weight_norm="softmax"))
    runs = [
        save_run(tmp_path / where / "run", c.model, fakes.build(c.model), config=configs.to_dict(c), step=7)
        for where, c in (("a", one), ("b", two))
    ]
    reports = ablate(runs, tmp_path / "out", data=stacks, iterations=[2], schemes=[])
    assert [report["meta"]["run"] for report in reports] == ["run", "b_run"]
    names = sorted(p.name for p in (tmp_path / "out").glob("[!.]*"))
    assert names == sorted(["run", "b_run", *COMPARISON_FILES])
    assert sorted(p.name for p in (tmp_path / "out" / "b_run").glob("[!.]*")) == sorted(FILES)
    for picture in (tmp_path / "out").rglob("*.png"):
        Image.open(picture).verify()
    compared = json.loads((tmp_path / "out" / "comparison.json").read_text())
    rows, summary = reports[1]["rows"], compared["b_run"]
    assert summary["Dbar"] == rows["expected"]["MAE"] and summary["answer"] == rows["refined(1)"]["MAE"]
    assert summary["best D_i"] == min(rows["candidate_1"]["MAE"], rows["candidate_2"]["MAE"])
    assert summary["gain of K steps"] == pytest.approx(rows["D(0)"]["MAE"] - rows["D(1)"]["MAE"])
    assert summary["gain of refiner"] == pytest.approx(rows["D(1)"]["MAE"] - rows["refined(1)"]["MAE"])
    assert summary["mean S"] == pytest.approx(1.0) and summary["spread of S"] == pytest.approx(0.0, abs=1e-6)
    assert rows["classical"] == reports[0]["rows"]["classical"]  # measured once
    text = (tmp_path / "out" / "comparison.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| b_run") and "softmax" in line]
    assert line.endswith("| 7 | model.weight_norm = softmax |")


@pytest.mark.slow
def test_figures_3_and_4_on_sample_files_of_stacks_of_ones_choice(tmp_path, faked, monkeypatch):
    name, shown = "flyingthings/focal_stack", []
    datasets.prepare(name, tmp_path / "tfds", source=write_samples(name, tmp_path / "files", (32, 40), 1, held_out=3))
    data, run = DataSpec(dataset=name, data_dir=str(tmp_path / "tfds")), tmp_path / "run"
    save_run(run, MODEL, fakes.build(MODEL))
    real = ablate_figures.attention
    monkeypatch.setattr(ablate_figures, "attention", lambda *args: shown.append(args) or real(*args))
    (report,) = ablate([run], tmp_path / "out", data, iterations=[5], schemes=[], figure_stacks=(2, 0))
    ((_, stacks, _),) = shown
    assert [(one.role, one.name) for one in stacks] == [("stack 2", "test/0002"), ("stack 0", "test/0000")]
    with open(tmp_path / "out" / "per_stack.csv", newline="") as file:
        wanted = {"stack": "test/0002", "row": "D(5)", "region": "all"}.items()
        (line,) = (line for line in csv.DictReader(file) if wanted <= line.items())
    assert stacks[0].rows["D(5)"]["MAE"] == pytest.approx(float(line["MAE"]))
    for picture in ("iterates.png", "weights.png"):
        assert np.asarray(Image.open(tmp_path / "out" / picture)).std() > 20
    with pytest.raises(InputError, match="--figure-stacks: numbers from 0 to 1, got 2"):
        ablate([run], tmp_path / "other", dataclasses.replace(data, limit=2), figure_stacks=(2,))
    assert not (tmp_path / "other").exists()


def test_attention_maps_share_one_scale(monkeypatch):
    """And the mean of those shown is theirs."""
    rng, rows = np.random.default_rng(0), []
    weights = [rng.uniform(0, high, (1, 8, 8, 2)) for high in (1.0, 4.0)]
    empty = np.zeros((1, 8, 8))
    shown = []
    for i, w in enumerate(weights):
        history = History(empty, w, w, empty[:, None], empty[:, None])
        prediction = Prediction(empty, empty, empty, np.zeros((1, 8, 8, 3)), history)
        batch = Batch(np.zeros((1, 3, 8, 8, 3)), np.zeros((1, 3)), empty, empty)
        shown.append(ablate_figures.Shown(f"stack {i}", f"test/{i}", {}, batch, prediction))
    monkeypatch.setattr(panels, "sheet", lambda given, **kwargs: rows.extend(given))
    ablate_figures.attention({"run": "r", "stacks": 9}, shown, rng.uniform(0, 9, (8, 8, 2)))
    images, *maps = rows
    assert len(images) == 2 and [len(row) for row in maps] == [4, 4]
    (bar,) = {row[-1].bar for row in maps}
    assert bar.low == 0 and 8 < bar.high < 9
    mean = panels.colorize((weights[0] + weights[1])[0, ..., 1] / 2, bar.low, bar.high, cmap=bar.cmap)
    np.testing.assert_array_equal(maps[1][2].image, mean)
    assert maps[1][2].caption.startswith("W²(2) mean of these") and "mean of all 9 stacks" in maps[0][3].caption


def test_a_run_without_refiner_answers_with_its_last_iterate(tmp_path, stacks, monkeypatch):
    def build(model):
        estimator = fakes.build(model)

        def apply(*args, **kwargs):
            prediction, stats = estimator.apply(*args, **kwargs)
            h = prediction.history
            return prediction._replace(depth=h.iterates[:, -1], history=h._replace(refined=h.refined[:, :0])), stats

        return estimator._replace(apply=apply)

    fake(monkeypatch, build)
    model = dataclasses.replace(MODEL, refiner_steps=0)
    (report,) = ablate(
        [save_run(tmp_path / "run", model, build(model))], tmp_path / "out", data=stacks, iterations=[2], schemes=[]
    )
    assert report["meta"]["answer"] == "D(1)" and not [row for row in report["rows"] if row.startswith("refined")]
    assert "Refined" not in (tmp_path / "out" / "table.md").read_text().replace("FlyingThings3D: Refined", "")


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"schemes": ["newton"]}, "--schemes newton: model.scheme: 'newton' is unknown; choose one of"),
        ({"schemes": ["fista+median"]}, r"--schemes fista\+median: model.prox: 'median' is unknown"),
        ({"schemes": ["chambolle_pock"]}, "--schemes chambolle_pock: .*no dual form"),
        ({"schemes": ["fista+residual_cnn"]}, "needs parameters that run does not have .params/prox/"),
        ({"iterations": [2, -1]}, "--iterations: give numbers of iterations, 0 or more"),
        ({"iterations": []}, "--iterations"),
        ({"batch_size": 0}, "--batch-size: must be at least 1, got 0"),
        ({"runs": ["classical"]}, "classical has no trained unroll"),
        ({"runs": ["nowhere"]}, "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, stacks, small_run, arguments, match):
    arguments = {"runs": [small_run], "data": stacks, "output": tmp_path / "out"} | arguments
    with pytest.raises(InputError, match=match) as caught:
        ablate(**arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_weights_of_another_number_of_frames_are_found_before_the_first_run_is_measured(tmp_path, stacks, faked):
    good = save_run(tmp_path / "good", MODEL, fakes.build(MODEL))
    fixed = dataclasses.replace(MODEL, num_planes=None, prox_inputs="with_confidence")
    bad = save_run(tmp_path / "bad", fixed, fakes.build(fixed), num_frames=5)
    with pytest.raises(InputError, match="bad: weights for stacks of exactly 5 frames"):
        ablate([good, bad], tmp_path / "out", data=stacks)
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(tmp_path, stacks, faked, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "as conftest set it")
    run = save_run(tmp_path / "run", MODEL, fakes.build(MODEL))
    common = ["ablate", str(run), "--source", stacks.source, "--output", str(tmp_path / "out")]
    assert cli.main([*common, "--iterations", "2", "--schemes", "--limit", "2"]) == 0
    out = capsys.readouterr()
    assert "## Table 1" in out.out and "2 stacks" in out.out and "pass 1/1" in out.err
    assert cli.main([*common, "--iterations", "-1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
