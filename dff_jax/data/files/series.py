"""The names of a series of photographs: their natural order, gaps in their counter, and names that do not belong."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dff_jax.data.files.images import read_header

# What programs call their results; a frame is not called so.
_RESULTS = re.compile(
    r"(?<![a-z])(depth ?map|depth|d ?map|p ?max|aif|all ?in ?focus|edof|fused|fusion|stacked|results?|output|merged|"
    r"composite|confidence|overview|disparity|disp|disagreement|mask|zerene|helicon)(?![a-z])"
)
NUMBER = r"(?:(?<![A-Za-z0-9])[+-])?[0-9]+(?:[.,][0-9]+)?"  # a hyphen behind a word is no sign
_SHARE = 2 / 3  # of the files that must be named alike for the others to stand out


def natural_key(path: str | Path, points: bool = False) -> tuple:
    """Sorts names with numbers by the numbers: a2 before a10, a_-2 before a_0, a1,25 before a1,5.

    Args:
      points: whether a point makes a decimal number, too.
    """
    mark = "[.,]" if points else ","
    number = rf"((?:(?<![A-Za-z0-9])[+-])?[0-9]+(?:(?<![0-9][.,][0-9]){mark}[0-9]+(?![.,]?[0-9]))?)"
    parts = re.split(number, str(path).lower())
    values = (float(part.replace(",", ".")) if i % 2 else part for i, part in enumerate(parts))
    return tuple((1, value, "") if isinstance(value, float) else (0, 0.0, value) for value in values), str(path)


def natural_order(files: Sequence[Path]) -> list[Path]:
    """`files` in the order that their names count in.

    Points make decimal numbers unless they count versions: 1.8, 1.9, 1.10.
    """
    points = not counts([m[1] for file in files for m in re.finditer(r"[0-9]\.([0-9]+)", file.stem)])
    keys = {
        file: (natural_key(file.parent), natural_key(stem, points), file.name)
        for file, stem in zip(files, spaced_stems(files), strict=True)
    }
    return sorted(files, key=keys.__getitem__)


def spaced_stems(files: Sequence[Path]) -> list[str]:
    """The names without suffix, with a space before a sign.

    A hyphen behind letters is a minus where another name has none there: z-1, z0, z1, or z-1, z+0, z+1.
    """
    stems = [file.stem.replace("\N{MINUS SIGN}", "-") for file in files]
    hyphened = {m[1] for stem in stems for m in re.finditer(r"([A-Za-z]+)-[0-9]", stem)}
    for letters in hyphened & {m[1] for stem in stems for m in re.finditer(r"([A-Za-z]+)\+?[0-9]", stem)}:
        stems = [re.sub(rf"(?<![A-Za-z]){letters}(?=[+-]?[0-9])", f"{letters} ", stem) for stem in stems]
    return stems


def counts(digits: Sequence[str]) -> bool:
    """Whether digits behind a point count, as in 1.8, 1.9, 1.10: as numbers they would be 1.1, or all have as many."""
    shortest = min(map(len, digits), default=0)
    return any(len(text) > shortest and text.endswith("0") for text in digits)


def by_counter(files: list[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """`files` in natural order, or as they were taken where the counter in their names leaps; and a note on it.

    A camera's counter goes from 9999 to 0001, or starts again in the next folder.
    """
    parts = [re.split(f"({NUMBER})", stem) for stem in spaced_stems(files)]  # decimal numbers are settings
    columns = list(zip(*parts, strict=True)) if len({len(part) for part in parts}) == 1 else []
    varying = [column for column in columns if len(set(column)) > 1]
    if len(files) < 3 or len(varying) != 1 or not all(re.fullmatch("[+-]?[0-9]+", text) for text in varying[0]):
        return files, ()
    numbers = [int(text) for text in varying[0]]
    steps = [b - a for a, b in zip(numbers[:-1], numbers[1:], strict=True)]
    usual = statistics.mode(sorted(steps))  # the smallest of those that occur most
    leaps = [i for i, step in enumerate(steps, start=1) if step > usual]
    if not leaps:
        return files, ()
    place = max(leaps, key=lambda i: steps[i - 1])
    more = f" (and {len(leaps) - 1} more such places)" if len(leaps) > 1 else ""
    where = f"the counter in the names leaps from {files[place - 1].name} to {files[place].name}{more}"
    turned = files[place:] + files[:place]  # as a counter that began anew would have it
    times = [read_header(file).captured for file in turned]
    if all(times) and len(set(times)) > 1:
        by_time = [turned[i] for i in sorted(range(len(turned)), key=times.__getitem__)]
        if by_time != files:
            return by_time, (f"{where}: the frames are taken in the order of their capture times (EXIF)",)
        return files, ()
    return files, (f"{where}: a frame may be missing, or the order wrong; list the files in their order if so",)


def misfits(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Of a series: files that are called a result, such as a depth map; and others named unlike the rest."""
    called = [path for path in files if _RESULTS.search(re.sub(r"[^a-z0-9]+|[0-9]+", " ", path.stem.lower()))]
    if len(files) - len(called) < max(2, len(called)):  # a name that many have says nothing
        called = []
    rest = [path for path in files if path not in called]
    kinds = [re.sub(r"[+-]?[0-9]+(?:[.,][0-9]+)*|(?<=_)inf$", "#", path.stem.lower()) for path in rest]
    kind, count = Counter(kinds).most_common(1)[0]
    odd = [path for path, own in zip(rest, kinds, strict=True) if own != kind]
    return called, odd if count >= max(2, _SHARE * len(rest)) and count < len(rest) else []
