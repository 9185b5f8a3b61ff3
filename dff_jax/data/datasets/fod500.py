"""The dataset `fod500`: the data of DefocusNet, rendered rooms of simple objects at five focus distances.

As distributed (`fs_6.zip`): one flat folder of `000000_00All.tif` .. `000000_04All.tif` and `000000Dpt.exr` (half
float, metres), numbers 000000 to 000499, frames from near to far.
"""

from __future__ import annotations

import re
from pathlib import Path

from dff_jax.data.datasets.base import Dataset, Facts, Inventory
from dff_jax.data.datasets.frames import StackFiles, add_stack
from dff_jax.errors import InputError

FOCUS = (0.1, 0.15, 0.3, 0.7, 1.5)  # metres, of frames 00 to 04
TRAIN = range(0, 400)


class Fod500(Dataset):
    """FoD500; stacks 0 to 399 are to train, 400 to 499 to test."""

    def survey(self, source: Path) -> Inventory:
        folder, numbers = _find(source)
        found = Inventory()
        for number in numbers:
            frames = tuple(folder / f"{number:06d}_{i:02d}All.tif" for i in range(len(FOCUS)))
            name = f"{'train' if number in TRAIN else 'test'}/{number:06d}"
            add_stack(found, StackFiles(name, frames, FOCUS, folder / f"{number:06d}Dpt.exr", self.facts.unit))
        return found


def _find(source: Path) -> tuple[Path, list[int]]:
    """The folder with the files, `source` or one inside it, and the numbers that occur in it."""
    inside = [source, *sorted(path for path in source.iterdir() if path.is_dir())] if source.is_dir() else []
    for folder in inside:
        matches = (re.fullmatch(r"(\d{6})(_\d\dAll\.tif|Dpt\.exr)", path.name) for path in folder.iterdir())
        numbers = sorted({int(match[1]) for match in matches if match})
        if numbers:
            return folder, numbers
    raise InputError(
        f"{source}: not FoD500; looked for 000000_00All.tif .. 000000_04All.tif and 000000Dpt.exr in it and in its "
        "folders; give the folder that fs_6.zip was unpacked to"
    )


DATASETS = [
    Fod500(
        name="fod500/default",
        description="FoD500 (DefocusNet): 5 frames of 256 x 256 at 0.1 to 1.5 m; 400 to train, 100 to test",
        published={"train": 400, "test": 100},
        facts=Facts(
            unit="metre",
            focus_range=(0.1, 1.5),
            order="near to far",
            truth="distance in metres, half float, dense; none where it is 0",
            licence="MIT (repository)",
            citation="M. Maximov, K. Galim, L. Leal-Taixe, Focus on Defocus: Bridging the Synthetic to Real Domain Gap "
            "for Depth Estimation, CVPR 2020",
            where="fs_6.zip, the Google Drive link in the readme of dvl-tum/defocus-net",
            convention="fod500",
        ),
    )
]
