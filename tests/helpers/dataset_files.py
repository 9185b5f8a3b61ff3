"""Small files in the exact formats of the published datasets. Frame i of every stack is brighter than frame i - 1."""

from pathlib import Path

import numpy as np
import OpenEXR
from PIL import Image

SIZE = (24, 32)


def frame(index: int, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """[H,W,3] uint8 between 12 * index and 12 * index + 8."""
    rng = np.random.default_rng([seed, index])
    return (12 * index + rng.integers(0, 8, (*size, 3))).astype(np.uint8)


def truth(seed: int = 0, low: float = 5.0, high: float = 120.0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """[H,W] float32 with a 0 and a negative value."""
    values = np.random.default_rng(seed).uniform(low, high, size).astype(np.float32)
    values[0, 0], values[0, 1] = 0.0, -3.0
    return values


def write_exr(path: Path, channels: dict[str, np.ndarray]) -> None:
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))


def write_stack(folder: Path, low: float, high: float, seed: int = 0, size: tuple[int, int] = SIZE) -> None:
    """As FlyingThings3D's: 15 frames named by the raw Python float, AiF.png, disp.exr with one float32 channel Y."""
    folder.mkdir(parents=True)
    for i in range(15):
        name = low + i * (high - low) / 14
        Image.fromarray(frame(i, seed, size)).save(folder / f"{name}.png")
    Image.fromarray(frame(20, seed, size)).save(folder / "AiF.png")
    write_exr(folder / "disp.exr", {"Y": truth(seed, size=size)})


def flyingthings(root: Path, train: int = 2, val: int = 1) -> Path:
    for mode, count, first in (("train", train, 0), ("val", val, 100)):
        for i in range(count):
            write_stack(root / mode / "focal_stack" / f"{i:04d}", 10.0, 100.0, first + i)
    return root


def middlebury(root: Path) -> Path:
    write_stack(root / "Middlebury_FS" / "focal_stack" / "Piano", 10.0, 60.0, 1)
    write_stack(root / "Middlebury_FS" / "focal_stack" / "ArtL", 10.0, 60.0, 2, (20, 28))
    return root


def fod500(root: Path, numbers: tuple[int, ...] = (0, 399, 400)) -> Path:
    """A flat folder: five uint8 RGB TIFF near to far, and half floats in three equal channels R, G, B."""
    root.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        for i in range(5):
            Image.fromarray(frame(i, number)).save(root / f"{number:06d}_{i:02d}All.tif")
        depth = np.abs(truth(number, 0.05, 3.0)).astype(np.float16)
        write_exr(root / f"{number:06d}Dpt.exr", {"R": depth, "G": depth, "B": depth})
    return root


def mobile_depth(root: Path, frames: int = 12) -> Path:
    """Two scenes; `metals` is called `metal` beside the calibration, and its focus runs the other way."""
    for figure, scene, other, reverse in ((1, "keyboard", "keyboard", False), (5, "metals", "metal", True)):
        pictures = root / "depth_from_focus_data3" / "Aligned" / f"Figure{figure}" / scene
        calibration = root / "depth_from_focus_data2" / "calibration" / other
        pictures.mkdir(parents=True)
        calibration.mkdir(parents=True)
        for i in range(frames):  # a0 .. a11: as text, a10 comes before a2
            Image.fromarray(frame(i, figure)).save(pictures / f"a{i}.jpg", quality=95)
        distances = np.geomspace(3.0, 1e6, frames)[:: -1 if reverse else 1]
        rows = [f"{distance} 0.5" for distance in distances] + ["0.2"]
        (calibration / "calibrated.txt").write_text("\n".join(rows) + "\n")
    return root
