"""The report of an accelerator, on a CPU: it needs few packages, and each part fails for itself."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from compiler import CHILD

from dff_jax.studies.bench import accelerator

ROOT = pathlib.Path(__file__).parents[2]
NOT_NEEDED = (
    "tensorflow_datasets tensorflow grain tyro tqdm safetensors PIL matplotlib tensorboardX imagecodecs tifffile "
    "OpenEXR cv2 h5py array_record torch"
)
WITHOUT = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({NOT_NEEDED!r}.split()))  # as if they were not installed
sys.path.append({str(ROOT / "tests" / "helpers")!r})
import training_fakes
from dff_jax import estimators
from dff_jax.studies.bench import measuring
measuring.MATRIX_SIDE = 128
real = estimators.build
estimators.build = lambda model: training_fakes.build(model) if model.trained else real(model)
runpy.run_module("dff_jax.studies.bench.accelerator", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_the_report_of_a_bare_image(tmp_path):
    """Whatever else is installed is hidden: every part but the checks, with the real training loop."""
    environment = os.environ | CHILD | {"PYTHONPATH": str(ROOT)}
    flags = environment.get("XLA_FLAGS", "").split()
    environment["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
    parts = ["device", "bench", "memory", "scaling", "training"]
    asked = ["--small", "--minutes", "0.1", "--output", str(tmp_path), "--parts", *parts]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *asked], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert list(found) == parts
    errors = {row["precision"]: row["relative_error"] for row in found["device"]["rows"]}
    assert errors["float32"] < 1e-5 < 1e-4 < errors["bfloat16"]
    rows = found["bench"]["rows"]
    assert [(row["preset"], row["B"], row["dtype"]) for row in rows] == [
        ("tiny", B, dtype) for B in (1, 2) for dtype in ("float32", "bfloat16")
    ]
    assert all(row["inference_s"] > 0 and row["share_of_peak"] > 0 for row in rows) and rows[2]["step_s"] > 0
    assert {row["gradient"] for row in found["memory"]["rows"]} == {"remat", "backprop"}
    assert [row["over"] for row in found["scaling"]["rows"]] == ["iterations", "sizes", "frames"]
    trained = found["training"]
    assert trained["steps"] >= 6 and trained["rows"][1]["validation_MAE"] > 0 and trained["stacks_per_s"] > 0
    page = (tmp_path / "report.md").read_text()
    assert page in done.stdout and "## Training" in page and "Small mode" in page
    assert len({line.count("|") for line in page.split("## Bench")[1].split("##")[0].splitlines() if "|" in line}) == 1


def test_a_part_that_fails_is_written_down_and_the_next_goes_on(tmp_path, monkeypatch):
    def breaks(sizes, folder):
        raise RuntimeError("no memory")

    monkeypatch.setitem(accelerator.PARTS, "bench", breaks)
    monkeypatch.setitem(accelerator.PARTS, "memory", lambda sizes, folder: {"rows": [{"gradient": "remat", "K": 1}]})
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    arguments = ["--small", "--output", str(tmp_path), "--parts"]
    assert accelerator.main([*arguments, "bench", "memory"]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["parts"]["bench"]["problem"] == "RuntimeError: no memory"
    assert report["parts"]["memory"]["rows"] == [{"gradient": "remat", "K": 1}]
    assert "problem RuntimeError: no memory" in (tmp_path / "report.md").read_text()

    monkeypatch.setitem(accelerator.PARTS, "bench", lambda sizes, folder: {"rows": []})
    assert accelerator.main([*arguments, "bench"]) == 0  # again, and only this part
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["parts"].keys() == {"bench", "memory"} and "problem" not in report["parts"]["bench"]


def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    (tmp_path / "file").write_text("")
    assert accelerator.main(["--small", "--output", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("gpu_report: error: ")


def test_checks_are_left_out_without_pytest(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator.util, "find_spec", lambda name: None)
    found = accelerator.checks(accelerator.SMALL, tmp_path)
    assert found["rows"] == [] and "pytest or tests/device is missing" in found["note"]


def test_the_results_of_the_checks_are_read(tmp_path, monkeypatch):
    xml = """<testsuites><testsuite><testcase name="depth"><properties><property name="error" value="1e-05"/>
    </properties></testcase><testcase name="update"><failure message="assert 2 &lt;= 1"/></testcase></testsuite>
    </testsuites>"""

    def run(asked, **options):
        pathlib.Path(asked[-1].partition("=")[2]).write_text(xml)
        return subprocess.CompletedProcess(asked, 1)

    monkeypatch.setattr(accelerator.subprocess, "run", run)
    found = accelerator.checks(accelerator.SMALL, tmp_path)
    assert found["rows"][0] == {"check": "depth", "error": "1e-05", "problem": None}
    assert found["rows"][1]["problem"] == "assert 2 <= 1" and found["problem"] == "pytest ended with status 1"
