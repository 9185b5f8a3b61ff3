"""How many stacks of each shape a source has, without reading them: from names, headers and statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dff_jax.errors import InputError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

Shapes = Mapping[tuple[int, int, int], int]  # how many there are of each Z, H, W
ShapesOf = Callable[[int | None], Shapes]  # of the first so many stacks (None: all) or of more, as far as known


def unknown(limit: int | None) -> Shapes:
    """Of a source that tells them only by being read."""
    return {}


def of_records(builder: tfds.core.DatasetBuilder, split: str, length: int, limit: int | None) -> Shapes:
    """From the layout of the records, where all are equal."""
    fixed = builder.info.features["stack"].shape
    return {} if None in fixed[:3] else {fixed[:3]: length}


def of_folders(stacks: Sequence[Path], limit: int | None) -> Shapes:
    """From the names of the frames and the header of one; a damaged stack is left for its reading to complain of."""
    from dff_jax.data.files.folder import find_frames
    from dff_jax.data.files.images import image_size

    found: Counter[tuple[int, int, int]] = Counter()
    for stack in stacks[:limit]:
        try:
            files = find_frames(stack)
            found[len(files), *image_size(files[0])] += 1
        except InputError:
            continue
    return found


def changed(known: ShapesOf, change: Callable[[int, int], tuple[int, int]], limit: int | None) -> Shapes:
    """Where each stack is brought from H, W to `change(H, W)`."""
    found: Counter[tuple[int, int, int]] = Counter()
    for (z, height, width), number in known(limit).items():
        found[z, *change(height, width)] += number
    return found
