"""A user's own photographs: folders, globs and lists of files to focal stacks, with or without ground truth.

This module finds the frames; `focus_settings` finds their focus settings and `images` decodes them.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax import focus_axis
from dff_jax.data.files.depth_maps import DEPTH_SUFFIXES, read_truth
from dff_jax.data.files.focus_settings import focus_settings, labelled_settings
from dff_jax.data.files.frame_store import Allocate, release_pages
from dff_jax.data.files.images import IMAGE_SUFFIXES, OTHER_SUFFIXES, downscale, read_image
from dff_jax.data.files.reading import other_size, reading
from dff_jax.errors import InputError
from dff_jax.types import FocalStack

TRUTH_STEMS = ("disp", "depth")  # of a file that `depth_maps` reads, best first
MIN_SIDE = 16

Source = str | Path | Sequence[str | Path]


class ReadNotes(NamedTuple):
    """How a stack was read."""

    files: tuple[Path, ...]  # [Z], in the order of the frames
    notes: tuple[str, ...]  # assumptions, one sentence each
    full_size: tuple[int, int]  # H, W of the photographs, before `max_size`


def read_stack(
    source: Source,
    *,
    focus: Sequence[float] | None = None,
    unit: str | None = None,
    reverse: bool = False,
    max_size: int | None = None,
    allocate: Allocate = np.empty,
) -> tuple[FocalStack, ReadNotes]:
    """Reads a folder of photographs, a glob, or a list of files, as one focal stack.

    Args:
      source: a folder (subfolders, hidden files, `AiF.*` and files that are no images are passed over), a glob such as
        `"scan/*.jpg"`, or the files.
      focus: focus settings, one a frame, in natural order of the file names (a2 before a10).
      unit: unit of the focus settings; None: as `focus_settings` says, by where they come from.
      reverse: counts the frame index from the other end; refused when the focus settings have values.
      max_size: longest side in pixels to scale the frames down to.
      allocate: makes the array that the frames are decoded into one by one; see `frame_store`.

    Returns:
      The stack, frames [Z,H,W,3] uint8 or uint16 sorted so that q ascends, no truth; and how it was read.

    Raises:
      InputError: fewer than two frames, a damaged file, frames of several sizes, focus settings that are
        repeated, not numbers or of another count, `reverse` with values.
    """
    if max_size is not None and max_size < MIN_SIDE:
        raise InputError(f"max_size: must be at least {MIN_SIDE} pixels, got {max_size}")
    found, ignored = _find(source)
    try:
        values, unit, notes = focus_settings(found, focus, unit, reverse=reverse)
    except InputError as error:
        if not ignored:
            raise
        raise InputError(f"{error}; {ignored}") from None
    if ignored:
        notes += (ignored,)
    order = focus_axis.sort_order(values, unit, [str(file) for file in found])
    files = tuple(found[i] for i in order)
    frames, full_size = read_frames(files, max_size, allocate)
    if frames.shape[1:3] != full_size:
        height, width = frames.shape[1:3]
        notes += (f"frames scaled from {full_size[1]} x {full_size[0]} to {width} x {height} (max_size)",)
    stack = FocalStack(frames, values[order], unit, name=files[0].resolve().parent.name)
    return stack, ReadNotes(files, notes, full_size)


def read_labelled_stack(folder: Path, unit: str) -> FocalStack:
    """Reads one stack with ground truth, laid out like FlyingThings3D's.

    Args:
      folder: holds `<focus>.png` ..., `disp.*` or `depth.*` as `depth_maps.read_truth` reads it, and perhaps
        `AiF.png`. A distance file or `*_0.35.jpg` names serve instead of `<focus>.png`.
      unit: of the focus settings and of the truth.

    Returns:
      FocalStack, frames sorted so that q ascends, depth [H,W] float32 (0 where mask is False), mask [H,W].

    Raises:
      InputError: as `read_stack`; no focus settings; no truth, or of another size, nowhere valid.
    """
    focus_axis.check_unit(unit)
    folder = Path(folder)
    files, truth = labelled_files(folder)
    if truth is None:
        raise InputError(f"{folder}: no ground truth; looked for disp.* and depth.* ({', '.join(DEPTH_SUFFIXES)})")
    values = labelled_settings(files)
    order = focus_axis.sort_order(values, unit, [str(file) for file in files])
    frames, size = read_frames([files[i] for i in order])
    depth, mask = read_truth(truth, size)
    if unit == "metre" and depth.min() < 0:
        raise InputError(f"{truth}: holds negative distances in metres; is the unit right?")
    if not mask.any():
        raise InputError(f"{truth}: is 0 (no truth) everywhere")
    return FocalStack(frames, values[order], unit, depth, mask, name=folder.name)


def labelled_files(folder: Path) -> tuple[list[Path], Path | None]:
    """The frames of a stack folder as `find_frames` gives them, and its ground truth if it has one.

    Raises:
      InputError: as `find_frames`; fewer than two frames beside the truth.
    """
    truth = truth_file(folder)
    files = [path for path in find_frames(folder) if truth is None or path.stem.lower() not in TRUTH_STEMS]
    if len(files) < 2:
        raise InputError(f"{folder}: only one image beside {truth}; a focal stack needs at least 2 frames")
    return files, truth


def truth_file(folder: Path) -> Path | None:
    """The ground truth of a stack folder, if it has one."""
    return min(filter(_is_truth, folder_entries(folder)), key=_truth_rank, default=None)


def _is_truth(path: Path) -> bool:
    return path.stem.lower() in TRUTH_STEMS and path.suffix.lower() in DEPTH_SUFFIXES and path.is_file()


def _truth_rank(path: Path) -> tuple[int, int]:
    return TRUTH_STEMS.index(path.stem.lower()), DEPTH_SUFFIXES.index(path.suffix.lower())


def list_stacks(root: Path) -> list[Path]:
    """The stack folders below `root`, or `root` itself: folders with a truth file or at least two frames.

    In natural order; folders inside a stack folder are not searched. Raises InputError if there is none.
    """
    found = [folder for folder, entries in walk(Path(root), _is_stack) if _is_stack(entries)]
    if not found:
        raise InputError(f"{root}: no focal stack here or below; a stack is a folder of at least 2 images")
    return found


def walk(root: Path, ends: Callable[[list[Path]], bool] = lambda entries: False) -> Iterator[tuple[Path, list[Path]]]:
    """`root` and the folders below it with their entries, in natural order, each once whatever links lead to it.

    Hidden folders are left out, and so is all below a folder whose entries `ends` is true of.

    Raises:
      InputError: a folder that does not exist or cannot be read.
    """
    seen: set[Path] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        if folder.resolve() in seen:  # links may run in a circle
            continue
        seen.add(folder.resolve())
        entries = folder_entries(folder)
        yield folder, entries
        if not ends(entries):
            waiting += [p for p in reversed(entries) if p.is_dir() and not p.name.startswith(".")]


def folder_entries(folder: Path) -> list[Path]:
    """What is in a folder, in natural order; InputError if it does not exist or cannot be read."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    with reading(folder):
        return sorted(folder.iterdir(), key=natural_key)


def natural_key(path: str | Path) -> tuple:
    """Sorts names with numbers by the numbers: a2 before a10."""
    parts = re.split(r"(\d+)", str(path).lower())
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts), str(path)


def find_frames(source: Source) -> list[Path]:
    """The image files of a folder, a glob or a list, in natural order; see `read_stack`.

    Raises:
      InputError: no such folder, no match, fewer than two frames, one frame in two formats, or a broken link.
    """
    return _find(source)[0]


def _find(source: Source) -> tuple[list[Path], str]:
    """`find_frames`, and a note on photographs that are not read."""
    label = str(source) if isinstance(source, str | Path) else f"{len(source)} files"
    found = _candidates(source)
    broken = next((path for path in found if path.is_symlink() and not path.exists()), None)
    if broken is not None:
        raise InputError(f"{broken}: a link that leads nowhere")
    files = sorted(filter(_is_frame, found), key=natural_key)
    ignored = _not_read(found, files)
    if len(files) < 2:
        what = f"only one image ({files[0].name})" if files else "no images (jpg, png, tif, bmp)"
        raise InputError(f"{label}: {what}; a focal stack needs at least 2 frames{ignored and '; '}{ignored}")
    stems: dict[Path, Path] = {}
    for file in files:
        twin = stems.setdefault(file.with_suffix(""), file)
        if twin is not file:
            raise InputError(f"{twin} and {file.name}: one frame twice? choose with a glob such as '*.jpg'")
    return files, ignored


def _candidates(source: Source) -> list[Path]:
    """The files that `source` names, images or not."""
    if not isinstance(source, str | Path):
        found = [Path(item) for item in source]
        missing = next((path for path in found if not path.is_file()), None)
        if missing is not None:
            raise InputError(f"{missing}: no such file")
        return found
    if Path(source).is_dir():
        return folder_entries(Path(source))
    if glob.has_magic(str(source)):
        return [Path(item) for item in glob.glob(str(source), recursive=True)]
    if Path(source).exists():
        raise InputError(f"{source}: a focal stack is a folder of images or a glob, not one file")
    raise InputError(f"{source}: no such folder, and not a glob")


def _not_read(found: Sequence[Path], files: Sequence[Path]) -> str:
    """A note on photographs among `found` in a format that is not read; "" if there are none."""
    twins = {file.stem for file in files} | {"AiF"}
    others = (path for path in found if path.suffix.lower() in OTHER_SUFFIXES and path.name[0] != ".")
    names = sorted((path.name for path in others if path.stem not in twins), key=natural_key)
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"not read: {shown}; export such photographs as JPEG, PNG or TIFF"


def _is_frame(path: Path) -> bool:
    visible = not path.name.startswith(".") and path.stem.lower() != "aif"
    return visible and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _is_stack(entries: list[Path]) -> bool:
    return any(map(_is_truth, entries)) or sum(map(_is_frame, entries)) >= 2


def read_frames(
    files: Sequence[Path], max_size: int | None = None, allocate: Allocate = np.empty
) -> tuple[np.ndarray, tuple[int, int]]:
    """Frames [Z,H,W,3] and their H, W before scaling."""
    first = read_image(files[0])
    size = first.shape[:2]
    image = downscale(first, max_size)
    if min(image.shape[:2]) < MIN_SIDE:
        raise InputError(f"{files[0]}: {size[1]} x {size[0]} pixels; each side needs {MIN_SIDE}")
    frames = allocate((len(files), *image.shape), image.dtype)
    for z, file in enumerate(files):
        if z:
            image = read_image(file)
            if image.shape[:2] != size:
                raise other_size(file, image.shape, size, f"{files[0].name} is")
            image = downscale(image, max_size)
        if image.dtype == np.uint16 and frames.dtype == np.uint8:  # 8 and 16 bit in one stack
            narrow, frames = frames, allocate(frames.shape, np.uint16)
            for k in range(z):
                frames[k] = _widen(narrow[k])
                release_pages(frames)
        frames[z] = image if image.dtype == frames.dtype else _widen(image)
        release_pages(frames)
    return frames, size


def _widen(image: np.ndarray) -> np.ndarray:
    """uint8 to uint16 over its whole range."""
    return image.astype(np.uint16) * 257
