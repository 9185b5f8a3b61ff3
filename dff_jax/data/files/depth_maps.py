"""Depth or disparity maps from files, one file to one map: EXR, PFM, npy, npz, and PNG of 8 or 16 bit.

Every header is checked against the length of the file before anything is decoded, so that a damaged one can ask for
no more memory than a real map would.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax.data.files.images import check_png, image_size
from dff_jax.data.files.reading import other_size, read_bytes, reading
from dff_jax.errors import InputError, one_line

SCALE_FILE = "scale.txt"
MAX_VALUES = 2**26  # of a map, or of all channels together; the largest published one is 5120 x 5120
LOOKED_AT = 64  # stacks, evenly spread, whose truth is compared with the focus settings before any work
_DEPTH_NAMES = ("Y", "Z", "R")  # of channels of an EXR, best first


class DepthMap(NamedTuple):
    """What `read_depth_map` found."""

    values: np.ndarray  # [H,W] float32; 0 where `finite` is False
    finite: np.ndarray  # [H,W] bool


def read_depth_map(path: str | Path, *, scale: float = 1.0) -> DepthMap:
    """A depth or disparity map from `.exr`, `.pfm`, `.npy`, `.npz` or `.png` (grey, 8 or 16 bit).

    Of several channels of an EXR, Y, Z or R is taken, in this order; those of a PFM or PNG must be equal. An npz must
    hold one array.

    Args:
      scale: value = stored value * scale, such as 1/4 for 8-bit maps of Middlebury.

    Returns:
      Values [H,W] float32, row 0 at the top; where the map is finite. 0 is a value like any other here.

    Raises:
      InputError: missing, truncated, damaged, another format, not one map of real numbers, or too large.
    """
    path = Path(path)
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"scale: must be a positive number, got {scale}")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise InputError(f"{path}: not a depth map by its name; known are {', '.join(DEPTH_SUFFIXES)}")
    with reading(path, f"{suffix[1:].upper()} file"):
        stored = _READERS[suffix](path)
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold counts as not finite
            values = np.array(stored, np.float32)
            if scale != 1:
                values *= np.float32(scale)
        finite = np.isfinite(values)
        values[~finite] = 0
        return DepthMap(values, finite)


def read_truth(path: Path, size: tuple[int, ...], *, scale: float | None = None, positive: bool = False) -> DepthMap:
    """The truth of images of H, W = `size`: a hole where it is 0 or not finite.

    Args:
      scale: as in `read_depth_map`; None: as `scale_of` finds it beside the map or above.
      positive: a hole also where it is below 0.

    Raises:
      InputError: as `read_depth_map` and `scale_of`; of another size, or finite nowhere.
    """
    values, finite = read_depth_map(path, scale=scale or scale_of(path, path.parent, path.parent.parent))
    if values.shape != size:
        raise other_size(path, values.shape, size, "the image is")
    if not finite.any():
        raise InputError(f"{path}: every value is NaN or infinite; write 0 where unknown")
    known = finite & (values > 0 if positive else values != 0)
    return DepthMap(np.where(known, values, np.float32(0)), known)


def scale_of(path: Path, *places: Path) -> float:
    """Stored value * scale = depth: from the `scale.txt` in the first of `places` that has one, else 1.

    Raises:
      InputError: a `scale.txt` without a positive number, or none for a PNG.
    """
    for place in places:
        if (place / SCALE_FILE).is_file():
            return positive_number(place / SCALE_FILE)
    if path.suffix.lower() == ".png":
        raise InputError(
            f"{path}: a PNG needs a scale (stored value x scale = depth); write it to {path.parent / SCALE_FILE}"
        )
    return 1.0


def positive_number(path: Path) -> float:
    """The positive number on the first line of a text file; may be a fraction such as 1/3."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(1000).split("\n")[0].strip()
        above, _, below = text.partition("/")
        value = float(above) / float(below or 1)
    except (OSError, ValueError, ZeroDivisionError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{path}: its first line must be a positive number, such as 0.25 or 1/4")
    return value


def map_size(path: Path) -> tuple[int, int]:
    """H, W of a depth map, from its header where it is compressed; raises InputError as `read_depth_map`."""
    suffix = path.suffix.lower()
    if suffix == ".exr":
        return exr_size(path)
    height, width = image_size(path) if suffix == ".png" else read_depth_map(path).values.shape
    return height, width


def outside_note(where: str, values: np.ndarray, focus: Sequence[float], unit: str) -> str:
    """A sentence if truth `values` [n] lies wholly outside the focus settings, or 1000 times off; else ""."""
    low, high, first, last = values.min(), values.max(), min(focus), max(focus)
    ratio = float(np.median(np.abs(values)) / max(np.median(np.abs(focus)), 1e-30))
    outside = high < first or low > last
    off = 300 < max(ratio, 1 / max(ratio, 1e-30)) < 3000
    if not (outside or off):
        return ""
    size, lies = "larger" if ratio > 1 else "smaller", "wholly outside" if outside else "far from"
    return (
        f"{where}: truth of {low:.4g} to {high:.4g} {unit} lies {lies} the focus settings of {first:.4g} "
        f"to {last:.4g} {unit}" + (f"; it is about 1000 times {size}: is one of them in another unit?" if off else "")
    )


_MOST_HEADER = 4096  # bytes
# Strict about blanks: a bit that turns a minus into one would turn the byte order round.
_PFM_HEAD = re.compile(
    rb"(P[Ff])[ \t]*\r?\n(?:#[^\n]{0,200}\n)*[ \t]*(\d{1,9})[ \t\r\n]{1,4}(\d{1,9})[ \t]*\r?\n"
    rb"[ \t]*(-?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][+-]?\d{1,3})?)[ \t]*\r?\n"
)


def _pfm(path: Path) -> np.ndarray:
    """Rows run from bottom to top. The sign of the third number is the byte order, its size means nothing."""
    data = read_bytes(path)
    head = _PFM_HEAD.match(data, 0, _MOST_HEADER)
    scale = float(head[4]) if head else 0.0
    if not head or scale == 0 or not math.isfinite(scale):
        raise InputError("not a PFM file, which begins with Pf, width and height, -1; copy it again")
    shape = (int(head[3]), int(head[2]), 3 if head[1] == b"PF" else 1)
    _check_size(shape, 4, len(data) - head.end())
    values = np.frombuffer(data, "<f4" if scale < 0 else ">f4", offset=head.end())
    return _grey(values.reshape(shape)[::-1])


def _npz(path: Path) -> np.ndarray:
    """One array of a zip file. Nothing is unpacked to disk, so the names inside cannot lead anywhere."""
    with zipfile.ZipFile(io.BytesIO(read_bytes(path))) as file:
        members = [info for info in file.infolist() if not info.is_dir()]
        if len(members) != 1:
            found = ", ".join(info.filename for info in members)[:200] or "nothing"
            raise InputError(f"holds {found} where a single array is expected; save the depth map alone")
        info = members[0]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others expand without limit
            raise InputError("packed in a way that numpy does not use; save it with numpy.savez_compressed")
        most = 8 * MAX_VALUES + 2**16
        if info.file_size > most:
            raise InputError(f"its array is {info.file_size} bytes long, more than any map; copy it again")
        with file.open(info) as member:
            return _decode_npy(member.read(most + 1))  # checks the checksum when it comes to the end


def _decode_npy(data: bytes) -> np.ndarray:
    """The map of a .npy file, whose length must be what its header says."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise InputError(f"version {version} of the .npy format is unknown; save the depth map as float32")
    if dtype.hasobject or dtype.kind not in "uif":
        raise InputError(f"holds {one_line(dtype)}, not real numbers; save the depth map as float32")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise InputError(f"has shape {one_line(shape)}; copy it again")
    _check_size(shape, dtype.itemsize, len(data) - stream.tell())
    values = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    while values.ndim > 2 and 1 in (values.shape[0], values.shape[-1]):  # [1,H,W], [H,W,1]
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2:
        raise InputError(f"has shape {values.shape}, where a depth map is height x width")
    return values


def _png(path: Path) -> np.ndarray:
    import imagecodecs

    data = read_bytes(path)
    width, height, bits, kind = check_png(io.BytesIO(data))
    if bits not in (8, 16) or kind == 3:
        what = "a palette" if kind == 3 else f"{bits} bit"
        raise InputError(f"has {what}, where a depth map is grey, of 8 or 16 bit")
    _check_size((height, width))
    values = imagecodecs.png_decode(data)
    return _grey(values if values.ndim == 2 else values[..., : 1 if values.shape[2] < 3 else 3])


def _grey(values: np.ndarray) -> np.ndarray:
    """[H,W], or [H,W,C] whose channels are equal, to [H,W]."""
    if values.ndim == 2:
        return values
    if not all(np.array_equal(plane, values[..., 0], equal_nan=True) for plane in np.moveaxis(values, -1, 0)):
        raise InputError("a colour image, not a depth map; save the depth as one channel")
    return values[..., 0]


def exr_size(path: Path) -> tuple[int, int]:
    """H, W of an EXR file from its header.

    Raises:
      InputError: missing, empty, not an EXR file, or with rows that its header cuts off.
    """
    import OpenEXR

    with reading(path, "EXR file"):
        read_bytes(path, 16)  # OpenEXR's own message for a missing or empty file names neither
        with OpenEXR.File(str(path), separate_channels=True, header_only=True) as file:
            header = file.header()
            low, high = header["dataWindow"]
            whole = [*header["displayWindow"][0], *header["displayWindow"][1]] == [*low, *high]
            channels = len(header["channels"])
        width, height = (int(high[i]) - int(low[i]) + 1 for i in (0, 1))
        _check_size((height, width, max(1, channels)))
        if not whole:
            raise InputError("its data do not cover the image (dataWindow, displayWindow); save it whole")
        return height, width


def _exr(path: Path) -> np.ndarray:
    import OpenEXR

    size = exr_size(path)
    with OpenEXR.File(str(path), separate_channels=True) as file:
        if not file.parts:  # OpenEXR prints why, and goes on
            raise ValueError("truncated or damaged pixels")
        channels = {name: item.pixels for name, item in file.channels().items()}
    channel = next((name for name in (*_DEPTH_NAMES, *channels) if name in channels), "")
    if channel not in _DEPTH_NAMES and len(channels) != 1:
        raise InputError(f"has channels {', '.join(channels)[:200]}; depth is expected in Y, Z, R or a single one")
    values = np.asarray(channels[channel])
    if values.dtype.kind != "f":
        raise InputError(f"channel {channel} holds {values.dtype}; save the depth map as float or half")
    if values.shape != size:
        raise InputError(f"channel {channel} has shape {values.shape} in an image of {size[0]} x {size[1]}")
    return values


def _check_size(shape: tuple[int, ...], itemsize: int = 0, length: int = 0) -> None:
    """Raises InputError for an empty or huge map, or one that does not need just `length` bytes."""
    if min(shape, default=0) < 1:
        raise InputError(f"has shape {shape}, so nothing is in it; copy it again")
    if math.prod(shape) > MAX_VALUES:
        size = " x ".join(map(str, shape))[:80]
        raise InputError(f"{size} values, more than {MAX_VALUES // 10**6} million; copy it again")
    needed = itemsize * math.prod(shape)
    if length != needed:
        state = "truncated" if length < needed else "damaged"
        raise InputError(f"{state}, {length} bytes of values where its header means {needed}; copy it again")


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".exr": _exr, ".pfm": _pfm, ".npy": lambda path: _decode_npy(read_bytes(path)), ".npz": _npz, ".png": _png,
}  # fmt: skip
DEPTH_SUFFIXES = tuple(_READERS)
