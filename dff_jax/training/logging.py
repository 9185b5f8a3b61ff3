"""Logs of a run: JSONL always, and TensorBoard if wanted. Only process 0 writes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dff_jax.errors import InputError
from dff_jax.runtime.progress import say

FILE_NAME = "train.jsonl"


class JsonlWriter:
    """`train.jsonl`: one line {"step", "kind", values...} a measurement, on disk when the call returns.

    A run that resumes at a step removes all later lines, so that no step is there twice.
    """

    def __init__(self, folder: Path, step: int = 0, evaluated: int = -1):
        """Keeps training lines up to `step` and evaluations up to step `evaluated`, and appends to them."""
        path = folder / FILE_NAME
        if path.exists():
            kept = [x for x in read_log(folder) if x["step"] <= (step if x["kind"] == "train" else evaluated)]
            temporary = path.with_name(f".{FILE_NAME}.tmp")
            temporary.write_text("".join(map(_line, kept)))
            os.replace(temporary, path)
        try:
            self._file = path.open("a")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """`kind` is "train", "validation" or "transfer"."""
        self._file.write(_line({"step": step, "kind": kind} | dict(values)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def images(self, step: int, kind: str, images: Mapping[str, np.ndarray]) -> None:
        """A text file holds no images."""

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter:
    """Event files in `<run>/tensorboard`. Events after the step at which a run resumes are hidden."""

    def __init__(self, folder: Path, step: int = 0):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def images(self, step: int, kind: str, images: Mapping[str, np.ndarray]) -> None:
        """images: uint8 [H,W,3]."""
        for name, image in images.items():
            self._writer.add_image(f"{kind}/{name}", image, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


Writer = JsonlWriter | TensorBoardWriter


def open_writers(folder: Path, *, tensorboard: bool, step: int, evaluated: int) -> list[Writer]:
    """The writers of a run that continues after `step`, whose last evaluation was at step `evaluated`."""
    if jax.process_index() != 0:
        return []
    writers: list[Writer] = [JsonlWriter(folder, step, evaluated)]
    if tensorboard:
        try:
            writers.append(TensorBoardWriter(folder, step))
        except ImportError:
            say("tensorboardX is not installed: logging to train.jsonl only")
    return writers


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's train.jsonl. An unfinished last line, of a killed process, is left out."""
    lines = (Path(folder) / FILE_NAME).read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last newline is unfinished


def _line(values: dict[str, Any]) -> str:
    """A line of the log. JSON has no NaN: a number that is not finite becomes null."""
    plain = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in values.items()}
    return json.dumps(plain) + "\n"
