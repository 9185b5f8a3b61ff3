"""What a result replaces: whose a file is, an exchange that a kill does not cut in two, and what killed runs leave.

A hidden list in an output folder has the digests of the files that were written there. By it an earlier result, which a
new one replaces, is told from a file of somebody else, which is never overwritten unasked.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from dff_jax.errors import InputError

_LISTING = ".dff-jax-files.json"  # {result: {name of a file: its digests, newest first}}; a result is its `last` file
_HOST = re.sub(r"\W", "", platform.node())
_OLD = 7 * 24 * 3600  # seconds without a change after which even a process of another machine is taken to have ended


def is_own(folder: Path, name: str) -> bool:
    """Whether the file `name` is there, and as `staged_output` wrote it into `folder`."""
    lists = [files[name] for files in _listing(folder).values() if name in files]
    return bool(lists) and (folder / name).is_file() and digest(folder / name) in itertools.chain(*lists)


def check_own(folder: Path, names: Iterable[str], overwrite: bool | None) -> None:
    """Raises InputError for a file under one of the `names` in `folder` that `staged_output` did not write."""
    for name in () if overwrite else names:
        if (folder / name).is_file() and not is_own(folder, name):
            option = "" if overwrite is None else ", or give --overwrite"
            raise InputError(
                f"{folder / name}: was not written here by this program, or was changed since; move it away, choose "
                f"another output{option}"
            )


def _listing(folder: Path) -> dict[str, dict[str, list[str]]]:
    """What the list says of files in `folder`; it may be a stranger's, who could mean a file elsewhere."""
    try:
        listing = json.loads((folder / _LISTING).read_text())
        return {
            last: {
                name: list(digests)
                for name, digests in files.items()
                if (folder / name).parent.resolve().is_relative_to(folder.resolve())
            }
            for last, files in listing.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def digest(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def move_files(staging: Path, folder: Path, last: str, overwrite: bool | None) -> None:
    """Moves all files to `folder` and lists them there; what is left of the earlier result is removed first."""
    names = [path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()]
    check_own(folder, names, overwrite)
    listing = _listing(folder)
    before = listing.get(last, {})
    stale = [name for name in before.keys() - names if last and is_own(folder, name)]
    # Until all is moved, a kill leaves files of both results, which are both this program's.
    listing[last] = before | {name: [digest(staging / name), *before.get(name, [])[:2]] for name in names}
    (staging / _LISTING).write_text(json.dumps(listing))
    if not folder.exists():
        return os.rename(staging, folder)
    os.replace(staging / _LISTING, folder / _LISTING)
    for name in (last, *stale) if last else ():
        (folder / name).unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: name == last):
        (folder / name).parent.mkdir(exist_ok=True)
        os.replace(staging / name, folder / name)


def exchange(new: Path, old: Path) -> None:
    """Puts `new` in the place of `old`: at once where the system can, else `recover` mends what a kill leaves."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    if swap and swap(-100, os.fsencode(new), -100, os.fsencode(old), 2) == 0:  # AT_FDCWD, RENAME_EXCHANGE
        return
    aside = old.with_name(f"replaced.{_mark()}.{old.name}")
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside)


def recover(path: Path) -> None:
    """Puts a folder back that a killed run had moved aside to replace it, and removes what such runs left beside it."""
    if not path.parent.is_dir():
        return
    for aside in path.parent.glob(f"replaced.*.{path.name}"):
        if _abandoned(aside, aside.name.split(".")[1]):
            shutil.rmtree(aside) if path.exists() else aside.rename(path)
    hidden(path.parent)


def hidden(parent: Path) -> Path:
    """A name in `parent` for what is not finished; what ended processes left under such names is removed."""
    for left in parent.glob(".dff-jax-*.partial"):
        with contextlib.suppress(OSError):
            if _abandoned(left, left.name.split("-")[2]):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return parent / f".dff-jax-{_mark()}-{secrets.token_hex(4)}.partial"


def _mark() -> str:
    return f"{os.getpid()}@{_HOST}"


def _abandoned(path: Path, owner: str) -> bool:
    """Whether the process with the mark `owner` has ended, as far as this machine knows."""
    process, _, host = owner.partition("@")
    if host not in ("", _HOST):
        return time.time() - path.stat().st_mtime > _OLD
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):  # another user's, or no mark at all
        pass
    return False
