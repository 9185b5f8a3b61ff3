"""Light fields in the layout of the HCI 4D light field benchmark: which files make a scene, and how they are read.

A scene folder holds `input_Cam000.png` .. `input_Cam080.png` (9 x 9 views, row by row), `parameters.cfg` and
`gt_disp_lowres.pfm`, the disparity of the centre view in pixels between neighbouring views.
"""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax.data.files.depth_maps import read_depth_map
from dff_jax.data.files.images import image_size, read_image
from dff_jax.data.files.reading import collecting, other_size, reading
from dff_jax.errors import InputError
from dff_jax.types import FocalStack

VIEW, TRUTH, PARAMETERS = "input_Cam{:03d}.png", "gt_disp_lowres.pfm", "parameters.cfg"
_SHOWN = 4  # missing views that are named


class LightField(NamedTuple):
    """One scene on disk. Picklable."""

    folder: Path
    rows: int
    columns: int
    size: tuple[int, int]  # H, W of the views


def probe_light_field(folder: Path) -> tuple[list[str], LightField | None]:
    """What is wrong with one scene, by its headers and its truth; and the scene if nothing is wrong.

    A scene of the category `test` that has no truth gives ([], None).
    """
    problems: list[str] = []
    rows = columns = 9
    category = ""
    with collecting(problems):
        rows, columns, category = read_parameters(folder / PARAMETERS)
    views = [folder / VIEW.format(i) for i in range(rows * columns)]
    missing = [path.name for path in views if not path.is_file()]
    if missing:
        named = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        problems.append(f"{folder}: {len(missing)} of {len(views)} views missing ({named}); copy them again")
    extra = folder / VIEW.format(len(views))
    if extra.is_file():
        problems.append(f"{extra}: more views than the {rows} x {columns} of {PARAMETERS}; remove it")
    size = None
    for path in views:
        if path.name in missing:
            continue
        with collecting(problems):
            found = image_size(path)
            size = size or found
            if found != size:
                raise other_size(path, found, size, "others are")
    truth = folder / TRUTH
    if not truth.is_file() and category == "test":
        return problems, None
    with collecting(problems):
        found = read_depth_map(truth).values.shape
        if size and found != size:
            raise other_size(truth, found, size, "the views are")
    return problems, LightField(folder, rows, columns, size) if size and not problems else None


def read_parameters(path: Path) -> tuple[int, int, str]:
    """Rows and columns of the grid of views, and the category, from `parameters.cfg`.

    The size of the images is not taken from there: it is the original one, also for a crop.

    Raises:
      InputError: missing, not an INI file, or without an odd number of views in each direction.
    """
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    with reading(path, "INI file"), open(path, encoding="utf-8") as file:
        parser.read_string(file.read(2**16))
    counts = []
    for field in ("num_cams_y", "num_cams_x"):
        said = parser.get("extrinsics", field, fallback="")
        if not (said.isascii() and said.isdigit() and len(said) < 3 and int(said) % 2):
            raise InputError(f"{path}: {field} in [extrinsics] must be an odd number below 100, got {said[:40]!r}")
        counts.append(int(said))
    return counts[0], counts[1], parser.get("meta", "category", fallback="")


def read_views(scene: LightField) -> np.ndarray:
    """The views [R,C,H,W,3] uint8.

    Raises:
      InputError: one that cannot be read, or of another size.
    """
    views = np.empty((scene.rows * scene.columns, *scene.size, 3), np.uint8)
    for i in range(len(views)):
        path = scene.folder / VIEW.format(i)
        view = read_image(path)
        if view.shape[:2] != scene.size or view.dtype != np.uint8:
            raise other_size(path, view.shape, scene.size, f"({view.dtype}) the first look found 8 bit,")
        views[i] = view
    return views.reshape(scene.rows, scene.columns, *views.shape[1:])


def refocused_stack(scene: LightField, settings: tuple[float, ...], name: str) -> FocalStack:
    """Refocuses one scene at the settings [Z], ascending; frames uint8, rounded. The centre view is its sharp picture.

    Raises:
      InputError: as `read_views` and `depth_maps.read_depth_map`; truth of another size than the views.
    """
    import jax.numpy as jnp

    from dff_jax.optics.light_field import refocus

    views = read_views(scene)
    truth, mask = read_depth_map(scene.folder / TRUTH)
    if truth.shape != scene.size:
        raise other_size(scene.folder / TRUTH, truth.shape, scene.size, "the views are")
    frames = np.asarray(jnp.round(refocus(views, jnp.asarray(settings)) * 255).astype(jnp.uint8))
    depth = np.where(mask, truth, 0).astype(np.float32)
    centre = views[scene.rows // 2, scene.columns // 2]
    return FocalStack(frames, np.asarray(settings, np.float64), "disparity", depth, mask, name, centre)
