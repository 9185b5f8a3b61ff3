"""The log of a run."""

import errno
import json
import threading

import pytest

from dff_jax.training import logging


def test_log_resumed_is_cut_and_survives_a_torn_line(tmp_path):
    writer = logging.JsonlWriter(tmp_path)
    for step in (1, 2, 3):
        writer.scalars(step, "train", {"loss": float("nan")})
        writer.scalars(step, "validation", {"MAE": 1.5})
    writer.close()
    with (tmp_path / logging.FILE_NAME).open("a") as file:
        file.write('{"step": 4, "ki')
    logging.JsonlWriter(tmp_path, step=2, evaluated=1).close()
    lines = [json.loads(x) for x in (tmp_path / logging.FILE_NAME).read_text().splitlines()]
    assert [(x["step"], x["kind"]) for x in lines] == [(1, "train"), (1, "validation"), (2, "train")]
    assert lines[0]["loss"] is None  # JSON has no NaN


def test_damaged_lines_are_left_out_and_kept_beside(tmp_path, capsys):
    """Half a line, no JSON, another JSON, not UTF-8: none hinders a run; the file as it was is not lost."""
    good = b'{"step": 1, "kind": "train"}\n'
    bad = (b'{"step": 2, "ki', b"\xff\xfe\x00", b"[1]", b'{"text": "of another program"}', b"[" * 99999)
    text = good + b"\n".join(bad) + b"\n"
    (tmp_path / logging.FILE_NAME).write_bytes(text)
    logging.JsonlWriter(tmp_path, step=2).close()
    assert (tmp_path / logging.FILE_NAME).read_bytes() == good
    assert (tmp_path / f"damaged-{logging.FILE_NAME}").read_bytes() == text
    assert "left out 5 damaged lines" in capsys.readouterr().err
    assert logging.read_log(tmp_path) == [{"step": 1, "kind": "train"}]


def test_events_are_written_where_an_error_can_be_caught(tmp_path, monkeypatch):
    """A thread that writes would die of a full disk, and whoever hands it more would wait for ever."""
    threads = threading.active_count()
    writer = logging.TensorBoardWriter(tmp_path)
    assert threading.active_count() == threads
    writer.scalars(1, "train", {"loss": 0.5})
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(logging.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        writer.scalars(2, "train", {"loss": 0.5})
    writer.close()
