"""The dataset `ddff12`: indoor scenes taken with a light-field camera and a depth sensor, ten frames from near to far.

As distributed: `ddff-dataset-trainval.h5` (patches of 224 x 224, whose two parts share scenes) and
`ddff-dataset-test.h5` (383 x 552, no truth); and `my_ddff_trainVal.h5` of DFV, 383 x 552, whose parts share no scene.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dff_jax.data.datasets.base import Dataset, Facts, Inventory
from dff_jax.data.datasets.packed import Part, add_part, find_h5
from dff_jax.data.files.hdf5 import open_h5

NUM_FRAMES = 10
DISPARITY_METRES = 1982.0250823695178 / 7317.020641763665 * 1e-3 * 521.4052
"""disparity = this / distance in metres: baseline (K2 / flens, in mm) times focal length in pixels."""
FOCUS = tuple(map(float, np.linspace(DISPARITY_METRES / 0.5, DISPARITY_METRES / 7.0, NUM_FRAMES)))
TEST_SCENES = ("lockeroom", "cafeteria", "library", "spencerlab", "office44", "magistrale")
PER_TEST_SCENE = 20

_FILES = {
    "trainval": ("ddff-dataset-trainval.h5", "ddff-dataset-trainval.h5py"),
    "test": ("ddff-dataset-test.h5", "ddff-dataset-test.h5py"),
    "scenes": ("my_ddff_trainVal.h5",),
}
# The parts of each file: the split, the key of the stacks, and that of the truth
_PARTS = {
    "trainval": (("train", "stack_train", "disp_train"), ("validation", "stack_val", "disp_val")),
    "test": (("test", "stack_test", None),),
    "scenes": (("train", "stack_train", "disp_train"), ("test", "stack_val", "disp_val")),
}
# The two training files have the same keys; their sizes tell them apart.
_MISTAKEN = {("trainval", (383, 552)): "scenes", ("scenes", (224, 224)): "trainval"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ddff12(Dataset):
    """The published loader of AiFDepthNet swaps the colours of the official files when it shows them; DFV's are RGB."""

    bgr: bool = False  # whether the file has blue first

    def survey(self, source: Path) -> Inventory:
        kind = self.name.partition("/")[2]
        path = find_h5(source, _FILES[kind], f"DDFF-12 ({kind})")
        found = Inventory()
        with open_h5(path) as file:
            for split, stack, truth in _PARTS[kind]:
                other = stack.replace("stack", "stacks")  # as the readme of the file has it
                stack = other if stack not in file and other in file else stack
                part = Part(split, stack, truth, FOCUS, self.bgr, zero_is_none=True)
                size = add_part(found, file, part, _scene_names if kind == "test" else None)
                if size and (kind, size) in _MISTAKEN:
                    found.problems.append(
                        f"{path}: {stack} has frames of {size[1]} x {size[0]}, which is "
                        f"ddff12/{_MISTAKEN[kind, size]}'s file; prepare that, or give another file"
                    )
        if self.bgr:
            found.notes.append("frames are taken to be BGR, which is not documented; if skin looks blue, take --no-bgr")
        return found


def _scene_names(count: int) -> Sequence[str]:
    """Of the official test set, its scenes with the numbers that a submission has; else numbers."""
    if count == len(TEST_SCENES) * PER_TEST_SCENE:
        return [f"{scene}/{number:04d}" for scene in TEST_SCENES for number in range(1, PER_TEST_SCENE + 1)]
    return [f"{index:04d}" for index in range(count)]


_FACTS = Facts(
    unit="disparity",
    focus_range=(FOCUS[-1], FOCUS[0]),
    order="near to far",
    truth="disparity in pixels (0.1412 / metres) of a registered depth sensor; none where it is 0",
    licence="not found",
    citation="C. Hazirbas et al., Deep Depth From Focus, ACCV 2018",
    where="vision.in.tum.de/webarchive/hazirbas/ddff12scene/ddff-dataset-trainval.h5 (12.6 GB)",
    convention="ddff12",
)
DATASETS = [
    Ddff12(
        name="ddff12/trainval", facts=_FACTS, published={"train": 5269, "validation": 1318}, bgr=True,
        description="10 frames of 224 x 224; 5269 to train, 1318 to validate, which share scenes",
    ),
    Ddff12(
        name="ddff12/test", published={"test": len(TEST_SCENES) * PER_TEST_SCENE}, bgr=True,
        facts=_FACTS._replace(
            where="vision.in.tum.de/webarchive/hazirbas/ddff12scene/ddff-dataset-test.h5 (0.8 GB)",
            truth="none", has_truth=False,
        ),
        description="10 frames of 383 x 552; 120 of six other scenes, without truth",
    ),
    Ddff12(
        name="ddff12/scenes", published={"train": 400, "test": 200},
        facts=_FACTS._replace(
            where="my_ddff_trainVal.h5, the OneDrive link in the readme of fuy34/DFV",
            citation=_FACTS.citation + "; split: F. Yang, X. Huang, Z. Zhou, Deep Depth from Focus with Differential "
            "Focus Volume, CVPR 2022",
        ),
        description="10 frames of 383 x 552; 400 of four scenes to train, 200 of two others to test",
    ),
]  # fmt: skip
