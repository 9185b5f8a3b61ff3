"""The experiments of the paper (configs/) from sample files to tables and figures, small and short.

Each config runs once: three with their own network, as a traced loss, and three with a small one, from end to end.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_fakes as fakes
from dataset_samples import NAMES, write_samples

from dff_jax import estimators
from dff_jax.config import DataSpec
from dff_jax.config.load import load_config
from dff_jax.data import datasets, pipeline
from dff_jax.evaluation.folder import evaluate_to_folder
from dff_jax.training import loop
from dff_jax.training.objective import objective
from dff_jax.types import Batch

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SIZE = (48, 64)


def small(config, data_dir):
    """The config with a narrow network, small crops and two steps; its switches stay."""
    iterations = min(config.model.num_iterations, 1)
    sizes = {"width": 0.125, "head_width": 0.25, "encoder": "tiny", "num_iterations": iterations}
    data = {"data_dir": str(data_dir), "crop": (32, 32), "batch_size": 2, "num_threads": 1, "num_workers": 0}
    steps = {"num_steps": 2, "log_every": 1, "eval_every": 2, "save_every": 2, "keep": 1, "statistics": 4}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **sizes),
        data=dataclasses.replace(config.data, **data, eval_limit=2),
        training=dataclasses.replace(config.training, **steps, num_devices=1, tensorboard=False, transfer=None),
    )


@pytest.mark.parametrize("name", ["paper_ft", "physical_hci", "paper_ddff"])
def test_each_network_has_a_loss_on_its_own_data(name):
    """In shapes: it is traced, not computed."""
    config = small(load_config(str(CONFIGS / f"{name}.py")), "")
    num_frames = 4
    planes = num_frames if config.model.num_planes else None
    estimator = estimators.build(dataclasses.replace(config.model, num_planes=planes))
    stack = jax.ShapeDtypeStruct((2, num_frames, *config.data.crop, 3), jnp.float32)
    batch = Batch(
        stack, jax.ShapeDtypeStruct(stack.shape[:2], jnp.float32),
        jax.ShapeDtypeStruct((2, *config.data.crop), jnp.float32), jax.ShapeDtypeStruct((2, *config.data.crop), bool),
    )  # fmt: skip

    def loss(given, batch):
        prediction, _ = estimator.apply(given, batch.frames, batch.focus, train=True)
        return objective(prediction, batch, config.loss, config.model.coordinate).loss

    given = jax.eval_shape(estimator.init, jax.random.key(0), batch.frames, batch.focus)
    assert jax.eval_shape(loss, given, batch).shape == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tests"),
    [
        ("physical_ft", {"flyingthings/focal_stack": {"iterations": 5}, "middlebury/focal_stack": {"resize": SIZE}}),
        ("paper_hci", {"hci/lightfields": {}}),
        ("physical_ddff", {"ddff12/scenes": {}, "ddff12/test": {}}),
    ],
)
def test_a_family_from_sample_files_to_figures(name, tests, tmp_path, monkeypatch):
    """With a network that compiles in seconds; everything round it is the real thing."""
    monkeypatch.setattr(estimators, "build", fakes.build)
    config = small(load_config(str(CONFIGS / f"{name}.py")), tmp_path / "tfds")
    for dataset in {config.data.dataset, *tests}:
        source = write_samples(dataset, tmp_path / "files" / dataset, SIZE, train=2, held_out=1)
        datasets.prepare(dataset, tmp_path / "tfds", source=source)
    summary = loop.train(config, tmp_path / "run")
    assert summary["step"] == 2 and (tmp_path / "run" / "weights_last.safetensors").exists()
    for dataset, options in tests.items():
        output = tmp_path / "results" / dataset
        report = evaluate_to_folder(
            tmp_path / "run", output, DataSpec(dataset, data_dir=str(tmp_path / "tfds")), **options
        )
        figures = {figure.name for figure in (output / "figures").iterdir()}
        table = (output / "table.md").read_text()
        assert json.loads((output / "metrics.json").read_text())["meta"] == report["meta"]
        if dataset == "flyingthings/focal_stack":
            assert report["meta"]["convention"] == "flyingthings" and report["meta"]["iterations"] == 5
            assert all("-" not in row["text"] for row in report["paper"][0]["rows"])  # every row of Table 1 is filled
            assert "## Table 1 of the paper" in table and "## Table 3 of the paper" in table
        elif dataset == "middlebury/focal_stack":
            assert report["meta"]["resize"] and report["paper"][0]["number"] == 2 and "paper_figure_5.png" in figures
            assert "## Table 2 of the paper" in table
        elif dataset == "hci/lightfields":
            assert "paper_figure_6.png" in figures and report["rows"]["final"]["AbsRel"] is None
            (found,) = report["paper"]
            assert [row["values"]["AbsRel"] is not None for row in found["rows"]] == [True, True]
        elif dataset == "ddff12/test":
            assert report["rows"] == {} and figures == {"paper_figure_9.png"}
        else:
            assert report["literature"]


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
