"""Ways to damage a file, and a list of damaged variants, for the fuzz_* modules.

A case is {name, reader, path, base, allowed}: which reader of fuzz_worker gets the damaged `path`, what the undamaged
one is, and which verdicts will do.
"""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

H, W = 20, 24
ERROR = ("error",)
SUMMED = ("error", "equal")  # formats with checksums: never other values
ANY = ("error", "equal", "changed")
BIG = 2**31


def photograph(seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return np.asarray(small.resize((W, H), Image.Resampling.BICUBIC))


def depth_map(seed=0):
    return np.random.default_rng(seed).uniform(1, 90, (H, W)).astype(np.float32)


class Cases:
    """Collects cases; every variant gets a file or folder of its own below `root`."""

    def __init__(self, root: Path):
        self.root, self.found = root, []

    def add(self, name, reader, path, base, allowed):
        case = {"name": f"{len(self.found)} {name}", "reader": reader, "allowed": list(allowed)}
        self.found.append(case | {"path": str(path), "base": str(base)})

    def file(self, name, reader, base, data, allowed):
        """A damaged single file beside nothing else."""
        folder = self.root / f"v{len(self.found)}"
        folder.mkdir()
        path = folder / Path(base).name
        path.write_bytes(data)
        self.add(name, reader, path, base, allowed)

    def inside(self, name, reader, base, inner, data, allowed):
        """A copy of the folder `base` whose file `inner` holds `data`, or is gone if that is None."""
        folder = self.root / f"v{len(self.found)}"
        shutil.copytree(base, folder, symlinks=True)
        if data is None:
            (folder / inner).unlink()
        else:
            (folder / inner).write_bytes(data)
        self.add(name, reader, folder, base, allowed)

    def damage(self, name, reader, base, inner=None, allowed=ANY, count=16, seed=0, used=True):
        """Truncated, bit-flipped, overwritten, emptied, and replaced by something else."""
        data = (Path(base) / inner).read_bytes() if inner else Path(base).read_bytes()
        for what, variant, expected in variants(data, allowed, count, seed):
            if inner:
                self.inside(f"{name}: {what}", reader, base, inner, variant, expected if used else SUMMED)
            else:
                self.file(f"{name}: {what}", reader, base, variant, expected)


def variants(data, allowed, count, seed):
    rng = np.random.default_rng([seed, len(data)])
    for share in (0.05, 0.45, 0.95):
        yield f"cut to {share:.0%}", data[: int(len(data) * share)], ERROR if "changed" not in allowed else allowed
    yield "empty", b"", ERROR
    yield "text", b"hello, world\n" * 40, ERROR
    yield "zeros", bytes(len(data)), ERROR
    for i in range(count):  # half of the bits in the header
        top = min(len(data), 300) if i % 2 else len(data)
        bit = int(rng.integers(0, 8 * top))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit % 8} of byte {bit // 8}", bytes(flipped), allowed
    for _ in range(2):
        start = int(rng.integers(0, max(1, len(data) - 40)))
        noise = bytearray(data)
        noise[start : start + 40] = rng.bytes(len(noise[start : start + 40]))
        yield f"noise at {start}", bytes(noise), allowed
