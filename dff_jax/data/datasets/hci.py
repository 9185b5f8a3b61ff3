"""tfds dataset `hci`: the HCI 4D light field benchmark as focal stacks over signed disparity.

`lightfields` refocuses the raw views here: scene folders with `input_Cam000.png` .. `input_Cam080.png` (9 x 9, row by
row), `parameters.cfg` and `gt_disp_lowres.pfm`. `stacks` reads `HCI_FS_trainval.h5`, refocused by its publisher, with
Fourier shifts that wrap around at the borders. Boxes, cotton, dino and sideboard are the test split in both.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dff_jax.data.datasets.base import StackBuilder, StackConfig
from dff_jax.data.datasets.packed import Layout, find_h5, part_items, part_shape
from dff_jax.data.datasets.records import Facts, Inventory, Item, record_bytes
from dff_jax.data.files.folder import walk
from dff_jax.data.files.hdf5 import need, open_h5, stored_array
from dff_jax.data.files.light_fields import VIEW, LightField, probe_light_field, refocused_stack
from dff_jax.data.files.reading import collecting
from dff_jax.errors import InputError

if TYPE_CHECKING:
    import h5py

NUM_FRAMES, FOCUS_RANGE = 10, (-2.5, 2.5)
TEST = ("boxes", "cotton", "dino", "sideboard")
TRAIN = (
    "antinous", "boardgames", "dishes", "greek", "kitchen", "medieval2", "museum", "pens", "pillows", "platonic",
    "rosemary", "table", "tomb", "tower", "town", "vinyl", "backgammon", "dots", "pyramids", "stripes",
)  # fmt: skip
H5_FILES = ("HCI_FS_trainval.h5",)

FACTS = Facts(
    unit="disparity",
    focus_range=FOCUS_RANGE,
    order="far to near",
    truth="disparity in pixels between neighbouring views, signed: 0 is a value like any other; dense",
    licence="CC BY-NC-SA 4.0",
    citation="K. Honauer, O. Johannsen, D. Kondermann, B. Goldluecke, A Dataset and Evaluation Methodology for Depth "
    "Estimation on 4D Light Fields, ACCV 2016",
    where="lightfield-analysis.uni-konstanz.de, on request (full_data.zip)",
    convention="hci",
)


@dataclasses.dataclass(eq=False, kw_only=True)
class LightFieldConfig(StackConfig):
    """Where the light fields are refocused."""

    frames: int = NUM_FRAMES
    focus_range: tuple[float, float] = FOCUS_RANGE


class Hci(StackBuilder):
    """HCI 4D light fields: stacks of 10 frames of 512 x 512 refocused at -2.5 to 2.5 pixels of disparity."""

    name = "hci"
    IN_PROCESS = True
    BUILDER_CONFIGS = [
        LightFieldConfig(
            name="lightfields", facts=FACTS,
            description="10 frames of 512 x 512, refocused here from 9 x 9 views; 20 to train, 4 to test",
        ),
        StackConfig(
            name="stacks",
            facts=FACTS._replace(
                where="HCI_FS_trainval.h5, made by data/4D-Light-Field_Gen of albert100121/AiFDepthNet",
                citation=FACTS.citation + "; focal stacks: N.-H. Wang et al., Bridging Unsupervised and Supervised "
                "Depth from Focus via All-in-Focus Supervision, ICCV 2021",
            ),
            description="10 frames of 512 x 512, refocused by the publisher; 20 to train, 4 to test",
        ),
    ]  # fmt: skip

    def survey(self, source: Path) -> Inventory:
        if self.builder_config.name == "stacks":
            return _survey_h5(source)
        assert isinstance(self.builder_config, LightFieldConfig)
        return _survey_views(source, self.builder_config)


# Raw views --------------------------------------------------------------------------------------------------------


def _survey_views(source: Path, config: LightFieldConfig) -> Inventory:
    low, high = config.focus_range
    if config.frames < 2 or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"--frames {config.frames} --focus-range {low:g} {high:g}: needs 2 or more and low < high")
    settings = tuple(map(float, np.linspace(low, high, config.frames)))
    problems, notes = [], []
    scenes: dict[str, LightField] = {}
    for folder in _scene_folders(source):
        name = folder.resolve().name.lower()
        found, scene = probe_light_field(folder)
        problems += found
        if scene is None:
            if not found:
                notes.append(f"{folder}: left out, a scene of the benchmark's test set, which has no truth")
        elif name in scenes:
            problems.append(f"{folder}: the same scene as {scenes[name].folder}; remove one")
        else:
            scenes[name] = scene
    absent = [name for name in (*TRAIN, *TEST) if name not in scenes]
    if absent and not problems:
        notes.append(f"{len(absent)} of the {len(TRAIN) + len(TEST)} published scenes are absent: {', '.join(absent)}")
    splits: dict[str, list[Item]] = {"train": [], "test": []}
    for name in sorted(scenes):
        split = "test" if name in TEST else "train"
        read = functools.partial(refocused_stack, scenes[name], settings, f"{split}/{name}")
        splits[split].append(Item(f"{split}/{name}", read))
    return Inventory(
        {split: tuple(items) for split, items in splits.items() if items}, tuple(problems), tuple(notes),
        sum(record_bytes(config.frames, *scene.size) for scene in scenes.values()),
        FACTS._replace(focus_range=(settings[0], settings[-1])),
    )  # fmt: skip


def _scene_folders(source: Path) -> list[Path]:
    def is_scene(entries: list[Path]) -> bool:
        return any(path.name.startswith("input_Cam") for path in entries)

    found = [folder for folder, entries in walk(source, is_scene) if is_scene(entries)]
    if not found:
        raise InputError(
            f"{source}: no HCI light field; looked for {VIEW.format(0)} in it and in folders inside; give the folder "
            "that full_data.zip was unpacked to, or one scene"
        )
    return found


# Published stacks -------------------------------------------------------------------------------------------------


def _survey_h5(source: Path) -> Inventory:
    path = find_h5(source, H5_FILES, "the HCI focal stacks")
    problems, notes, splits, needed = [], [], {}, 0
    with open_h5(path) as file:
        focus = tuple(map(float, np.linspace(*FOCUS_RANGE, NUM_FRAMES)))
        with collecting(problems):
            focus = _focus(file)
        layout = Layout(focus, "disparity", bgr=False, zero_is_none=False)
        for split, part, published in (("train", "train", 20), ("test", "val", 4)):
            stack, truth = f"stack_{part}", f"disp_{part}"
            shape = part_shape(file, stack, truth, len(focus), problems)
            if shape is None:
                continue
            with collecting(problems):
                names = _names(file, f"name_{part}", shape[0])
                if shape[0] != published:
                    notes.append(f"{stack}: {shape[0]} stacks where {published} were published")
                if part == "val" and sorted(names) != sorted(TEST):
                    notes.append(f"{stack} holds {', '.join(names)} where the published test set is {', '.join(TEST)}")
                needed += shape[0] * record_bytes(*shape[1:])
                splits[split] = part_items(path, stack, truth, layout, [f"{split}/{name}" for name in names])
    facts = FACTS._replace(focus_range=(min(focus), max(focus)))
    return Inventory(splits, tuple(problems), tuple(notes), needed, facts)


def _focus(file: h5py.File) -> tuple[float, ...]:
    key = "focus_position_disp"
    values = np.asarray(need(file, key, None, "uif")[()], np.float64).ravel()
    different = len(set(values.astype(np.float32))) == len(values)
    if not 2 <= len(values) <= 1000 or not np.isfinite(values).all() or not different:
        raise InputError(f"{file.filename}: {key} must hold different finite focus settings; copy the file again")
    return tuple(map(float, values))


def _names(file: h5py.File, key: str, count: int) -> list[str]:
    """Scene names, which are stored as bytes or text of any length."""
    import h5py

    found = stored_array(file, key)
    if h5py.check_string_dtype(found.dtype) is None or found.size != count:
        raise InputError(f"{file.filename}: {key} must hold {count} names as text; copy the file again")
    names = [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in np.ravel(found[()])]
    names = [name.strip().strip("/").rpartition("/")[2].lower() for name in names]
    if len(set(names)) < count or not all(name.isprintable() and 0 < len(name) < 100 for name in names):
        raise InputError(f"{file.filename}: {key} must hold {count} different names; copy the file again")
    return names
