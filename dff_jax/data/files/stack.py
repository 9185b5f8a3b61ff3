"""A user's photographs, or the pages of one file, to a focal stack; and every assumption on the way, in words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax import focus_axis
from dff_jax.data.files import odd_frames
from dff_jax.data.files.focus_settings import focus_settings
from dff_jax.data.files.folder import Source, find, is_frame
from dff_jax.data.files.frame_store import Allocate, release_pages
from dff_jax.data.files.frames import MIN_SIDE, Frame, decode, fill, of_files, stretch
from dff_jax.data.files.images import decoding_bytes, read_header, read_pages, read_picture
from dff_jax.data.files.series import natural_order
from dff_jax.errors import InputError
from dff_jax.types import FocalStack


class ReadNotes(NamedTuple):
    """How a stack was read."""

    files: tuple[Path, ...]  # the files it came from
    names: tuple[str, ...]  # [Z], of the frames
    notes: tuple[str, ...]  # assumptions, one sentence each
    full_size: tuple[int, int]  # H, W of the photographs, before `max_size`
    everywhere: np.ndarray | None  # [H,W] bool: no frame is transparent there; None: none is anywhere
    nowhere: np.ndarray | None  # [H,W] bool: all frames are
    profile: bytes  # ICC profile of the middle frame


def read_stack(
    source: Source,
    *,
    focus: Sequence[float] | None = None,
    unit: str | None = None,
    reverse: bool = False,
    max_size: int | None = None,
    allocate: Allocate = np.empty,
    memory: float = np.inf,
) -> tuple[FocalStack, ReadNotes]:
    """Reads a folder of photographs, a glob, a list of files, or one multi-page TIFF, as one focal stack.

    Args:
      source: a folder (subfolders, hidden files, and files that are no images or called a result are passed over), a
        glob such as `"scan/*.jpg"`, the files, or a TIFF file whose pages are the frames.
      focus: focus settings, one a frame: in the order of a list of files, in natural order of the names otherwise (a2
        before a10), in the order of the pages.
      unit: unit of the focus settings; None: as `focus_settings` says, by where they come from.
      reverse: the other end is the near one; refused when the unit of the focus settings says which it is.
      max_size: longest side in pixels to scale the frames down to.
      allocate: makes the array that the frames are decoded into one by one; see `frame_store`.
      memory: bytes that decoding one frame may take.

    Returns:
      The stack, frames [Z,H,W,3] uint8 or uint16 sorted so that q ascends, no truth; and how it was read. Where a frame
      is transparent it has the colour of the next frame in focus that is not, which makes no edge.

    Raises:
      InputError: fewer than two frames, a damaged file, frames of several sizes, focus settings that are
        repeated, not numbers or of another count, `reverse` with values that say the order.
    """
    if max_size is not None and max_size < MIN_SIDE:
        raise InputError(f"max_size: must be at least {MIN_SIDE} pixels, got {max_size}")
    path = Path(source) if isinstance(source, str | Path) else Path(next(iter(source), ""))
    if (isinstance(source, str | Path) or len(source) == 1) and is_frame(path):
        files, name, pages, header = [path], path.stem, read_pages(path), read_header(path)
        if pages.count < 2:
            raise InputError(f"{path}: one image; a focal stack is a folder, a glob, or a TIFF of several pages")
        settings = focus_settings(files, focus, unit, reverse=reverse, pages=pages)
        read = partial(read_picture, path, orientation=header.orientation)  # of the first page, for all
        frames = [
            Frame(f"page {i + 1}", header.size, partial(read, page=i), header, f"{path}, page {i + 1}")
            for i in range(pages.count)
        ]
    else:
        found = find(source)
        files, name = found.files, found.files[0].resolve().parent.name
        try:
            settings = focus_settings(files, focus, unit, reverse=reverse)
        except InputError as error:
            raise InputError("; ".join([str(error), *found.unread])) from None
        frames, said = of_files(files)
        if (
            (focus is not None or settings.unit == "index")
            and not isinstance(source, str | Path)
            and files != natural_order(files)
        ):
            said += ("the files are taken in the order listed, which is not that of their names",)
        settings = settings._replace(notes=settings.notes + found.notes + found.unread + said)
    largest = max(frames, key=lambda frame: decoding_bytes(frame.header, max_size))
    if (needed := decoding_bytes(largest.header, max_size)) > memory:
        raise InputError(
            f"{largest.label}: decoding its {largest.size[1]} x {largest.size[0]} pixels takes "
            f"{needed / 1e9:.1f} GB; allow more (--memory), or scale the frames down (--max-size)"
        )
    order = focus_axis.sort_order(settings.values, settings.unit, [frame.label for frame in frames])
    frames, values = [frames[i] for i in order], settings.values[order]
    pixels, pictures = decode(frames, max_size, allocate)
    looks = []
    for frame in pixels:
        looks.append(odd_frames.look(frame))
        release_pages(pixels)
    notes = list(settings.notes)
    if plain := odd_frames.plain_frames(looks):
        said = ", ".join(f"{frames[z].name} is {what}" for z, what in plain.items())
        notes.append(f"left out: {said}")
        keep = [z for z in range(len(frames)) if z not in plain]
        for k, z in enumerate(keep):  # in place, as the frames may lie on disk
            pixels[k] = pixels[z]
        pixels, values = pixels[: len(keep)], values[keep]
        frames, pictures, looks = [frames[z] for z in keep], [pictures[z] for z in keep], [looks[z] for z in keep]
    names = tuple(one.name for one in frames)
    notes += odd_frames.remarks(looks, names)
    if bits := stretch(pixels):
        notes.append(f"the frames use {bits} of 16 bits: they are brightened by {65535 / (2**bits - 1):.4g}")
    everywhere, nowhere = fill(pixels, [picture.opaque for picture in pictures])
    if everywhere is not None:
        notes.append(f"{1 - everywhere.mean():.1%} of the image is transparent in some frame: confidence is 0 there")
    full_size = frames[0].size
    if pixels.shape[1:3] != full_size:
        height, width = pixels.shape[1:3]
        notes.append(f"frames scaled from {full_size[1]} x {full_size[0]} to {width} x {height} (max_size)")
    stack = FocalStack(pixels, values, settings.unit, name=name)
    profile = pictures[len(pictures) // 2].profile
    return stack, ReadNotes(tuple(files), names, tuple(notes), full_size, everywhere, nowhere, profile)
