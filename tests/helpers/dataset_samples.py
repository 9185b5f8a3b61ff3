"""A few small stacks in the exact formats of the published datasets.

Images are sums of plane waves. Defocus by a Gaussian and a shift of the view change each of them in closed form.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from PIL import Image

from dff_jax.data.datasets import ddff12, fod500, hci, stereo_sets

NAMES = (
    "flyingthings/focal_stack", "middlebury/focal_stack", "hci/lightfields", "hci/stacks", "ddff12/trainval",
    "ddff12/scenes", "ddff12/test", "fod500/default",
)  # fmt: skip
_WAVES, _SHARPEST = 24, 0.3  # plane waves of an image; their highest frequency, cycles a pixel
_BLUR = 3.0  # standard deviation in pixels at one end of the focus range of what lies at the other


class _Scene(NamedTuple):
    depth: np.ndarray  # [H,W] float32 in q
    waves: tuple[np.ndarray, np.ndarray, np.ndarray]  # frequency [n,2], phase [n,3], strength [n]


def write_samples(name: str, folder: Path, size: tuple[int, int] = (64, 80), train: int = 4, held_out: int = 2) -> Path:
    """Writes files as the dataset `name` has them, `train` and `held_out` stacks of H x W pixels, into `folder`.

    Returns:
      What to give to `prepare` as source.
    """
    family, _, kind = name.partition("/")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if family == "flyingthings":
        for mode, count, seed in (("train", train, 0), ("val", held_out, 100)):
            for i in range(count):
                where = folder / mode / "focal_stack" / f"{i:04d}"
                _write_labelled(where, stereo_sets.FLYINGTHINGS_SETTINGS, size, seed + i)
    elif family == "middlebury":
        smaller = (size[0] - 8, size[1] - 8)  # native sizes differ
        for i, scene in enumerate(("Adirondack", "ArtL", "Jadeplant", "Motorcycle")[: max(held_out, 1)]):
            where = folder / "Middlebury_FS" / "focal_stack" / scene
            _write_labelled(where, stereo_sets.MIDDLEBURY_SETTINGS, smaller if i else size, 200 + i)
    elif kind == "lightfields":
        scenes = [("additional", s) for s in hci.TRAIN[:train]] + [("training", s) for s in hci.TEST[:held_out]]
        for i, (category, scene) in enumerate(scenes):
            _write_light_field(folder / "full_data" / category / scene, category, size, 300 + i)
    elif family == "hci":
        _write_hci(folder / hci.H5_FILES[0], size, train, held_out)
    elif family == "ddff12":
        _write_ddff12(folder, kind, size, train, held_out)
    else:
        for number in (*range(train), *range(len(fod500.TRAIN), len(fod500.TRAIN) + held_out)):
            _write_fod500(folder, number, size)
    return folder


# Images -----------------------------------------------------------------------------------------------------------


def _scene(size: tuple[int, int], low: float, high: float, seed: int) -> _Scene:
    """A slanted background with two boxes before it; depths a little beyond [low, high]."""
    rng = np.random.default_rng(seed)
    h, w = size
    y, x = np.mgrid[:h, :w] / max(size)
    t = 0.45 * rng.uniform(0.2, 1) * y + 0.45 * rng.uniform(0.2, 1) * x - 0.05
    for near in (0.6, 1.05):
        top, left = rng.integers(0, h // 2), rng.integers(0, w // 2)
        t[top : top + h // 3, left : left + w // 3] = near
    angle, radius = rng.uniform(0, np.pi, _WAVES), _SHARPEST * rng.uniform(0.1, 1, _WAVES)
    frequency = radius[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)
    waves = frequency, rng.uniform(0, 2 * np.pi, (_WAVES, 3)), rng.uniform(0.5, 1, _WAVES)
    return _Scene((low + t * (high - low)).astype(np.float32), waves)


def _image(waves, y: np.ndarray, x: np.ndarray, blur: np.ndarray | float = 0.0) -> np.ndarray:
    """[H,W,3] float in [0,1] of the waves at the points (y, x) [H,W], blurred by the standard deviation `blur`."""
    frequency, phase, strength = waves
    image = np.zeros((*y.shape, 3))
    for (fy, fx), phases, strong in zip(frequency, phase, strength, strict=True):
        left = strong * np.exp(-2 * np.pi**2 * (fy**2 + fx**2) * np.square(blur))
        image += (left * np.ones(y.shape))[..., None] * np.cos(2 * np.pi * (fy * y + fx * x)[..., None] + phases)
    return np.clip(0.5 + 0.11 * image, 0, 1)


def _frames(scene: _Scene, settings) -> np.ndarray:
    """[Z,H,W,3] uint8; settings in q."""
    span = max(settings) - min(settings)
    y, x = np.mgrid[: scene.depth.shape[0], : scene.depth.shape[1]].astype(float)
    blurs = (_BLUR * np.abs(scene.depth - q) / span for q in settings)
    return np.stack([_bytes(_image(scene.waves, y, x, blur)) for blur in blurs])


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(255 * image).astype(np.uint8)


# Formats ----------------------------------------------------------------------------------------------------------


def _write_exr(path: Path, channels: dict[str, np.ndarray]) -> None:
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))


def _write_labelled(folder: Path, settings: np.ndarray, size: tuple[int, int], seed: int) -> None:
    folder.mkdir(parents=True)
    scene = _scene(size, settings[0], settings[-1], seed)
    for q, frame in zip(settings, _frames(scene, settings), strict=True):
        Image.fromarray(frame).save(folder / f"{float(q)}.png")
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    Image.fromarray(_bytes(_image(scene.waves, y, x))).save(folder / "AiF.png")
    _write_exr(folder / "disp.exr", {"Y": scene.depth})


def _write_light_field(folder: Path, category: str, size: tuple[int, int], seed: int) -> None:
    """9 x 9 views of two boxes before a background, each at one disparity."""
    folder.mkdir(parents=True)
    h, w = size
    rng = np.random.default_rng(seed)
    far, near = rng.uniform(-2.4, -0.5), rng.uniform(0.5, 2.4)
    waves = [tuple(part[:8] for part in _scene(size, 0.0, 1.0, seed + i).waves) for i in (0, 1)]  # 81 views take time
    y, x = np.mgrid[:h, :w].astype(float)

    def inside(y, x):
        return (y >= h // 4) & (y < 3 * h // 4) & (x >= w // 4) & (x < 3 * w // 4)

    for i in range(81):
        r, c = divmod(i, 9)
        places = [(y + d * (r - 4), x + d * (c - 4)) for d in (far, near)]  # in the centre view
        back, front = (_image(which, *place) for which, place in zip(waves, places, strict=True))
        view = np.where(inside(*places[1])[..., None], front, back)
        Image.fromarray(_bytes(view)).save(folder / f"input_Cam{i:03d}.png")
    truth = np.where(inside(y, x), near, far).astype("<f4")
    (folder / "gt_disp_lowres.pfm").write_bytes(f"Pf\n{w} {h}\n-1.0\n".encode() + truth[::-1].tobytes())
    (folder / "parameters.cfg").write_text(
        f"[intrinsics]\nfocal_length_mm = 100.0\nimage_resolution_x_px = {w}\nimage_resolution_y_px = {h}\n"
        "sensor_size_mm = 35.0\nfstop = 100.0\n\n[extrinsics]\nnum_cams_x = 9\nnum_cams_y = 9\nbaseline_mm = 25.0\n"
        f"focus_distance_m = 4.25\n\n[meta]\nscene = {folder.name}\ncategory = {category}\ndisp_min = -2.5\n"
        "disp_max = 2.5\ndepth_map_scale = 10.0\n",
        encoding="utf-8",
    )


def _write_fod500(folder: Path, number: int, size: tuple[int, int]) -> None:
    settings = [1 / metres for metres in fod500.FOCUS]  # near to far
    scene = _scene(size, settings[-1], settings[0], 400 + number)
    for i, frame in enumerate(_frames(scene, settings)):
        Image.fromarray(frame).save(folder / f"{number:06d}_{i:02d}All.tif")
    metres = (1 / np.maximum(scene.depth, 1 / 3)).astype(np.float16)
    _write_exr(folder / f"{number:06d}Dpt.exr", {"R": metres, "G": metres, "B": metres})


def _stacks(size, settings, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    scenes = [_scene(size, min(settings), max(settings), seed + i) for i in range(count)]
    return np.stack([_frames(scene, settings) for scene in scenes]), np.stack([scene.depth for scene in scenes])


def _write_hci(path: Path, size, train: int, held_out: int) -> None:
    settings = np.linspace(*hci.FOCUS_RANGE, hci.NUM_FRAMES)
    with h5py.File(path, "w") as file:
        file["focus_position_disp"] = settings[None]
        for part, names, seed in (("train", hci.TRAIN[:train], 500), ("val", hci.TEST[:held_out], 600)):
            frames, truth = _stacks(size, settings, len(names), seed)
            file[f"stack_{part}"], file[f"disp_{part}"] = frames.astype(np.float32), truth
            file[f"AiF_{part}"] = frames[:, len(settings) // 2].astype(np.float32)
            file[f"name_{part}"] = np.array([[name.encode()] for name in names], dtype=object)
            for key, value in (("focal_length_mm", 100.0), ("baseline_mm", 25.0), ("syn_aperture", 201.0)):
                file[f"{key}_{part}"] = np.full((len(names), 1), value)


def _write_ddff12(folder: Path, kind: str, size, train: int, held_out: int) -> None:
    """Near to far, as distributed; blue first in the official files."""
    files = {"trainval": "ddff-dataset-trainval.h5", "test": "ddff-dataset-test.h5", "scenes": "my_ddff_trainVal.h5"}
    with h5py.File(folder / files[kind], "w") as file:
        parts = (("test", held_out, 700),) if kind == "test" else (("train", train, 800), ("val", held_out, 900))
        for part, count, seed in parts:
            frames, truth = _stacks(size, ddff12.FOCUS, count, seed)
            truth[:, 0] = 0  # none there
            if kind == "scenes":
                file[f"stack_{part}"], file[f"disp_{part}"] = frames.astype(np.float32), truth
                file[f"AiF_{part}"] = frames[:, 4].astype(np.float32)
                continue
            file[f"stack_{part}"] = frames[..., ::-1]
            if kind == "trainval":
                file[f"disp_{part}"] = truth.astype(np.float64)
