"""Which size pictures of many sizes are padded to, so that few programs serve them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

Size = tuple[int, int]  # H, W
Shape = tuple[int, int, int]  # Z, H, W

MOST = 4  # programs for one number of frames
GRID = 32  # shared sizes are multiples of it: those that networks pad to anyway
MOST_GROUPS = 50  # that are joined pair by pair
WASTE = 2.0  # how many times its own area a picture not known beforehand may be padded to, while a program is left


class Bucket(NamedTuple):
    """What a size is padded to."""

    size: Size
    shared: bool  # by several sizes: a multiple of `GRID`; else it is the one size itself and nothing is padded


BucketOf = Callable[[Shape], Bucket]


def buckets(sizes: Mapping[Size, int], most: int = MOST) -> dict[Size, Bucket]:
    """The bucket of each size: at most `most` of them, of little padded area.

    From one for each size the two that cost least to join are joined until there are few enough (a greedy search), then
    each size goes into the smallest that holds it. As few sizes as `most` each keep their own.

    Args:
      sizes: how many pictures there are of each.
    """
    groups = [({size}, size) for size in sorted(sizes)]
    grid = GRID
    while len(groups) > (most if grid == GRID else MOST_GROUPS):  # first those that are nearly equal
        groups, grid = _alike(sizes, grid), 2 * grid
    while len(groups) > most:
        first, second = min(combinations(range(len(groups)), 2), key=lambda pair: _cost(sizes, groups, pair))
        joined = _join(groups[first], groups[second])
        groups = [group for i, group in enumerate(groups) if i not in (first, second)] + [joined]
    alone = {size: Bucket(size, False) for members, size in groups if len(members) == 1}
    shared = sorted((size for members, size in groups if len(members) > 1), key=_area)
    found = {}
    for size in sizes:
        fitting = next((b for b in shared if _holds(b, size)), None)
        found[size] = alone[size] if size in alone else Bucket(fitting, True)
    return found


def place(size: Size, opened: Sequence[Bucket], most: int = MOST) -> Bucket:
    """The bucket of a size that was not known beforehand: one that is open, or a new one.

    The first size gets a bucket of its own, as most sets have one size. Later ones are rounded up coarsely, so that
    others find room. With `most` open, any that holds the size will do; only where none does is one more opened, large
    enough for all so far.

    Args:
      opened: the buckets so far.
    """
    own = Bucket(size, False)
    if own in opened or not opened:
        return own
    fitting = sorted((b for b in opened if b.shared and _holds(b.size, size)), key=lambda b: _area(b.size))
    if fitting and (len(opened) >= most or _area(fitting[0].size) <= WASTE * _area(_rounded(size))):
        return fitting[0]
    if len(opened) >= most - 1:
        size = tuple(max(sides) for sides in zip(size, *(b.size for b in opened), strict=True))
    return Bucket(tuple(-(-n // _step(n)) * _step(n) for n in size), True)


def plan(shapes: Mapping[Shape, int] | None = None, most: int = MOST) -> BucketOf:
    """What tells the bucket of a shape; each number of frames has its own.

    Args:
      shapes: how many stacks there are of each, as far as known; others find their place as they come.
    """
    frames: dict[int, dict[Size, int]] = {}
    for (z, *size), number in (shapes or {}).items():
        frames.setdefault(z, {})[tuple(size)] = number
    known = {z: buckets(sizes, most) for z, sizes in frames.items()}
    opened = {z: list(dict.fromkeys(found.values())) for z, found in known.items()}

    def bucket_of(shape: Shape) -> Bucket:
        z, size = shape[0], tuple(shape[1:])
        ours, open_here = known.setdefault(z, {}), opened.setdefault(z, [])
        if size not in ours:
            ours[size] = place(size, open_here, most)
            if ours[size] not in open_here:
                open_here.append(ours[size])
        return ours[size]

    return bucket_of


def each_its_own(shape: Shape) -> Bucket:
    """No padding: a program for each size."""
    return Bucket(tuple(shape[1:]), False)


def _area(size: Size) -> int:
    return size[0] * size[1]


def _holds(bucket: Size, size: Size) -> bool:
    return bucket[0] >= size[0] and bucket[1] >= size[1]


def _rounded(size: Size) -> Size:
    return tuple(-(-n // GRID) * GRID for n in size)


def _step(side: int) -> int:
    """A power of two, a quarter to an eighth of the side; at least `GRID`."""
    return max(GRID, 2 ** (side.bit_length() - 3))


def _alike(sizes: Mapping[Size, int], grid: int) -> list[tuple[set[Size], Size]]:
    """The sizes grouped by what they are on a grid."""
    found: dict[Size, tuple[set[Size], Size]] = {}
    for size in sorted(sizes):
        key = tuple(-(-n // grid) for n in size)
        found[key] = _join(found[key], ({size}, size)) if key in found else ({size}, size)
    return list(found.values())


def _join(a: tuple[set[Size], Size], b: tuple[set[Size], Size]) -> tuple[set[Size], Size]:
    return a[0] | b[0], _rounded((max(a[1][0], b[1][0]), max(a[1][1], b[1][1])))


def _cost(sizes: Mapping[Size, int], groups: Sequence[tuple[set[Size], Size]], pair: tuple[int, int]) -> int:
    """Pixels that joining two groups adds, over all pictures."""
    joined = _area(_join(groups[pair[0]], groups[pair[1]])[1])
    return sum((joined - _area(groups[i][1])) * sum(sizes[size] for size in groups[i][0]) for i in pair)
