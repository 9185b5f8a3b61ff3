"""The dataset `mobile_depth`: aligned focal stacks of a phone, without truth.

As distributed, in two archives: `Aligned/Figure*/<scene>/a<N>.jpg`, and `calibration/<scene>/calibrated.txt` with the
focus distance of a frame in the first column of each row and the focal length in the last row. The calibration has a
scale of its own in each scene; some scenes have other names in the other archive.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dff_jax.data.datasets.base import Dataset, Facts, Inventory
from dff_jax.data.datasets.frames import StackFiles, add_stack
from dff_jax.data.files.reading import collecting, reading
from dff_jax.errors import InputError

OTHER_NAMES = {"metal": "metals", "gt": "zeromotion", "gtsmall": "smallmotion", "gtlarge": "largemotion"}


class MobileDepth(Dataset):
    """Scenes of a phone, to look at; frames and sizes differ."""

    def survey(self, source: Path) -> Inventory:
        found = Inventory()
        folders = _scene_folders(source, found.problems)
        calibrations = {_scene(path.parent.name): path for path in sorted(source.rglob("calibrated.txt"))}
        for scene, folder in sorted(folders.items()):
            numbered = {int(match[1]): path for path in folder.iterdir() if (match := _frame(path))}
            frames = tuple(numbered[number] for number in sorted(numbered))
            with collecting(found.problems):
                settings = np.arange(float(len(frames)))
                if self.facts.unit != "index":
                    settings = 1.0 / _distances(scene, calibrations, source, len(frames))
                add_stack(found, StackFiles(f"test/{scene}", frames, tuple(settings), None, self.facts.unit))
        return found


def _frame(path: Path) -> re.Match | None:
    return re.fullmatch(r"a(\d+)\.jpe?g", path.name.lower())


def _scene(name: str) -> str:
    return OTHER_NAMES.get(name.lower(), name.lower())


def _scene_folders(source: Path, problems: list[str]) -> dict[str, Path]:
    """Scene -> folder of `a<N>.jpg`; those below a folder `Aligned` if there is one."""
    found = sorted({path.parent for path in source.rglob("*.[jJ]*") if _frame(path)})
    aligned = [path for path in found if "aligned" in (part.lower() for part in path.relative_to(source).parts)]
    folders: dict[str, Path] = {}
    for folder in aligned or found:
        other = folders.setdefault(_scene(folder.name), folder)
        if other is not folder:
            problems.append(f"{folder}: the same scene as {other}; remove one")
    if not folders:
        raise InputError(
            f"{source}: not Mobile Depth; looked for Aligned/Figure*/<scene>/a<N>.jpg in it and below; give the folder "
            "that depth_from_focus_data3.zip was unpacked to"
        )
    return folders


def _distances(scene: str, calibrations: dict[str, Path], source: Path, count: int) -> np.ndarray:
    """Focus distances [Z] of a scene, in its own scale."""
    path = calibrations.get(scene)
    if path is None:
        raise InputError(
            f"{source}: no calibration of {scene}; looked for calibration/{scene}/calibrated.txt "
            "(depth_from_focus_data2.zip), or take mobile_depth/frame_index"
        )
    with reading(path, "rows of numbers"):
        rows = [[float(word) for word in line.split()] for line in path.read_text().splitlines() if line.strip()]
        values = np.array([row[0] for row in rows[:-1]])  # the last row is the focal length
    if len(values) != count:
        raise InputError(f"{path}: {len(values)} rows and the focal length, for {count} frames; copy it again")
    if not (np.isfinite(values) & (values > 0)).all():
        raise InputError(f"{path}: holds a focus distance that is not positive; take mobile_depth/frame_index")
    return values


_FACTS = Facts(
    unit="diopter",
    focus_range=None,
    order="by frame number; the calibration sorts the frames",
    truth="none",
    licence="not found",
    citation="S. Suwajanakorn, C. Hernandez, S. M. Seitz, Depth from Focus with Your Mobile Phone, CVPR 2015",
    where="supasorn.com/dffdownload.html: depth_from_focus_data3.zip (stacks), and depth_from_focus_data2.zip "
    "(calibration)",
    has_truth=False,
)
DATASETS = [
    MobileDepth(
        name="mobile_depth/aligned",
        facts=_FACTS,
        description="11 scenes; settings are 1 / calibrated distance, in a scale of its own in each scene",
        published={"test": 11},
    ),
    MobileDepth(
        name="mobile_depth/frame_index",
        facts=_FACTS._replace(unit="index", order="by frame number"),
        description="11 scenes; settings are frame numbers, for want of the calibration",
        published={"test": 11},
    ),
]
