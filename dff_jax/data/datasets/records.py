"""The types of the converted datasets: stacks to read, what a source holds, facts, and the layout of a record."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import tensorflow_datasets as tfds

from dff_jax.focus_axis import to_q
from dff_jax.types import FocalStack

LAYOUT_VERSION = 1
"""Raise it when the layout of the records changes: data of another version is then made again."""

SPLITS = ("train", "validation", "test")


class Item(NamedTuple):
    """One stack to read."""

    name: str  # unique in the split, such as "train/0007"
    # Of a module-level function, so that it can be pickled. Gives frames [Z,H,W,3] uint8 RGB sorted so that q
    # ascends, focus [Z] float64 in the dataset's unit, and depth [H,W] float32 (0 where mask is False) with mask
    # [H,W] bool, or both None without truth. Raises InputError for a damaged file.
    read: functools.partial[FocalStack]


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


class Inventory(NamedTuple):
    """What a source folder holds."""

    splits: dict[str, tuple[Item, ...]]  # of "train", "validation", "test": only those it has
    problems: tuple[str, ...] = ()  # everything missing or damaged, a line each: which file or key, and what to do
    notes: tuple[str, ...] = ()  # assumptions, one sentence each
    bytes_needed: int | None = None  # of all records, uncompressed; None: not known before reading
    facts: Facts | None = None  # where the files decide what the configuration cannot know, such as the unit

    @property
    def stacks(self) -> int:
        """How many stacks there are in all splits."""
        return sum(map(len, self.splits.values()))


class Digest(NamedTuple):
    """The statistics of one stack."""

    shape: tuple[int, int, int]  # Z, H, W
    focus: tuple[float, ...]  # in the unit of the dataset
    valid: int  # pixels with truth
    low: float  # of the truth, in the unit; 0 where nothing is valid
    high: float
    total: float  # sum over the valid pixels
    in_range: int  # valid pixels whose q lies between those of the first and the last frame, both included


class Outcome(NamedTuple):
    """One stack, ready to be written."""

    name: str
    record: bytes  # serialized, of `record_features`
    digest: Digest


@functools.cache
def record_features() -> tfds.features.FeaturesDict:
    """The layout of every converted record. Z, H and W may differ from one to the next."""
    # Raw bytes: array_record compresses them, and faster than tfds does.
    return tfds.features.FeaturesDict({
        "stack": tfds.features.Tensor(shape=(None, None, None, 3), dtype=np.uint8, encoding="bytes"),
        "focus": tfds.features.Tensor(shape=(None,), dtype=np.float32),
        "depth": tfds.features.Tensor(shape=(None, None), dtype=np.float32, encoding="bytes"),
        "mask": tfds.features.Tensor(shape=(None, None), dtype=np.bool_, encoding="bytes"),
        "name": tfds.features.Text(),
    })  # fmt: skip


def read_record(record: bytes) -> dict[str, np.ndarray]:
    """The arrays of a serialized record."""
    return cast(dict[str, np.ndarray], record_features().deserialize_example_np(record))


def record_bytes(z: int, h: int, w: int) -> int:
    """Size of one record: frames, depth and mask, and a little for the rest."""
    return h * w * (3 * z + 4 + 1) + 4 * z + 256


def to_record(stack: FocalStack, name: str) -> dict[str, Any]:
    """A stack in the layout of `record_features`.

    Raises:
      ValueError: a reader that does not keep the promise of `Item.read` (shapes, types, order, truth).
    """
    frames, focus = stack.frames, np.asarray(stack.focus)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"{name}: frames are {frames.dtype} {frames.shape}, not uint8 [Z,H,W,3]")
    if focus.shape != frames.shape[:1]:
        raise ValueError(f"{name}: {focus.shape} focus settings for {len(frames)} frames")
    if not np.all(np.diff(to_q(focus, stack.unit)) > 0):
        raise ValueError(f"{name}: frames are not sorted by ascending q: {focus.tolist()} in {stack.unit}")
    size = frames.shape[1:3]
    if stack.depth is None:
        depth, mask = np.zeros(size, np.float32), np.zeros(size, bool)
    else:
        depth, mask = np.asarray(stack.depth, np.float32), np.asarray(stack.mask)
        if depth.shape != size or mask.shape != size or mask.dtype != bool:
            raise ValueError(f"{name}: depth {depth.shape}, mask {mask.dtype} {mask.shape}, frames {size}")
        if not np.isfinite(depth).all() or depth[~mask].any():
            raise ValueError(f"{name}: depth must be finite, and 0 where the mask is False")
    return {"stack": frames, "focus": focus.astype(np.float32), "depth": depth, "mask": mask, "name": name}


def digest(stack: FocalStack) -> Digest:
    """The statistics of one stack."""
    z, h, w = stack.frames.shape[:3]
    focus = tuple(map(float, stack.focus))
    if stack.depth is None or stack.mask is None or not stack.mask.any():
        return Digest((z, h, w), focus, 0, 0.0, 0.0, 0.0, 0)
    values = stack.depth[stack.mask].astype(np.float64)
    first, last = to_q(np.asarray(stack.focus, np.float64)[[0, -1]], stack.unit)
    q = to_q(values, stack.unit)
    inside = int(np.count_nonzero((q >= first) & (q <= last)))
    total = float(values.sum())
    return Digest((z, h, w), focus, len(values), float(values.min()), float(values.max()), total, inside)


def fingerprint(source: Path, made: Path) -> str:
    """A hash of the names and sizes of all files below `source`, to notice that it holds other files now.

    Args:
      made: the dataset's folder, <name>/<config>/<version>. Files in <name>, which may be below `source`, are left out.
    """
    own = made.resolve().parents[1]
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    files = [path for path in files if own not in path.resolve().parents]
    listed = [f"{path.relative_to(source)} {path.stat().st_size}" for path in files]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def split_folders(source: Path, default: str) -> tuple[dict[str, list[Path]], list[str]]:
    """The folders of each split of a user's own data, and a note if there are none and all goes to split `default`."""
    names = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
    found = {split: [source / name for name in names[split] if (source / name).is_dir()] for split in SPLITS}
    if any(found.values()):
        return found, []
    return {default: [source]}, [f"no train/, val/ or test/ inside: everything goes to the {default} split"]


def one_unit(places: dict[str, Path], otherwise: str) -> tuple[str, list[str]]:
    """The unit that all stacks share, and a problem if there are several.

    Args:
      places: a file or folder for each unit that occurs.
      otherwise: the unit if none occurs.
    """
    if len(places) < 2:
        return next(iter(places), otherwise), []
    found = ", ".join(f"{unit} in {place}" for unit, place in places.items())
    return otherwise, [f"several units: {found}; give --unit, or prepare them apart"]
