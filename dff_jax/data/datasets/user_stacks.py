"""tfds family `stacks`: your own focal stacks, under any name: `dff-jax prepare stacks/garden --source DIR`.

A stack is a folder of images, with focus settings as `dff-jax predict` finds them (file names, a distance file, else
the frame index), and perhaps a truth, `disp.exr` or `disp.npy` (0 = none). `DIR/train`, `DIR/val` and `DIR/test` are
splits; without them all stacks are the test split.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from pathlib import Path

import numpy as np

from dff_jax.data.datasets.base import StackBuilder, StackConfig
from dff_jax.data.datasets.frames import StackFiles, inventory
from dff_jax.data.datasets.records import Facts, Inventory, Item, one_unit, split_folders
from dff_jax.data.files.align import align_stack, check_model, remarks
from dff_jax.data.files.focus_settings import focus_settings, labelled_settings
from dff_jax.data.files.folder import MIN_SIDE, find_frames, list_stacks, truth_file
from dff_jax.data.files.images import downscale
from dff_jax.data.files.reading import collecting
from dff_jax.errors import InputError
from dff_jax.runtime.progress import say
from dff_jax.types import FocalStack

FACTS = Facts(
    unit="index",
    focus_range=None,
    order="as the focus settings say",
    truth="disp.exr or disp.npy of each stack, where it is not 0; some or all stacks may have none",
    licence="yours",
    citation="",
    where="your own folder of stacks",
)


@dataclasses.dataclass(eq=False, kw_only=True)
class UserStacksConfig(StackConfig):
    """Options as of `dff-jax predict`; None: as the files say."""

    unit: str | None = None  # of focus settings and truth
    reverse: bool = False  # counts the frame index from the other end
    max_size: int | None = None  # longest side in pixels to scale down to
    align: str | None = None  # model of the motion between frames, see `data.align`


class UserStacks(StackBuilder):
    """Your own focal stacks, with or without ground truth."""

    name = "stacks"
    builder_config: UserStacksConfig
    OPEN = True
    BUILDER_CONFIGS = [UserStacksConfig(name="any", facts=FACTS, description="your own folder of focal stacks")]

    def survey(self, source: Path) -> Inventory:
        config = self.builder_config
        if config.max_size is not None and config.max_size < MIN_SIDE:
            raise InputError(f"max_size: must be at least {MIN_SIDE} pixels, got {config.max_size}")
        if config.align is not None:
            check_model(config.align)
        places, said = split_folders(source, "test")
        notes: Counter[str] = Counter(said)
        problems: list[str] = []
        splits: dict[str, list[StackFiles]] = {}
        for split, folders in places.items():
            for root in folders:
                for folder in list_stacks(root):
                    name = folder.relative_to(root).as_posix()
                    with collecting(problems):
                        stack, said = _find(f"{split}/{folder.name if name == '.' else name}", folder, config)
                        notes.update(said)
                        splits.setdefault(split, []).append(stack)
        every = [stack for stacks in splits.values() for stack in stacks]
        unit, more = one_unit({stack.unit: stack.frames[0].parent for stack in reversed(every)}, FACTS.unit)
        if config.align is not None and any(stack.truth for stack in every):
            notes["truth is taken to belong to the frame that alignment leaves as it is, the middle one"] += 1
        said_of = [text if count == 1 else f"{text} ({count} stacks)" for text, count in notes.items()]
        found = inventory(splits, problems + more, said_of)
        prepared = {
            split: tuple(Item(i.name, functools.partial(_read, i, config.max_size, config.align)) for i in items)
            for split, items in found.splits.items()
        }
        same = len({stack.focus for stack in every}) == 1
        facts = FACTS._replace(
            unit=unit,
            focus_range=(min(every[0].focus), max(every[0].focus)) if same else None,
            has_truth=any(stack.truth for stack in every),
        )
        return found._replace(splits=prepared, facts=facts)


def _find(name: str, folder: Path, config: UserStacksConfig) -> tuple[StackFiles, tuple[str, ...]]:
    """The files of one stack and what was assumed of them."""
    files = find_frames(folder)
    truth = truth_file(folder)
    if truth is None:
        focus, unit, notes = focus_settings(files, None, config.unit, reverse=config.reverse)
    else:
        if config.reverse or config.max_size:
            option = "reverse" if config.reverse else "max-size"
            raise InputError(f"{truth}: --{option} is for stacks without truth; leave it out, or prepare them apart")
        focus, unit, notes = labelled_settings(files), config.unit or "disparity", ()
    return StackFiles(name, tuple(files), tuple(focus), truth, unit, unit == "metre"), notes


def _read(item: Item, max_size: int | None, model: str | None) -> FocalStack:
    """A stack, scaled down and aligned; says if a frame would not align."""
    stack = item.read()
    stack = stack._replace(frames=np.stack([downscale(frame, max_size) for frame in stack.frames]))
    if model is None:
        return stack
    aligned = align_stack(stack.frames, model)
    if aligned.failed():
        for remark in remarks(aligned, [path.name for path in item.read.args[0].frames]):
            say(f"note: {stack.name}: {remark}")
    if stack.depth is not None and stack.mask is not None:
        mask = stack.mask & aligned.mask
        stack = stack._replace(depth=np.where(mask, stack.depth, 0), mask=mask)
    return stack._replace(frames=aligned.frames)
