"""The family `stacks`: your own focal stacks, under any name: `dff-jax prepare stacks/garden --source DIR`.

A stack is a folder of images, with focus settings as `dff-jax predict` finds them (file names, a distance file, else
the frame index), and perhaps a truth: `disp.*` (disparity) or `depth.*` (metres), 0 or not finite where there is none.
`DIR/train`, `DIR/val` and `DIR/test` are splits; without them all stacks are the test split.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from pathlib import Path

import numpy as np

from dff_jax.data.datasets.base import Dataset, Facts, Inventory, one_unit, split_folders
from dff_jax.data.datasets.frames import StackFiles, add_stack, read_files
from dff_jax.data.files.align import align_stack, check_model, remarks
from dff_jax.data.files.focus_settings import focus_settings, labelled_settings
from dff_jax.data.files.folder import find, labelled_files, list_stacks, picture_file, truth_file
from dff_jax.data.files.frames import MIN_SIDE
from dff_jax.data.files.reading import collecting
from dff_jax.data.files.scaling import downscale
from dff_jax.errors import InputError
from dff_jax.runtime.progress import say
from dff_jax.types import FocalStack


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserStacks(Dataset):
    """Your own focal stacks. Options as of `dff-jax predict`; None: as the files say."""

    unit: str | None = None  # of focus settings and truth
    reverse: bool = False  # counts the frame index from the other end
    max_size: int | None = None  # longest side in pixels to scale down to
    align: str | None = None  # model of the motion between frames, see `data.align`

    def survey(self, source: Path) -> Inventory:
        if self.max_size is not None and self.max_size < MIN_SIDE:
            raise InputError(f"max_size: must be at least {MIN_SIDE} pixels, got {self.max_size}")
        if self.align is not None:
            check_model(self.align)
        found = Inventory()
        places = split_folders(source, "test", found.notes)
        notes: Counter[str] = Counter()
        stacks: list[StackFiles] = []
        for split, root in places:
            for folder in list_stacks(root):
                name = folder.relative_to(root).as_posix()
                with collecting(found.problems):
                    stack, said = _find(f"{split}/{folder.name if name == '.' else name}", folder, self)
                    notes.update(said)
                    stacks.append(stack)
        with_truth = any(stack.truth for stack in stacks)
        unit = one_unit({stack.unit: stack.frames[0].parent for stack in reversed(stacks)}, "index", found.problems)
        if self.align is not None and with_truth:
            notes["truth is taken to belong to the frame that alignment leaves as it is, the middle one"] += 1
        found.notes += [text if count == 1 else f"{text} ({count} stacks)" for text, count in notes.items()]
        for stack in stacks:
            add_stack(found, stack, functools.partial(_read, max_size=self.max_size, model=self.align))
        same = len({stack.focus for stack in stacks}) == 1
        found.facts = self.facts._replace(
            unit=unit,
            focus_range=(min(stacks[0].focus), max(stacks[0].focus)) if same else None,
            has_truth=with_truth,
        )
        return found


def _find(name: str, folder: Path, config: UserStacks) -> tuple[StackFiles, tuple[str, ...]]:
    """The files of one stack and what was assumed of them."""
    if truth_file(folder) is None:
        truth, files = None, find(folder).files
        focus, unit, notes = focus_settings(files, None, config.unit, reverse=config.reverse)
    else:
        files, truth = labelled_files(folder)
        if config.reverse or config.max_size:
            option = "reverse" if config.reverse else "max-size"
            raise InputError(f"{truth}: --{option} is for stacks without truth; leave it out, or prepare them apart")
        unit = config.unit or ("metre" if truth.stem.lower() == "depth" else "disparity")
        focus, notes = labelled_settings(files, unit), ()
    sharp = picture_file(folder)
    return StackFiles(name, tuple(files), tuple(focus), truth, unit, unit == "metre", sharp), notes


def _read(files: StackFiles, max_size: int | None, model: str | None) -> FocalStack:
    """A stack, scaled down and aligned; says if a frame would not align."""
    stack = read_files(files)
    stack = stack._replace(frames=np.stack([downscale(frame, max_size) for frame in stack.frames]))
    if stack.all_in_focus is not None:
        stack = stack._replace(all_in_focus=downscale(stack.all_in_focus, max_size))
    if model is None:
        return stack
    aligned = align_stack(stack.frames, model)
    if aligned.failed():
        for remark in remarks(aligned, [path.name for path in files.frames]):
            say(f"note: {stack.name}: {remark}")
    if stack.depth is not None and stack.mask is not None:
        mask = stack.mask & aligned.mask
        stack = stack._replace(depth=np.where(mask, stack.depth, 0), mask=mask)
    return stack._replace(frames=aligned.frames)


DATASETS = [
    UserStacks(
        name="stacks/NAME",
        description="your own folder of focal stacks",
        facts=Facts(
            unit="index",
            focus_range=None,
            order="as the focus settings say",
            truth="disp.* or depth.* of each stack, where it is not 0; some or all stacks may have none",
            licence="yours",
            citation="",
            where="your own folder of stacks",
        ),
    )
]
