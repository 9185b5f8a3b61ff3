"""An output folder: it is checked before the work, and written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from dff_jax.errors import InputError
from dff_jax.runtime.replacing import check_own, exchange, hidden, move_files


def check_output(
    folder: str | Path, names: Iterable[str] = (), needed: int = 0, *, overwrite: bool | None = None
) -> None:
    """Checks that `folder` can be made and written to, by writing a file there and removing it.

    What killed runs left there is removed.

    Args:
      folder: need not exist.
      names: files that will be written into it.
      needed: bytes that must be free.
      overwrite: whether `names` may replace files that `staged_output` did not write; None: no, and no option says so.

    Raises:
      InputError: it is an address such as gs://bucket/run, a file, read-only (also by its mode, which root could
        overrule), full, cannot be made, or holds another's file under one of the `names`.
    """
    if not str(folder):
        raise InputError("output: an empty name; give a folder")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):  # as text, or as a Path, which has made one slash of two
        raise InputError(f"{folder}: an address; results need a folder of this machine (a bucket can be mounted)")
    try:
        base = nearest_existing(Path(folder).resolve())
        if not base.is_dir():
            raise InputError(f"{folder}: {base} is a file; choose another output folder")
        for name in names:
            if (Path(folder) / name).is_dir():
                raise InputError(f"{Path(folder) / name}: is a folder where a file is to be written")
        check_own(Path(folder), names, overwrite)
        if base.stat().st_mode & 0o222 == 0:
            raise InputError(f"{folder}: {base} is read-only; choose another output folder")
        trial = hidden(base)
        trial.mkdir()
        try:
            with open(trial / "trial", "wb") as file:
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())
        finally:
            shutil.rmtree(trial, ignore_errors=True)
        disk = shutil.disk_usage(base)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({_reason(error)}); choose another output") from None
    if disk.total and disk.free < needed:
        raise InputError(
            f"{folder}: {disk.free / 1e6:.0f} MB free where about {needed / 1e6:.0f} MB are needed; make "
            "room, or choose another output folder"
        )


def check_apart(output: str | Path, source: str | Path | None) -> None:
    """Raises InputError for results that would lie among the stacks that are measured, and be taken for some."""
    if source is not None and Path(output).resolve().is_relative_to(Path(source).resolve()):
        raise InputError(f"{output}: lies in {source}, which is measured; write the results to another folder")


def scratch_file(folder: str | Path, size: int) -> BinaryIO:
    """An open file without a name, of `size` bytes, on the disk of `folder`, which need not exist.

    It disappears when it is closed, or when the process ends in any way.

    Raises:
      InputError: as `check_output`; too little room.
    """
    check_output(folder, needed=size)
    try:
        file = tempfile.TemporaryFile(prefix=".dff-jax-", dir=nearest_existing(Path(folder).resolve()))
        # All of it now: if the disk is full when a page of a memory map is written, the process ends.
        reserve = getattr(os, "posix_fallocate", None)
        reserve(file.fileno(), 0, size) if reserve else file.truncate(size)
    except OSError as error:
        raise InputError(f"{folder}: no room for {size / 1e6:.0f} MB of scratch ({_reason(error)})") from None
    return file


@contextlib.contextmanager
def staged_output(
    folder: str | Path, last: str = "", *, overwrite: bool | None = None, whole: bool = False
) -> Iterator[Path]:
    """A hidden folder to write into. At the end its files are moved to `folder`, all of them or none.

    An earlier result with the same `last` file is removed first, and other files in an existing `folder` stay. If the
    block raises or is interrupted, nothing has changed.

    Args:
      folder: made if it does not exist, with its parents.
      last: the file that is removed first and moved last: where it is, the others are complete and go with it.
      overwrite: as in `check_output`.
      whole: `folder` itself is replaced, with all that is in it; killed at any moment, the old or the new one is there.

    Raises:
      InputError: for any OSError inside, such as a disk that fills up; another's file would be overwritten.
    """
    folder = Path(folder).resolve()
    made = [path for path in (folder.parent, *folder.parent.parents) if not path.exists()]
    staging = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Inside an existing folder, which may be a file system of its own; otherwise beside the new folder.
        staging = hidden(folder if folder.is_dir() and not whole else folder.parent)
        staging.mkdir()
        yield staging
        if whole and folder.exists():
            exchange(staging, folder)
        elif whole:
            os.rename(staging, folder)
        else:
            move_files(staging, folder, last, overwrite)
        made = []
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({_reason(error)}); nothing was kept") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def writing(folder: Path, then: str) -> Iterator[None]:
    """Turns an OSError of the block, such as that of a full disk, into InputError, whose message ends with `then`."""
    try:
        yield
    except BrokenPipeError:  # nobody reads what is printed
        raise
    except OSError as error:
        raise InputError(f"{error.filename or folder}: cannot be written ({_reason(error)}); {then}") from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process, by a lock on a file in it, which the system drops however the process ends.

    Raises:
      InputError: another process holds it; says which.
    """
    path = folder / ".dff-jax.lock"
    with open(path, "ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).decode(errors="replace") or "another process"
            raise InputError(f"{folder}: in use by {holder}; stop that, or choose another output folder") from None
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}".encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is on the disk as a whole, or as it was before; raises OSError that names `path`."""
    trial = hidden(path.parent)
    try:
        with trial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(trial, path)
    except OSError as error:
        error.filename = path
        raise
    finally:
        trial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 whatever the locale; what is no text in the name of a file is escaped, as JSON would have it."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def nearest_existing(path: Path) -> Path:
    """`path`, or the nearest of its parents that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def finite(value: Any) -> Any:
    """The same with null for every NaN and infinity, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def machine() -> dict[str, Any]:
    """The device and the versions, for a report."""
    import jax

    from dff_jax import __version__

    versions = {"python": platform.python_version(), "dff-jax": __version__}
    versions |= {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    return {"device": jax.devices()[0].device_kind, "versions": versions}
