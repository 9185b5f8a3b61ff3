"""From stacks to batches: to train, shuffle, shard by process, augment, batch; to evaluate, pad and mask.

Every loader is an iterator of LoadedBatch with get_state, set_state (plain JSON) and close. What a batch
holds depends on its number alone, so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from dff_jax.config import DataConfig
from dff_jax.data.augment import augment, to_float
from dff_jax.errors import ConfigError, InputError
from dff_jax.focus_axis import check_unit, sort_order, to_q
from dff_jax.types import Batch, FocalStack, LoadedBatch

Split = Literal["train", "validation", "test"]

# Where a folder may keep its splits, best first. Published sets of this layout call their test set `val`.
_SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("val", "validation", "test"),
    "test": ("test", "val", "validation"),
}


@dataclass(frozen=True)
class StackSource:
    """Focal stacks by number, read when asked for; reading may go on in several threads at once."""

    name: str  # what to call it in a table
    unit: str  # of focus settings and depth
    describe: str  # one line: where it comes from
    length: int
    read: Callable[[int], FocalStack]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> FocalStack:
        if not 0 <= index < self.length:
            raise IndexError(f"stack {index} of {self.length} in {self.name}")
        return self.read(index)


class Loader(Protocol):
    """Endless batches for training: this process's share of each."""

    def __iter__(self) -> Loader: ...
    def __next__(self) -> LoadedBatch: ...
    def get_state(self) -> dict[str, Any]:
        """JSON-able; what `set_state` needs so that the next batch is the one that would come next here."""
        ...

    def set_state(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


# Sources ----------------------------------------------------------------------------------------------------


def tfds_source(name: str, split: Split, data_dir: str | os.PathLike | None = None) -> StackSource:
    """A split of a tfds dataset of this package; prepared first if it makes its own data.

    Raises:
      InputError: no such dataset or split.
    """
    from dff_jax.data.datasets import open_builder

    builder = open_builder(name, data_dir)
    if split not in builder.info.splits:
        raise InputError(f"split: {name} has no {split!r}; choose one of {', '.join(builder.info.splits)}")
    records, unit = builder.as_data_source(split=split), check_unit(builder.info.metadata["unit"])

    def read(index: int) -> FocalStack:
        record = records[index]
        depth = record["depth"]
        mask = record.get("mask", np.isfinite(depth) & (depth > 0))
        focus = record["focus"].astype(np.float64)
        return FocalStack(record["stack"], focus, unit, depth, mask, record["name"].decode())

    describe = f"{len(records)} stacks in {builder.data_path}"
    return StackSource(f"{name}/{split}", unit, describe, len(records), read)


def folder_source(root: str | os.PathLike, split: Split, unit: str) -> StackSource:
    """Stack folders laid out like FlyingThings3D's, below root/train, root/val and so on.

    To evaluate, `root` may also be such a split itself (or one stack), with no split folders inside.

    Raises:
      InputError: no such folder, or none for that split, or no stacks in it.
    """
    from dff_jax.data.folder import list_stacks, read_labelled_stack

    root, unit = Path(root), check_unit(unit)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder of focal stacks")
    present = [s for s in ("train", "val", "validation", "test") if (root / s).is_dir()]
    found = [s for s in _SPLIT_FOLDERS[split] if s in present]
    if not found and (present or split == "train"):
        raise InputError(f"{root}: no {'/ or '.join(_SPLIT_FOLDERS[split])}/ inside, needed for {split}")
    place = root / found[0] if found else root
    stacks = list_stacks(place)

    def read(index: int) -> FocalStack:
        return read_labelled_stack(stacks[index], unit)

    name = f"{root.resolve().name}/{found[0]}" if found else root.resolve().name
    return StackSource(name, unit, f"{len(stacks)} stacks in {place}", len(stacks), read)


def live_source(split: Split, data: DataConfig) -> StackSource:
    """The fixed held-out stacks that go with source=procedural_live, each rendered once and kept in memory.

    They have the size of `data.world`; `data.crop` is for training.
    """
    from dff_jax.data.live import HELD_OUT, held_out_stack

    if split not in HELD_OUT:
        raise InputError(f"split: procedural_live has no {split!r} stacks; choose {', '.join(HELD_OUT)}")
    rendered: dict[int, FocalStack] = {}

    def read(index: int) -> FocalStack:
        if index not in rendered:
            rendered[index] = held_out_stack(split, index, data.world)
        return rendered[index]

    length = HELD_OUT[split]
    return StackSource(f"procedural_live/{split}", "disparity", f"{length} rendered worlds", length, read)


def open_source(data: DataConfig, split: Split) -> StackSource:
    """The stacks of `split` that a configuration speaks of.

    Raises:
      InputError: an unknown dataset, or a folder without such stacks.
    """
    if data.source == "tfds":
        return tfds_source(data.dataset, split, data.data_dir)
    if data.source == "folder":
        return folder_source(data.dataset, split, data.unit)
    return live_source(split, data)


def open_named(
    dataset: str | None = None,
    folder: str | os.PathLike | None = None,
    unit: str | None = None,
    split: Split = "test",
    data_dir: str | os.PathLike | None = None,
) -> StackSource:
    """The stacks to evaluate on: a tfds dataset by name, or a folder (whose unit is disparity unless given).

    Raises:
      InputError: neither or both given, or as `tfds_source` and `folder_source`.
    """
    if (dataset is None) == (folder is None):
        raise InputError("evaluation data: give either a dataset name (--dataset) or a folder (--source)")
    if split not in _SPLIT_FOLDERS:
        raise InputError(f"split: {split!r} is unknown; choose one of {', '.join(_SPLIT_FOLDERS)}")
    if folder is not None:
        return folder_source(folder, split, unit or "disparity")
    return tfds_source(dataset, split, data_dir)


# Batches ----------------------------------------------------------------------------------------------------


def to_batch(stacks: list[FocalStack]) -> Batch:
    """Stacks of one shape to a Batch of numpy arrays: sorted, in q, frames float32 in [0,1].

    Without truth, depth is 0 and the mask False everywhere.

    Raises:
      InputError: focus settings that cannot be sorted (see `focus_axis.sort_order`).
    """
    size, (z, h, w, _) = len(stacks), stacks[0].frames.shape
    batch = Batch(
        np.empty((size, z, h, w, 3), np.float32), np.empty((size, z), np.float32),
        np.zeros((size, h, w), np.float32), np.zeros((size, h, w), bool),
    )  # fmt: skip
    for i, stack in enumerate(stacks):
        order = sort_order(stack.focus, stack.unit, [f"{stack.name}, frame {k}" for k in range(z)])
        batch.frames[i] = to_float(stack.frames)[order]
        batch.focus[i] = to_q(stack.focus[order], stack.unit)
        if stack.depth is not None:
            mask = np.isfinite(stack.depth) if stack.mask is None else stack.mask
            batch.mask[i] = mask
            batch.depth[i] = np.where(mask, to_q(np.where(mask, stack.depth, 1.0), stack.unit), 0.0)
    return batch


class _GrainLoader:
    """A grain iterator, under the three names of `Loader`."""

    def __init__(self, iterator: Any):
        self._iterator = iterator

    def __iter__(self) -> _GrainLoader:
        return self

    def __next__(self) -> LoadedBatch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._iterator.set_state(state)

    def close(self) -> None:
        self._iterator.close()


def _collate(items: list[FocalStack]) -> LoadedBatch:
    shapes = {stack.frames.shape: stack.name for stack in items}
    if len(shapes) > 1:
        found = ", ".join(f"{name} has {shape[0]} frames" for shape, name in shapes.items())
        raise ConfigError(f"data.batch_size: stacks of unequal length cannot share a batch ({found}); use 1")
    return LoadedBatch(to_batch(items), tuple(stack.name for stack in items))


def training_loader(
    data: DataConfig, seed: int, *, process_index: int = 0, process_count: int = 1
) -> Loader:
    """Endless augmented batches of `data.batch_size` stacks for this process, equal for equal arguments.

    Each epoch is shuffled anew; a batch may span two. The processes' shares are disjoint and cover the epoch.
    With source=procedural_live the arrays are on the device, else numpy.

    Raises:
      InputError: as `open_source`, fewer stacks than processes, or (from the iterator) a stack that cannot be
        read or is smaller than `data.crop`.
    """
    if data.source == "procedural_live":
        from dff_jax.data.live import LiveLoader

        return LiveLoader(data, seed, process_index, process_count)
    import grain

    source = open_source(data, "train")
    if len(source) < process_count:
        raise InputError(f"{source.name}: {len(source)} stacks cannot feed {process_count} processes")

    def random_view(stack: FocalStack, rng: np.random.Generator) -> FocalStack:
        return augment(stack, rng, crop=data.crop, flips=data.flips, colour=data.colour, noise=data.noise)

    batches = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()[process_index::process_count]
        .repeat(None)
        .random_map(random_view)
        .batch(data.batch_size, drop_remainder=True, batch_fn=_collate)
    )
    threads = grain.ReadOptions(num_threads=data.num_threads, prefetch_buffer_size=2 * data.num_threads)
    return _GrainLoader(iter(batches.to_iter_dataset(threads)))


def evaluation_batches(
    source: StackSource, batch_size: int, limit: int | None = None
) -> Iterator[LoadedBatch]:
    """Every stack of `source` (or its first `limit`) once, whole, as numpy arrays.

    Stacks of one shape [Z,H,W] are batched together, in order; a shape's last batch is filled up with copies
    whose mask is all False and whose name is "", so that each shape is compiled for once.
    """
    waiting: dict[tuple[int, ...], list[FocalStack]] = {}
    for index in range(len(source) if limit is None else min(limit, len(source))):
        stack = source[index]
        group = waiting.setdefault(stack.frames.shape, [])
        group.append(stack)
        if len(group) == batch_size:
            yield LoadedBatch(to_batch(group), tuple(s.name for s in group))
            group.clear()
    for group in filter(None, waiting.values()):
        names = tuple(s.name for s in group) + ("",) * (batch_size - len(group))
        batch = to_batch(group + group[-1:] * (batch_size - len(group)))
        batch.mask[len(group) :] = False
        batch.depth[len(group) :] = 0.0
        yield LoadedBatch(batch, names)
