"""How the processes of a run find each other: process 0 listens, the others tell it who they are, all go on or none.

JAX waits by itself, too, but gives up with an abort of the process that names neither the port nor who is missing. So
its turn comes when all are there.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack, suppress

from dff_jax.errors import ConfigError, one_line

MEET_SECONDS = 120  # how long the processes wait for each other
FIND_SECONDS = 10  # how long a host's name may stay unknown: one that has just started may not have it at once


def meet(coordinator: str, count: int, own: int) -> None:
    """Waits until all processes have come to the coordinator's port.

    Args:
      coordinator: "host:port" of process 0.
      count: how many processes there are.
      own: which of them this one is, from 0.

    Raises:
      ConfigError: the port is taken, the host is unknown, process 0 or others do not come within MEET_SECONDS.
    """
    name, _, port = coordinator.rpartition(":")
    place = name.strip("[]"), int(port)
    answer = _visit(place, count, own) if own else _receive(place, count)
    if answer != "go":
        raise ConfigError(f"--coordinator: {answer}")


def _visit(place: tuple[str, int], count: int, own: int) -> str:
    """Tells process 0 who this is; returns its answer."""
    with _call(place, own, MEET_SECONDS) as connection, suppress(OSError):
        connection.settimeout(MEET_SECONDS + 5)  # so that process 0 gives up first, and says why
        connection.sendall(f"dff-jax {own} {count}\n".encode())
        mark, _, answer = connection.makefile(errors="replace").readline(500).strip().partition(" ")
        if mark == "dff-jax":
            return answer
    return f"process {own} found another program at {place[0]}, port {place[1]}, or one that ended; see process 0"


def _receive(place: tuple[str, int], count: int) -> str:
    """Waits for the others, and answers all of them "go", or why not; returns the answer."""
    host, port = place
    with ExitStack() as stack:
        wide = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
        try:
            server = stack.enter_context(socket.create_server(("", port), backlog=count, **wide))
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            return f"process 0 cannot listen on port {port} ({reason}); give another one to all processes"
        _call(place, 0, FIND_SECONDS).close()
        found: dict[int, socket.socket] = {}
        until, answer = time.monotonic() + MEET_SECONDS, "go"
        while answer == "go" and len(found) < count - 1:
            server.settimeout(max(until - time.monotonic(), 0.01))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                missing = ", ".join(str(i) for i in range(1, count) if i not in found)
                answer = f"no process {missing} of {count} came to {host}, port {port}, within {MEET_SECONDS} s"
                break
            connection.settimeout(5)
            with suppress(OSError, ValueError):  # of a stranger
                mark, number, of = connection.makefile(errors="replace").readline(100).split()
                if mark == "dff-jax":
                    found[int(number)] = connection
                    if int(of) != count:
                        answer = f"process {number} has --num-processes {of}, process 0 has {count}"
        for connection in found.values():
            with suppress(OSError):
                connection.sendall(f"dff-jax {answer}\n".encode())
    return answer


def _call(place: tuple[str, int], own: int, seconds: float) -> socket.socket:
    """A connection to process 0, which may start later than this one.

    Raises:
      ConfigError: there is none within `seconds`, or the host is unknown.
    """
    began = time.monotonic()
    while True:
        try:
            return socket.create_connection(place, timeout=5)
        except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host
            known = not isinstance(error, socket.gaierror | UnicodeError)
            if (waited := time.monotonic() - began) > (seconds if known else min(seconds, FIND_SECONDS)):
                reason = getattr(error, "strerror", None) or one_line(error)
                found = "is not itself" if own == 0 else "found no process 0"
                raise ConfigError(
                    f"--coordinator: process {own} {found} at {place[0]}, port {place[1]}, within {waited:.0f} s "
                    f"({reason}); give the host of process 0, and start all at about the same time"
                ) from None
        time.sleep(0.2)
