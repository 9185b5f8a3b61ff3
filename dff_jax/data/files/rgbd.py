"""Sharp images with depth or disparity maps: which files belong together, at what scale, and how they are read.

Found below a folder, in any mix:
  <scene>/rgb.png + <scene>/disp.pfm      the plain layout; `disp` is disparity in pixels, `depth` is metres
  <scene>_rgb.png + <scene>_disp.exr      the same, flat (also <scene>_left.png, <scene>.png)
  rgb/<scene>.png + depth/<scene>.npy     the same, in folders side by side
  im0.png + disp0.pfm                     Middlebury 2014; disparity in pixels
  view1.png + disp1.png                   Middlebury 2005 and 2006; 8 bit, divided by 3 or 2 in the reduced sizes
  im2.png + disp2.png                     Middlebury 2003; 8 bit, divided by 4 or 2 in the reduced sizes
  imL.png + groundtruth.png               Middlebury v2; 8 bit, the divisor is the first line of info.txt (else 4)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax.data.files.depth_maps import DEPTH_SUFFIXES, SCALE_FILE, map_size, positive_number, read_truth, scale_of
from dff_jax.data.files.folder import walk
from dff_jax.data.files.frames import MIN_SIDE
from dff_jax.data.files.images import IMAGE_SUFFIXES, image_size, read_image
from dff_jax.data.files.reading import collecting, other_size
from dff_jax.data.files.series import natural_key
from dff_jax.errors import InputError
from dff_jax.focus_axis import check_unit

_LISTED = ", ".join(DEPTH_SUFFIXES)
_UNITS = {"disp": "disparity", "depth": "metre"}
# Stems of image and map, best first; "aif" as in FlyingThings3D's focal stacks
_PLAIN = [(image, kind) for image in ("rgb", "aif") for kind in _UNITS]
# Stems of published sets -> divisor of 8-bit maps by the width of the image: (up to this width, divisor), ...; else 1
_PUBLISHED = {
    ("im0", "disp0"): (),
    ("view1", "disp1"): ((520, 3), (780, 2)),
    ("im2", "disp2"): ((500, 4), (1000, 2)),
    ("iml", "groundtruth"): ((500, 4),),
}


class Scene(NamedTuple):
    """An image and what lies at each of its pixels."""

    rgb: np.ndarray  # [H,W,3] uint8
    depth: np.ndarray  # [H,W] float32 in `unit`; 0 where `mask` is False
    mask: np.ndarray  # [H,W] bool
    unit: str
    name: str


class SceneFiles(NamedTuple):
    """Where a scene lies. Picklable."""

    name: str  # unique below the root
    rgb: Path
    depth: Path
    unit: str
    scale: float  # depth in `unit` = stored value * scale


def list_scenes(root: str | Path, *, scale: float | None = None, unit: str | None = None) -> list[SceneFiles]:
    """The scenes below `root` (or `root` itself), in natural order of their names.

    Args:
      scale: stored value * scale = depth in its unit; None: from `scale.txt` beside the map (or in `root`), else as the
        published set has it, else 1 for floating-point maps.
      unit: of all maps; None: by their names, see above.

    Raises:
      InputError: no such folder, no scenes, or the first of `find_scenes`'s problems.
    """
    scenes, problems = find_scenes(root, scale=scale, unit=unit)
    if problems:
        raise InputError(problems[0])
    return scenes


def find_scenes(
    root: str | Path, *, scale: float | None = None, unit: str | None = None
) -> tuple[list[SceneFiles], tuple[str, ...]]:
    """As `list_scenes`, with every problem instead of the first: images without a map, maps without a scale, ...

    Raises:
      InputError: no such folder, nothing in it that looks like a scene, a bad option.
    """
    root = Path(root)
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise InputError(f"scale: must be a positive number, got {scale}")
    if unit is not None:
        check_unit(unit)
    scenes: dict[str, SceneFiles] = {}
    problems: list[str] = []
    for folder, entries in walk(root):
        for pair in _pairs(root, folder, entries, problems):
            with collecting(problems):
                found = SceneFiles(*pair[:3], unit or _UNITS[pair.kind], scale or _scale(root, pair))
                if (other := scenes.setdefault(pair.name, found)) is not found:
                    raise InputError(f"{pair.rgb} and {other.rgb}: two scenes named {pair.name!r}; rename one")
                size, own = image_size(pair.rgb), map_size(pair.depth)
                if own != size:
                    raise other_size(pair.depth, own, size, f"{pair.rgb.name} is")
    if not scenes and not problems:
        raise InputError(
            f"{root}: no images with depth maps here or below; looked for rgb.png with disp.* or depth.* "
            f"({_LISTED}), im0.png with disp0.pfm, view1.png with disp1.png, im2.png with disp2.png "
            "and imL.png with groundtruth.png"
        )
    return sorted(scenes.values(), key=lambda scene: natural_key(scene.name)), tuple(problems)


def read_scene(files: SceneFiles) -> Scene:
    """Reads an image and its map. Not finite or 0 means that nothing is known there.

    Raises:
      InputError: a damaged file, unequal or tiny sizes, negative metres, or no depth anywhere.
    """
    rgb = read_image(files.rgb)
    if rgb.dtype != np.uint8:
        rgb = np.rint(rgb / 257.0).astype(np.uint8)
    height, width = rgb.shape[:2]
    depth, mask = read_truth(files.depth, (height, width), scale=files.scale)
    if min(height, width) < MIN_SIDE:
        raise InputError(f"{files.rgb}: {width} x {height} pixels; each side needs {MIN_SIDE}")
    if not mask.any():
        raise InputError(f"{files.depth}: has no depth anywhere (0 or not finite at every pixel)")
    if files.unit in ("metre", "diopter") and depth.min() < 0:
        raise InputError(f"{files.depth}: holds negative values of {files.unit}; is the unit right?")
    return Scene(rgb, depth, mask, files.unit, files.name)


class _Pair(NamedTuple):
    name: str  # below the root
    rgb: Path
    depth: Path
    kind: str  # "disp" or "depth"


def _by_stem(entries: Iterable[Path], suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files by lower-case stem; of several with one stem, that whose suffix comes first."""
    files = [p for p in entries if p.suffix.lower() in suffixes and not p.name.startswith(".") and p.is_file()]
    found: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: suffixes.index(path.suffix.lower())):
        found.setdefault(path.stem.lower(), path)
    return found


def _pairs(root: Path, folder: Path, entries: list[Path], problems: list[str]) -> list[_Pair]:
    """The scenes whose image is in `folder`; adds what is there without its other half to `problems`."""
    images, maps = _by_stem(entries, IMAGE_SUFFIXES), _by_stem(entries, DEPTH_SUFFIXES)
    pairs = []

    # the folder is one scene
    whole = next((stems for stems in (*_PLAIN, *_PUBLISHED) if stems[0] in images and stems[1] in maps), None)
    wanted = {"rgb": "disp.* or depth.*"} | dict(_PUBLISHED.keys())
    image = next((stem for stem in wanted if stem in images), None)
    kind = next((kind for kind in _UNITS if kind in maps), None)
    if whole:
        shown = whole[1] if whole in _PLAIN else "disp"
        pairs.append(_Pair(_name(root, folder), images[whole[0]], maps[whole[1]], shown))
    elif kind and image != "rgb":
        problems.append(f"{maps[kind]}: no rgb.png beside it; add it, or move the map away")
    elif image:
        problems.append(f"{images[image]}: no {wanted[image]} ({_LISTED}) beside it; add it, or move the image away")

    for stem, depth in maps.items():  # flat
        base, _, kind = stem.rpartition("_")
        if not base or kind not in _UNITS or (kind == "depth" and f"{base}_disp" in maps):
            continue
        rgb = next((images[s] for s in (f"{base}_rgb", f"{base}_left", base) if s in images), None)
        if rgb is None:
            problems.append(f"{depth}: no image {base}_rgb, {base}_left or {base} beside it")
        else:
            pairs.append(_Pair(_name(root, folder, depth.stem[: len(base)]), rgb, depth, kind))

    kind = next((kind for kind in _UNITS if (folder.parent / kind).is_dir()), None)
    if folder.name == "rgb" and folder != root and kind:  # side by side
        beside = _by_stem((folder.parent / kind).iterdir(), DEPTH_SUFFIXES)
        for stem, rgb in images.items():
            if stem in beside:
                pairs.append(_Pair(_name(root, folder.parent, rgb.stem), rgb, beside[stem], kind))
            else:
                problems.append(f"{rgb}: no {kind}/{rgb.stem}.* ({_LISTED}) to go with it")
    return pairs


def _name(root: Path, folder: Path, own: str = "") -> str:
    """A scene's name: its path below the root, or what the root is called."""
    return "/".join(filter(None, (*folder.relative_to(root).parts, own))) or root.resolve().name


def _scale(root: Path, pair: _Pair) -> float:
    """Stored value * scale = depth; see `list_scenes`."""
    stems = pair.rgb.stem.lower(), pair.depth.stem.lower()
    places = pair.depth.parent, root
    written = any((place / SCALE_FILE).is_file() for place in places)
    if written or pair.depth.suffix.lower() != ".png" or stems not in _PUBLISHED:
        return scale_of(pair.depth, *places)
    if (pair.depth.parent / "info.txt").is_file():
        return 1.0 / positive_number(pair.depth.parent / "info.txt")
    width = image_size(pair.rgb)[1]
    return 1.0 / next((divisor for widest, divisor in _PUBLISHED[stems] if width <= widest), 1)
