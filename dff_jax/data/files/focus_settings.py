"""Focus settings of a list of frames: where they come from, in which unit, and what was assumed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax import focus_axis
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


class _Found(NamedTuple):
    values: np.ndarray  # [Z]
    unit: str  # what such values are taken for when nobody says
    origin: str


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
    notes: list[str] = []
    found = _values(files, focus, notes)
    if found is None:
        return _index(files, unit, reverse, notes)
    if reverse:
        raise InputError(f"reverse: the focus settings ({found.origin}) already say the order; leave it out")
    if unit is None:
        notes.append(f"focus settings from {found.origin}, taken as {found.unit}; --unit says otherwise")
    else:
        notes.append(f"focus settings from {found.origin}, in {unit}")
    return FocusSettings(found.values, unit or found.unit, tuple(notes))


def labelled_settings(files: Sequence[Path]) -> np.ndarray:
    """The focus settings [Z] of a stack with ground truth, which never fall back to an index.

    From a text file beside the frames, or from names such as `10.0.png`, `10.png`, `image_1_0.35.jpg`; raises
    InputError if neither.
    """
    named = [re.fullmatch(_NUMBER, f.stem) or re.fullmatch(rf".*_({_DECIMAL})", f.stem) for f in files]
    text = _distance_file(files)
    if text is not None:
        return _read_distances(text, len(files))
    for file, match in zip(files, named, strict=True):
        if match is None:
            raise InputError(f"{file}: no focus setting in the name; name each frame by it, such as 10.0.png")
    return np.array([float(match[match.lastindex or 0]) for match in named])


def parse_focus(focus: Sequence[float], count: int) -> np.ndarray:
    """A given list of focus settings as [Z] float64; InputError if not numbers, or not `count` of them."""
    try:
        values = np.array([float(value) for value in focus], np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"focus: {error}; give one number a frame") from None
    if len(values) != count:
        raise InputError(f"focus: {len(values)} settings for {count} frames; give one a frame")
    return values


def _values(files: Sequence[Path], focus: Sequence[float] | None, notes: list[str]) -> _Found | None:
    if focus is not None:
        return _Found(parse_focus(focus, len(files)), "disparity", "the given list")
    text = _distance_file(files)
    if text is not None:
        return _Found(_read_distances(text, len(files)), "metre", text.name)
    bare = [re.fullmatch(_DECIMAL, file.stem) for file in files]
    last = [re.fullmatch(rf".*_({_DECIMAL})", file.stem) for file in files]
    if all(bare):
        return _Found(np.array([float(m[0]) for m in bare]), "disparity", "the file names")
    if all(last):
        return _Found(np.array([float(m[1]) for m in last]), "metre", "the file names")
    count = sum(bool(a or b) for a, b in zip(bare, last, strict=True))
    if count:
        notes.append(f"{count} of {len(files)} file names end in a decimal number: taken as a counter, not as focus")
    return None


def _index(files: Sequence[Path], unit: str | None, reverse: bool, notes: list[str]) -> FocusSettings:
    if unit not in (None, "index"):
        raise InputError(
            f"{files[0].parent}: no focus settings in {unit}; give them with --focus, or in a "
            f"{DISTANCE_FILES[0]} in the folder"
        )
    values = np.arange(len(files), dtype=np.float64)
    start = "last" if reverse else "first"
    notes.append(
        f"no focus settings found: depth is the frame index, 0 at the {start} file, in equal steps; which end is "
        "near is not known (--reverse counts from the other end: for a first file that is the nearest)"
    )
    return FocusSettings(values[::-1].copy() if reverse else values, "index", tuple(notes))


def _distance_file(files: Sequence[Path]) -> Path | None:
    if len({file.parent for file in files}) > 1:
        return None
    candidates = (files[0].parent / name for name in DISTANCE_FILES)
    return next((path for path in candidates if path.is_file()), None)


def _read_distances(path: Path, count: int) -> np.ndarray:
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(_MOST_TEXT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None
    if len(text) > _MOST_TEXT:
        raise InputError(f"{path}: too long for a list of focus distances; one a line, in name order")
    lines = text.splitlines()
    values = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            text = line.strip()[:40]
            try:
                values.append(float(line))
            except ValueError:
                raise InputError(f"{path}, line {number}: {text!r} is not a number") from None
            if not np.isfinite(values[-1]):
                raise InputError(f"{path}, line {number}: {text!r} is not a finite number")
    if len(values) != count:
        raise InputError(
            f"{path}: {len(values)} distances for {count} frames; one a line, in name order (for some of the frames "
            "give theirs with --focus)"
        )
    return np.array(values)
