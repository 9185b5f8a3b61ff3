"""How many stacks per second the training loader gives, with threads and with worker processes."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from dff_jax.config import DataConfig
from dff_jax.data import pipeline
from dff_jax.data.loading import PartLoader
from dff_jax.data.parts import FilePart, Share
from dff_jax.errors import InputError
from dff_jax.runtime import markdown as texts
from dff_jax.runtime.files import check_output, machine
from dff_jax.runtime.progress import say
from dff_jax.studies.bench import measuring

FILES = ("loader.json", "loader.md")
BATCH = 2
WAYS = ((1, 0), (2, 0), (1, 1), (1, 2))  # threads of each process, worker processes (0: this process loads)


def bench_loader(
    dataset: str | None = None, data_dir: str | None = None, *, size: int = 256, num_frames: int = 15,
    full_size: tuple[int, int] = (540, 960), stacks: int = 8, batches: int = 16, output: str | Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Times reading, decoding, cropping and augmenting; returns the contents of `loader.json`, and writes it.

    Args:
      dataset: a prepared tfds dataset with a train split; None: folders of noise of `full_size`, as large as
        FlyingThings3D's, in a temporary folder.
      data_dir: where tfds keeps its files.
      size: side of the crops, pixels.
      num_frames: of the noise.
      stacks: number of stacks of noise.
      batches: number of batches of two stacks to time for each way of loading.

    Raises:
      InputError: no such dataset, crops that do not fit, or no room for the noise.
    """
    if dataset is None and num_frames < 2:
        raise InputError(f"--frames: must be at least 2, got {num_frames}")
    if output is not None:
        check_output(output, FILES)
    with ExitStack() as stack:
        if dataset is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dff_jax_bench_")))
            _write_noise(folder / "train", stacks, num_frames, full_size)
            source = pipeline.folder_source(folder, "train", "disparity")
        else:
            source = pipeline.tfds_source(dataset, "train", data_dir)
        data = DataConfig(crop=(size, size), batch_size=BATCH)
        rows = []
        for threads, workers in WAYS:
            part = FilePart(data, source, Share(0, BATCH))
            with closing(PartLoader([part], [1.0], num_threads=threads, num_workers=workers)) as loader:
                start = time.perf_counter()
                next(loader)
                first = time.perf_counter() - start
                for _ in range(4 * (threads + workers)):  # read ahead meanwhile
                    next(loader)
                start = time.perf_counter()
                for _ in range(batches):
                    next(loader)
                rate = batches * BATCH / (time.perf_counter() - start)
            rows.append({"threads": threads, "workers": workers, "stacks_per_s": rate, "first_batch_s": first})
            say(f"{threads} threads, {workers} worker processes: {rate:.1f} stacks/s")
    told = dataset or f"{stacks} folders of noise, {num_frames} x {full_size[0]} x {full_size[1]}"
    report = {"data": told, "crop": size, "batch": BATCH, "cores": os.cpu_count(), "rows": rows, "machine": machine()}
    measuring.write(output, FILES, report, markdown(report))
    return report


def markdown(report: dict[str, Any]) -> str:
    """A line for each way of loading."""
    head = f"{report['data']}; crops of {report['crop']} x {report['crop']}, batches of {report['batch']}; "
    head += f"{report['cores']} cores. Without worker processes, the threads are this process's."
    rows = [[row[key] for key in ("threads", "workers", "stacks_per_s", "first_batch_s")] for row in report["rows"]]
    lines = texts.table(rows, ["threads", "worker processes", "stacks/s", "first batch, s"])
    return "\n".join([head, "", *lines]) + "\n"


def _write_noise(root: Path, stacks: int, num_frames: int, size: tuple[int, int]) -> None:
    """Stack folders as FlyingThings3D's, of coarse noise, which compresses about as photographs do."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(stacks):
        folder = root / f"stack{i}"
        folder.mkdir(parents=True)
        for q in np.linspace(10, 100, num_frames):
            coarse = rng.integers(40, 200, (size[0] // 12 + 1, size[1] // 12 + 1, 3), np.uint8)
            frame = coarse.repeat(12, 0).repeat(12, 1)[: size[0], : size[1]]
            Image.fromarray(frame + rng.integers(0, 8, frame.shape, np.uint8)).save(folder / f"{q:.1f}.png")
        np.save(folder / "disp.npy", rng.uniform(10, 100, size).astype(np.float32))
