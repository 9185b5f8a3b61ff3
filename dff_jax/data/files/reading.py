"""Files of the user: bytes in, and one clear error for whatever a decoder raises."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from dff_jax.errors import InputError, one_line

MAX_PIXELS = 2**28  # the largest cameras have 150 to 250 million; more is taken for a decompression bomb
MAX_BYTES = 8 * MAX_PIXELS  # of a file: four samples of 16 bit a pixel


@contextmanager
def reading(path: str | Path, what: str = "image") -> Iterator[None]:
    """Turns any exception of the block into one InputError of a line that begins with `path`.

    An InputError raised inside need not name the file. Decoders raise many kinds of exceptions; all mean that the file
    is damaged, unless the system could not read it or memory ran out.

    Args:
      path: the file, perhaps with a key in it.
      what: what the file should be.
    """
    try:
        yield
    except InputError as error:
        if str(error).startswith(str(path)):
            raise
        raise InputError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: missing; copy it again") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{path}: not a JPEG, PNG, TIFF or other image that is read; convert it to one") from None
    except MemoryError:
        raise InputError(f"{path}: needs more memory than there is; scale it down, or copy it again") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno and error.strerror:
            raise InputError(f"{path}: cannot be read ({one_line(error.strerror)})") from None
        raise InputError(f"{path}: truncated or corrupt {what} ({one_line(error)}); copy it again") from None


def read_bytes(path: str | Path, length: int = -1) -> bytes:
    """The first `length` bytes of a file, all of them by default.

    Raises:
      InputError: missing, not a plain file, empty, or too large to be an image or a map.
    """
    with reading(path):
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            raise InputError("not a plain file; remove it")
        if length < 0 and status.st_size > MAX_BYTES:
            raise InputError(f"{status.st_size / 2**30:.1f} GiB, too large; remove it or scale it down")
        with open(path, "rb") as file:
            data = file.read(length)
        if not data:
            raise InputError("the file is empty; copy it again or remove it")
        return data


def check_pixels(height: int, width: int) -> None:
    """Raises InputError for a picture too large to be true."""
    if height * width > MAX_PIXELS:
        raise InputError(f"more than {MAX_PIXELS // 10**6} megapixels; scale it down first")


def other_size(path: str | Path, size: tuple[int, ...], expected: tuple[int, ...], others: str) -> InputError:
    """The error for an image or map of `size` (H, W, ...) where others have the `expected` one.

    Args:
      others: the others and the verb, such as "the frames are".
    """
    found, wanted = f"{size[1]} x {size[0]}", f"{expected[1]} x {expected[0]}"
    return InputError(f"{path}: {found} where {others} {wanted} (width x height); copy it again")


@contextmanager
def collecting(problems: list[str]) -> Iterator[None]:
    """Adds the message of an InputError in the block to `problems`, and goes on behind the block."""
    try:
        yield
    except InputError as error:
        problems.append(str(error))
