"""Folders and lists of stacks with truth, laid out like FlyingThings3D's: `<focus>.png` ..., `AiF.png`, `disp.exr`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from dff_jax.data.datasets.frames import StackFiles
from dff_jax.data.files.focus_settings import labelled_settings
from dff_jax.data.files.folder import find_frames, folder_entries, truth_file
from dff_jax.data.files.reading import reading
from dff_jax.errors import InputError

TRUTH = "disp.exr"
SAME = 1e-3  # focus settings closer than this are one, in pixels; the last digits of names differ between writers


def labelled_stacks(root: Path, split: str, unit: str, positive: bool = True) -> tuple[list[StackFiles], list[str]]:
    """The stack folders in `root`, in the order of their names as text; and the problems found."""
    stacks, problems = [], []
    folders = sorted(path for path in folder_entries(root) if path.is_dir() and not path.name.startswith("."))
    for folder in folders:
        truth = truth_file(folder)
        if truth is None:
            problems.append(f"{folder / TRUTH}: missing; copy it again, or remove the folder")
        try:
            files = find_frames(folder)
            focus = labelled_settings(files)
        except InputError as error:
            problems.append(str(error))
            continue
        if truth is not None:
            stacks.append(StackFiles(f"{split}/{folder.name}", tuple(files), tuple(focus), truth, unit, positive))
    if not folders:
        problems.append(f"{root}: no stack in it; each is a folder of frames such as 10.0.png and {TRUTH}")
    return stacks, problems


def read_path_list(path: Path, source: Path, split: str, unit: str) -> tuple[list[StackFiles], list[str]]:
    """Stacks from a list: a stack a line, its frames, then `AiF.png`, then the truth, separated by blanks.

    The paths are relative to some copy's own root, so leading folders are dropped until the file is found below
    `source`. Nothing outside `source` is ever read.

    Returns:
      The stacks, in the list's order, and the problems: each line that is not of that form or names a missing file.
    """
    stacks, problems = [], []
    try:
        with reading(path, "text"):
            lines = path.read_text(encoding="utf-8-sig").splitlines()
    except InputError as error:
        return [], [str(error)]
    for number, line in enumerate(lines, 1):
        entries = line.split()
        if not entries:
            continue
        if len(entries) < 4 or not re.search(r"\.(exr|npy)$", entries[-1].lower()):
            problems.append(f"{path}, line {number}: not frames, AiF.png and {TRUTH}, separated by blanks")
            continue
        try:
            *frames, truth = (_below(source, path.parent, entry) for entry in (*entries[:-2], entries[-1]))
            focus = labelled_settings(frames)
        except InputError as error:
            problems.append(f"{path}, line {number}: {error}")
            continue
        name = f"{split}/{truth.parent.name}"
        stacks.append(StackFiles(name, tuple(frames), tuple(focus), truth, unit))
    if not stacks and not problems:
        problems.append(f"{path}: names no stack")
    for name, count in Counter(stack.name for stack in stacks).items():
        if count > 1:
            problems.append(f"{path}: {name} is named {count} times; remove the repetitions")
    return stacks, problems


def settings_problems(splits: dict[str, list[StackFiles]], published: Sequence[float]) -> tuple[list[str], list[str]]:
    """Stacks whose focus settings are not those of the others: (problems, notes).

    The commonest settings count, the published ones if equally many have them; a note says if they are others.
    """
    every = [stack for stacks in splits.values() for stack in stacks]
    if not every:
        return [], []
    sets = Counter(tuple(round(value / SAME) for value in sorted(stack.focus)) for stack in every)
    standard = tuple(round(value / SAME) for value in sorted(published))
    best = max(sets, key=lambda found: (sets[found], _close(found, standard), len(found)))
    expected = np.array(best) * SAME
    problems = []
    for stack in every:
        found = np.array(stack.focus)
        missing = [value for value in expected if np.abs(found - value).min() > 2 * SAME]
        strange = [value for value in found if np.abs(expected - value).min() > 2 * SAME]
        folder = stack.frames[0].parent
        if missing:
            problems.append(f"{folder}: no frame at {_list(missing)}; copy it again")
        if strange:
            problems.append(f"{folder}: frames at {_list(strange)}, which other stacks do not have; remove them")
    notes = []
    if not _close(best, standard):
        notes.append(f"focus settings are {_list(expected)}, where the published ones are {_list(published)}")
    return problems, notes


def _close(a: Sequence[int], b: Sequence[int]) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= 2 for x, y in zip(a, b, strict=True))


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name longer than there can be
        return False


def _below(source: Path, beside: Path, entry: str) -> Path:
    """The file that a list calls `entry`, below `source`."""
    parts = PurePosixPath(entry.replace("\\", "/")).parts
    if len(entry) > 1000 or len(parts) > 50:
        raise InputError(f"{entry[:80]}...: too long for a path; write paths below {source.name}/")
    if ".." in parts:
        raise InputError(f"{entry}: leads out of the folder; write paths below {source.name}/")
    parts = [part for part in parts if part not in ("/", ".")]
    root = source.resolve()
    for start in range(len(parts)):
        for base in (source, beside):
            path = base.joinpath(*parts[start:])
            if _is_file(path):
                if not path.resolve().is_relative_to(root):
                    raise InputError(f"{entry}: a link that leads out of {source}; copy the file instead")
                return path
    raise InputError(f"{entry}: not found below {source}; copy it again")
