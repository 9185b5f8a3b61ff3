"""The report of an accelerator, on a CPU: that it needs few packages, and that each part fails for itself."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from dff_jax.studies.bench.gpu_report import __main__ as command
from dff_jax.studies.bench.gpu_report import checks, device, models, table, training
from dff_jax.studies.bench.gpu_report.job import SMALL, Job, fill, inference, stack_gflops, variant
from dff_jax.studies.bench.measuring import count_gflops

ROOT = pathlib.Path(__file__).parents[2]
NOT_NEEDED = (
    "tensorflow_datasets tensorflow grain tyro tqdm safetensors PIL scipy matplotlib tensorboardX imagecodecs tifffile "
    "OpenEXR cv2 h5py array_record torch"
)
WITHOUT = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({NOT_NEEDED!r}.split()))  # as if they were not installed
sys.path.append({str(ROOT / "tests" / "helpers")!r})
import training_fakes
from dff_jax import estimators
real = estimators.build
estimators.build = lambda model, axis=None: (training_fakes.build if model.method == "proximal" else real)(model, axis)
runpy.run_module("dff_jax.studies.bench.gpu_report", run_name="__main__", alter_sys=True)
"""


def run_without(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}
    flags = environment.get("XLA_FLAGS", "").split()
    environment["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
    asked = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
    return subprocess.run(asked, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_training_on_a_bare_image(tmp_path):
    """Whatever else is installed is hidden: the real loop trains a small network, orbax saves it and brings it back."""
    done = run_without(
        "--small", "--parts", "device", "training", "precision", "--minutes", "0.2", "--output", tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    trained = parts["training"]
    assert trained["steps"] >= 1 and trained["held_out"].keys() >= {"final", "classical", "sml"}
    assert trained["loss"][-1][0] == trained["steps"] and trained["share_rendering"] > 0
    assert parts["precision"]["MAE"]["float32"] == pytest.approx(trained["held_out"]["final"], rel=1e-4)
    page = (tmp_path / "report.md").read_text()
    assert page in done.stdout and "bfloat16 costs" in page and "FAILED" not in page


def test_the_command_starts_on_a_bare_image():
    done = run_without("--help")
    assert done.returncode == 0 and "--minutes" in done.stdout, done.stderr[-3000:]


def job_for(folder, late=False):
    return Job(SMALL, folder, {"device": "cpu", "parts": {}}, 0.0 if late else np.inf, lambda: None)


def test_a_part_that_fails_is_written_down_and_the_next_goes_on(tmp_path, monkeypatch):
    def breaks(job, out):
        out["rows"] = []
        raise RuntimeError("no memory")

    monkeypatch.setattr(models, "bench", breaks)
    monkeypatch.setattr(training, "precision", lambda job, out: out.update(MAE={"float32": 1.0, "bfloat16": 1.01}))
    monkeypatch.setattr(command, "_before_jax_starts", lambda small: None)
    arguments = ["--small", "--output", str(tmp_path), "--parts"]
    assert command.main([*arguments, "bench", "precision"]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["parts"]["bench"]["raised"] == "RuntimeError: no memory"
    assert report["parts"]["precision"]["MAE"]["bfloat16"] == 1.01
    assert "**This part failed:** RuntimeError: no memory" in (tmp_path / "report.md").read_text()

    monkeypatch.setattr(models, "bench", lambda job, out: out.update(rows=[]))
    assert command.main([*arguments, "bench"]) == 0  # again, and only this part
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["parts"].keys() == {"bench", "precision"} and "raised" not in report["parts"]["bench"]


def test_a_report_of_something_else_is_not_mixed_in(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "_before_jax_starts", lambda small: None)
    (tmp_path / "report.json").write_text(json.dumps({"version": 1, "device": "another", "parts": {}}))
    assert command.main(["--small", "--output", str(tmp_path)]) == 2
    assert "a report of other circumstances (" in capsys.readouterr().err
    assert command.main(["--small", "--minutes", "-1", "--output", str(tmp_path / "new")]) == 2
    assert "--minutes" in capsys.readouterr().err


def test_nothing_is_begun_when_time_is_up(tmp_path):
    for part in (checks.run, models.bench, models.memory, models.scaling):
        out = {}
        part(job_for(tmp_path, late=True), out)
        assert out["left_out"] and not out.get("rows")
        assert "No time was left for" in table.markdown(
            {"versions": {}, "small": False, "device": "x", "dff_jax": "", "python": "", "parts": {"checks": out}}
        )


def test_checks_of_convolutions_pass_and_can_fail(tmp_path):
    found = {name: check for name, check in checks.all_checks() if "convolution" in name}
    assert len(found) == 8
    for check in found.values():
        error, tolerance = check()
        assert 0 < error <= tolerance
    wrong = checks._convolution(
        lambda x, k: checks._by_products(x, k[::-1]), (1, 8, 8, 2), (3, 3, 2, 2), checks._two_dimensional
    )
    error, tolerance = wrong()
    assert error > 100 * tolerance


def test_checks_of_the_unroll_pass():
    for check in (checks._unroll_modes, checks._finite_differences):
        error, tolerance = check()
        assert error <= tolerance


def test_flops_count_every_iteration():
    """On a device with a rolled loop XLA's own count sees one of them."""
    model = variant("tiny", num_iterations=3, prox="identity", refiner_steps=0, measure_prior="none")
    function, arguments = inference(model, (1, 2, 64))
    unrolled = count_gflops(jax.jit(function), *arguments)
    assert stack_gflops(model, 2, 64, False) == pytest.approx(unrolled, rel=1e-6)


def test_filled_variables_are_reproducible_and_finite():
    shape = jax.ShapeDtypeStruct
    shapes = {"conv": {"kernel": shape((3, 3, 4, 8), "float32")}, "bn": {"var": shape((8,), "float32")}}
    first, again = fill(shapes), fill(shapes)
    assert (first["bn"]["var"] == 1).all() and (first["conv"]["kernel"] == again["conv"]["kernel"]).all()
    assert first["conv"]["kernel"].std() == pytest.approx(1 / 6, rel=0.2)


def test_the_matrix_product_tells_tf32(tmp_path):
    out = {}
    device.run(job_for(tmp_path)._replace(settings=SMALL._replace(matrix_side=64, seconds=0.01)), out)
    assert out["peaks"]["float32"]["relative_error"] < 1e-5 and out["float32_is_tf32"] is False
    assert out["peaks"]["bfloat16"]["relative_error"] > device.TF32_ERROR
