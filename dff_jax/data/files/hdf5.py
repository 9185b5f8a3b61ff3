"""HDF5 files, opened and checked: arrays of numbers that the file itself holds, and nothing else.

Needs h5py, of the extra `datasets`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dff_jax.data.files.reading import read_bytes, reading
from dff_jax.errors import InputError, one_line

if TYPE_CHECKING:
    import h5py

MAX_CHUNK_BYTES = 2**28  # a whole chunk is in memory when any of its values is read
_MOST_PACKED = 1100  # deflate shrinks no more than 1032 times


@contextmanager
def open_h5(path: str | Path) -> Iterator[h5py.File]:
    """The file, for reading, as a context. Arrays taken from it are checked by `need`.

    Raises:
      InputError: missing, empty, not HDF5, truncated or damaged; or h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: HDF5 needs h5py; pip install 'dff-jax[datasets]'") from None
    with reading(path, "HDF5 file"):
        read_bytes(path, 8)  # a missing or empty file gets its own message
        # No lock: the file is only read, and may lie where nothing can be locked.
        file = h5py.File(path, "r", locking=False)
    with file:
        yield file


def need(file: h5py.File, key: str, shape: tuple[int | None, ...] | None = None, kinds: str = "uif") -> h5py.Dataset:
    """The array `key` of `file`, not read yet.

    Args:
      shape: expected, None where any size will do; None: any shape at all.
      kinds: kinds of numpy types that will do.

    Raises:
      InputError: no such array, another shape or type, one that lies outside the file (by a link, external storage or
        a virtual layout), or that was never written whole. Names the file and the key.
    """
    found = stored_array(file, key)
    with reading(f"{file.filename}: {key}", "array"):
        dtype, got = found.dtype, found.shape
        if dtype.hasobject or dtype.kind not in kinds or dtype.subdtype is not None:
            raise InputError(f"holds {one_line(dtype)} where numbers are expected; is it another dataset's file?")
        if got is None:
            raise InputError("holds nothing; copy the file again")
        if shape is not None and not fits(got, shape):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise InputError(f"has shape {got} where ({wanted}) is expected; is it another dataset's file?")
        _check_storage(found)
        return found


def stored_array(file: h5py.File, key: str) -> h5py.Dataset:
    """The array `key` (perhaps "group/array") of any type; links of any kind are not followed.

    Raises:
      InputError: nothing there, a link, not an array, one that lies in other files, or damaged.
    """
    import h5py

    with reading(f"{file.filename}: {key}", "array"):
        here: h5py.Group | h5py.Dataset | h5py.Datatype = file
        for name in key.split("/"):
            link = None
            if isinstance(here, h5py.Group) and name in here.keys():  # `in` the group itself would follow links
                link = here.get(name, getlink=True)
            if link is None:
                known = ", ".join(map(str, file.keys()))[:200] or "nothing"
                raise InputError(f"no {key} in it, only {known}; is it another dataset's file?")
            if not isinstance(link, h5py.HardLink):
                raise InputError("a link, and links are not followed; copy the array itself")
            assert isinstance(here, h5py.Group)
            here = here[name]
        if not isinstance(here, h5py.Dataset):
            raise InputError("not an array; is it another dataset's file?")
        if here.external or here.is_virtual:
            raise InputError("lies in other files, which are not followed; copy it into this one")
        return here


def fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether a shape is as wanted; None fits any size."""
    return len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True))


def _check_storage(found: h5py.Dataset) -> None:
    """Raises InputError unless as much is stored as the header promises.

    Without this check a damaged header could ask for any amount of memory, and most files have no checksum that would
    find it out. A smaller store also means that the array was never written whole.
    """
    import h5py

    if not found.id.get_type().equal(h5py.h5t.py_create(found.dtype)):
        raise InputError("has numbers of no common type; copy the file again")
    size = math.prod(found.shape) * found.dtype.itemsize
    stored = found.id.get_storage_size()
    if found.chunks is None:
        whole = stored == size
    else:
        chunk = math.prod(found.chunks) * found.dtype.itemsize
        if chunk > MAX_CHUNK_BYTES:
            raise InputError(f"has chunks beyond {MAX_CHUNK_BYTES // 2**20} MiB; write it with smaller ones")
        count = math.prod(-(-length // step) for length, step in zip(found.shape, found.chunks, strict=True))
        packed = found.id.get_create_plist().get_nfilters() > 0
        whole = found.id.get_num_chunks() == count and (packed or stored == count * chunk)
        whole = whole and stored * _MOST_PACKED >= size
    if not whole:
        raise InputError(f"damaged or not written whole: {stored} bytes for {size} of values")
