"""Focus settings of a list of frames: where they come from, in which unit, and what was assumed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax import focus_axis
from dff_jax.data.files.distance_file import distance_files, read_distances
from dff_jax.data.files.images import read_header
from dff_jax.data.files.series import NUMBER, counts, spaced_stems
from dff_jax.data.files.tiff import Pages
from dff_jax.errors import InputError

_DECIMAL = r"[+-]?[0-9]+[.,][0-9]+(?:[eE][+-]?[0-9]+)?"
_NUMBER = r"[+-]?[0-9]+(?:[.,][0-9]+)?(?:[eE][+-]?[0-9]+)?"
_METRES = 1e-3, focus_axis.FARTHEST  # what a number in a name may be, if it is a distance
_TIMESTAMP = 1e7  # a disparity is no such number; seconds since 1970 and dates are


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
    pages: Pages | None = None,
) -> FocusSettings:
    """The focus settings of an unlabelled stack: of `files`, or of the `pages` of the only file.

    They come from the first of
      1. `focus`, an explicit list: in disparity unless `unit` says otherwise;
      2. the z positions of the pages;
      3. `focus_distance.txt` or its kin beside the frames (`distance_file`): in metres;
      4. a decimal number as name (`10.0.png`): disparity; or after the last underscore (`image_1_0.35.jpg`):
         metres; only if every file has one that can be a focus setting: a plain counter (`frame12.jpg`), a time, or a
         version (`1.9`, `1.10`) gives nothing but the order. For positions (mm, micron) whole numbers are taken, too;
      5. EXIF's subject distance, in metres, if all files have their own;
      6. the frame index 0..Z-1, from the last frame if `reverse`.

    Args:
      reverse: the other end is the near one: an index is counted from the last frame; of positions (mm, micron) the
        smaller is the nearer.

    Raises:
      InputError: a list or text file of another count or with something that is no number; a unit, but no
        values; `reverse`, but values in a unit that already says which end is near.
    """
    if unit is not None:
        focus_axis.check_unit(unit)
    count = pages.count if pages else len(files)
    texts = [] if pages else _distance_files(files)
    numbers, usual, said = (None, "", ()) if pages else _numbers(files, unit)
    notes = []
    if focus is not None:
        values, usual, origin = parse_focus(focus, count), unit or "disparity", "the given list"
        notes += [f"{path.name} is not used, as a list of settings is given" for path in texts]
    elif pages and (pages.step or pages.positions) and unit in (None, *focus_axis.POSITIONS):
        values = np.array(pages.positions or np.arange(count) * (pages.step or 0.0), np.float64)
        usual, origin = pages.unit or "mm", "the z positions in the file"
    elif texts:
        (values, usual), origin = _listed(texts[0], files, unit), texts[0].name
        notes += [f"{path.name} is not used; {origin} is" for path in texts[1:]]
        notes += [f"the numbers in the file names are not used; {origin} is"] * (numbers is not None)
    elif numbers is not None:
        values, usual, origin = numbers, unit or usual, "the file names"
    elif not pages and (exif := _exif(files)).any() and unit in (None, "metre"):
        if not (exif.all() and len(set(exif)) == count):
            known = len(set(exif) - {0.0})
            said += (f"EXIF subject distances are not used: {known} different ones for {count} files",)
            return _index(files[0], count, unit, reverse, said)
        values, usual, origin = exif, "metre", "EXIF (SubjectDistance)"
    else:
        return _index(files[0], count, unit, reverse, said)
    values = _in_unit(values, usual, unit)
    notes.insert(
        0, f"focus settings from {origin}, {f'in {unit}' if unit else f'taken as {usual}; --unit says otherwise'}"
    )
    usual = unit or usual
    notes += _odd_unit(values, usual)
    if usual in focus_axis.POSITIONS:
        if not reverse:
            notes.append("the larger position is taken as the nearer one; --reverse says otherwise")
        usual = f"-{usual}" if reverse else usual
    elif reverse:
        raise InputError(f"reverse: the focus settings ({origin}) already say the order; leave it out")
    return FocusSettings(values, usual, tuple(notes))


def _in_unit(values: np.ndarray, own: str, unit: str | None) -> np.ndarray:
    """Lengths [Z] in `own` as lengths in `unit`; other values as they are."""
    if unit in focus_axis.LENGTHS and own in focus_axis.LENGTHS:
        return values * (focus_axis.LENGTHS[own] / focus_axis.LENGTHS[unit])
    return values


def _odd_unit(values: np.ndarray, unit: str) -> tuple[str, ...]:
    """A note on metres or diopters that look like something else."""
    here = np.abs(values[np.isfinite(values)])
    if unit == "metre" and here.size and here.min() > 50:
        return (f"all settings lie beyond {here.min():g} m: if they are millimetres, divide them by 1000",)
    if unit == "metre" and here.size and here.max() < 1e-3 or unit == "diopter" and here.max(initial=0) > 1000:
        return (f"settings up to {here.max():g} {unit}s are unusual: is the unit right?",)
    return ()


def _numbers(files: Sequence[Path], unit: str | None) -> tuple[np.ndarray | None, str, tuple[str, ...]]:
    """Focus settings [Z] in the names, or None; their usual unit; a note if numbers are not taken."""
    for pattern, usual, low, high in (
        (rf"({_DECIMAL})", "disparity", -_TIMESTAMP, _TIMESTAMP), (rf".*_({_DECIMAL}|inf) ?m?", "metre", *_METRES),
    ):  # fmt: skip
        texts = _match(files, pattern)
        if not all(texts):
            continue
        values = np.array([float(text.replace(",", ".")) for text in texts])
        if unit is None and not ((low <= values) & (values <= high) | (values == np.inf)).all():
            what = "dates or times" if usual == "disparity" else "distances in metres"
            kept = "look like" if usual == "disparity" else "cannot be"
            return None, "", (f"the numbers in the file names {kept} {what}: only their order is used",)
        if unit is None and counts([re.split("[.,eE]", text)[1] for text in texts if text.lower() != "inf"]):
            return None, "", ("the numbers in the file names are taken as a counter, not as focus",)
        return values, usual, ()
    if unit in focus_axis.POSITIONS and all(texts := _match(files, rf".*?({NUMBER})")):
        return np.array([float(text.replace(",", ".")) for text in texts]), unit or "", ()
    count = sum(bool(text) for text in _match(files, rf"(?:.*_)?({_DECIMAL})"))
    said = f"{count} of {len(files)} file names end in a decimal number: taken as a counter, not as focus"
    return None, "", (said,) if count else ()


def _match(files: Sequence[Path], pattern: str) -> list[str]:
    found = (re.fullmatch(pattern, stem, re.DOTALL | re.I) for stem in spaced_stems(files))
    return [match[1] if match else "" for match in found]


def _exif(files: Sequence[Path]) -> np.ndarray:
    """EXIF subject distances [Z] in metres, 0 where there is none."""
    return np.array([read_header(file).subject_distance or 0.0 for file in files])


def _listed(path: Path, files: Sequence[Path], unit: str | None) -> tuple[np.ndarray, str]:
    """Focus settings [Z] of a distance file, and its own unit; InputError if that is none that becomes `unit`."""
    values, stated = read_distances(path, files)
    usual = stated or unit or "metre"
    if unit not in (None, usual) and not {unit, usual} <= {*focus_axis.LENGTHS}:
        raise InputError(f"{path}: its settings are in {usual}, not in {unit}; correct the file or the unit")
    return values, usual


def labelled_settings(files: Sequence[Path], unit: str | None = None) -> np.ndarray:
    """The focus settings [Z] in `unit` of a stack with ground truth, which never fall back to an index.

    From a text file beside the frames, or from names such as `10.0.png`, `10.png`, `image_1_0.35.jpg`; raises
    InputError if neither, or if the file says another unit.
    """
    if texts := _distance_files(files):
        return _in_unit(*_listed(texts[0], files, unit), unit)
    values = []
    for file in files:
        match = re.fullmatch(rf"({_NUMBER})|.*_({_DECIMAL})", file.stem)
        if match is None:
            raise InputError(f"{file}: no focus setting in the name; name each frame by it, such as 10.0.png")
        values.append(float((match[1] or match[2]).replace(",", ".")))
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


def _index(first: Path, count: int, unit: str | None, reverse: bool, notes: tuple[str, ...]) -> FocusSettings:
    if unit not in (None, "index"):
        raise InputError(
            f"{first.parent}: no focus settings in {unit}; give them with --focus, or in a focus_distance.txt in the "
            "folder"
        )
    values = np.arange(count, dtype=np.float64)
    note = (
        f"no focus settings found: depth is the frame index, 0 at the {'last' if reverse else 'first'} frame, in equal "
        "steps; which end is near is not known (--reverse counts from the other end: for a first frame that is the "
        "nearest)"
    )
    return FocusSettings(values[::-1].copy() if reverse else values, "index", (*notes, note))


def _distance_files(files: Sequence[Path]) -> list[Path]:
    return distance_files(files[0].parent) if len({file.parent for file in files}) == 1 else []
