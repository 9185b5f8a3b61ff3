"""Focus settings of a list of frames: where they come from, in which unit, and what was assumed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax import focus_axis
from dff_jax.data.files.reading import reading
from dff_jax.errors import InputError

DISTANCE_FILES = ("focus_distance.txt", "focus_dpth.txt")
_MOST_TEXT = 2**20  # characters
_DECIMAL = r"[+-]?\d+\.\d+(?:[eE][+-]?\d+)?"
_NUMBER = r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"


class FocusSettings(NamedTuple):
    """One focus setting a frame, in the order of the files."""

    values: np.ndarray  # [Z] float64, in `unit`
    unit: str
    notes: tuple[str, ...]


def focus_settings(
    files: Sequence[Path],
    focus: Sequence[float] | None = None,
    unit: str | None = None,
    *,
    reverse: bool = False,
) -> FocusSettings:
    """The focus settings of `files` (in natural order) of an unlabelled stack.

    They come from the first of
      1. `focus`, an explicit list: in disparity unless `unit` says otherwise;
      2. `focus_distance.txt` or `focus_dpth.txt` beside the frames, one number a line: in metres;
      3. a decimal number as name (`10.0.png`): disparity; or after the last underscore (`image_1_0.35.jpg`):
         metres; only if every file has one: a plain counter (`frame12.jpg`) gives nothing but the order;
      4. the frame index 0..Z-1, from the last file if `reverse`.

    Raises:
      InputError: a list or text file of another count or with something that is no number; a unit, but no
        values; `reverse`, but values, which already say the order.
    """
    if unit is not None:
        focus_axis.check_unit(unit)
    names = [re.fullmatch(_DECIMAL, file.stem) for file in files]
    endings = [re.fullmatch(rf".*_({_DECIMAL})", file.stem) for file in files]
    text = _distance_file(files)
    if focus is not None:
        values, usual, origin = parse_focus(focus, len(files)), "disparity", "the given list"
    elif text is not None:
        values, usual, origin = _read_distances(text, len(files)), "metre", text.name
    elif all(names):
        values, usual, origin = np.array([float(m[0]) for m in names if m]), "disparity", "the file names"
    elif all(endings):
        values, usual, origin = np.array([float(m[1]) for m in endings if m]), "metre", "the file names"
    else:
        count = sum(bool(a or b) for a, b in zip(names, endings, strict=True))
        said = f"{count} of {len(files)} file names end in a decimal number: taken as a counter, not as focus"
        return _index(files, unit, reverse, (said,) if count else ())
    if reverse:
        raise InputError(f"reverse: the focus settings ({origin}) already say the order; leave it out")
    if unit is None:
        note = f"focus settings from {origin}, taken as {usual}; --unit says otherwise"
    else:
        note = f"focus settings from {origin}, in {unit}"
    return FocusSettings(values, unit or usual, (note,))


def labelled_settings(files: Sequence[Path]) -> np.ndarray:
    """The focus settings [Z] of a stack with ground truth, which never fall back to an index.

    From a text file beside the frames, or from names such as `10.0.png`, `10.png`, `image_1_0.35.jpg`; raises
    InputError if neither.
    """
    text = _distance_file(files)
    if text is not None:
        return _read_distances(text, len(files))
    values = []
    for file in files:
        match = re.fullmatch(rf"({_NUMBER})|.*_({_DECIMAL})", file.stem)
        if match is None:
            raise InputError(f"{file}: no focus setting in the name; name each frame by it, such as 10.0.png")
        values.append(float(match[1] or match[2]))
    return np.array(values)


def parse_focus(focus: Sequence[float], count: int) -> np.ndarray:
    """A given list of focus settings as [Z] float64; InputError if not numbers, or not `count` of them."""
    try:
        values = np.array([float(value) for value in focus], np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"focus: {error}; give one number a frame") from None
    if len(values) != count:
        raise InputError(f"focus: {len(values)} settings for {count} frames; give one a frame")
    return values


def _index(files: Sequence[Path], unit: str | None, reverse: bool, notes: tuple[str, ...]) -> FocusSettings:
    if unit not in (None, "index"):
        raise InputError(
            f"{files[0].parent}: no focus settings in {unit}; give them with --focus, or in a "
            f"{DISTANCE_FILES[0]} in the folder"
        )
    values = np.arange(len(files), dtype=np.float64)
    note = (
        f"no focus settings found: depth is the frame index, 0 at the {'last' if reverse else 'first'} file, in equal "
        "steps; which end is near is not known (--reverse counts from the other end: for a first file that is the "
        "nearest)"
    )
    return FocusSettings(values[::-1].copy() if reverse else values, "index", (*notes, note))


def _distance_file(files: Sequence[Path]) -> Path | None:
    if len({file.parent for file in files}) > 1:
        return None
    candidates = (files[0].parent / name for name in DISTANCE_FILES)
    return next((path for path in candidates if path.is_file()), None)


def _read_distances(path: Path, count: int) -> np.ndarray:
    with reading(path, "text"), open(path, encoding="utf-8-sig") as file:
        text = file.read(_MOST_TEXT + 1)
    if len(text) > _MOST_TEXT:
        raise InputError(f"{path}: too long for a list of focus distances; one a line, in name order")
    values = []
    for number, line in enumerate(text.splitlines(), start=1):
        shown = line.strip()[:40]
        if not shown:
            continue
        try:
            values.append(float(line))
        except ValueError:
            raise InputError(f"{path}, line {number}: {shown!r} is not a number") from None
        if not np.isfinite(values[-1]):
            raise InputError(f"{path}, line {number}: {shown!r} is not a finite number")
    if len(values) != count:
        raise InputError(
            f"{path}: {len(values)} distances for {count} frames; one a line, in name order (for some of the frames "
            "give theirs with --focus)"
        )
    return np.array(values)
