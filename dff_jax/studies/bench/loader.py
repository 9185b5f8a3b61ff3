"""How fast the loader is: crops from array_record with threads and with worker processes, against a plain read.

Three things: the files read from end to end, as `dd` would; the loader alone, which also decodes, crops, recolours and
adds noise; and a preset's training step, with the share of its time spent waiting for a batch.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.config import DataConfig, LossConfig, OptimizerConfig
from dff_jax.data import pipeline
from dff_jax.data.loading import PartLoader
from dff_jax.data.parts import FilePart, Share
from dff_jax.errors import InputError
from dff_jax.runtime.compile import jit
from dff_jax.runtime.files import check_output
from dff_jax.studies.bench import measuring
from dff_jax.training import optimizer as optimizers
from dff_jax.training.state import create
from dff_jax.training.step import make_update
from dff_jax.types import FocalStack

FILES = ("loader.json", "loader.md")
FULL_SIZE = (540, 960)  # of the frames made here, as FlyingThings3D's
BATCH = 2
WAYS = ((1, 0), (2, 0), (1, 1), (1, 2))  # threads (in each process), worker processes (0: none but this one)
BLOCK = 2**20


def bench_loader(
    dataset: str | None = None, data_dir: str | None = None, *, preset: str = "tiny", size: int = 256,
    num_frames: int = 15, stacks: int = 24, batches: int = 16, steps: int = 4, full_size: tuple[int, int] = FULL_SIZE,
    output: str | Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measures all ways; returns the contents of `loader.json`, and writes it where `output` says.

    Args:
      dataset: a prepared tfds dataset with a train split; None: noise, written to a temporary folder.
      size: side of the crops, pixels.
      num_frames, stacks, full_size: of the noise.
      batches: of BATCH stacks, timed for each way.
      steps: of training, timed; 0: none.

    Raises:
      InputError: as `pipeline.tfds_source`, crops that do not fit, or no room for the noise.
    """
    if dataset is None and (stacks < 1 or num_frames < 2):
        raise InputError(f"bench: needs at least 1 stack of 2 frames, got {stacks} of {num_frames}")
    if output is not None:
        check_output(output, FILES)
    with ExitStack() as stack:
        if dataset is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dff_jax_bench_"))
            source, files = _write_noise(Path(folder), stacks, num_frames, full_size)
        else:
            source = pipeline.tfds_source(dataset, "train", data_dir)
            files = _record_files(dataset, data_dir)
        data = DataConfig(crop=(size, size), batch_size=BATCH)
        bytes_each = sum(f.stat().st_size for f in files) / len(source)
        report: dict[str, Any] = {
            "data": source.describe if dataset else f"{stacks} stacks of noise, {num_frames} x {full_size}",
            "crop": size, "batch": BATCH, "MB_per_stack": bytes_each / 1e6, "cores": os.cpu_count(),
            "read_MB_per_s": {"not cached": _read_rate(files, cold=True), "cached": _read_rate(files, cold=False)},
            "rows": [],
        }  # fmt: skip
        for threads, workers in WAYS:
            with closing(_loader(data, source, threads, workers)) as loader:
                _forget(files)
                start = time.perf_counter()
                next(loader)
                first = time.perf_counter() - start
                for _ in range(2 * (threads + workers) * 2):  # what was read ahead meanwhile
                    next(loader)
                start, worked = time.perf_counter(), time.process_time()
                for _ in range(batches):
                    next(loader)
                rate = batches * BATCH / (time.perf_counter() - start)
                worked = None if workers else (time.process_time() - worked) / (batches * BATCH)
            row = {"threads": threads, "workers": workers, "stacks_per_s": rate, "first_batch_s": first}
            row["core_s_per_stack"] = worked  # of this process; the same on a busy machine
            report["rows"].append(row | {"MB_per_s": rate * bytes_each / 1e6})
            print(f"{_name(row)}: {rate:.1f} stacks/s", file=sys.stderr, flush=True)
        report["training"] = _training(preset, data, source, steps) if steps else None
    report |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    measuring.write(output, FILES, report, markdown(report))
    return report


def markdown(report: dict[str, Any]) -> str:
    """The table, and one sentence each on plain reading and on training."""
    read = ", ".join(f"{rate:.0f} MB/s {name}" for name, rate in report["read_MB_per_s"].items())
    lines = [
        f"{report['data']}, {report['MB_per_stack']:.1f} MB each in array_record; crops of {report['crop']} x "
        f"{report['crop']}, batches of {report['batch']}; {report['cores']} cores, {report['device']}, "
        f"jax {report['jax']}. The files read from end to end: {read}.",
        "",
        "| | stacks/s | MB/s of records | core time a stack, ms | first batch, s |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {_name(r)} | {r['stacks_per_s']:.1f} | {r['MB_per_s']:.0f} | "
        f"{'' if r['workers'] else round(1000 * r['core_s_per_stack'])} | {r['first_batch_s']:.2f} |"
        for r in report["rows"]
    ]
    t = report["training"]
    if t:
        lines += [
            "",
            f"A training step of `{t['preset']}` takes {t['step_s']:.3g} s, {100 * t['waiting_share']:.2g} % of it "
            f"spent waiting for a batch ({t['steps']} steps, {t['threads']} loading threads).",
        ]
    return "\n".join(lines) + "\n"


def _name(row: dict[str, Any]) -> str:
    if not row["workers"]:
        return f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    return f"{row['workers']} worker process{'es' * (row['workers'] > 1)}"


def _loader(data: DataConfig, source: pipeline.StackSource, threads: int, workers: int) -> PartLoader:
    return PartLoader(
        [FilePart(data, source, Share(0, data.batch_size))], [1.0], num_threads=threads, num_workers=workers
    )


def _write_noise(
    folder: Path, stacks: int, num_frames: int, size: tuple[int, int]
) -> tuple[pipeline.StackSource, list[Path]]:
    """A dataset of blurred noise under grain, in the records that every converted dataset has."""
    import tensorflow_datasets as tfds

    from dff_jax.data.datasets.base import StackBuilder, StackConfig
    from dff_jax.data.datasets.preparing import convert
    from dff_jax.data.datasets.records import Facts, Inventory, Item

    facts = Facts("disparity", (10.0, 100.0), "far to near", "noise", "none", "none", "made here")

    class Noise(StackBuilder, skip_registration=True):
        """Noise, to measure loading with."""

        name = "noise"
        BUILDER_CONFIGS = [StackConfig(name="bench", version=tfds.core.Version("1.0.0"), facts=facts)]

    builder = Noise(config="bench", data_dir=folder)
    items = tuple(Item(f"train/{i}", partial(_noise_stack, i, num_frames, size)) for i in range(stacks))
    convert("noise", builder, folder, Inventory({"train": items}), 1)
    return pipeline.builder_source(builder, "noise", "train"), sorted(Path(builder.data_path).glob("*.array_record*"))


def _noise_stack(seed: int, num_frames: int, size: tuple[int, int]) -> FocalStack:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 200, (num_frames, size[0] // 12 + 1, size[1] // 12 + 1, 3), np.uint8)
    frames = coarse.repeat(12, 1).repeat(12, 2)[:, : size[0], : size[1]]
    frames = frames + rng.integers(0, 8, frames.shape, np.uint8)
    depth = rng.uniform(10, 100, size).astype(np.float32)
    focus = np.linspace(10.0, 100.0, num_frames)
    return FocalStack(frames, focus, "disparity", depth, np.ones(size, bool), f"train/{seed}")


def _record_files(dataset: str, data_dir: str | None) -> list[Path]:
    from dff_jax.data.datasets import open_builder

    return sorted(Path(open_builder(dataset, data_dir).data_path).glob("*-train.array_record*"))


def _forget(files: list[Path]) -> None:
    """Asks the system to drop what it has cached of files, where that can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in files:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_rate(files: list[Path], cold: bool) -> float:
    """MB/s of reading the files in blocks of 1 MiB, one after another."""
    if cold:
        _forget(files)
    total, start = 0, time.perf_counter()
    for file in files:
        with open(file, "rb", buffering=0) as opened:
            while block := opened.read(BLOCK):
                total += len(block)
    return total / 1e6 / (time.perf_counter() - start)


def _training(preset: str, data: DataConfig, source: pipeline.StackSource, steps: int) -> dict[str, Any]:
    """Steps as `training.loop` makes them: the next batch is fetched while the device computes."""
    model = configs.model_preset(preset)
    estimator = estimators.build(model)
    optimizer = optimizers.build(OptimizerConfig(), 1000)
    update = jit(make_update(estimator, optimizer, LossConfig(), model.coordinate), donate_argnums=0)
    with closing(_loader(data, source, data.num_threads, 0)) as loader:
        batch = next(loader).batch
        now = create(jax.random.key(0), estimator, optimizer, batch.frames, batch.focus)
        now, metrics = update(now, batch)
        jax.block_until_ready(metrics)  # compiled
        waiting, running, start = 0.0, None, time.perf_counter()
        for _ in range(steps):
            before = time.perf_counter()
            batch = next(loader).batch
            waiting += time.perf_counter() - before
            now, metrics = update(now, batch)
            jax.block_until_ready(running)
            running = metrics["loss"]
        jax.block_until_ready(metrics)
        total = time.perf_counter() - start
    return {
        "preset": preset, "steps": steps, "step_s": total / steps, "waiting_share": waiting / total,
        "threads": data.num_threads,
    }  # fmt: skip
