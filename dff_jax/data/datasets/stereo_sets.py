"""tfds datasets `flyingthings` and `middlebury`: focal stacks rendered from stereo datasets for AiFDepthNet.

As distributed: a folder for each stack with 15 frames named by their focus disparity (`16.428571428571427.png`),
`AiF.png` and `disp.exr`. FlyingThings3D has `train/focal_stack/<id>/` and `val/focal_stack/<id>/` (val is the test
set); Middlebury has `focal_stack/<Scene>/`, whose sizes differ, to test only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dff_jax.data.datasets.base import StackBuilder, StackConfig
from dff_jax.data.datasets.frames import StackFiles, inventory
from dff_jax.data.datasets.records import Facts, Inventory
from dff_jax.data.files.focus_settings import labelled_settings
from dff_jax.data.files.folder import find_frames, folder_entries, truth_file
from dff_jax.data.files.reading import collecting
from dff_jax.errors import InputError

TRUTH = "disp.exr"
SAME = 2e-3  # pixels; focus settings closer than this are one: the last digits of names differ between writers
FLYINGTHINGS_SETTINGS = np.linspace(10.0, 100.0, 15).tolist()
FLYINGTHINGS_SPLITS = {"train": ("train", 1000), "test": ("val", 100)}  # folder and number of stacks as published
MIDDLEBURY_SETTINGS = np.linspace(10.0, 60.0, 15).tolist()
MIDDLEBURY_SCENES = 15
MIDDLEBURY_PLACES = ("focal_stack", "Middlebury_FS/focal_stack")


def _facts(settings: Sequence[float], truth: str, citation: str, convention: str) -> Facts:
    return Facts(
        unit="disparity",
        focus_range=(settings[0], settings[-1]),
        order="far to near",
        truth=f"disparity in pixels{truth}, not limited to the focus range; none where it is 0 or below",
        licence="none stated",
        citation=f"{citation}; focal stacks: N.-H. Wang et al., Bridging Unsupervised and Supervised Depth from Focus "
        "via All-in-Focus Supervision, ICCV 2021",
        where="the Google Drive link in the readme of albert100121/AiFDepthNet or khurramashfaq/ddl-gru-sff",
        convention=convention,
    )


class FlyingThings(StackBuilder):
    """FlyingThings3D focal stacks: 15 frames of 540 x 960, focus settings 10 to 100 pixels of disparity."""

    name = "flyingthings"
    BUILDER_CONFIGS = [
        StackConfig(
            name="focal_stack",
            facts=_facts(
                FLYINGTHINGS_SETTINGS,
                ", dense",
                "N. Mayer et al., A Large Dataset to Train Convolutional Networks for Disparity, Optical Flow, and "
                "Scene Flow Estimation, CVPR 2016",
                "flyingthings",
            ),
            description="15 frames of 540 x 960; 1000 to train, 100 to test",
        )
    ]

    def survey(self, source: Path) -> Inventory:
        splits: dict[str, list[StackFiles]] = {}
        problems, notes = [], []
        for split, (mode, published) in FLYINGTHINGS_SPLITS.items():
            folder = source / mode / "focal_stack"
            if not folder.is_dir():
                notes.append(f"no {mode}/focal_stack/ in {source}: no {split} split")
                continue
            splits[split] = stack_folders(folder, split, problems)
            if len(splits[split]) != published:
                notes.append(f"{mode}: {len(splits[split])} stacks where {published} were published")
        if not splits:
            raise InputError(
                f"{source}: not FlyingThings3D's focal stacks; looked for train/focal_stack/ and val/focal_stack/; "
                "give the folder that holds train/ and val/"
            )
        compare_settings(splits, FLYINGTHINGS_SETTINGS, problems, notes)
        return inventory(splits, problems, notes)


class Middlebury(StackBuilder):
    """Middlebury focal stacks: 15 frames, focus settings 10 to 60 pixels of disparity, 15 scenes to test."""

    name = "middlebury"
    BUILDER_CONFIGS = [
        StackConfig(
            name="focal_stack",
            facts=_facts(
                MIDDLEBURY_SETTINGS,
                " as rendered",
                "D. Scharstein et al., High-Resolution Stereo Datasets with Subpixel-Accurate Ground Truth, GCPR 2014",
                "middlebury",
            ),
            description="15 frames, sizes differ; 15 scenes, to test",
        )
    ]

    def survey(self, source: Path) -> Inventory:
        places = [source / place for place in MIDDLEBURY_PLACES] + [source] * (source.name == "focal_stack")
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            looked = " and ".join(f"{place}/" for place in MIDDLEBURY_PLACES)
            raise InputError(
                f"{source}: not the Middlebury focal stacks; looked for {looked} with a folder a scene; give the "
                "folder that holds focal_stack/"
            )
        problems, notes = [], []
        splits = {"test": stack_folders(folder, "test", problems)}
        compare_settings(splits, MIDDLEBURY_SETTINGS, problems, notes)
        if len(splits["test"]) != MIDDLEBURY_SCENES:
            notes.append(f"{len(splits['test'])} scenes where {MIDDLEBURY_SCENES} were published")
        return inventory(splits, problems, notes)


def stack_folders(root: Path, split: str, problems: list[str]) -> list[StackFiles]:
    """The stacks in `root`, in the order of their folders' names as text; adds what is wrong to `problems`."""
    stacks = []
    folders = sorted(path for path in folder_entries(root) if path.is_dir() and not path.name.startswith("."))
    for folder in folders:
        truth = truth_file(folder)
        if truth is None:
            problems.append(f"{folder / TRUTH}: missing; copy it again, or remove the folder")
        with collecting(problems):
            files = find_frames(folder)
            focus = labelled_settings(files)
            if truth is not None:
                stacks.append(StackFiles(f"{split}/{folder.name}", tuple(files), tuple(focus), truth, "disparity"))
    if not folders:
        problems.append(f"{root}: no stack in it; each is a folder of frames such as 10.0.png and {TRUTH}")
    return stacks


def compare_settings(
    splits: dict[str, list[StackFiles]], published: Sequence[float], problems: list[str], notes: list[str]
) -> None:
    """Adds to `problems` the stacks whose focus settings are not those of the others.

    The commonest settings count, the published ones if equally many have them; a note says if they are others.
    """
    every = [stack for stacks in splits.values() for stack in stacks]
    if not every:
        return

    def are_published(settings: Sequence[float]) -> bool:
        return not _absent(settings, published) and not _absent(published, settings)

    counts = Counter(tuple(np.round(sorted(stack.focus), 3).tolist()) for stack in every)
    expected = max(counts, key=lambda found: (counts[found], are_published(found), len(found)))
    for stack in every:
        folder = stack.frames[0].parent
        if missing := _absent(expected, stack.focus):
            problems.append(f"{folder}: no frame at {_list(missing)}; copy it again")
        if strange := _absent(stack.focus, expected):
            problems.append(f"{folder}: frames at {_list(strange)}, which other stacks do not have; remove them")
    if not are_published(expected):
        notes.append(f"focus settings are {_list(expected)}, where the published ones are {_list(published)}")


def _absent(values: Sequence[float], among: Sequence[float]) -> list[float]:
    return [value for value in values if np.abs(np.array(among) - value).min() > SAME]


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
