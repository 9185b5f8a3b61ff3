"""What a dataset is: facts, options, and what its `survey` finds in a folder of files. No tfds here.

A family of datasets is a subclass of `Dataset` in its own file, with its datasets in that file's DATASETS. It says what
a source holds (`survey`, quick) and how one stack is read (`Item.read`). The rest is shared: `preparing`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from dff_jax.errors import InputError
from dff_jax.types import FocalStack

VERSION = "1.0.0"
"""Raise it when the layout of the records changes: data of another version is then made again."""

SPLITS = ("train", "validation", "test")


class Facts(NamedTuple):
    """What a reader of the records must know."""

    unit: str  # of focus settings and truth: "disparity", "diopter", "metre" or "index"
    focus_range: tuple[float, float] | None  # lowest and highest setting in `unit`; None: each stack has its own
    order: str  # of the frames as distributed: "far to near", "near to far" or what else is known
    truth: str  # one line
    licence: str
    citation: str
    where: str  # where to get it
    convention: str = "default"  # masks of the literature, a key of `evaluation.conventions`
    has_truth: bool = True


class Item(NamedTuple):
    """One stack to read."""

    name: str  # unique, begins with the split: "train/0007"
    # Of a module-level function that worker processes call. Gives frames [Z,H,W,3] uint8 RGB sorted so that q
    # ascends, focus [Z] float64 in the dataset's unit, and depth [H,W] float32 (0 where mask is False) with mask
    # [H,W] bool, or both None without truth. Raises InputError for a damaged file.
    read: functools.partial[FocalStack]
    all_in_focus: bool = False  # whether it gives that picture too, [H,W,3] uint8; else it may give one for nothing


class Inventory:
    """What a source holds. A survey fills it, and goes on where something is wrong, to name all of it."""

    def __init__(self) -> None:
        self.problems: list[str] = []  # all that is missing or damaged, a line each: which file or key, what to do
        self.notes: list[str] = []  # assumptions, one sentence each
        self.splits: dict[str, list[Item]] = {}
        self.bytes_needed = 0  # of all records, uncompressed
        self.facts: Facts | None = None  # where the files decide what the dataset alone cannot know, such as the unit

    @property
    def items(self) -> list[Item]:
        """Those of all splits."""
        return [item for items in self.splits.values() for item in items]

    def add(
        self, name: str, shape: tuple[int, int, int], read: functools.partial[FocalStack], all_in_focus: bool = False
    ) -> None:
        """One more stack, of Z, H, W; see `Item`."""
        self.splits.setdefault(name.partition("/")[0], []).append(Item(name, read, all_in_focus))
        z, h, w = shape
        z += all_in_focus
        self.bytes_needed += h * w * (3 * z + 4 + 1) + 4 * z + 256  # frames, depth, mask, and a little for the rest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """One dataset. The fields that a subclass adds are its options, which `dff-jax prepare` takes.

    Records: stack uint8 [Z,H,W,3], focus float32 [Z], depth float32 [H,W], mask bool [H,W], name; and all_in_focus
    uint8 [H,W,3] if every stack of the dataset has that picture. Frames are sorted so that q ascends; depth is 0 and
    mask False where, or if, there is no truth. Z, H and W may differ between records.
    """

    needs_source: ClassVar[bool] = True
    """Whether it is made of files; else `survey` takes any path."""

    in_process: ClassVar[bool] = False
    """Whether `Item.read` needs this process, because it computes on a device; else it runs in workers."""

    name: str  # "family/config"; "family/NAME" stands for any name that the user chooses
    facts: Facts
    description: str
    published: dict[str, int] = dataclasses.field(default_factory=dict)  # stacks in each split

    def survey(self, source: Path) -> Inventory:
        """What `source` holds, from names, headers, sizes and keys; decodes nothing whole.

        Raises:
          InputError: not this dataset at all; the message says which files were looked for and where.
        """
        raise NotImplementedError

    @property
    def open(self) -> bool:
        """Whether the user chooses its name."""
        return self.name.endswith("/NAME")

    @property
    def options(self) -> dict[str, Any]:
        """The fields that a subclass adds, by name."""
        known = {field.name for field in dataclasses.fields(Dataset)}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in known}

    @property
    def fingerprint(self) -> dict[str, str]:
        """What decides the content beside the source, the options and VERSION."""
        return {}

    def named(self, name: str, options: dict[str, Any]) -> Dataset:
        """This dataset under `name`, with `options`.

        Raises:
          InputError: a name that cannot be a folder's, or an option that it does not take.
        """
        family, _, own = name.partition("/")
        if not re.fullmatch(r"\w[\w.-]*", own):
            raise InputError(f"dataset: {own!r} cannot be a name; use letters, digits, '.', '-' and '_'")
        takes = ", ".join(f"--{option.replace('_', '-')}" for option in self.options) or "no options"
        for option in options:
            if option not in self.options:
                raise InputError(f"--{option.replace('_', '-')}: {family} does not know it; it takes {takes}")
        return dataclasses.replace(self, name=name, **options)


def split_folders(source: Path, default: str, notes: list[str]) -> list[tuple[str, Path]]:
    """The splits of a user's own data and their folders; if there are none all is split `default`, as a note says."""
    names = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
    found = [(split, source / name) for name, split in names.items() if (source / name).is_dir()]
    if not found:
        notes.append(f"no train/, val/ or test/ inside: everything goes to the {default} split")
    return found or [(default, source)]


def one_unit(places: dict[str, Path], otherwise: str, problems: list[str]) -> str:
    """The unit that all stacks share; that there are several is a problem.

    Args:
      places: a file or folder for each unit that occurs.
      otherwise: the unit if none occurs, or several.
    """
    if len(places) == 1:
        return next(iter(places))
    if places:
        found = ", ".join(f"{unit} in {place}" for unit, place in places.items())
        problems.append(f"several units: {found}; give --unit, or prepare them apart")
    return otherwise
