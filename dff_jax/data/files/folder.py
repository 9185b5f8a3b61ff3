"""The frames that a folder, a glob or a list of files holds; and stacks with ground truth.

`stack` reads what is found here, `focus_settings` finds the focus settings, `frames` decodes.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax import focus_axis
from dff_jax.data.files.depth_maps import DEPTH_SUFFIXES, read_truth
from dff_jax.data.files.focus_settings import labelled_settings
from dff_jax.data.files.frames import read_frames
from dff_jax.data.files.images import IMAGE_SUFFIXES, OTHER_SUFFIXES, read_header, read_image
from dff_jax.data.files.reading import other_size, reading
from dff_jax.data.files.series import by_counter, misfits, natural_key, natural_order
from dff_jax.errors import InputError
from dff_jax.types import FocalStack

TRUTH_STEMS = ("disp", "depth")  # of a file that `depth_maps` reads, best first
_TRUTHS = [stem + suffix for stem in TRUTH_STEMS for suffix in DEPTH_SUFFIXES]

Source = str | Path | Sequence[str | Path]


def read_labelled_stack(folder: Path, unit: str, picture: bool = False) -> FocalStack:
    """Reads one stack with ground truth, laid out like FlyingThings3D's.

    Args:
      folder: holds `<focus>.png` ..., `disp.*` or `depth.*` as `depth_maps.read_truth` reads it, and perhaps
        `AiF.png`. A distance file or `*_0.35.jpg` names serve instead of `<focus>.png`.
      unit: of the focus settings and of the truth.
      picture: reads `AiF.png` too, if it is there.

    Returns:
      FocalStack, frames sorted so that q ascends, depth [H,W] float32 (0 where mask is False), mask [H,W].

    Raises:
      InputError: as `read_stack`; no focus settings; no truth, or of another size, nowhere valid; as `read_sharp`.
    """
    focus_axis.check_unit(unit)
    folder = Path(folder)
    files, truth = labelled_files(folder)
    values = labelled_settings(files, unit)
    order = focus_axis.sort_order(values, unit, [str(file) for file in files])
    frames, size = read_frames([files[i] for i in order])
    depth, mask = read_truth(truth, size)
    if unit == "metre" and depth.min() < 0:
        raise InputError(f"{truth}: holds negative distances in metres; is the unit right?")
    if not mask.any():
        raise InputError(f"{truth}: is 0 (no truth) everywhere")
    sharp = picture_file(folder) if picture else None
    all_in_focus = None if sharp is None else read_sharp(sharp, size)
    return FocalStack(frames, values[order], unit, depth, mask, folder.name, all_in_focus)


def picture_file(folder: Path) -> Path | None:
    """The all-in-focus picture of a stack folder, `AiF.png` or in another format, if it has one."""
    return next((path for path in folder_entries(folder) if _is_picture(path)), None)


def _is_picture(path: Path) -> bool:
    return path.stem.lower() == "aif" and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def read_sharp(path: Path, size: tuple[int, int]) -> np.ndarray:
    """An all-in-focus picture [H,W,3] uint8 or uint16; raises InputError if it is damaged, or not of `size` H, W."""
    image = read_image(path)
    if image.shape[:2] != size:
        raise other_size(path, image.shape[:2], size, "the frames are")
    return image


def labelled_files(folder: Path) -> tuple[list[Path], Path]:
    """The frames of a stack folder as `find` gives them, and its ground truth.

    Raises:
      InputError: as `find`; no ground truth, or fewer than two frames beside it.
    """
    truth = truth_file(folder)
    if truth is None:
        raise InputError(f"{folder}: no ground truth; looked for disp.* and depth.* ({', '.join(DEPTH_SUFFIXES)})")
    files = [path for path in find(folder).files if path.stem.lower() not in TRUTH_STEMS]
    if len(files) < 2:
        raise InputError(f"{folder}: only one image beside {truth}; a focal stack needs at least 2 frames")
    return files, truth


def truth_file(folder: Path) -> Path | None:
    """The ground truth of a stack folder, if it has one."""
    found = filter(_is_truth, folder_entries(folder))
    return min(found, key=lambda path: _TRUTHS.index(path.name.lower()), default=None)


def _is_truth(path: Path) -> bool:
    return path.name.lower() in _TRUTHS and path.is_file()


def list_stacks(root: Path) -> list[Path]:
    """The stack folders below `root`, or `root` itself: folders with a truth file or at least two frames.

    In natural order; folders inside a stack folder are not searched. Raises InputError if there is none.
    """
    found = [folder for folder, entries in walk(Path(root), _is_stack) if _is_stack(entries)]
    if not found:
        raise InputError(f"{root}: no focal stack here or below; a stack is a folder of at least 2 images")
    return found


def stacks_in(source: Source, output: str | Path) -> list[Path]:
    """The stack folders below a folder that is none itself; results of this program, and `output`, are none."""
    root, result = Path(str(source)), Path(output).resolve()
    if not isinstance(source, str | Path) or not os.path.isdir(root) or sum(map(is_frame, folder_entries(root))) >= 2:
        return []
    inside = (folder for folder, entries in walk(root, _is_stack) if sum(map(is_frame, entries)) >= 2)
    around = root.resolve().is_relative_to(result)  # such an output makes no stack below it a result
    return [
        folder for folder in inside
        if (around or not folder.resolve().is_relative_to(result)) and not (folder / "summary.json").exists()
    ]  # fmt: skip


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
            waiting += [p for p in reversed(entries) if os.path.isdir(p) and not p.name.startswith(".")]


def folder_entries(folder: Path) -> list[Path]:
    """What is in a folder, in natural order; InputError if it does not exist or cannot be read."""
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder")
    with reading(folder):
        os.stat(os.path.join(folder, "."))  # may be forbidden where a list of the names is not
        return sorted(folder.iterdir(), key=natural_key)


class Found(NamedTuple):
    """The frames that a source names."""

    files: list[Path]
    notes: tuple[str, ...]  # what was assumed, and what is left out
    unread: tuple[str, ...]  # a note on photographs that are not read, if there are any


def find(source: Source) -> Found:
    """The image files of a folder or glob in natural order, or of a list as it is; see `read_stack`.

    Raises:
      InputError: no such folder, no match, fewer than two frames, one frame in two formats, or a broken link.
    """
    listed = not isinstance(source, str | Path)
    label = f"{len(source)} files" if listed else str(source)
    found = _candidates(source)
    broken = next((path for path in found if os.path.islink(path) and not os.path.exists(path)), None)
    if broken is not None:
        raise InputError(f"{broken}: a link that leads nowhere")
    files = list(filter(is_frame, found))
    files = files if listed else natural_order(files)
    unread, notes = _not_read(found, files), ()
    if files:
        called, odd = misfits(files)
        if called and not listed:
            files = [path for path in files if path not in called]
            notes += (f"left out, as the name says that it is a result: {_shown(called)}",)
        odd += called if listed else []
        notes += (f"named unlike the other frames, but taken as frames: {_shown(odd)}",) if odd else ()
    if len(files) < 2:
        if files and read_header(files[0]).pages > 1:
            raise InputError(f"{files[0]}: has several pages; give it by itself: dff-jax predict {files[0]}")
        what = f"only one image ({files[0].name})" if files else "no images (jpg, png, tif, bmp, webp, ppm)"
        raise InputError("; ".join([f"{label}: {what}; a focal stack needs at least 2 frames", *unread]))
    stems: dict[Path, Path] = {}
    for file in files:
        twin = stems.setdefault(file.with_suffix(""), file)
        if twin is not file:
            raise InputError(f"{twin} and {file.name}: one frame twice? choose with a glob such as '*.jpg'")
    if not listed:
        files, leap = by_counter(files)
        folders = len({path.parent for path in files})
        notes += leap + (f"the frames come from {folders} folders and are taken as one stack",) * (folders > 1)
    return Found(files, notes, unread)


def _shown(files: Sequence[Path]) -> str:
    names = [path.name for path in files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _candidates(source: Source) -> list[Path]:
    """The files that `source` names, images or not."""
    if not isinstance(source, str | Path):
        found = [Path(item) for item in source]
        missing = next((path for path in found if not os.path.isfile(path)), None)
        if missing is not None:
            raise InputError(f"{missing}: no such file")
        return found
    path = Path(source)
    if os.path.isdir(path):
        return folder_entries(path)
    if glob.has_magic(str(source)):
        if "**" not in path.parts:
            return [Path(item) for item in glob.glob(str(source))]
        place = path.parts.index("**")  # pathlib does not follow links there, which may run in a circle
        below = Path(*path.parts[:place]).glob(str(Path(*path.parts[place:])))
        return [found for found in below if not any(part.startswith(".") for part in found.parts[place:])]
    if os.path.exists(path):
        raise InputError(f"{source}: a focal stack is a folder of images, a glob, or a TIFF of several pages")
    raise InputError(f"{source}: no such folder, and not a glob")


def _not_read(found: Sequence[Path], files: Sequence[Path]) -> tuple[str, ...]:
    """A note on photographs among `found` in a format that is not read, if there are any."""
    twins = {file.stem for file in files} | {"AiF"}
    others = (path for path in found if path.suffix.lower() in OTHER_SUFFIXES and path.name[0] != ".")
    names = natural_order([path for path in others if path.stem not in twins])
    return (f"not read: {_shown(names)}; export such photographs as JPEG, PNG or TIFF",) if names else ()


def is_frame(path: Path) -> bool:
    """Whether a file is a frame by its name."""
    visible = not path.name.startswith(".") and path.stem.lower() != "aif"
    return visible and path.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(path)


def _is_stack(entries: list[Path]) -> bool:
    return any(map(_is_truth, entries)) or sum(map(is_frame, entries)) >= 2
