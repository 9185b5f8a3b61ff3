"""`dff-jax train CONFIG --dry-run`: samples, prepare, training, evaluation, tables, figures, end to end."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import training_fakes as fakes

from dff_jax import cli, estimators
from dff_jax import config as configs
from dff_jax.data import datasets, pipeline
from dff_jax.data.datasets.samples import NAMES, write_samples
from dff_jax.errors import InputError
from dff_jax.evaluation import evaluate as evaluation
from dff_jax.training import dry_run as module

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
EXPERIMENTS = ("paper_ft", "physical_ft", "paper_hci", "physical_hci", "paper_ddff", "physical_ddff")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """A network that compiles in seconds, and it too in the place of the yardsticks."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "kept as conftest set it")
    monkeypatch.setattr(estimators, "build", fakes.build)
    real = fakes.build(configs.tiny())

    def untrained(variables, frames, focus, **kwargs):
        return real.apply(real.init(jax.random.key(0), frames, focus), frames, focus, **kwargs)

    yardstick = real._replace(apply=untrained)
    monkeypatch.setattr(evaluation, "_yardstick", lambda name: yardstick)


def run(name, output, capsys):
    status = cli.main(["train", str(CONFIGS / f"{name}.py"), "--dry-run", "--output", str(output)])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert f"dry run of {name}: all parts ran" in printed.out and "mean nothing" in printed.out
    return printed.out


def results(output, dataset):
    folder = output / "evaluations" / dataset
    return json.loads((folder / "metrics.json").read_text()), {p.name for p in (folder / "figures").iterdir()}


def check_run(output, name):
    """The run kept all switches of the configuration and only became smaller."""
    asked = cli.load_config(str(CONFIGS / f"{name}.py"))
    ran = configs.from_json((output / "run" / "config.json").read_text())
    resized = {"width", "head_width", "encoder", "num_iterations"}
    for field in dataclasses.fields(asked.model):
        if field.name not in resized:
            assert getattr(ran.model, field.name) == getattr(asked.model, field.name), field.name
    assert (ran.loss, ran.optimizer, ran.data.dataset) == (asked.loss, asked.optimizer, asked.data.dataset)
    assert ran.training.num_steps == module.STEPS and (output / "run" / "weights_last.safetensors").exists()


def test_flyingthings_from_end_to_end(tmp_path, capsys):
    out = run("paper_ft", tmp_path / "out", capsys)
    check_run(tmp_path / "out", "paper_ft")
    assert "## Table 1 of the paper" in out and "## Table 3 of the paper" in out and "## Table 2 of the paper" in out
    report, _ = results(tmp_path / "out", "flyingthings/focal_stack")
    assert report["meta"]["convention"] == "flyingthings" and report["meta"]["iterations"] == 5
    assert all("-" not in row["text"] for row in report["paper"][0]["rows"])  # every row of Table 1 is filled
    report, figures = results(tmp_path / "out", "middlebury/focal_stack")
    assert report["meta"]["resize"] and report["paper"][0]["number"] == 2 and "paper_figure_5.png" in figures
    # a second run does not write into the first
    assert cli.main(["train", str(CONFIGS / "paper_ft.py"), "--dry-run", "--output", str(tmp_path / "out")]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "paper_ft"])
def test_the_other_experiments_from_end_to_end(name, tmp_path, capsys):
    run(name, tmp_path / "out", capsys)
    check_run(tmp_path / "out", name)
    if name.endswith("ft"):
        assert results(tmp_path / "out", "middlebury/focal_stack")[0]["paper"]
    elif name.endswith("hci"):
        report, figures = results(tmp_path / "out", "hci/lightfields")
        assert "paper_figure_6.png" in figures and report["rows"]["final"]["AbsRel"] is None
        (table,) = report["paper"]
        assert [row["values"]["AbsRel"] is not None for row in table["rows"]] == [True, True]
    else:
        report, figures = results(tmp_path / "out", "ddff12/test")
        assert report["rows"] == {} and figures == {"paper_figure_9.png"}
        assert results(tmp_path / "out", "ddff12/scenes")[0]["literature"]


def test_it_leaves_nothing_behind_without_an_output(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "_run", lambda config, checks, folder: {"kept": [*folder.parent.iterdir()] == [folder]})
    before = jax.config.read("jax_disable_most_optimizations")
    assert module.dry_run(cli.load_config(str(CONFIGS / "paper_hci.py"))) == {"kept": True}
    assert list(tmp_path.iterdir()) == [] and jax.config.read("jax_disable_most_optimizations") == before


def test_what_cannot_be_made_is_refused_before_anything_is_written(tmp_path):
    base = cli.load_config(str(CONFIGS / "paper_ft.py"))
    for data, match in (
        ({"source": "procedural_live"}, "needs data.source=tfds"),
        ({"mixture": (configs.PartConfig(dataset="hci/stacks"),)}, "got a mixture"),
        ({"dataset": "mobile_depth/aligned"}, "no samples of mobile_depth/aligned"),
    ):
        model = dataclasses.replace(base.model, num_planes=15)
        config = dataclasses.replace(base, model=model, data=dataclasses.replace(base.data, **data))
        with pytest.raises(InputError, match=match):
            module.dry_run(config, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_what_the_builders_take(name, tmp_path):
    """As real data would be: nothing missing, focused where the truth says, and truth within and beyond the range."""
    source = write_samples(name, tmp_path / "files", (48, 56), train=1, held_out=1)
    datasets.prepare(name, tmp_path / "tfds", source=source)
    stack = pipeline.tfds_source(name, "test", tmp_path / "tfds")[0]
    assert stack.frames.shape[1:] == (48, 56, 3) and stack.frames.std() > 10
    if name == "ddff12/test":
        assert not stack.mask.any()
        return
    assert stack.mask.mean() > 0.9
    # sharpest where focus and truth agree, of the frames: gradient energy of pixels by the nearest setting
    q = 1 / stack.focus if stack.unit == "metre" else stack.focus
    truth = 1 / np.maximum(stack.depth, 1e-6) if stack.unit == "metre" else stack.depth
    nearest = np.abs(truth[None] - q[:, None, None]).argmin(0)
    sharpness = sum(np.abs(np.gradient(stack.frames.astype(float), axis=a)).sum(-1) for a in (1, 2))
    found = [np.argmax([frame[nearest == z].sum() for frame in sharpness]) for z in np.unique(nearest[stack.mask])]
    assert np.median(np.abs(np.array(found) - np.unique(nearest[stack.mask]))) <= 1
