"""What the command line says of a prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dff_jax.runtime.markdown import table


def in_words(summary: dict[str, Any], output: str | Path) -> str:
    """The notes, size and time of one stack, or a table of several; lines of text.

    Args:
      summary: what `predict_to_folder` returned.
      output: the folder that it wrote.
    """
    if "stacks" in summary:
        rows = [
            [name, len(one["frames"]), " x ".join(map(str, one["size"][::-1])), one["unit"], len(one["notes"])]
            for name, one in summary["stacks"].items()
        ]
        lines = table(rows, ["stack", "frames", "size", "unit", "notes"])
        lines.append(f"{len(rows)} stacks, each with its notes in its summary.json; look at {output}/*/overview.png")
        return "\n".join(lines)
    lines = [f"note: {note}" for note in summary["notes"]]
    height, width = summary["size"]
    memory = summary["memory"]
    if memory["tiles"] > 1:
        (rows, columns), bound = memory["tile"], memory["bound_gb"]
        within = "" if bound is None else f", within {bound:g} GB of memory"
        disk = ", frames kept on disk" if memory["frames_on_disk"] else ""
        lines.append(f"{memory['tiles']} tiles of {columns} x {rows}{within}{disk}")
    lines.append(
        f"{len(summary['frames'])} frames of {width} x {height}, {summary['method']}, unit {summary['unit']}: "
        f"{summary['seconds']:.1f} s; look at {Path(output) / 'overview.png'}"
    )
    return "\n".join(lines)
