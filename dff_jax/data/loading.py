"""The loader: parts mixed by weight, prepared ahead by threads or processes, in an order that the seed decides.

Grain mixes, reads ahead and keeps order. The state is the number of the next batch and nothing else, so that it does
not depend on how many threads or worker processes there are.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Sequence
from typing import Any

from dff_jax.data.parts import Part
from dff_jax.errors import ConfigError, InputError
from dff_jax.runtime.stopping import end_with_parent
from dff_jax.types import LoadedBatch

_ENDLESS = 2**40  # batches of a part
_AHEAD = 2  # batches that each thread, and each process, may be ahead


class PartLoader:
    """Endless batches of parts, in turn by their weights; an iterator of LoadedBatch, see `pipeline.Loader`."""

    def __init__(self, parts: Sequence[Part], weights: Sequence[float], *, num_threads: int = 1, num_workers: int = 0):
        self._parts, self._weights, self._threads, self._workers = parts, weights, num_threads, num_workers
        self._next, self._iterator, self._last = 0, None, None

    def __iter__(self) -> PartLoader:
        return self

    def __next__(self) -> LoadedBatch:
        number, item = self._next, None
        if self._last is not None and self._last[0] == number:  # gone back by one, as the training loop does once
            item = self._last[1]
        else:
            if self._iterator is None:
                self._iterator = self._open(number)
            try:
                item = next(self._iterator)
            except RuntimeError as error:
                if not self._workers or "terminated unexpectedly" not in str(error):
                    raise
                raise InputError(
                    f"data.num_workers: {str(error).splitlines()[0]} If memory ran out, use fewer workers; a script of "
                    'your own needs `if __name__ == "__main__":` around what trains'
                ) from None
        which, prepared, failure = item
        if failure is not None:
            raise failure
        self._last, self._next = (number, item), number + 1
        return self._parts[which].finish(prepared)

    def get_state(self) -> dict[str, Any]:
        return {"next_index": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        number = int(state["next_index"])
        back_by_one = self._last is not None and self._last[0] == number == self._next - 1
        if number != self._next and not back_by_one:
            self.close()
        self._next = number

    def close(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = self._last = None

    def _open(self, first: int) -> Any:
        sources = [_Batches(part, i) for i, part in enumerate(self._parts)]
        if len(sources) == 1 and not self._parts[0].reads:
            return (sources[0][number] for number in itertools.count(first))
        import grain

        mixed = grain.MapDataset.mix([grain.MapDataset.source(source) for source in sources], list(self._weights))
        ahead = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=_AHEAD * self._threads)
        batches = mixed[first:].to_iter_dataset(ahead)
        if not self._workers:
            return iter(batches)
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain's processes ask for flags, and only an absl app parses them
            flags.FLAGS.mark_as_parsed()
        # Through pipes: containers often have too little shared memory for a few batches.
        options = grain.experimental.DatasetOptions(min_shm_size=2**62)
        batches = grain.experimental.WithOptionsIterDataset(batches, options)
        processes = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=_AHEAD)
        return iter(batches.mp_prefetch(processes, worker_init_fn=_start_worker))


class _Batches:
    """A part's batches as a grain source of (number of the part, what `Part.prepare` gave, error)."""

    def __init__(self, part: Part, which: int):
        self._part, self._which = part, which

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> tuple[int, Any, InputError | None]:
        try:
            return self._which, self._part.prepare(index), None
        except InputError as error:  # handed on as a value: it keeps its turn, and passes between processes
            kind = ConfigError if isinstance(error, ConfigError) else InputError
            return self._which, None, kind(str(error))

    def __repr__(self) -> str:
        return f"{type(self._part).__name__}({self._which})"


def _start_worker(index: int, count: int) -> None:
    """In a new worker process: leaves the accelerator and Ctrl-C to the parent, and ends when the parent does."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
