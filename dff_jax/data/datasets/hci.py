"""The dataset `hci`: the HCI 4D light field benchmark as focal stacks over signed disparity.

`lightfields` refocuses the raw views here: scene folders with `input_Cam000.png` .. `input_Cam080.png` (9 x 9, row by
row), `parameters.cfg` and `gt_disp_lowres.pfm`. `stacks` reads `HCI_FS_trainval.h5`, refocused by its publisher, with
Fourier shifts that wrap around at the borders. Boxes, cotton, dino and sideboard are the test split in both.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dff_jax.data.datasets.base import Dataset, Facts, Inventory
from dff_jax.data.datasets.packed import Part, add_part, find_h5
from dff_jax.data.files.folder import walk
from dff_jax.data.files.hdf5 import need, open_h5, stored_array
from dff_jax.data.files.light_fields import VIEW, probe_light_field, refocused_stack
from dff_jax.data.files.reading import collecting, reading
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class LightFields(Dataset):
    """Raw views, refocused here."""

    in_process: ClassVar[bool] = True
    frames: int = NUM_FRAMES
    focus_range: tuple[float, float] = FOCUS_RANGE

    def survey(self, source: Path) -> Inventory:
        low, high = self.focus_range
        if self.frames < 2 or not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(f"--frames {self.frames} --focus-range {low:g} {high:g}: needs 2 or more and low < high")
        settings = tuple(map(float, np.linspace(low, high, self.frames)))
        found = Inventory()
        found.facts = self.facts._replace(focus_range=(low, high))
        known: dict[str, Path] = {}
        for folder in _scene_folders(source):
            scene_name = folder.resolve().name.lower()
            problems, scene = probe_light_field(folder)
            found.problems += problems
            if scene is None:
                if not problems:
                    found.notes.append(f"{folder}: left out, a scene of the benchmark's test set, which has no truth")
                continue
            if known.setdefault(scene_name, folder) is not folder:
                found.problems.append(f"{folder}: the same scene as {known[scene_name]}; remove one")
            name = f"{'test' if scene_name in TEST else 'train'}/{scene_name}"
            read = functools.partial(refocused_stack, scene, settings, name)
            found.add(name, (self.frames, *scene.size), read, all_in_focus=True)
        for items in found.splits.values():
            items.sort(key=lambda item: item.name)
        return found


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


class PublishedStacks(Dataset):
    """Stacks refocused by the publisher."""

    def survey(self, source: Path) -> Inventory:
        path = find_h5(source, H5_FILES, "the HCI focal stacks")
        found = Inventory()
        with open_h5(path) as file:
            focus = tuple(map(float, np.linspace(*FOCUS_RANGE, NUM_FRAMES)))
            with collecting(found.problems):
                focus = _focus(file)
            for split, key in (("train", "train"), ("test", "val")):
                with reading(path, "HDF5 file"):  # a damaged one may fail at any look
                    sharp = f"AiF_{key}" if f"AiF_{key}" in file else None
                part = Part(split, f"stack_{key}", f"disp_{key}", focus, sharp=sharp)
                add_part(found, file, part, functools.partial(_names, file, f"name_{key}"))
        found.facts = self.facts._replace(focus_range=(min(focus), max(focus)))
        return found


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


_FACTS = Facts(
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
DATASETS = [
    LightFields(
        name="hci/lightfields",
        facts=_FACTS,
        published={"train": len(TRAIN), "test": len(TEST)},
        description="10 frames of 512 x 512, refocused here from 9 x 9 views; 20 to train, 4 to test",
    ),
    PublishedStacks(
        name="hci/stacks",
        facts=_FACTS._replace(
            where="HCI_FS_trainval.h5, made by data/4D-Light-Field_Gen of albert100121/AiFDepthNet",
            citation=_FACTS.citation + "; focal stacks: N.-H. Wang et al., Bridging Unsupervised and Supervised "
            "Depth from Focus via All-in-Focus Supervision, ICCV 2021",
        ),
        published={"train": len(TRAIN), "test": len(TEST)},
        description="10 frames of 512 x 512, refocused by the publisher; 20 to train, 4 to test",
    ),
]
