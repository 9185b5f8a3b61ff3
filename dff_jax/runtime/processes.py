"""Several processes as one run, by `jax.distributed`: joining, leaving, and what they must tell each other.

Each process runs the same program; arrays that span processes are computed together. A process that fails must not
leave the others waiting for it: it ends at once, and the others when they notice, with a line that says so.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from dff_jax.errors import ConfigError, one_line

LOST_SECONDS = 25  # without a sign of life, after which a process counts as dead and JAX ends the others

# JAX ends a process that has lost another by abort(), which no code of ours survives; so a child has the last words. It
# reads them from a pipe and says them if the pipe ends without the sign that all is well.
_CHILD = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
words = sys.stdin.read()
if not words.endswith("\\0"):
    os.write(2, ("\\n" + words).encode())
"""


class ProcessLost(RuntimeError):
    """Another process of the run has ended or cannot be reached."""


class _Joined:
    """What this process knows about the run it is part of."""

    child: subprocess.Popen | None = None


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None, advice: str = ""
) -> None:
    """Makes this process part of a run of several; before anything else is done with JAX.

    Without arguments they are found out from a cluster that JAX knows (SLURM, a TPU pod, Open MPI). GPUs are shared
    out by the variable JAX_LOCAL_DEVICE_IDS, one a process under SLURM.

    Args:
      coordinator: "host:port" of process 0, reachable by all.
      num_processes, process_id: how many, and which of them this is, from 0.
      advice: what the user is told to do if this process or another is lost.

    Raises:
      ConfigError: arguments missing where no cluster is found, or the others cannot be reached.
    """
    given = (coordinator, num_processes, process_id)
    if any(x is not None for x in given) and None in given:
        raise ConfigError("--coordinator, --num-processes, --process-id: give all three, or none on a known cluster")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise ConfigError(f"--coordinator: needs host:port, got {coordinator!r}")
    if coordinator is not None and not 0 <= process_id < num_processes:
        raise ConfigError(f"--process-id: from 0 to {num_processes - 1}, got {process_id}")
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=LOST_SECONDS,
            initialization_timeout=120, shutdown_timeout_seconds=20,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"processes: cannot join the others ({one_line(error)}); start all of them at about the same time, and "
            "outside of SLURM, TPU pods and Open MPI give --coordinator, --num-processes and --process-id"
        ) from None
    for number in (signal.SIGINT, signal.SIGTERM):  # JAX has put a handler of its own under Python's
        signal.signal(number, signal.getsignal(number))
    command = [sys.executable, "-S", "-c", _CHILD]
    _Joined.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    words = f"dff-jax: {_who()} was ended before its time, most likely because another one was lost; {advice}\n"
    _Joined.child.stdin.write(words.encode())
    _Joined.child.stdin.flush()


def leave(status: int, agreed: bool = True) -> None:
    """Ends this process's part of the run. With a status that says failure, or if the others have not `agreed` to stop,
    the program too: they may be waiting for what this process will no longer compute, and are not waited for."""
    if _Joined.child is not None:
        _Joined.child.stdin.write(b"\0")
        _Joined.child.stdin.close()
    if agreed and status in (0, 130):
        jax.distributed.shutdown()
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def watched(advice: str) -> Iterator[None]:
    """Turns an error of the communication between processes into ProcessLost."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise ProcessLost(f"{_who()} has lost another one, so it stops; {advice} ({one_line(error)})") from None


def _who() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order; every process must call it. For small things, through pickle."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size)).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
