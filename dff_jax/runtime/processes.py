"""Several processes as one run, by `jax.distributed`: join, stop at the same step, exchange small values, leave.

Each process runs the same program, and arrays that span processes are computed together. A process that fails ends at
once, as the others would wait for it. They notice within LOST_SECONDS; then JAX ends them, with messages of its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dff_jax.errors import ConfigError, InputError, one_line
from dff_jax.runtime.meeting import MEET_SECONDS, meet
from dff_jax.runtime.stopping import SIGNALS

LOST_SECONDS = 25  # a process that gives no sign of life for this long counts as dead


class ProcessLost(RuntimeError):
    """Another process of the run has ended or cannot be reached."""


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Makes this process part of a run of several. Call it before anything else that uses JAX.

    Without arguments, JAX finds them from a cluster that it knows (SLURM, a TPU pod, Open MPI). The variable
    JAX_LOCAL_DEVICE_IDS says which GPUs a process uses; under SLURM it is one each.

    Args:
      coordinator: "host:port" of process 0, which all can reach.
      num_processes: how many there are.
      process_id: which of them this one is, from 0.

    Raises:
      ConfigError: some arguments are missing, or the other processes cannot be reached.
    """
    given = coordinator, num_processes, process_id
    if coordinator is not None and num_processes is not None and process_id is not None:
        port = coordinator.rpartition(":")[2]
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
            raise ConfigError(f"--coordinator: needs host:port, got {coordinator!r}")
        if not 0 <= process_id < num_processes:
            raise ConfigError(f"--process-id: from 0 to {num_processes - 1}, got {process_id}")
        meet(coordinator, num_processes, process_id)
    elif given != (None, None, None):
        names = "--coordinator, --num-processes, --process-id"
        raise ConfigError(f"{names}: give all three, or none on a known cluster")
    try:
        jax.distributed.initialize(
            *given, initialization_timeout=MEET_SECONDS, heartbeat_timeout_seconds=LOST_SECONDS,
            shutdown_timeout_seconds=20,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"processes: cannot join the others ({one_line(error)}); start all of them at about the same time, and "
            "outside of SLURM, TPU pods and Open MPI give --coordinator, --num-processes and --process-id"
        ) from None
    for number in SIGNALS:  # JAX has installed a handler below Python's
        signal.signal(number, signal.getsignal(number))


def leave(status: int, agreed: bool = True) -> None:
    """Ends this process's part of the run, and the program too if it failed or if not all `agreed` to stop: the others
    may wait for what this process will no longer compute, so it must not wait for them."""
    if agreed and status in (0, 2, 130):
        jax.distributed.shutdown()
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def watched(advice: str) -> Iterator[None]:
    """Turns an error of the communication between processes into ProcessLost, whose message ends with `advice`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        lost = f"process {jax.process_index()} of {jax.process_count()} has lost another one, so it stops"
        raise ProcessLost(f"{lost}; {advice} ({one_line(error)})") from None


@contextmanager
def together() -> Iterator[None]:
    """Lets an InputError of the block in any process end it in all of them. Every process must come here."""
    own = None
    try:
        yield
    except InputError as error:
        own = error
    for number, said in enumerate(gather(own and str(own))):
        if said is not None:
            failed = own or InputError(f"process {number}: {said}")
            failed.everywhere = True
            raise failed


def check_same(facts: Mapping[str, Any]) -> None:
    """Checks that all processes have the same `facts`, of what JSON knows. Every process must call it.

    Raises:
      ConfigError: in all of them; names the first facts that differ.
    """
    everyone, found = gather(dict(facts)), []
    for name in sorted(set().union(*everyone)):
        values = [given.get(name, "absent") for given in everyone]
        if any(x != values[0] for x in values):
            found.append(f"{name} ({', '.join(f'{x} in process {i}' for i, x in enumerate(values))})")
    if found:
        raise ConfigError(f"processes: not the same in all: {'; '.join(found[:4])}; start all by the same command")


class Stop:
    """Whether to stop: `asked` is set in the process that got the signal, and `agreed` is the same answer in all.

    Every process calls `agreed` at the same points of its loop. The answer is that of the call before: the maximum over
    the processes is computed behind the training step in between. So no call waits for the device, and all stop one
    step later. (`multihost_utils.process_allgather` waits; `reached_preemption_sync_point` does not know Ctrl-C.)
    """

    def __init__(self, asked: threading.Event):
        self.asked = asked
        self._before: jax.Array | None = None
        mesh = jax.make_mesh((jax.device_count(),), ("devices",))
        self._split = NamedSharding(mesh, PartitionSpec("devices"))
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def agreed(self) -> bool:
        """Whether any process had been asked when it called this the last time."""
        if jax.process_count() == 1:
            return self.asked.is_set()
        stop = self._before is not None and bool(self._before.addressable_data(0))
        flags = np.full(jax.local_device_count(), self.asked.is_set(), np.int32)
        self._before = self._any(jax.make_array_from_process_local_data(self._split, flags))
        return stop

    def agreed_now(self) -> bool:
        """Whether any process has been asked by now; waits for all of them."""
        return any(gather(self.asked.is_set()))


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order. Every process must call it.

    Args:
      value: small; what JSON knows, and arrays. Tuples and arrays come back as lists.
    """
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    data = np.frombuffer(json.dumps(value, default=lambda x: np.asarray(x).tolist()).encode(), np.uint8)
    sizes = np.ravel(process_allgather(np.int32(data.size)))
    rows = process_allgather(np.pad(data, (0, sizes.max() - data.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
