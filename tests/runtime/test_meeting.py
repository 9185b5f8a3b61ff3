"""How processes find each other: all go on, or each ends with a line that names the port and who is missing."""

import socket
import threading

import pytest

from dff_jax.errors import ConfigError
from dff_jax.runtime import meeting


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(meeting, "MEET_SECONDS", 1)
    monkeypatch.setattr(meeting, "FIND_SECONDS", 1)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def ends(port, *processes, host="localhost"):
    """How `meet` ends in each of `processes`, given as (its number, number of all): "" or the error."""
    said = {}

    def meet(own, count):
        try:
            said[own] = meeting.meet(f"{host}:{port}", count, own) or ""
        except ConfigError as error:
            said[own] = str(error)

    threads = [threading.Thread(target=meet, args=process) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any("\n" in text for text in said.values())
    return said


def test_all_come_whoever_is_first(port):
    assert ends(port, (2, 3), (1, 3), (0, 3)) == {0: "", 1: "", 2: ""}


def test_one_is_missing(port):
    said = ends(port, (0, 4), (2, 4))
    assert said[0] == said[2]
    assert f"no process 1, 3 of 4 came to localhost, port {port}, within 1 s" in said[0]


def test_process_0_is_missing(port):
    assert f"process 1 found no process 0 at localhost, port {port}" in ends(port, (1, 2))[1]


def test_different_numbers_of_processes(port):
    said = ends(port, (0, 2), (1, 3))
    assert said[0] == said[1] and "process 1 has --num-processes 3, process 0 has 2" in said[0]


def test_port_is_taken(port):
    with socket.create_server(("localhost", port)):
        assert f"process 0 cannot listen on port {port} (Address already in use)" in ends(port, (0, 2))[0]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b"])
def test_unknown_host(port, host):
    for process in (0, 1):
        said = ends(port, (process, 2), host=host)[process]
        assert f"process {process} " in said and f"at {host}, port {port}" in said


def test_strangers_and_other_programs(port):
    """One that comes and says something else is no process; one that answers something else is no process 0."""
    late = threading.Timer(0.3, lambda: socket.create_connection(("localhost", port)).sendall(b"GET / HTTP/1.1\r\n"))
    late.start()
    assert "no process 1 of 2 came" in ends(port, (0, 2))[0]
    late.join()
    with socket.create_server(("localhost", port)) as server:
        other = threading.Thread(target=lambda: server.accept()[0].sendall(b"HTTP/1.1 400\r\n"))
        other.start()
        assert f"another program at localhost, port {port}" in ends(port, (1, 2))[1]
        other.join()
