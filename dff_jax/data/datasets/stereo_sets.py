"""The datasets `flyingthings` and `middlebury`: focal stacks rendered from stereo datasets for AiFDepthNet.

As distributed: a folder for each stack with 15 frames named by their focus disparity (`16.428571428571427.png`),
`AiF.png` and `disp.exr`. FlyingThings3D has `train/focal_stack/<id>/` and `val/focal_stack/<id>/` (val is the test
set); Middlebury has `focal_stack/<Scene>/`, whose sizes differ, to test only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dff_jax.data.datasets.base import Dataset, Facts, Inventory
from dff_jax.data.datasets.frames import StackFiles, add_stack
from dff_jax.data.files.focus_settings import labelled_settings
from dff_jax.data.files.folder import find, folder_entries, picture_file, truth_file
from dff_jax.data.files.reading import collecting
from dff_jax.errors import InputError

TRUTH = "disp.exr"
SAME = 2e-3  # pixels; focus settings closer than this are one: the last digits of names differ between writers
FLYINGTHINGS_SETTINGS = np.linspace(10.0, 100.0, 15).tolist()
FLYINGTHINGS_PLACES = {"train": "train/focal_stack", "test": "val/focal_stack"}
MIDDLEBURY_SETTINGS = np.linspace(10.0, 60.0, 15).tolist()
MIDDLEBURY_PLACES = ("focal_stack", "Middlebury_FS/focal_stack")


class FlyingThings(Dataset):
    """FlyingThings3D."""

    def survey(self, source: Path) -> Inventory:
        folders = {split: source / place for split, place in FLYINGTHINGS_PLACES.items() if (source / place).is_dir()}
        if not folders:
            raise InputError(
                f"{source}: not FlyingThings3D's focal stacks; looked for train/focal_stack/ and val/focal_stack/; "
                "give the folder that holds train/ and val/"
            )
        return survey_folders(folders, FLYINGTHINGS_SETTINGS)


class Middlebury(Dataset):
    """Middlebury."""

    def survey(self, source: Path) -> Inventory:
        places = [source / place for place in MIDDLEBURY_PLACES] + [source] * (source.name == "focal_stack")
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            looked = " and ".join(f"{place}/" for place in MIDDLEBURY_PLACES)
            raise InputError(
                f"{source}: not the Middlebury focal stacks; looked for {looked} with a folder a scene; give the "
                "folder that holds focal_stack/"
            )
        return survey_folders({"test": folder}, MIDDLEBURY_SETTINGS)


def survey_folders(places: dict[str, Path], published: Sequence[float]) -> Inventory:
    """The stacks in the folder of each split, in the order of their folders' names as text.

    A stack whose focus settings are not the commonest ones is a problem. A note says if those are not the published.
    """
    found = Inventory()
    stacks: list[StackFiles] = []
    for split, root in places.items():
        folders = sorted(path for path in folder_entries(root) if path.is_dir() and not path.name.startswith("."))
        for folder in folders:
            truth = truth_file(folder)
            if truth is None:
                found.problems.append(f"{folder / TRUTH}: missing; copy it again, or remove the folder")
            with collecting(found.problems):
                files = find(folder).files
                focus = tuple(labelled_settings(files))
                if truth is not None:
                    name, sharp = f"{split}/{folder.name}", picture_file(folder)
                    stacks.append(StackFiles(name, tuple(files), focus, truth, "disparity", sharp=sharp))
        if not folders:
            found.problems.append(f"{root}: no stack in it; each is a folder of frames such as 10.0.png and {TRUTH}")

    counts = Counter(tuple(np.round(sorted(stack.focus), 3).tolist()) for stack in stacks)
    expected = max(counts, key=lambda focus: (counts[focus], len(focus)), default=())
    for stack in stacks:
        folder = stack.frames[0].parent
        if missing := _absent(expected, stack.focus):
            found.problems.append(f"{folder}: no frame at {_list(missing)}; copy it again")
        if strange := _absent(stack.focus, expected):
            found.problems.append(f"{folder}: frames at {_list(strange)}, which other stacks do not have; remove them")
    if _absent(expected, published) or _absent(published, expected):
        found.notes.append(f"focus settings are {_list(expected)}, where the published ones are {_list(published)}")
    for stack in stacks:
        add_stack(found, stack)
    return found


def _absent(values: Sequence[float], among: Sequence[float]) -> list[float]:
    return [value for value in values if np.abs(np.array(among) - value).min(initial=np.inf) > SAME]


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


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


DATASETS = [
    FlyingThings(
        name="flyingthings/focal_stack",
        description="15 frames of 540 x 960 at disparities of 10 to 100 pixels; 1000 to train, 100 to test",
        published={"train": 1000, "test": 100},
        facts=_facts(
            FLYINGTHINGS_SETTINGS,
            ", dense",
            "N. Mayer et al., A Large Dataset to Train Convolutional Networks for Disparity, Optical Flow, and Scene "
            "Flow Estimation, CVPR 2016",
            "flyingthings",
        ),
    ),
    Middlebury(
        name="middlebury/focal_stack",
        description="15 frames at disparities of 10 to 60 pixels, sizes differ; 15 scenes, to test",
        published={"test": 15},
        facts=_facts(
            MIDDLEBURY_SETTINGS,
            " as rendered",
            "D. Scharstein et al., High-Resolution Stereo Datasets with Subpixel-Accurate Ground Truth, GCPR 2014",
            "middlebury",
        ),
    ),
]
