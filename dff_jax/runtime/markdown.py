"""Tables as lines of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dff_jax.errors import printable


def table(
    rows: Iterable[Sequence[Any]],
    columns: Sequence[str],
    formats: Mapping[str, str] = {},
    best: Mapping[str, Callable[[list[float]], float]] | None = None,
) -> list[str]:
    """A table. Columns of numbers are aligned to the right.

    Args:
      rows: a cell for each column: a number, a text, or None, which becomes "-".
      columns: the headings.
      formats: heading -> format of its floats, where that is not ".4g".
      best: heading -> `min` or `max`: what equals the best number of the column, as written, is bold.
    """
    cells = list(zip(*rows, strict=True)) or [()] * len(columns)
    written, marks = [], []
    for column, of_column in zip(columns, cells, strict=True):
        form = formats.get(column, ".4g")
        texts = ["-" if x is None else format(x, form) if isinstance(x, float) else printable(x) for x in of_column]
        numbers: list[float] = [x for x in of_column if isinstance(x, int | float)]
        if best and column in best and len(numbers) > 1:
            top = format(best[column](numbers), form)
            texts = [f"**{text}**" if text == top else text for text in texts]
        written.append(texts)
        plain = (text.replace(".", "").lstrip("-") for text in texts)
        marks.append("---:" if numbers or all(text.isdigit() or not text for text in plain) else "---")
    return [f"| {' | '.join(line)} |" for line in (columns, marks, *zip(*written, strict=True))]


def records(rows: Sequence[Mapping[str, Any]], formats: Mapping[str, str] = {}) -> list[str]:
    """`table` of rows that name their cells: a column for each that has a value in some row."""
    columns = list(dict.fromkeys(name for row in rows for name, value in row.items() if value is not None))
    return table([[row.get(name) for name in columns] for row in rows], columns, formats)
