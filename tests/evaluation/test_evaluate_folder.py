"""From a folder of stacks to a folder of results, with real estimators."""

from __future__ import annotations

import csv
import errno
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dff_jax import config
from dff_jax.config import DataSpec
from dff_jax.errors import InputError
from dff_jax.estimators import weights
from dff_jax.evaluation import evaluate as module
from dff_jax.evaluation import figures
from dff_jax.evaluation.folder import evaluate_to_folder
from dff_jax.pictures import panels

Z = 4
FILES = ["figures", "metrics.json", "per_stack.csv", "table.md"]


def write_stacks(root: Path, count=2, unit="disparity"):
    """FlyingThings3D's layout: texture whose blur grows with the distance from the focus setting."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    focus = np.linspace(10, 40, Z)
    for n in range(count):
        folder = root / f"scene{n}"
        folder.mkdir(parents=True)
        truth = np.tile(np.linspace(8, 42, 40), (32, 1))
        truth[:, :3] = 0
        texture = rng.random((32, 40, 3))
        for f in focus:
            levels = [ndimage.gaussian_filter(texture, (s, s, 0)) for s in (0.01, 0.7, 1.4, 2.5)]
            sigma = np.clip(np.abs(truth - f) / 10, 0, 3)
            share = [np.maximum(0, 1 - np.abs(sigma - i))[..., None] for i in range(len(levels))]
            frame = sum(s * level for s, level in zip(share, levels, strict=True))
            name = 1 / f if unit == "metre" else f
            Image.fromarray((255 * frame).astype(np.uint8)).save(folder / f"{name:.8f}.png")
        depth = np.where(truth > 0, 1 / np.maximum(truth, 1e-3), 0) if unit == "metre" else truth
        np.save(folder / "disp.npy", depth.astype(np.float32))
    return root


def folder_of(source, **options):
    """The stacks of a folder, as data to measure on."""
    return DataSpec(source=str(source), **options)


def test_classical_from_folder_to_folder(tmp_path):
    source, output = write_stacks(tmp_path / "data", 3), tmp_path / "deep" / "out"
    report = evaluate_to_folder("classical", output, folder_of(source), batch_size=2, report=2)
    assert sorted(p.name for p in output.glob("[!.]*")) == sorted([*FILES, "report.html"])
    assert (output / "report.html").read_text().count('"confidence"') >= 2
    assert json.loads((output / "metrics.json").read_text()) == report
    assert report["meta"]["stacks"] == 3 and report["meta"]["unit"] == "disparity"
    row = report["rows"]["classical"]
    assert row == report["rows"]["final"] and row["in_range"]["MAE"] < 4 < row["MAE"] + 4
    assert row["valid_pixels"] == 3 * 32 * 37 and row["in_range"]["valid_pixels"] < row["valid_pixels"]
    with open(output / "per_stack.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 2 * len(report["rows"])
    mine = [float(x["MAE"]) for x in lines if x["row"] == "final" and x["region"] == "all"]
    assert np.mean(mine) == pytest.approx(row["MAE"], rel=1e-6)
    assert "= classical" in (output / "table.md").read_text()
    pictures = {p.name for p in (output / "figures").iterdir()}
    assert "mae.png" in pictures and "worst.png" in pictures and pictures <= set(figures.FILES)
    for path in (output / "figures").iterdir():
        assert np.asarray(Image.open(path)).std() > 5

    # fewer stacks: nothing of the earlier run stays
    report = evaluate_to_folder("classical", output, folder_of(source, limit=1))
    assert report["meta"]["stacks"] == 1 and sorted(p.name for p in output.glob("[!.]*")) == FILES
    assert {p.name for p in (output / "figures").iterdir()} == {"confidence.png", "mae.png", "worst.png"}


def test_metres_and_disparity_of_the_same_scene_agree_on_where_things_are(tmp_path):
    """The same frames and truth under two units: the same answers in q, so the same accuracy in diopters."""
    one = evaluate_to_folder("classical", tmp_path / "a", folder_of(write_stacks(tmp_path / "q", 1)))
    two = evaluate_to_folder(
        "classical", tmp_path / "b", folder_of(write_stacks(tmp_path / "m", 1, "metre"), unit="metre")
    )
    assert two["meta"]["unit"] == "metre"
    assert two["rows"]["final"]["Acc_1"] == pytest.approx(one["rows"]["final"]["Acc_1"], abs=1)
    assert two["rows"]["final"]["MAE"] < 0.05 < one["rows"]["final"]["MAE"]


@pytest.mark.slow
def test_learned_weights_with_more_iterations(tmp_path):
    from dff_jax import estimators

    model = config.tiny()
    estimator = estimators.build(model)
    shapes = jnp.zeros((1, Z, 32, 40, 3)), jnp.linspace(10.0, 40.0, Z)[None]
    rng = np.random.default_rng(0)  # compiling the real initialisation would take longer than all else here
    like = jax.eval_shape(estimator.init, jax.random.key(0), *shapes)
    variables = jax.tree.map(lambda x: (0.05 * rng.normal(size=x.shape)).astype("f4"), like["params"])
    stats = jax.tree.map(lambda x: np.ones(x.shape, "f4"), like["batch_stats"])
    variables = {"params": variables, "batch_stats": stats}
    weights.save_weights(tmp_path / "w.safetensors", model, variables, {"num_frames": Z})
    source = write_stacks(tmp_path / "data", 1)
    report = evaluate_to_folder(tmp_path / "w.safetensors", tmp_path / "out", folder_of(source), iterations=4)
    assert report["meta"]["iterations"] == 4 and report["meta"]["label"] == "w"
    names = ["expected", "candidate_1", "candidate_2", "candidate_3", "D(0)", "D(1)", "D(2)", "D(3)", "D(4)"]
    assert list(report["rows"]) == [*names, "refined", "final", "classical", "sml"]
    assert set(report["dynamics"]["step"]) == {"D(1)", "D(2)", "D(3)", "D(4)", "refined"}


def test_bad_arguments_end_in_one_line_and_leave_nothing(tmp_path):
    source, output = write_stacks(tmp_path / "data", 1), tmp_path / "out"
    for spec, options, match in (
        ({}, {}, "exactly one"),
        ({"dataset": "procedural/quickstart"}, {}, "exactly one"),
        ({}, {"iterations": -1}, "--iterations"),
        ({}, {"batch_size": 0}, "--batch-size"),
        ({}, {"report": -1}, "--report"),
        ({"limit": 0}, {}, "limit"),
        ({"source": str(tmp_path / "nowhere")}, {}, "nowhere"),
        ({"unit": "mile"}, {}, "mile"),
    ):
        given = {} if match == "exactly one" and not spec else {"source": str(source)} | spec
        with pytest.raises(InputError, match=match) as caught:
            evaluate_to_folder("classical", output, DataSpec(**given), **options)
        assert "\n" not in str(caught.value)
        assert not output.exists()
    with pytest.raises(InputError, match="missing.safetensors"):
        evaluate_to_folder(tmp_path / "missing.safetensors", output, folder_of(source))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        evaluate_to_folder("classical", tmp_path / "file" / "out", folder_of(source))
    # damage that is found only half way
    (source / "scene0" / "disp.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match="disp.npy"):
        evaluate_to_folder("classical", output, folder_of(source))
    assert not output.exists()


def test_an_output_among_the_stacks_or_with_others_files_is_refused_before_the_work(tmp_path, monkeypatch):
    source, output = write_stacks(tmp_path / "data", 1), tmp_path / "out"
    monkeypatch.setattr(module, "evaluated", lambda *args, **kwargs: pytest.fail("computed before it was checked"))
    for folder in (source, source / "scene0", source / "results"):
        with pytest.raises(InputError, match="is measured; write the results to another folder"):
            evaluate_to_folder("classical", folder, folder_of(source))
    for name in ("table.md", "figures/mae.png", "report.html"):
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        with pytest.raises(InputError, match=f"{name}: was not written here by this program.*--overwrite"):
            evaluate_to_folder("classical", output, folder_of(source))
        assert path.read_text() == "mine"
        path.unlink()


def test_a_full_disk_or_a_locked_folder_leaves_nothing_half_written(tmp_path, monkeypatch):
    source, output = write_stacks(tmp_path / "data", 1), tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("kept")

    def full(path, figure):
        path.write_bytes(b"half a picture")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(panels, "save_figure", full)
    for folder in (output, tmp_path / "new" / "out"):
        with pytest.raises(InputError, match="No space left"):
            evaluate_to_folder("classical", folder, folder_of(source))
    assert [p.name for p in output.iterdir()] == ["mine.txt"] and not (tmp_path / "new").exists()

    output.chmod(0o555)
    monkeypatch.setattr(module, "evaluated", lambda *args, **kwargs: pytest.fail("computed before it was checked"))
    with pytest.raises(InputError, match="read-only"):
        evaluate_to_folder("classical", output, folder_of(source))
    output.chmod(0o755)
