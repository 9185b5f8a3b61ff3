"""Output folders: nothing of others is lost, nothing of two results is mixed, at whatever moment it is killed."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dff_jax.errors import InputError
from dff_jax.runtime import replacing
from dff_jax.runtime.files import check_apart, check_output, staged_output
from dff_jax.runtime.replacing import recover

NAMES = ("summary", "a", "b", "figures/c")


def write(folder, value, names=NAMES, **options):
    with staged_output(folder, last="summary", **options) as staging:
        for name in names:
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text(f"{value}{name}")


def found(folder):
    """What each visible file says."""
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_text() for name, path in paths.items() if name[0] != "."}


def whole(value, names=NAMES):
    return {name: f"{value}{name}" for name in names}


def killed(code, *arguments):
    """Runs `code`, in which the process kills itself."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=Path(__file__).parents[2])
    assert done.returncode == -9


@pytest.fixture
def dead():
    """A process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_an_earlier_result_is_replaced_as_a_whole_and_files_of_others_stay(tmp_path):
    out = tmp_path / "out"
    write(out, 1)
    (out / "mine").write_text("mine")
    check_output(out, NAMES)
    write(out, 2, ("summary", "b"))
    assert found(out) == whole(2, ("summary", "b")) | {"mine": "mine"}
    with staged_output(out, last="other") as staging:  # another command's result stays beside it
        (staging / "other").write_text("")
    assert found(out) == whole(2, ("summary", "b")) | {"mine": "mine", "other": ""}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_somebody_else_is_never_overwritten_unasked(tmp_path, name):
    out = tmp_path / "out"
    write(out, 1)
    other = "x" * len((out / name).read_text())  # of the same length
    (out / name).write_text(other)
    for overwrite, message in ((False, ", or give --overwrite$"), (None, "choose another output$")):
        with pytest.raises(InputError, match=f"{name}: was not written here by this program.*{message}"):
            check_output(out, NAMES, overwrite=overwrite)
        with pytest.raises(InputError, match=f"{name}: was not written here by this program.*{message}"):
            write(out, 2, overwrite=overwrite)
    assert found(out) == whole(1) | {name: other}
    check_output(out, NAMES, overwrite=True)
    write(out, 2, overwrite=True)
    assert found(out) == whole(2)
    write(out, 3)
    assert found(out) == whole(3)


KILLED_AT = """
import os, sys
from pathlib import Path
from dff_jax.runtime import files, replacing
count = 0
def counted(function):
    def call(*args, **options):
        global count
        count += 1
        if count == int(sys.argv[2]):
            os.kill(os.getpid(), 9)
        return function(*args, **options)
    return call
whole, at_once = sys.argv[3] != "", sys.argv[3] == "at once"
if not at_once:  # a system without renameat2
    replacing.ctypes.CDLL = lambda name: None
with files.staged_output(sys.argv[1], last="summary", whole=whole) as staging:
    for name in ("summary", "a", "b"):
        (staging / name).write_text("2" + name)
    os.replace, os.rename, Path.unlink = map(counted, (os.replace, os.rename, Path.unlink))
    replacing.shutil.rmtree = counted(replacing.shutil.rmtree)
"""


@pytest.mark.parametrize("moment", range(1, 7))
def test_killed_between_renames_leaves_nothing_that_looks_whole(tmp_path, moment):
    out = tmp_path / "out"
    write(out, 1)
    killed(KILLED_AT, out, moment, "")
    left = found(out)
    if "summary" in left:
        assert left == whole(1)
    assert moment in (1, 2) or "summary" not in left
    check_output(out, NAMES)  # all of it is this program's, so it is replaced without asking
    assert [p.name for p in out.glob(".*")] == [replacing._LISTING]  # what was left is gone
    write(out, 3)
    assert found(out) == whole(3)


def test_leftovers_of_dead_processes_are_cleared_and_those_of_live_ones_are_not(tmp_path, dead):
    out = tmp_path / "out"
    out.mkdir()
    live = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = replacing._HOST
    gone = f".dff-jax-{dead}-12.partial", f".dff-jax-{dead}@{here}-12.partial", ".dff-jax-3@elsewhere-12.partial"
    kept = (
        f".dff-jax-{live.pid}-12.partial", f".dff-jax-{os.getpid()}@{here}-1.partial",
        f".dff-jax-{dead}@elsewhere-1.partial", ".dff-jax-mine-1.partial",
    )  # fmt: skip
    for name in (*gone, *kept):
        (out / name).mkdir()
        (out / name / "half").write_text("")
    os.utime(out / gone[-1], (0, 0))
    try:
        check_output(out)
        assert sorted(p.name for p in out.iterdir()) == sorted(kept)
    finally:
        live.communicate(b"\n")


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_is_replaced_whole(tmp_path, monkeypatch, at_once):
    if not at_once:  # a system without renameat2
        monkeypatch.setattr(replacing.ctypes, "CDLL", lambda name: None)
    out = tmp_path / "data"
    for value in (1, 2):
        write(out, value, NAMES if value == 1 else ("summary",), whole=True)
    assert found(out) == {"summary": "2summary"} and list(tmp_path.iterdir()) == [out]
    with pytest.raises(KeyboardInterrupt), staged_output(out, whole=True):
        raise KeyboardInterrupt
    assert found(out) == {"summary": "2summary"} and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(("how", "moment"), [("at once", 1), ("apart", 1), ("apart", 2), ("apart", 3)])
def test_killed_while_a_folder_is_replaced_the_old_or_the_new_is_there(tmp_path, how, moment):
    out = tmp_path / "data"
    write(out, 1, whole=True)
    killed(KILLED_AT, out, moment, how)
    if (how, moment) != ("apart", 2):
        assert found(out) in (whole(1), whole(2, ("summary", "a", "b")))
    recover(out)
    assert found(out) in (whole(1), whole(2, ("summary", "a", "b"))) and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("new", [True, False])
def test_what_was_moved_aside_is_put_back_unless_the_new_is_there(tmp_path, dead, new):
    out, aside = tmp_path / "1.0.0", tmp_path / f"replaced.{dead}.1.0.0"
    alive = tmp_path / f"replaced.{os.getpid()}.1.0.0"
    for folder, value in ((aside, "old"), (alive, "alive"), *([(out, "new")] if new else [])):
        folder.mkdir()
        (folder / "file").write_text(value)
    recover(out)
    assert found(out) == {"file": "new" if new else "old"} and not aside.exists() and alive.exists()


def test_results_do_not_go_among_what_is_measured(tmp_path):
    for output in (tmp_path, tmp_path / "val" / "out", tmp_path / "x" / ".." / "y"):
        with pytest.raises(InputError, match="is measured; write the results to another folder"):
            check_apart(output, tmp_path)
    check_apart(tmp_path.parent, tmp_path)
    check_apart(tmp_path / "out", None)


@pytest.mark.parametrize("text", ["[]", '{"last": 5}', '{"last": {"a.txt": 7}}', "[" * 100_000])
def test_a_damaged_list_says_nothing(tmp_path, text):
    (tmp_path / ".dff-jax-files.json").write_text(text)
    (tmp_path / "a.txt").write_text("somebody's")
    with pytest.raises(InputError, match="was not written here by this program"):
        check_output(tmp_path, ["a.txt"])
    with staged_output(tmp_path, last="last") as staging:
        (staging / "last").write_text("new")
    assert (tmp_path / "last").read_text() == "new" and (tmp_path / "a.txt").read_text() == "somebody's"


def test_a_strangers_list_removes_nothing_elsewhere(tmp_path):
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.write_text("known")
    (out / "link").symlink_to(tmp_path)
    known = [hashlib.sha256(b"known").hexdigest()]
    names = ("../victim", str(victim), "link/victim")
    (out / ".dff-jax-files.json").write_text(json.dumps({"last": {name: known for name in names}}))
    with staged_output(out, last="last") as staging:
        (staging / "last").write_text("new")
    assert victim.read_text() == "known"


def test_an_address_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for address in ("gs://bucket/run", Path("gs://bucket/run"), "s3://bucket"):
        with pytest.raises(InputError, match="an address; results need a folder of this machine"):
            check_output(address)
    assert not list(tmp_path.iterdir())
