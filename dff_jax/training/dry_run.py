"""A configuration from end to end in about a minute: sample files, prepare, a few steps, evaluation, tables, figures.

It runs what the real thing runs, on a handful of small stacks in the exact format of the dataset and with a narrow
network, so that a slip is found before the data are downloaded and the days spent. Its numbers mean nothing.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dff_jax.config import Config
from dff_jax.errors import ConfigError, InputError
from dff_jax.runtime.files import check_output

CROP = 48
STEPS = 4


class Check(NamedTuple):
    """One evaluation of the trained network."""

    dataset: str
    options: dict[str, Any] = {}  # of `evaluation.evaluate.evaluate_to_folder`


_SIZE = (64, 80)
# What to evaluate after training on a family, as the headers of configs/ say
_CHECKS = {
    "flyingthings": (
        Check("flyingthings/focal_stack", {"iterations": 5}), Check("middlebury/focal_stack", {"resize": _SIZE}),
    ),
    "ddff12": (Check("ddff12/scenes"), Check("ddff12/test")),
}  # fmt: skip


def dry_run(config: Config, output: str | Path | None = None) -> dict[str, Any]:
    """Trains and evaluates a small version of `config` on samples that are made here.

    Args:
      config: of source=tfds with a dataset that `data.datasets.samples` can make, or a procedural one.
      output: a new or empty folder to keep it all in; None: a temporary one, removed at the end.

    Returns:
      `seconds`, `evaluations` (name -> the contents of its `metrics.json`) and `tables` (name -> text).

    Raises:
      InputError: data of which no samples can be made, or an output folder that cannot be written or is not empty.
    """
    checks = _checks(config)
    if output is None:
        place = tempfile.TemporaryDirectory(prefix="dff-jax-dry-run-", ignore_cleanup_errors=True)
        with place as folder, _quick_compilation():
            return _run(config, checks, Path(folder))
    check_output(output)
    if Path(output).is_dir() and any(Path(output).iterdir()):
        raise InputError(f"{output}: not empty; give --dry-run a new folder, or none for a temporary one")
    with _quick_compilation():
        return _run(config, checks, Path(output))


def small(config: Config, data_dir: Path) -> Config:
    """`config` with a narrow network, one iteration, small crops and a few steps; its switches stay."""
    iterations = min(config.model.num_iterations, 1)
    sizes = {"width": 0.25, "head_width": 0.25, "encoder": "tiny", "num_iterations": iterations}
    dataset = "procedural/tiny" if config.data.dataset.startswith("procedural/") else config.data.dataset
    crop = tuple(min(side, CROP) for side in config.data.crop)
    steps = {"num_steps": STEPS, "log_every": 1, "eval_every": STEPS, "save_every": STEPS, "keep": 1}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **sizes),
        data=dataclasses.replace(
            config.data, dataset=dataset, data_dir=str(data_dir), crop=crop, batch_size=2, num_threads=1,
            num_workers=0, eval_limit=2,
        ),
        training=dataclasses.replace(
            config.training, **steps, num_devices=1, tensorboard=False, transfer=None, encoder_weights=None,
            initial_weights=None,
        ),
    )  # fmt: skip


def _checks(config: Config) -> tuple[Check, ...]:
    from dff_jax.data.datasets.samples import NAMES

    data = config.data
    if data.source != "tfds" or data.mixture:
        given = "a mixture" if data.mixture else f"data.source={data.source}"
        raise ConfigError(f"--dry-run: needs data.source=tfds, got {given}; try --training.num-steps 4 instead")
    family = data.dataset.partition("/")[0]
    if family == "procedural":
        return (Check("procedural/tiny"),)
    if data.dataset not in NAMES:
        raise InputError(f"--dry-run: no samples of {data.dataset} can be made; of {', '.join(NAMES)} they can")
    return _CHECKS.get(family, (Check(data.dataset),))


def _run(config: Config, checks: tuple[Check, ...], folder: Path) -> dict[str, Any]:
    from dff_jax.data.datasets import prepare
    from dff_jax.data.datasets.samples import write_samples
    from dff_jax.evaluation.evaluate import evaluate_to_folder
    from dff_jax.training.loop import train

    began = time.perf_counter()
    reduced = small(config, folder / "tfds")
    names = dict.fromkeys([reduced.data.dataset, *(check.dataset for check in checks)])
    for number, name in enumerate(names, 1):
        _say(f"dry run: sample files of {name} ({number}/{len(names)})")
        source = None if name.startswith("procedural/") else write_samples(name, folder / "files" / name, _SIZE)
        prepare(name, folder / "tfds", source=source)
    _say(f"dry run: {STEPS} steps of {config.name}, a quarter as wide")
    if train(reduced, folder / "run")["interrupted"]:
        raise KeyboardInterrupt
    reports: dict[str, Any] = {}
    tables: dict[str, str] = {}
    for check in checks:
        _say(f"dry run: evaluation on {check.dataset}")
        options = check.options
        if not config.model.tied:  # has no network for further iterations
            options = {key: value for key, value in options.items() if key != "iterations"}
        place = folder / "evaluations" / check.dataset
        report = evaluate_to_folder(
            folder / "run", place, dataset=check.dataset, data_dir=str(folder / "tfds"), **options
        )
        reports[check.dataset], tables[check.dataset] = report, (place / "table.md").read_text(encoding="utf-8")
    return {"seconds": time.perf_counter() - began, "evaluations": reports, "tables": tables}


@contextmanager
def _quick_compilation() -> Iterator[None]:
    """Compiling is nearly all that a dry run does, and what runs for four steps need not run fast: half the time."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
