"""What a loader draws from: parts, each an endless numbered sequence of batches made from stacks of one source.

A part's batch n is a pure function of n, the seed and the configuration. It is made in two steps: `prepare` reads and
augments on the host, in a thread or another process, and `finish` runs in the training process, where the device is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from dff_jax.config import DataConfig
from dff_jax.data.augment import augment, draw_focus, draw_frame_count, refocus, thin_frames, to_float
from dff_jax.errors import ConfigError, InputError
from dff_jax.focus_axis import sort_order, to_q
from dff_jax.types import Array, Batch, FocalStack, LoadedBatch


@dataclass(frozen=True)
class StackSource:
    """Focal stacks by number, read when asked for; reading may go on in several threads or processes at once."""

    name: str  # what to call it in a table
    unit: str  # of focus settings and depth
    describe: str  # one line: where it comes from
    length: int
    read: Callable[[int], FocalStack]
    convention: str = "default"  # of the literature, a key of `evaluation.conventions.CONVENTIONS`
    has_truth: bool = True
    shapes: tuple[tuple[int, int, int], ...] = ()  # Z, H, W of each stack, where they are known before it is read
    has_all_in_focus: bool = False  # whether each stack has an all-in-focus picture; else none shows one

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> FocalStack:
        if not 0 <= index < self.length:
            raise IndexError(f"stack {index} of {self.length} in {self.name}")
        return self.read(index)

    def only(self, numbers: Sequence[int]) -> StackSource:
        """The stacks of these numbers, in this order."""
        shapes = tuple(self.shapes[number] for number in numbers) if self.shapes else ()
        return replace(self, length=len(numbers), read=lambda index: self.read(numbers[index]), shapes=shapes)

    def without(self, names: Sequence[str]) -> StackSource:
        """All stacks but those of these names, whole or without the split before them; each is read once for its name.

        Raises:
          InputError: no stack has such a name, or none is left.
        """
        known = [(stack.name, stack.name.rpartition("/")[2]) for stack in map(self.read, range(self.length))]
        absent = [name for name in names if not any(name in one for one in known)]
        kept = [number for number, one in enumerate(known) if not set(one) & set(names)]
        if absent or not kept:
            told = f"no stack of {self.name} is called {absent[0]!r}" if absent else f"nothing is left of {self.name}"
            choices = ", ".join(short for _, short in known[:20]) + (", ..." if len(known) > 20 else "")
            raise InputError(f"leave_out: {told}; choose from {choices}")
        without = f"without {', '.join(names)}"
        source = self.only(kept)
        return replace(source, name=f"{self.name} {without}", describe=f"{self.describe} {without}")


class Wanted(NamedTuple):
    """What a training objective needs of a batch beside frames and focus settings."""

    depth: bool = True  # else ground truth may be missing
    all_in_focus: bool = False  # else batches have no pictures


DEPTH = Wanted()


class Share(NamedTuple):
    """This process's share of a part: of each global batch a run of `batch_size` stacks.

    The stacks of a part are numbered 0, 1, 2, ... over all batches and processes, so that what a global batch holds
    does not depend on the number of processes.
    """

    seed: int  # of the part
    batch_size: int
    process_index: int = 0
    process_count: int = 1

    @classmethod
    def of_part(cls, seed: int, part: int, batch_size: int, process_index: int = 0, process_count: int = 1) -> Share:
        """Part 0 has the run's own seed, the others one each."""
        own = seed % 2**32 if part == 0 else int(np.random.SeedSequence([seed % 2**32, part]).generate_state(1)[0])
        return cls(own, batch_size, process_index, process_count)

    def stacks(self, number: int) -> range:
        """The numbers of this process's stacks in global batch `number`."""
        first = (number * self.process_count + self.process_index) * self.batch_size
        return range(first, first + self.batch_size)

    def generator(self, stack: int) -> np.random.Generator:
        """The random numbers of one stack."""
        return np.random.default_rng([self.seed, 0, stack])

    def batch_generator(self, number: int) -> np.random.Generator:
        """Those of a global batch: equal in all processes."""
        return np.random.default_rng([self.seed, 1, number])


class Part(Protocol):
    """An endless sequence of batches of one source."""

    reads: bool  # whether `prepare` is worth a thread

    def prepare(self, number: int) -> Any:
        """The host's work for batch `number` (>= 0); picklable, as is the part. Raises InputError for bad data."""
        ...

    def finish(self, prepared: Any) -> LoadedBatch:
        """The batch, on the host or the device."""
        ...


class EpochOrder:
    """The indices 0..length-1 in endless epochs, each shuffled anew; element n is a pure function of (seed, n)."""

    def __init__(self, length: int, seed: int):
        import grain

        self._order = grain.MapDataset.range(length).seed(seed).shuffle().repeat(None)

    def __getitem__(self, number: int) -> int:
        index = self._order[number]
        assert index is not None
        return int(index)


class FilePart:
    """Stacks that are read: each epoch shuffled anew, a batch may span two; augmented; all on the host."""

    reads = True

    def __init__(
        self, data: DataConfig, source: StackSource, share: Share, fit: bool = False, wanted: Wanted = DEPTH
    ):
        self._data, self._source, self._share, self._fit, self._wanted = data, source, share, fit, wanted
        self._order = EpochOrder(len(source), share.seed)

    def prepare(self, number: int) -> LoadedBatch:
        data, share = self._data, self._share
        count = draw_frame_count(data.frames, share.batch_generator(number))
        views = [self._view(n, count) for n in share.stacks(number)]
        loaded = collate([stack for stack, _, _ in views])
        if data.reverse or data.focus_jitter:
            turn, shares = (np.stack(draws) for draws in zip(*(draws for _, *draws in views), strict=True))
            loaded = loaded._replace(batch=refocus(loaded.batch, turn, shares))
        return loaded

    def _view(self, number: int, count: int | None) -> tuple[FocalStack, np.ndarray, np.ndarray]:
        """The augmented stack, and what `refocus` needs for it."""
        data, rng = self._data, self._share.generator(number)
        stack = self._source[self._order[number]]
        if not self._wanted.all_in_focus:
            stack = stack._replace(all_in_focus=None)
        if self._wanted.depth and (stack.depth is None or (stack.mask is not None and not stack.mask.any())):
            raise InputError(f"{self._source.name}: stack {stack.name!r} has no ground truth to train on")
        if count is not None:
            stack = thin_frames(stack, count, rng)
        crop = data.crop
        if self._fit:
            crop = min(crop[0], stack.frames.shape[1]), min(crop[1], stack.frames.shape[2])
        stack = augment(stack, rng, crop=crop, flips=data.flips, colour=data.colour, noise=data.noise)
        return stack, *draw_focus(len(stack.focus), rng, data.reverse, data.focus_jitter)

    def finish(self, prepared: LoadedBatch) -> LoadedBatch:
        return prepared


def collate(items: list[FocalStack]) -> LoadedBatch:
    """A batch of stacks; raises ConfigError if they have different numbers of frames."""
    shapes = {stack.frames.shape: stack.name for stack in items}
    if len(shapes) > 1:
        found = ", ".join(f"{name} has {shape[0]} frames" for shape, name in shapes.items())
        raise ConfigError(
            f"data.batch_size: stacks of unequal length cannot share a batch ({found}); use 1, or give all the same "
            "number of frames with data.frames"
        )
    return LoadedBatch(to_batch(items), tuple(stack.name for stack in items))


def to_batch(stacks: list[FocalStack]) -> Batch:
    """Stacks of one shape to a Batch of numpy arrays: sorted, in q, frames float32 in [0,1].

    Without truth, depth is 0 and the mask False everywhere. There are pictures only if all of the stacks have one.

    Raises:
      InputError: focus settings that cannot be sorted (see `focus_axis.sort_order`).
    """
    size, (z, h, w, _) = len(stacks), stacks[0].frames.shape
    frames, focus = np.empty((size, z, h, w, 3), np.float32), np.empty((size, z), np.float32)
    depth, mask = np.zeros((size, h, w), np.float32), np.zeros((size, h, w), bool)
    for i, stack in enumerate(stacks):
        order = sort_order(stack.focus, stack.unit, [f"{stack.name}, frame {k}" for k in range(z)])
        floats = to_float(stack.frames)
        for k, place in enumerate(order):
            frames[i, k] = floats[place]
        focus[i] = to_q(stack.focus[order], stack.unit)
        if (np.diff(focus[i]) <= 0).any():
            raise InputError(f"{stack.name}: its focus settings differ too little for their size; take an offset off")
        if stack.depth is not None:
            mask[i] = np.isfinite(stack.depth) if stack.mask is None else stack.mask
            depth[i] = np.where(mask[i], to_q(np.where(mask[i], stack.depth, 1.0), stack.unit), 0.0)
    pictures = [to_float(stack.all_in_focus) for stack in stacks if stack.all_in_focus is not None]
    sharp = np.stack(pictures) if len(pictures) == size else None
    return Batch(*cast(tuple[Array, Array, Array, Array, Array | None], (frames, focus, depth, mask, sharp)))
