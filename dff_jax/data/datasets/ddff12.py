"""tfds dataset `ddff12`: indoor scenes taken with a light-field camera and a depth sensor, ten frames from near to far.

As distributed: `ddff-dataset-trainval.h5` (patches of 224 x 224, whose two parts share scenes) and
`ddff-dataset-test.h5` (383 x 552, no truth); and `my_ddff_trainVal.h5` of DFV, 383 x 552, whose parts share no scene.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax.data.datasets.base import StackBuilder, StackConfig
from dff_jax.data.datasets.packed import Layout, find_h5, part_items, part_shape
from dff_jax.data.datasets.records import Facts, Inventory, record_bytes
from dff_jax.data.files.hdf5 import open_h5

NUM_FRAMES = 10
DISPARITY_METRES = 1982.0250823695178 / 7317.020641763665 * 1e-3 * 521.4052
"""disparity = this / distance in metres: baseline (K2 / flens, in mm) times focal length in pixels."""
FOCUS = tuple(map(float, np.linspace(DISPARITY_METRES / 0.5, DISPARITY_METRES / 7.0, NUM_FRAMES)))
TEST_SCENES = ("lockeroom", "cafeteria", "library", "spencerlab", "office44", "magistrale")
PER_TEST_SCENE = 20

_CITATION = "C. Hazirbas et al., Deep Depth From Focus, ACCV 2018"
_OFFICIAL = "vision.in.tum.de/webarchive/hazirbas/ddff12scene/"
_TRUTH = "disparity in pixels (0.1412 / metres) of a registered depth sensor; none where it is 0"


def _facts(where: str, citation: str = _CITATION, has_truth: bool = True) -> Facts:
    return Facts(
        unit="disparity", focus_range=(FOCUS[-1], FOCUS[0]), order="near to far",
        truth=_TRUTH if has_truth else "none", licence="not found", citation=citation, where=where,
        convention="ddff12", has_truth=has_truth,
    )  # fmt: skip


class Part(NamedTuple):
    """One array of stacks in a file."""

    split: str
    stack: tuple[str, ...]  # the key, and what else it is called
    truth: str | None
    published: int


@dataclasses.dataclass(eq=False, kw_only=True)
class DdffConfig(StackConfig):
    """The published loader of AiFDepthNet swaps the colours of the official files when it shows them; DFV's are RGB."""

    bgr: bool = False  # whether the file has blue first


_FILES = {
    "trainval": ("ddff-dataset-trainval.h5", "ddff-dataset-trainval.h5py"),
    "test": ("ddff-dataset-test.h5", "ddff-dataset-test.h5py"),
    "scenes": ("my_ddff_trainVal.h5",),
}
_PARTS = {
    "trainval": (
        Part("train", ("stack_train", "stacks_train"), "disp_train", 5269),
        Part("validation", ("stack_val", "stacks_val"), "disp_val", 1318),
    ),
    "test": (Part("test", ("stack_test",), None, len(TEST_SCENES) * PER_TEST_SCENE),),
    "scenes": (
        Part("train", ("stack_train",), "disp_train", 400),
        Part("test", ("stack_val",), "disp_val", 200),
    ),
}
# The two training files have the same keys; their sizes tell them apart.
_MISTAKEN = {("trainval", (383, 552)): "scenes", ("scenes", (224, 224)): "trainval"}


class Ddff12(StackBuilder):
    """DDFF-12: ten frames of real indoor scenes, 0.5 to 7 m, over disparity."""

    name = "ddff12"
    builder_config: DdffConfig
    BUILDER_CONFIGS = [
        DdffConfig(
            name="trainval", facts=_facts(_OFFICIAL + "ddff-dataset-trainval.h5 (12.6 GB)"), bgr=True,
            description="10 frames of 224 x 224; 5269 to train, 1318 to validate, which share scenes",
        ),
        DdffConfig(
            name="test", facts=_facts(_OFFICIAL + "ddff-dataset-test.h5 (0.8 GB)", has_truth=False), bgr=True,
            description="10 frames of 383 x 552; 120 of six other scenes, without truth",
        ),
        DdffConfig(
            name="scenes",
            facts=_facts(
                "my_ddff_trainVal.h5, the OneDrive link in the readme of fuy34/DFV",
                _CITATION + "; split: F. Yang, X. Huang, Z. Zhou, Deep Depth from Focus with Differential Focus "
                "Volume, CVPR 2022",
            ),
            description="10 frames of 383 x 552; 400 of four scenes to train, 200 of two others to test",
        ),
    ]  # fmt: skip

    def survey(self, source: Path) -> Inventory:
        config = self.builder_config
        path = find_h5(source, _FILES[config.name], f"DDFF-12 ({config.name})")
        layout = Layout(FOCUS, "disparity", config.bgr, zero_is_none=True)
        problems, notes, splits, needed = [], [], {}, 0
        with open_h5(path) as file:
            for part in _PARTS[config.name]:
                stack = next((key for key in part.stack if key in file), part.stack[0])
                shape = part_shape(file, stack, part.truth, NUM_FRAMES, problems)
                if shape is None:
                    continue
                other = _MISTAKEN.get((config.name, shape[2:]))
                if other:
                    problems.append(
                        f"{path}: {stack} has frames of {shape[3]} x {shape[2]}, which is ddff12/{other}'s file; "
                        "prepare that, or give another file"
                    )
                if shape[0] != part.published:
                    notes.append(f"{stack}: {shape[0]} stacks where {part.published} were published")
                needed += shape[0] * record_bytes(*shape[1:])
                splits[part.split] = part_items(path, stack, part.truth, layout, _names(part, shape[0]))
        if config.bgr:
            notes.append("frames are taken to be BGR, which is not documented; if skin looks blue, take --no-bgr")
        return Inventory(splits, tuple(problems), tuple(notes), needed)


def _names(part: Part, count: int) -> list[str]:
    """Numbers; of the official test set, its scenes with the numbers that a submission has."""
    if part.truth is None and count == part.published:
        return [f"{part.split}/{s}/{n:04d}" for s in TEST_SCENES for n in range(1, PER_TEST_SCENE + 1)]
    return [f"{part.split}/{index:04d}" for index in range(count)]
