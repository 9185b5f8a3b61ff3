"""Report of an accelerator, `scripts/gpu_report`: device, checks, models, memory, scaling and a short training.

Writes `report.json` and `report.md` after each part. Needs only jax, flax, optax, orbax, chex and numpy, and pytest for
the checks of `tests/device`. The entries of a table are timed round-robin in one process, beside a matrix product.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as xml
from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax import config as configs
from dff_jax.config import DTYPES, Config, DataConfig, OptimizerConfig, TrainingConfig, WorldConfig
from dff_jax.errors import InputError, one_line
from dff_jax.runtime import markdown as texts
from dff_jax.runtime.files import check_output, finite, machine
from dff_jax.runtime.progress import say
from dff_jax.studies.bench import measuring
from dff_jax.studies.bench.model import bench_model
from dff_jax.studies.bench.unroll import bench_unroll

FILES = ("report.json", "report.md")
ROOT = Path(__file__).parents[3]
Found = dict[str, Any]
"""What a part found: {"rows": [{column: value}], fact: value}. A row or part that failed says why in "problem"."""


class Sizes(NamedTuple):
    """What each part measures."""

    size: int = 256
    frames: int = 15
    batch: int = 8  # of training
    matrix_side: int = 8192
    presets: tuple[str, ...] = ("physical", "dfv_diff", "paper", "tiny", "dfv_fv", "aifdnet", "dwild")
    subject: str = "physical"  # of memory, scaling and training
    memory_iterations: tuple[int, ...] = (1, 3, 6, 12)
    iterations: tuple[int, ...] = (0, 3, 6, 12)
    numbers_of_frames: tuple[int, ...] = (5, 15, 25, 35)
    sizes: tuple[int, ...] = (128, 256, 384, 512)
    rounds: int = 10
    minutes: float = 5.0


SMALL = Sizes(
    size=64, frames=3, batch=2, matrix_side=256, presets=("tiny",), subject="tiny", memory_iterations=(1,),
    iterations=(0, 1), numbers_of_frames=(3, 4), sizes=(32, 64), rounds=2, minutes=0.2,
)  # fmt: skip


def device(sizes: Sizes, folder: Path) -> Found:
    """Speed and error of a matrix product in each precision; memory and driver."""
    modes = {"float32": None, "float32, highest": "highest", "bfloat16": None}
    rows, products, gflops = [], {}, 0.0
    for name, precision in modes.items():
        with jax.default_matmul_precision(precision):
            dtype = name.split(",")[0]
            products[name], gflops = measuring.matrix_product(dtype, sizes.matrix_side)
            rows.append({"precision": name, "relative_error": _product_error(dtype)})
    seconds = measuring.round_robin(products, sizes.rounds)
    rows = [row | {"TFLOPs_per_s": gflops / 1000 / seconds[row["precision"]]} for row in rows]
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,power.limit", "--format=csv,noheader"]
    driver = shutil.which("nvidia-smi") and subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout
    return {"rows": rows, "devices": jax.device_count(), "cores": os.cpu_count(), "bytes": limit, "driver": driver}


def _product_error(dtype: str) -> float:
    """Relative error against float64: about 1e-7 in float32, 1e-4 and more where TF32 takes its place."""
    a, b = np.random.default_rng(0).standard_normal((2, 512, 512)).astype(np.float32)
    got = np.asarray(jax.jit(jnp.matmul)(jnp.asarray(a, dtype), jnp.asarray(b, dtype)), np.float64)
    want = a.astype(np.float64) @ b.astype(np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def checks(sizes: Sizes, folder: Path) -> Found:
    """Runs `tests/device` with pytest in a process of its own; each check has an error and a tolerance."""
    if util.find_spec("pytest") is None or not (ROOT / "tests" / "device").is_dir():
        return {"rows": [], "note": "pytest or tests/device is missing; the checks were left out"}
    environment = os.environ | ({"DEVICE_CHECKS": "cpu"} if jax.default_backend() == "cpu" else {"JAX_PLATFORMS": ""})
    with tempfile.TemporaryDirectory() as place:
        results = Path(place) / "results.xml"
        asked = [sys.executable, "-m", "pytest", "tests/device", "-p", "no:cacheprovider", "-o", "junit_family=xunit1"]
        done = subprocess.run([*asked, f"--junit-xml={results}"], cwd=ROOT, env=environment, stdout=sys.stderr)
        cases = list(xml.parse(results).iter("testcase")) if results.exists() else []
    rows = []
    for case in cases:
        found = {one.get("name"): one.get("value") for one in case.iter("property")}
        kinds = "failure", "error", "skipped"
        problem = next((one.get("message") for kind in kinds for one in case.iter(kind)), None)
        rows.append({"check": case.get("name"), **found, "problem": problem})
    return {"rows": rows, "problem": None if done.returncode == 0 else f"pytest ended with status {done.returncode}"}


def bench(sizes: Sizes, folder: Path) -> Found:
    """Inference of one stack and training steps of a batch of all presets, in both precisions, beside PyTorch's."""
    against = "torch" if util.find_spec("torch") else None
    rows = []
    for preset in sizes.presets:
        for batch in (1, sizes.batch):
            try:
                rows += bench_model(
                    (preset,), sizes=(sizes.size,), frames=(sizes.frames,), batches=(batch,), dtypes=DTYPES,
                    training=batch > 1, against=against, rounds=sizes.rounds,
                )["rows"]  # fmt: skip
            except Exception as error:  # such as too little memory; the other presets may do
                rows.append({"preset": preset, "B": batch, "problem": f"{type(error).__name__}: {one_line(error)}"})
    return {"rows": rows}


def memory(sizes: Sizes, folder: Path) -> Found:
    """What the compiler plans for the unroll and a training step over K, rematerialised and by back-propagation."""
    modes = "remat", "backprop"
    return bench_unroll(sizes.subject, sizes.memory_iterations, sizes.size, sizes.frames, modes=modes)


def scaling(sizes: Sizes, folder: Path) -> Found:
    """Inference of one stack over K, pixels and Z, and the largest distance from a fitted line."""
    rows: list[dict[str, Any]] = []
    lines: dict[str, Sequence[int]] = {
        "iterations": sizes.iterations, "sizes": sizes.sizes, "frames": sizes.numbers_of_frames
    }  # fmt: skip
    for over, values in lines.items():
        options: dict[str, Any] = {"sizes": (sizes.size,), "frames": (sizes.frames,), over: values}
        measured = bench_model((sizes.subject,), rounds=sizes.rounds, **options)["rows"]
        x, y = np.array(values, float) ** (2 if over == "sizes" else 1), [row["inference_s"] for row in measured]
        off = float(abs(np.polynomial.Polynomial.fit(x, y, 1)(x) / y - 1).max())
        rows.append({"over": over, "at": list(values), "inference_s": y, "off_a_line": off})
    return {"rows": rows, "preset": sizes.subject}


def training(sizes: Sizes, folder: Path) -> Found:
    """Trains on procedural worlds for about `sizes.minutes`: steps per second, loss and validation error."""
    from dff_jax.training import logging as logs
    from dff_jax.training import loop

    side, stacks = sizes.size, -(-sizes.batch // jax.device_count()) * jax.device_count()
    world = WorldConfig(height=side, width=side, num_frames=sizes.frames)
    data = DataConfig(
        source="procedural_live", batch_size=stacks, crop=(side, side), world=world, eval_batch_size=sizes.batch,
        eval_limit=3 * sizes.batch,
    )  # fmt: skip
    optimizer = OptimizerConfig(peak_learning_rate=3e-4)
    config = Config(name="gpu_report", model=configs.model_preset(sizes.subject), data=data, optimizer=optimizer)

    def train(steps: int, log_every: int, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[float]]:
        plan = TrainingConfig(
            num_steps=steps, log_every=log_every, eval_every=-(-steps // 3), save_every=steps, keep=1,
            tensorboard=False, statistics=3 * sizes.batch,
        )
        summary = loop.train(dataclasses.replace(config, training=plan), folder)
        log = logs.read_log(folder)
        return summary, log, sorted(line["step_seconds"] for line in log if "step_seconds" in line)

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as trial:  # compiles, and shows how long a step takes
        *_, timed = train(6, 2, Path(trial))
    left = 60 * sizes.minutes - 2 * (time.monotonic() - start)
    steps = max(6, int(0.8 * left / timed[0]))
    say(f"training: {steps} steps of {stacks} stacks")
    shutil.rmtree(folder / "training", ignore_errors=True)
    summary, log, timed = train(steps, max(1, steps // 50), folder / "training")
    losses = [{"step": line["step"], "loss": line["loss"]} for line in log if line["kind"] == "train"]
    errors = [{"step": line["step"], "validation_MAE": line["MAE"]} for line in log if line["kind"] == "validation"]
    step = timed[len(timed) // 2]
    facts = {"preset": sizes.subject, "steps": summary["step"], "seconds": summary["seconds"], "step_s": step}
    return {"rows": [losses[0], *errors, losses[-1]], **facts, "stacks_per_s": stacks / step, "loss": losses}


PARTS: dict[str, Callable[[Sizes, Path], Found]] = {
    "device": device, "checks": checks, "bench": bench, "memory": memory, "scaling": scaling, "training": training,
}  # fmt: skip


def run(parts: Sequence[str], sizes: Sizes, small: bool, folder: Path) -> list[str]:
    """Runs the parts in order and writes both files after each; returns the names of those that failed.

    A part that fails is reported, and the next goes on. Parts of an earlier report of the same machine are kept.

    Raises:
      InputError: an output folder that cannot be written.
    """
    check_output(folder, FILES)
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": machine(), "small": small, "parts": {}}
    before = json.loads((folder / FILES[0]).read_text()) if (folder / FILES[0]).exists() else {}
    if all(before.get(key) == report[key] for key in ("machine", "small")):
        report["parts"] = before["parts"]
    failed = []
    for part in parts:
        say(f"{part} begins")
        start = time.perf_counter()
        try:
            found = PARTS[part](sizes, folder)
        except Exception as error:  # reported, and the next part goes on
            traceback.print_exc()
            found = {"rows": [], "problem": f"{type(error).__name__}: {one_line(error)}"}
        report["parts"][part] = found | {"seconds_spent": time.perf_counter() - start}
        if any(one.get("problem") for one in (found, *found["rows"])):
            failed.append(part)
        measuring.write(folder, FILES, finite(report), markdown(report))
    return failed


def markdown(report: dict[str, Any]) -> str:
    """The page: a heading, and for each part a line of facts and a table."""
    about = report["machine"]
    small = " Small mode: the sizes are of no interest, it only shows that the report runs." if report["small"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [f"# {about['device']}", "", f"{versions}.{small}"]
    for part, found in report["parts"].items():
        facts = [f"{key} {_cell(value)}" for key, value in found.items() if isinstance(value, str | int | float)]
        rows = found["rows"]
        lines += ["", f"## {part.capitalize()}", "", ", ".join(facts)]
        lines += ["", *texts.records([{key: _cell(x) for key, x in row.items()} for row in rows])] if rows else []
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(str(_cell(x)) for x in value)
    if isinstance(value, str):
        return " ".join(value.split()).replace("|", "/")[:200]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(argv: list[str] | None = None) -> int:
    """Runs the command: 0 if every part ran and every check passed, else 1; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_report", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default all")
    parser.add_argument("--minutes", type=float, help="of training, compilation included; default 5")
    parser.add_argument("--small", action="store_true", help="tiny shapes and networks: a trial on a CPU")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_report"), help="folder of the report")
    args = parser.parse_args(argv)
    # Memory is taken as it is needed, which leaves the checks' process and PyTorch some
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if args.small:  # compiles five times quicker
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
    sizes = SMALL if args.small else Sizes()
    sizes = sizes._replace(minutes=args.minutes or sizes.minutes)
    try:
        failed = run(args.parts, sizes, args.small, args.output)
    except InputError as error:
        print(f"gpu_report: error: {error}", file=sys.stderr)
        return 2
    print((args.output / FILES[1]).read_text("utf-8"))
    say(f"written to {args.output}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
