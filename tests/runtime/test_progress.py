"""Plain lines of progress, where stderr is no terminal, and the bar on one."""

import io
import itertools
import sys
import time

import pytest

from dff_jax.runtime.progress import ProgressBar, duration, track


@pytest.fixture
def clock(monkeypatch):
    """Each look at the clock takes place a second after the last."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))


def test_plain_lines_say_what_is_done_with_rate_and_time_left(capsys, clock):
    assert list(track(range(35), "working", 35, "tile")) == list(range(35))
    lines = capsys.readouterr().err.splitlines()
    assert 2 < len(lines) < 10 and lines[-1].startswith("working: 35/35 tiles, 0.") and ", took " in lines[-1]
    assert " tiles/s, " in lines[0] and lines[0].endswith(" s left")


def test_without_a_display_it_only_counts(capsys):
    assert list(track(range(3), "working", 3, shown=False)) == [0, 1, 2]
    with ProgressBar("train", 9, "step", done=4, every=float("inf")) as bar:
        bar.advance(5)
        assert bar.done == 9
    assert capsys.readouterr().err == ""


def test_a_note_is_written_at_once_and_a_restart_measures_the_rate_anew(capsys, clock):
    bar = ProgressBar("train", 10, "step", done=4, every=float("inf"))
    bar.note("loss 1")
    bar.advance()
    bar.restart()
    assert bar.rate() == 0
    bar.advance(2)
    assert bar.rate() == 1.0
    bar.note("loss 0.5")
    assert capsys.readouterr().err.splitlines() == [
        "train: 4/10 steps, loss 1", "train: 7/10 steps, loss 0.5, 0.5 steps/s, 6 s left"
    ]  # fmt: skip


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar("evaluate", 2) as bar:
        bar.advance(2)
        bar.note("loss 1")
        bar.say("a line between")
    told = terminal.getvalue()
    assert "evaluate: 100%" in told and "loss 1" in told and "a line between\n" in told


def test_durations():
    assert [duration(x) for x in (40, 700, 9000)] == ["40 s", "12 min", "2.5 h"]
