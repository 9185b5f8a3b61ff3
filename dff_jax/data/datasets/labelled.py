"""Folders and lists of stacks with truth, laid out like FlyingThings3D's: `<focus>.png` ..., `AiF.png`, `disp.exr`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from dff_jax.data.datasets.frames import StackFiles
from dff_jax.data.files.focus_settings import labelled_settings
from dff_jax.data.files.folder import find_frames, folder_entries, truth_file
from dff_jax.data.files.reading import collecting, reading
from dff_jax.errors import InputError

TRUTH = "disp.exr"
SAME = 2e-3  # pixels; focus settings closer than this are one: the last digits of names differ between writers


def labelled_stacks(root: Path, split: str, unit: str) -> tuple[list[StackFiles], list[str]]:
    """The stack folders in `root`, in the order of their names as text; and the problems found."""
    stacks, problems = [], []
    folders = sorted(path for path in folder_entries(root) if path.is_dir() and not path.name.startswith("."))
    for folder in folders:
        truth = truth_file(folder)
        if truth is None:
            problems.append(f"{folder / TRUTH}: missing; copy it again, or remove the folder")
        with collecting(problems):
            files = find_frames(folder)
            focus = labelled_settings(files)
            if truth is not None:
                stacks.append(StackFiles(f"{split}/{folder.name}", tuple(files), tuple(focus), truth, unit))
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
    stacks, problems, lines = [], [], []
    with collecting(problems), reading(path, "text"):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, 1):
        entries = line.split()
        if not entries:
            continue
        with collecting(problems), reading(f"{path}, line {number}"):
            if len(entries) < 4 or not re.search(r"\.(exr|npy)$", entries[-1].lower()):
                raise InputError(f"not frames, AiF.png and {TRUTH}, separated by blanks")
            *frames, truth = (_below(source, path.parent, entry) for entry in (*entries[:-2], entries[-1]))
            focus = labelled_settings(frames)
            stacks.append(StackFiles(f"{split}/{truth.parent.name}", tuple(frames), tuple(focus), truth, unit))
    if not stacks and not problems:
        problems.append(f"{path}: names no stack")
    for name, count in Counter(stack.name for stack in stacks).items():
        if count > 1:
            problems.append(f"{path}: {name} is named {count} times; remove the repetitions")
    return stacks, problems


def _below(source: Path, beside: Path, entry: str) -> Path:
    """The file that a list calls `entry`, below `source`."""
    parts = [part for part in PurePosixPath(entry.replace("\\", "/")).parts if part not in ("/", ".")]
    if len(entry) > 1000 or len(parts) > 50:
        raise InputError(f"{entry[:80]}...: too long for a path; write paths below {source.name}/")
    if ".." in parts:
        raise InputError(f"{entry}: leads out of the folder; write paths below {source.name}/")
    for start in range(len(parts)):
        for base in (source, beside):
            path = base.joinpath(*parts[start:])
            if not path.is_file():
                continue
            if not path.resolve().is_relative_to(source.resolve()):
                raise InputError(f"{entry}: a link that leads out of {source}; copy the file instead")
            return path
    raise InputError(f"{entry}: not found below {source}; copy it again")


def settings_problems(splits: dict[str, list[StackFiles]], published: Sequence[float]) -> tuple[list[str], list[str]]:
    """Stacks whose focus settings are not those of the others: (problems, notes).

    The commonest settings count, the published ones if equally many have them; a note says if they are others.
    """
    every = [stack for stacks in splits.values() for stack in stacks]
    if not every:
        return [], []

    def are_published(settings: Sequence[float]) -> bool:
        return not _absent(settings, published) and not _absent(published, settings)

    counts = Counter(tuple(np.round(sorted(stack.focus), 3)) for stack in every)
    expected = max(counts, key=lambda found: (counts[found], are_published(found), len(found)))
    problems = []
    for stack in every:
        folder = stack.frames[0].parent
        if missing := _absent(expected, stack.focus):
            problems.append(f"{folder}: no frame at {_list(missing)}; copy it again")
        if strange := _absent(stack.focus, expected):
            problems.append(f"{folder}: frames at {_list(strange)}, which other stacks do not have; remove them")
    if are_published(expected):
        return problems, []
    return problems, [f"focus settings are {_list(expected)}, where the published ones are {_list(published)}"]


def _absent(values: Sequence[float], among: Sequence[float]) -> list[float]:
    return [value for value in values if np.abs(np.array(among) - value).min() > SAME]


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
