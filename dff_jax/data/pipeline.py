"""From stacks to batches: to train, shuffle, shard by process, augment, batch; to evaluate, pad and mask.

Every loader is an iterator of LoadedBatch with get_state, set_state (plain JSON) and close. What a batch
holds depends on its number alone, so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from dff_jax.config import DataConfig, DataSpec, to_json
from dff_jax.data.augment import check_crop
from dff_jax.data.parts import DEPTH, FilePart, Part, Share, StackSource, Wanted, to_batch
from dff_jax.errors import ConfigError, InputError, one_line
from dff_jax.focus_axis import check_unit
from dff_jax.types import FocalStack, LoadedBatch

if TYPE_CHECKING:
    from dff_jax.data.files.rgbd import SceneFiles

Split = Literal["train", "validation", "test"]

# Where a folder may keep its splits, best first. Published sets of this layout call their test set `val`.
_SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("val", "validation", "test"),
    "test": ("test", "val", "validation"),
}
# Most published sets have one held-out split, to validate and to test.
_OTHER_HELD_OUT: dict[Split, Split] = {"validation": "test", "test": "validation"}
_AGAIN = "make it again with dff-jax prepare ... --overwrite"


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
    """A split of a tfds dataset of this package; prepared first if it makes its own data. Of a dataset with only one
    of validation and test, that one serves as both; the name says which it is.

    Raises:
      InputError: no such dataset or split.
    """
    from dff_jax.data.datasets import open_builder

    builder = open_builder(name, data_dir)
    if not builder.info.splits:
        raise InputError(f"{builder.data_path}: damaged or incomplete (it has no splits); {_AGAIN}")
    if split not in builder.info.splits and _OTHER_HELD_OUT.get(split) in builder.info.splits:
        split = _OTHER_HELD_OUT[split]
    if split not in builder.info.splits:
        choices = " or ".join(f"--split {choice}" for choice in builder.info.splits)
        raise InputError(f"split: {name} has no {split!r}; choose {choices}")
    facts = builder.info.metadata or {}
    try:
        records: Any = builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]  (its decorator hides it)
        unit = check_unit(facts["unit"])
    except Exception as error:
        raise InputError(f"{builder.data_path}: damaged or incomplete ({one_line(error)}); {_AGAIN}") from None
    describe = f"{len(records)} stacks in {builder.data_path}"
    read = partial(_read_record, records, unit, f"{builder.data_path}, {split}")
    convention, has_truth = facts.get("convention", "default"), facts.get("has_truth", True)
    features: Any = builder.info.features or ()
    sharp = "all_in_focus" in features
    return StackSource(
        f"{name}/{split}", unit, describe, len(records), read, convention, has_truth, has_all_in_focus=sharp
    )


def _read_record(records: Any, unit: str, where: str, index: int) -> FocalStack:
    try:
        record = records[index]
        depth = record["depth"]
        mask = record.get("mask", np.isfinite(depth) & (depth > 0))
        focus = record["focus"].astype(np.float64)
        sharp = record.get("all_in_focus")
        return FocalStack(record["stack"], focus, unit, depth, mask, record["name"].decode(), sharp)
    except Exception as error:  # array_record raises bare RuntimeErrors, which name no file
        raise InputError(f"{where}: record {index} cannot be read ({one_line(error)}); {_AGAIN}") from None


def folder_source(root: str | os.PathLike, split: Split, unit: str) -> StackSource:
    """Stack folders laid out like FlyingThings3D's, below root/train, root/val and so on.

    To evaluate, `root` may also be such a split itself (or one stack), with no split folders inside.

    Raises:
      InputError: no such folder, or none for that split, or no stacks in it; as `check_labelled`.
    """
    from dff_jax.data.datasets.frames import check_labelled
    from dff_jax.data.files.folder import list_stacks, picture_file, read_labelled_stack

    place, name = _split_place(root, split, "focal stacks", whole=split != "train")
    stacks = list_stacks(place)
    check_unit(unit)
    describe = f"{len(stacks)} stacks in {place}"
    shapes = check_labelled(name, place, stacks, unit)
    sharp = all(map(picture_file, stacks))

    def read(index: int) -> FocalStack:
        return read_labelled_stack(stacks[index], unit, picture=sharp)

    return StackSource(name, unit, describe, len(stacks), read, shapes=shapes, has_all_in_focus=sharp)


def _split_place(root: str | os.PathLike, split: Split, what: str, *, whole: bool) -> tuple[Path, str]:
    """The folder of a split below `root`, and what to call it; `root` itself if it has no split folders and may be
    taken `whole`."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder of {what}")
    present = [s for s in ("train", "val", "validation", "test") if (root / s).is_dir()]
    found = [s for s in _SPLIT_FOLDERS[split] if s in present]
    if not found and (present or not whole):
        raise InputError(f"{root}: no {'/ or '.join(_SPLIT_FOLDERS[split])}/ inside, needed for {split}")
    name = root.resolve().name
    return (root / found[0], f"{name}/{found[0]}") if found else (root, name)


def scene_files(root: str | os.PathLike, split: Split) -> tuple[str, list[SceneFiles]]:
    """A name for, and the RGB-D scenes of, a split below root/train, root/val and so on; to train on, also of a `root`
    without these.

    Raises:
      InputError: no such folder, none for that split, or as `rgbd.list_scenes`.
    """
    from dff_jax.data.files.rgbd import list_scenes

    place, name = _split_place(root, split, "RGB-D scenes", whole=split == "train")
    return name, list_scenes(place)


def rgbd_source(data: DataConfig, split: Split) -> StackSource:
    """RGB-D scenes photographed once each, always by the same lens, and kept in memory: to evaluate on.

    They have the size of `data.crop`, the unit of the scenes, and diopters where that is metres.
    """
    from dff_jax.data.live_rgbd import held_out_stacks

    name, files = scene_files(data.dataset, split)
    unit, read = held_out_stacks(data, files)
    describe = f"{len(files)} scenes, photographed here"
    return StackSource(name, unit, describe, len(files), cache(read), has_all_in_focus=True)


def live_source(split: Split, data: DataConfig) -> StackSource:
    """The fixed held-out stacks that go with source=procedural_live, each rendered once and kept in memory.

    They have the size of `data.world`; `data.crop` is for training.
    """
    from dff_jax.data.live import HELD_OUT, held_out_stack

    if split not in HELD_OUT:
        raise InputError(f"split: procedural_live has no {split!r} stacks; choose {', '.join(HELD_OUT)}")
    length, read = HELD_OUT[split], cache(lambda index: held_out_stack(split, index, data.world))
    name, describe = f"procedural_live/{split}", f"{length} rendered worlds"
    return StackSource(name, "disparity", describe, length, read, has_all_in_focus=True)


def open_source(data: DataConfig, split: Split) -> StackSource:
    """The stacks of `split` that a configuration speaks of.

    Raises:
      InputError: an unknown dataset, or a folder without such stacks.
    """
    if data.source == "tfds":
        return tfds_source(data.dataset, split, data.data_dir)
    if data.source == "folder":
        return folder_source(data.dataset, split, data.unit)
    if data.source == "rgbd":
        return rgbd_source(data, split)
    return live_source(split, data)


def open_data(spec: DataSpec) -> StackSource:
    """The stacks to measure on, without those left out; `spec.limit` is for whoever reads them.

    Raises:
      InputError: as `tfds_source`, `folder_source` and `StackSource.without`.
    """
    if spec.leave_out:
        return open_data(dataclasses.replace(spec, leave_out=())).without(spec.leave_out)
    if spec.dataset is not None:
        return tfds_source(spec.dataset, spec.split, spec.data_dir)
    if spec.source is not None:
        return folder_source(spec.source, spec.split, spec.unit)
    assert spec.world is not None
    source = live_source(spec.split, DataConfig(source="procedural_live", world=spec.world))
    world = hashlib.sha256(to_json(spec.world).encode()).hexdigest()[:12]
    return dataclasses.replace(source, describe=f"{source.describe} of {world}")


def describe_folders(data: DataConfig) -> dict[str, str]:
    """What lies in the folders that a configuration names: "<n> files, <digest of their names, sizes and dates>"."""
    found = {}
    for root in sorted({part.dataset for part in data.parts() if part.source in ("folder", "rgbd")}):
        levels = ("/".join("*" * depth) for depth in range(1, 6))
        shown = {path for level in levels for path in Path(root).glob(level) if path.name[0] != "."}
        facts = sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in shown if p.is_file())
        found[root] = f"{len(facts)} files, {hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"
    return found


# Batches ----------------------------------------------------------------------------------------------------


def training_loader(
    data: DataConfig,
    seed: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    fit: bool = False,
    wanted: Wanted = DEPTH,
) -> Loader:
    """Endless augmented batches of `data.batch_size` stacks for this process, equal for equal arguments.

    Each epoch of a source is shuffled anew; a batch may span two. The processes' shares are disjoint, and together
    they are what a single process would see. With a mixture each batch comes from one of its parts. Rendered stacks
    (procedural_live, rgbd) are on the device, others numpy. With `fit` a crop shrinks to a stack that is smaller.

    Raises:
      ConfigError: all-in-focus pictures are `wanted`, and a part has none.
      InputError: as `open_source`, or, from the iterator (for a mixture at once, as far as a first batch of each part
        shows it), a stack that cannot be read, has no truth, too few frames, or is smaller than `data.crop`.
    """
    from dff_jax.data.loading import PartLoader

    shares = [Share.of_part(seed, i, data.batch_size, process_index, process_count) for i in range(len(data.parts()))]
    parts = [_open_part(part, share, fit, wanted) for part, share in zip(data.parts(), shares, strict=True)]
    if len(parts) > 1:
        for i, part in enumerate(parts):
            try:
                part.prepare(0)
            except InputError as error:
                which = data.mixture[i].dataset or data.mixture[i].source
                kind = ConfigError if isinstance(error, ConfigError) else InputError  # others take other arguments
                raise kind(f"data.mixture.{i} ({which}): {error}") from None
    weights = [part.weight for part in data.mixture] or [1.0]
    return PartLoader(parts, weights, num_threads=data.num_threads, num_workers=data.num_workers)


def _open_part(data: DataConfig, share: Share, fit: bool, wanted: Wanted) -> Part:
    if data.source == "procedural_live":
        from dff_jax.data.live import LivePart

        return LivePart(data, share, wanted.all_in_focus)
    if data.source == "rgbd":
        from dff_jax.data.live_rgbd import RgbdPart

        return RgbdPart(data, scene_files(data.dataset, "train")[1], share, wanted.all_in_focus)
    source = open_source(data, "train")
    if wanted.all_in_focus and not source.has_all_in_focus:
        advice = "each stack needs an AiF.png"
        if data.source == "tfds":
            advice = f"make it anew by dff-jax prepare {data.dataset} --overwrite, with a picture for each stack"
        raise ConfigError(f"loss.image and loss.smoothness: {source.name} has no all-in-focus pictures; {advice}")
    for frames, *size in dict.fromkeys(source.shapes):
        if not fit:
            check_crop(data.crop, size, f"a stack of {source.name}")
        if data.frames is not None and frames < data.frames[1]:
            raise ConfigError(
                f"data.frames: {data.frames[1]} are asked for, but a stack of {source.name} has {frames}; ask for fewer"
            )
    return FilePart(data, source, share, fit, wanted)


def evaluation_batches(
    source: StackSource, batch_size: int, limit: int | None = None, share: tuple[int, int] = (0, 1)
) -> Iterator[LoadedBatch]:
    """Every stack of `source` (or of its first `limit`) once, whole, as numpy arrays; of `share` (i, n) only the stacks
    i, i + n, i + 2n, ...

    Stacks of one shape [Z,H,W] are batched together, in order; a shape's last batch is filled up with copies
    whose mask is all False and whose name is "", so that each shape is compiled for once.
    """
    waiting: dict[tuple[int, ...], list[FocalStack]] = {}
    count = len(source) if limit is None else min(limit, len(source))
    batch_size = min(batch_size, count)
    for index in range(share[0], count, share[1]):
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
