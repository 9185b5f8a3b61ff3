"""Logs of a run: JSONL always, and TensorBoard if wanted. Only process 0 writes."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from dff_jax.runtime.files import finite, write_whole
from dff_jax.runtime.progress import say

FILE_NAME = "train.jsonl"


class JsonlWriter:
    """`train.jsonl`: one line {"step", "kind", values...} a measurement, on disk when the call returns.

    A run that resumes at a step removes all later lines, so that no step is there twice. A log with damaged lines is
    kept under another name beside the one that goes on without them.
    """

    def __init__(self, folder: Path, step: int = 0, evaluated: int = -1):
        """Keeps training lines up to `step` and evaluations up to step `evaluated`, and appends to them."""
        path = folder / FILE_NAME
        if path.exists():
            lines, damaged = _read(path)
            kept = [x for x in lines if x["step"] <= (step if x["kind"] == "train" else evaluated)]
            if damaged:
                shutil.copyfile(path, spare := path.with_name(f"damaged-{FILE_NAME}"))
                say(f"{path}: left out {damaged} damaged lines; the file as it was is {spare}")
            write_whole(path, "".join(map(_line, kept)).encode())
        self._file = path.open("a")

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
    """Event files in `<run>/tensorboard`. Events after the step at which a run resumes are hidden.

    tensorboardX's own SummaryWriter writes in a thread, which dies of a full disk: then the training waits for ever.
    """

    def __init__(self, folder: Path, step: int = 0):
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        self._event, self._summary = Event, summary
        (folder / "tensorboard").mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "tensorboard" / "events"))
        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write(step, summary=self._summary.scalar(f"{kind}/{name}", value))
        self._file.flush()

    def images(self, step: int, kind: str, images: Mapping[str, np.ndarray]) -> None:
        """images: uint8 [H,W,3]."""
        for name, image in images.items():
            self._write(step, summary=self._summary.image(f"{kind}/{name}", image, dataformats="HWC"))
        self._file.flush()

    def _write(self, step: int, **content: Any) -> None:
        self._file.write_event(self._event(step=step, wall_time=time.time(), **content))

    def close(self) -> None:
        self._file.close()


class Writer(Protocol):
    """What `train` logs to: the two above, and any object of the user's with these two methods."""

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """`kind` is "train", "validation" or "transfer"."""

    def images(self, step: int, kind: str, images: Mapping[str, np.ndarray]) -> None:
        """images: uint8 [H,W,3]."""


def open_writers(
    folder: Path, *, tensorboard: bool, step: int, evaluated: int
) -> list[JsonlWriter | TensorBoardWriter]:
    """The writers of a run that continues after `step`, whose last evaluation was at step `evaluated`."""
    if jax.process_index() != 0:
        return []
    writers: list[JsonlWriter | TensorBoardWriter] = [JsonlWriter(folder, step, evaluated)]
    if tensorboard:
        try:
            writers.append(TensorBoardWriter(folder, step))
        except ImportError:
            say("tensorboardX is not installed: logging to train.jsonl only")
    return writers


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's train.jsonl. Damaged ones, and an unfinished last one of a killed process, are left out."""
    return _read(Path(folder) / FILE_NAME)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a log, and how many others are damaged."""
    found, damaged = [], 0
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last newline is unfinished
        try:
            values = json.loads(line)
            if not (isinstance(values["step"], int) and isinstance(values["kind"], str)):
                raise ValueError
            found.append(values)
        except (ValueError, TypeError, LookupError, RecursionError):
            damaged += 1
    return found, damaged


def _line(values: dict[str, Any]) -> str:
    return json.dumps(finite(values)) + "\n"
