"""A text file with the focus settings of a stack, as people write it: names, units, comments, a header."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dff_jax.data.files.reading import reading
from dff_jax.errors import InputError

_NAMES = re.compile(r"focus[_ -]?(distances?|dpth)\.(txt|csv)", re.IGNORECASE)
_MOST = 2**21  # bytes
_VALUE = re.compile(
    r"([+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:e[+-]?\d+)?|[+-]?inf(?:inity)?|∞|nan)\s*([a-zµμ/1]*)", re.I | re.A
)
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
# Written unit -> our unit, and what one of it is. Focus distances are often written in millimetres.
_UNITS = {
    "m": ("metre", 1.0), "metre": ("metre", 1.0), "meter": ("metre", 1.0), "cm": ("metre", 0.01),
    "mm": ("metre", 1e-3), "millimetre": ("metre", 1e-3), "millimeter": ("metre", 1e-3),
    "d": ("diopter", 1.0), "dpt": ("diopter", 1.0), "diopter": ("diopter", 1.0),
    "dioptre": ("diopter", 1.0), "1/m": ("diopter", 1.0), "um": ("micron", 1.0), "µm": ("micron", 1.0),
    "μm": ("micron", 1.0), "micron": ("micron", 1.0), "nm": ("micron", 1e-3),
}  # fmt: skip


class Distances(NamedTuple):
    """What a distance file says."""

    values: np.ndarray  # [Z] float64
    unit: str | None  # None: the file does not say


def distance_files(folder: Path) -> list[Path]:
    """The distance files in a folder, `focus_distance.txt` and its kin, best first."""
    found = (path for path in folder.iterdir() if _NAMES.fullmatch(path.name) and path.is_file())
    return sorted(found, key=lambda path: (path.suffix.lower() != ".txt", path.name.lower()))


def read_distances(path: Path, files: Sequence[Path]) -> Distances:
    """The focus settings of `files`: one a line in their order, or lines that each name their file.

    Raises:
      InputError: a line without a number, one that is not a number, or another count; units that do not go together;
        lines that name a file twice, or only some of which name theirs.
    """
    lines = [
        (number, re.split(r"#|//|%", line)[0].replace('"', "")) for number, line in enumerate(_text(path), start=1)
    ]
    lines = [(number, line.strip(" \t,;[]")) for number, line in lines if line.strip(" \t,;[]")]
    header = ""
    if len(lines) > 1 and not re.search(r"\d|\binf|∞|\bnan\b", lines[0][1].replace("1/m", ""), re.I | re.A):
        header = lines.pop(0)[1]
    if len(lines) == 1 < len(files):  # all in one line
        for mark in (r"\s*;\s*", r"[;\s]+|,\s", r"\s*,\s*"):
            items = list(filter(None, re.split(mark, lines[0][1])))
            if len(items) == len(files) and all(map(_VALUE.fullmatch, items)):
                lines = [(lines[0][0], item) for item in items]
                break
    stated = re.search(r"(?:^|[(\[_\s,;])(1/m|[a-zµμ]+)[)\]]?\s*$", header, re.I)
    named: dict[str, float] = {}
    values, units = [], set()
    for number, line in lines:
        name, value, written = _parsed(line)
        if value is None:
            raise InputError(f"{path}, line {number}: {line[:40]!r} is not a number")
        if np.isnan(value):
            raise InputError(f"{path}, line {number}: {line[:40]!r} is not a finite number")
        if written and _plain(written) not in _UNITS:
            raise InputError(f"{path}, line {number}: unit {written[:20]!r} is unknown; write m, mm, D or micron")
        unit, scale = _UNITS.get(_plain(written or (stated[1] if stated else "")), (None, 1.0))
        units |= {unit} if unit or np.isfinite(value) else set()
        values.append(value * scale)
        if name:
            named[re.split(r"[/\\]", name.lower())[-1]] = values[-1]
    if len(units) > 1:
        raise InputError(f"{path}: settings of several units; write all in one")
    if named and len(lines) > 1:
        if len(named) < len(lines):
            raise InputError(f"{path}: names a file twice, or only in some lines; write one `name value` a line")
        found = [named.get(file.name.lower(), named.get(file.stem.lower())) for file in files]
        missing = next((file.name for file, value in zip(files, found, strict=True) if value is None), None)
        numbers = [int(name) for name in named if name.isdecimal()]  # which may only count the lines
        if missing and numbers != list(range(min(numbers, default=0), min(numbers, default=0) + len(lines))):
            raise InputError(f"{path}: has no line for {missing}; add one, or give the settings with --focus")
        values = values if missing else found
    if len(values) != len(files):
        raise InputError(
            f"{path}: {len(values)} distances for {len(files)} frames; one a line, in name order (for some of the "
            "frames give theirs with --focus)"
        )
    return Distances(np.array(values, np.float64), next(iter(units), None))


def _text(path: Path) -> list[str]:
    with reading(path, "text"):
        with open(path, "rb") as file:
            data = file.read(_MOST + 1)
        if len(data) > _MOST:
            raise InputError("too long for a list of focus distances; one a line, in name order")
        encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "utf-8")
        return data.decode(encoding).splitlines()


def _parsed(line: str) -> tuple[str, float | None, str]:
    """The file's name or "", the number, and the unit or "" of a line; None: there is no number."""
    match = _VALUE.fullmatch(line) or re.fullmatch(rf"(?:(.+?)\s*[,;\t =:]\s*){_VALUE.pattern}", line, re.I | re.A)
    if match is None:
        return "", None, ""
    *name, number, unit = match.groups()
    number = number.replace(",", ".").replace("∞", "inf")
    return (name[0].strip(" \"'") if name else ""), float(number), unit


def _plain(unit: str) -> str:
    return unit.lower() if unit.lower() in _UNITS else unit.lower().removesuffix("s")
