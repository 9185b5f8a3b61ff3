"""`dff-jax prepare`: one report of all problems, room, progress, several processes, interruption, statistics."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from dataset_files import flyingthings, fod500
from PIL import Image

from dff_jax import cli
from dff_jax.data import datasets, pipeline
from dff_jax.data.datasets import preparing, reading, writing
from dff_jax.data.datasets.base import Item
from dff_jax.data.datasets.records import read_record
from dff_jax.errors import InputError, SourceError
from dff_jax.types import FocalStack

FT = "flyingthings/focal_stack"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return flyingthings(tmp_path_factory.mktemp("ft"), train=3, val=1)


@pytest.fixture
def own_source(source, tmp_path):
    """A copy to damage."""
    return shutil.copytree(source, tmp_path / "ft")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "kept as conftest set it")


def run(capsys, *arguments):
    """Status, stdout and stderr of a command line."""
    try:
        status = cli.main([str(a) for a in arguments])
    except SystemExit as error:  # argparse
        status = error.code
    out = capsys.readouterr()
    return status, out.out, out.err


def _files(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def test_the_command_says_room_progress_and_statistics(capsys, tmp_path, source):
    status, out, err = run(capsys, "prepare", FT, "--source", source, "--data-dir", tmp_path)
    assert status == 0
    per_stack = 24 * 32 * (15 * 3 + 5) + 15 * 4 + 256
    assert f"3 in train, 1 in test; at most {4 * per_stack / 1e6:.1f} MB of disk" in err
    assert "train: 3/3 stacks" in err and "test: 1/1 stacks" in err and "stacks/s" in err
    assert "train: 3 stacks where 1000 were published" in err
    assert "train: 3 stacks (3 of 15 x 24 x 32" in out
    folder = tmp_path / "flyingthings/focal_stack/1.0.0"
    assert str(folder / "overview.png") in out
    with Image.open(folder / "overview.png") as sheet:
        assert sheet.width == 1600 and sheet.height > 300
        assert len(sheet.convert("RGB").getcolors(1 << 20)) > 100
    status, out, _ = run(capsys, "prepare", FT, "--data-dir", tmp_path)  # there already: no source needed
    assert status == 0 and "train: 3 stacks" in out


def test_statistics_are_those_of_the_records(tmp_path, source):
    path = datasets.prepare(FT, tmp_path, source=source)
    found = json.loads((path / "statistics.json").read_text())
    assert found["unit"] == "disparity" and found["focus"]["low"] == 10 and found["focus"]["high"] == 100
    np.testing.assert_allclose(found["focus"]["same_in_all"], np.linspace(10, 100, 15))
    records = list(datasets.open_builder(FT, tmp_path).as_data_source(split="train"))
    values = np.concatenate([r["depth"][r["mask"]] for r in records]).astype(np.float64)
    train = found["splits"]["train"]
    assert train["stacks"] == 3 and train["shapes"] == {"15 x 24 x 32": 3} and train["stacks_without_truth"] == 0
    assert train["valid_share"] == pytest.approx(len(values) / (3 * 24 * 32))
    assert train["in_range_share"] == pytest.approx(np.mean((values >= 10) & (values <= 100)))
    expected = {"low": values.min(), "high": values.max(), "mean": values.mean()}
    assert train["truth"] == pytest.approx(expected)


def test_metres_within_the_focus_range_are_counted_in_diopters(tmp_path):
    path = datasets.prepare("fod500/default", tmp_path / "d", source=fod500(tmp_path / "fod"))
    train = json.loads((path / "statistics.json").read_text())["splits"]["train"]
    records = list(datasets.open_builder("fod500/default", tmp_path / "d").as_data_source(split="train"))
    q = 1 / np.concatenate([r["depth"][r["mask"]] for r in records]).astype(np.float64)
    inside = (q >= 1 / 1.5) & (q <= 10)
    assert 0 < inside.mean() < 1 and train["in_range_share"] == pytest.approx(inside.mean(), abs=1e-3)


def test_everything_missing_or_damaged_is_in_one_report(capsys, tmp_path, own_source):
    train = own_source / "train" / "focal_stack"
    frames = {float(p.stem): p for p in (train / "0000").glob("*.png") if p.stem != "AiF"}
    frames[10.0].unlink()
    cut = frames[55.0].read_bytes()
    frames[55.0].write_bytes(cut[: len(cut) // 2])
    frames[100.0].write_bytes(b"")
    (train / "0001" / "disp.exr").unlink()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(train / "0002" / "10.0.png")
    (train / "0002" / "disp.exr").write_text("no EXR")
    (own_source / "val" / "focal_stack" / "0000" / "100.0.png").rename(
        own_source / "val" / "focal_stack" / "0000" / "best.png"
    )
    status, out, err = run(capsys, "prepare", FT, "--source", own_source, "--data-dir", tmp_path / "d")
    assert status == 2 and out == ""
    lines = err.splitlines()
    expected = [
        ("0000: no frame at 10", "copy it again"),
        ("55.0.png", "truncated"),
        ("100.0.png", "the file is empty"),
        ("0001/disp.exr", "missing"),
        ("0002/10.0.png: 9 x 9 where", "32 x 24"),
        ("0002/disp.exr", "truncated or corrupt EXR"),
        ("best.png", "no focus setting in the name"),
    ]
    for parts in expected:
        assert sum(all(part in line for part in parts) for line in lines) == 1, (parts, err)
    assert lines[-1].startswith("dff-jax: error: ") and "problems, all named above" in lines[-1]
    assert not (tmp_path / "d").exists()


def test_damage_that_only_reading_shows_is_reported_for_all_stacks_and_nothing_is_kept(tmp_path, own_source):
    damaged = [own_source / "train" / "focal_stack" / "0001" / "55.0.png", own_source / "val/focal_stack/0000/disp.exr"]
    picture = bytearray(damaged[0].read_bytes())
    middle = len(picture) // 2
    picture[middle : middle + 40] = bytes(40)
    damaged[0].write_bytes(bytes(picture))
    depth = damaged[1].read_bytes()
    damaged[1].write_bytes(depth[: len(depth) - len(depth) // 3])
    with pytest.raises(SourceError) as error:
        datasets.prepare(FT, tmp_path / "d", source=own_source)
    assert len(error.value.problems) == 2
    for path, problem in zip(damaged, error.value.problems, strict=True):
        assert str(path) in problem
    assert not [p for p in (tmp_path / "d").rglob("*") if "array_record" in p.name or p.suffix == ".part"]


def test_two_processes_write_the_same_bytes_as_one(tmp_path, source):
    one = datasets.prepare(FT, tmp_path / "one", source=source, workers=1)
    two = datasets.prepare(FT, tmp_path / "two", source=source, workers=2)
    assert _files(one) == _files(two) and any("array_record" in name for name in _files(one))


def test_interrupted_and_repeated_it_ends_the_same(monkeypatch, capsys, tmp_path, source):
    whole = _files(datasets.prepare(FT, tmp_path / "whole", source=source))
    real, read = reading.read_one, []

    def interrupted(item):
        read.append(item)
        if len(read) == 3:
            raise KeyboardInterrupt
        return real(item)

    monkeypatch.setattr(reading, "read_one", interrupted)
    status, _, err = run(capsys, "prepare", FT, "--source", source, "--data-dir", tmp_path / "d")
    assert status == 130 and "interrupted" in err
    assert not [p for p in (tmp_path / "d" / FT).rglob("*") if p.is_file()]
    monkeypatch.undo()
    assert _files(datasets.prepare(FT, tmp_path / "d", source=source)) == whole

    monkeypatch.setattr(reading, "read_one", lambda item: 1 / 0)  # made again, and failing: the old data stays
    with pytest.raises(ZeroDivisionError):
        datasets.prepare(FT, tmp_path / "d", source=source, overwrite=True)
    monkeypatch.undo()
    assert _files(tmp_path / "d" / FT / "1.0.0") == whole
    assert [p.name for p in (tmp_path / "d" / FT).iterdir()] == ["1.0.0"]


def test_too_little_room_is_told_before_anything_is_written(monkeypatch, tmp_path, source):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(InputError, match="0 MB free where about 17 MB are needed"):
        datasets.prepare(FT, tmp_path / "d", source=source)
    assert not (tmp_path / "d").exists()


def test_what_a_killed_run_left_is_mentioned(tmp_path, source, capsys):
    left = tmp_path / FT / ".dff-jax-1-abc.partial"
    left.mkdir(parents=True)
    datasets.prepare(FT, tmp_path, source=source)
    assert f"{left} was left by a run that was killed" in capsys.readouterr().err


def test_many_files_keep_the_order_and_their_number_is_known_to_tfds(monkeypatch, tmp_path, source):
    monkeypatch.setattr(writing, "SHARD_BYTES", 50_000)  # one stack is 39 kB
    path = datasets.prepare(FT, tmp_path, source=source)
    files = sorted(p.name for p in path.glob("*train*"))
    assert files == [f"flyingthings-train.array_record-0000{i}-of-00003" for i in range(3)]
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)  # without our builder class
    assert builder.info.splits["train"].shard_lengths == [1, 1, 1]
    names = [record["name"] for record in builder.as_data_source(split="train")]
    assert names == [b"train/0000", b"train/0001", b"train/0002"]


def test_records_have_a_picture_if_every_stack_has_one(capsys, tmp_path, own_source):
    (own_source / "val/focal_stack/0000/AiF.png").rename(tmp_path / "AiF.png")
    datasets.prepare(FT, tmp_path / "without", source=own_source)
    assert "all-in-focus pictures are left out: only 3 of 4 stacks have one" in capsys.readouterr().err
    (tmp_path / "AiF.png").rename(own_source / "val/focal_stack/0000/AiF.png")
    datasets.prepare(FT, tmp_path / "with", source=own_source)
    for split, folder in (("train", "train/focal_stack/0002"), ("test", "val/focal_stack/0000")):
        without, sharp = (pipeline.tfds_source(FT, split, tmp_path / name) for name in ("without", "with"))
        assert (without.has_all_in_focus, sharp.has_all_in_focus) == (False, True)
        assert without[len(sharp) - 1].all_in_focus is None
        stack = sharp[len(sharp) - 1]
        np.testing.assert_array_equal(stack.all_in_focus, np.asarray(Image.open(own_source / folder / "AiF.png")))
        np.testing.assert_array_equal(stack.frames, without[len(sharp) - 1].frames)
    plain = own_source / "train/focal_stack"
    found = pipeline.folder_source(plain, "test", "disparity")
    np.testing.assert_array_equal(found[0].all_in_focus, np.asarray(Image.open(plain / "0000/AiF.png")))
    (plain / "0001/AiF.png").unlink()
    found = pipeline.folder_source(plain, "test", "disparity")
    assert not found.has_all_in_focus and found[0].all_in_focus is None
    Image.new("RGB", (7, 9)).save(plain / "0000/AiF.png")
    with pytest.raises(SourceError, match=r"0000/AiF\.png"):
        pipeline.folder_source(plain, "test", "disparity")


def _bad_stack(what):
    frames, focus = np.zeros((3, 4, 5, 3), np.uint8), np.array([1.0, 2.0, 3.0])
    depth, mask = np.ones((4, 5), np.float32), np.ones((4, 5), bool)
    stack = FocalStack(frames, focus, "disparity", depth, mask)
    return {
        "good": stack,
        "type": stack._replace(frames=frames.astype(np.uint16)),
        "order": stack._replace(focus=focus[::-1]),
        "metres": stack._replace(unit="metre"),
        "count": stack._replace(focus=focus[:2]),
        "size": stack._replace(depth=np.ones((5, 4), np.float32)),
        "nan": stack._replace(depth=depth * np.nan),
        "picture": stack._replace(all_in_focus=frames[0, 1:]),
        "zero": stack._replace(mask=np.zeros((4, 5), bool)),
    }[what]


def test_a_reader_that_breaks_its_promise_is_stopped():
    assert read_record(reading.read_one(Item("a", partial(_bad_stack, "good"))))["name"] == b"a"
    matches = {
        "type": "not uint8", "order": "not sorted", "metres": "not sorted", "count": "2,", "size": "depth",
        "nan": "must be finite", "zero": "0 where the mask is False",
    }  # fmt: skip
    for what, match in matches.items():
        with pytest.raises(ValueError, match=match):
            reading.read_one(Item("a", partial(_bad_stack, what)))
    for what, match in {"picture": r"picture is uint8 \(3, 5, 3\)", "good": "picture was promised"}.items():
        with pytest.raises(ValueError, match=match):
            reading.read_one(Item("a", partial(_bad_stack, what), True))


def test_workers_by_default():
    assert preparing.sensible_workers(3) == 1
    assert preparing.sensible_workers(10_000) == reading.available_cores()


def test_the_list_names_all_with_unit_and_place(capsys):
    status, out, _ = run(capsys, "prepare", "--list")
    assert status == 0
    for name in datasets.all_datasets():
        assert name in out
    assert "fod500/default  [metre]" in out and "fs_6.zip" in out and "stacks/NAME  [as the files say]" in out


def test_slips_on_the_command_line(capsys, tmp_path, source):
    for arguments, match in (
        ([], "give a name"),
        ([FT, "--data-dir", tmp_path / "d"], "--source DIR is needed"),
        ([FT, "--source", source, "--workers", 0, "--data-dir", tmp_path / "d"], "--workers: must be at least 1"),
        ([FT, "--source", source, "--noise", 1, "--data-dir", tmp_path / "d"], "it takes no options"),
        (["procedural/tiny", "--source", source, "--data-dir", tmp_path / "d"], "makes its own data"),
    ):
        status, _, err = run(capsys, "prepare", *arguments)
        assert status == 2 and match in err and err.count("\n") == 1
    assert not (tmp_path / "d").exists()


@pytest.mark.slow
def test_terminated_it_leaves_nothing(tmp_path, source):
    """A real process, ended while it reads."""
    program = """
import os, signal, sys
from dff_jax import cli
from dff_jax.data.datasets import reading
real = reading.read_one
def read_one(item):
    os.kill(os.getpid(), signal.SIGTERM)
    return real(item)
reading.read_one = read_one
sys.exit(cli.main(["prepare", *sys.argv[1:]]))
"""
    command = [sys.executable, "-c", program, FT, "--source", str(source), "--data-dir", str(tmp_path / "d")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130 and "interrupted" in done.stderr
    assert not [p for p in (tmp_path / "d" / FT).rglob("*") if p.is_file()]


def test_other_files_are_not_taken_for_those_that_were_prepared(capsys, tmp_path, own_source):
    arguments = "prepare", FT, "--data-dir", own_source / "d", "--source", own_source  # one inside the other
    assert run(capsys, *arguments)[0] == 0
    status, _, err = run(capsys, *arguments)
    assert status == 0 and "is there already; --overwrite makes it again" in err
    shutil.copytree(own_source / "train/focal_stack/0000", own_source / "train/focal_stack/0009")
    before = _files(own_source / "d")
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "was made of other files than" in err and "--overwrite" in err
    assert _files(own_source / "d") == before
    assert run(capsys, *arguments, "--overwrite")[0] == 0
    assert len(datasets.open_builder(FT, own_source / "d").as_data_source(split="train")) == 4


def test_a_source_of_other_content_is_noticed_whatever_its_size_and_time(capsys, tmp_path, own_source):
    arguments = "prepare", FT, "--data-dir", tmp_path / "d", "--source", own_source
    assert run(capsys, *arguments)[0] == 0
    frame = own_source / "val/focal_stack/0000/100.0.png"
    status = frame.stat()
    other = next((own_source / "train/focal_stack/0000").glob("100*.png")).read_bytes()
    frame.write_bytes(other[: status.st_size].ljust(status.st_size, b"\0"))
    os.utime(frame, ns=(status.st_atime_ns, status.st_mtime_ns))
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "was made of other files than" in err and "val/focal_stack/0000/100.0.png" in err


KILLED = """
import multiprocessing, os, sys
from dff_jax import cli
from dff_jax.data.datasets import reading
def in_order(pool, items, ahead, real=reading._in_order):
    yield next(real(pool, items, ahead))
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), 9)
reading._in_order = in_order
cli.main(["prepare", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_killed_while_it_makes_data_again_the_old_data_and_no_worker_is_left(tmp_path, source):
    path = datasets.prepare(FT, tmp_path, source=source)
    before = _files(path)
    words = FT, "--source", source, "--data-dir", tmp_path, "--overwrite", "--workers", 2
    command = [sys.executable, "-c", KILLED, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120)
    workers = [int(word) for word in done.stdout.split()]
    assert done.returncode == -9 and workers
    limit = time.monotonic() + 20
    while any(_runs(worker) for worker in workers) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not any(_runs(worker) for worker in workers)
    assert _files(path) == before and len(list(path.parent.iterdir())) == 2
    assert datasets.prepare(FT, tmp_path, source=source) == path
    assert _files(path) == before and list(path.parent.iterdir()) == [path]


def _runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_failed_preparation_leaves_no_folder(capsys, tmp_path, own_source):
    frame = next((own_source / "val/focal_stack/0000").glob("55*.png"))
    data = bytearray(frame.read_bytes())
    data[len(data) // 2] ^= 255  # which only reading shows
    frame.write_bytes(data)
    status, _, err = run(capsys, "prepare", FT, "--data-dir", tmp_path / "d", "--source", own_source)
    assert status == 2 and frame.name in err and "1/1 stacks" in err
    assert not (tmp_path / "d" / FT).exists()
