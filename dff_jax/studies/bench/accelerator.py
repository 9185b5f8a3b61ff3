"""Report of an accelerator, `scripts/gpu_report`: device, checks, models, memory, scaling and a short training.

Writes `report.json` and `report.md` after each part. Needs only jax, flax, optax, orbax, chex and numpy, and pytest for
the checks of `tests/device`. The entries of a table are timed round-robin in one process, beside a matrix product.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dff_jax.errors import InputError
from dff_jax.evaluation.tables import finite, machine
from dff_jax.runtime.files import check_output
from dff_jax.studies.bench.accelerator_parts import PARTS, SMALL, Sizes, reason, say
from dff_jax.studies.bench.measuring import table

FILES = ("report.json", "report.md")


def run(parts: Sequence[str], sizes: Sizes, small: bool, folder: Path) -> list[str]:
    """Runs the parts in order and writes both files after each; returns the names of those that failed.

    A part that fails is reported, and the next goes on. Parts of an earlier report of the same machine are kept.

    Raises:
      InputError: an output folder that cannot be written.
    """
    check_output(folder, FILES)
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": machine(), "small": small, "parts": {}}
    before = json.loads((folder / FILES[0]).read_text()) if (folder / FILES[0]).exists() else {}
    if {key: before.get(key) for key in ("machine", "small")} == {key: report[key] for key in ("machine", "small")}:
        report["parts"] = before["parts"]
    failed = []
    for part in parts:
        say(f"{part} begins")
        start = time.perf_counter()
        try:
            found = PARTS[part](sizes, folder)
        except Exception as error:  # reported, and the next part goes on
            traceback.print_exc()
            found = {"rows": [], "problem": reason(error)}
        report["parts"][part] = found | {"seconds_spent": time.perf_counter() - start}
        if any(one.get("problem") for one in (found, *found["rows"])):
            failed.append(part)
        (folder / FILES[0]).write_text(json.dumps(finite(report), indent=1) + "\n")
        (folder / FILES[1]).write_text(markdown(report))
    return failed


def markdown(report: dict[str, Any]) -> str:
    """The page: a heading, a line of facts and a table for each part."""
    about = report["machine"]
    small = " Small mode: the sizes are of no interest, it only shows that the report runs." if report["small"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [f"# {about['device']}", "", f"{versions}.{small}"]
    for part, found in report["parts"].items():
        facts = {key: value for key, value in found.items() if isinstance(value, str | int | float)}
        rows = found["rows"]
        names = list(dict.fromkeys(key for row in rows for key in row))
        columns = {name: lambda row, name=name: _cell(row.get(name)) for name in names}
        lines += ["", f"## {part.capitalize()}", "", ", ".join(f"{key} {_cell(value)}" for key, value in facts.items())]
        lines += ["", *table(rows, columns)] if rows else []
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else " ".join(str(value).split()).replace("|", "/")[:200]


def main(argv: list[str] | None = None) -> int:
    """Runs the command: 0 if every part ran and every check passed, else 1; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_report", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default all")
    parser.add_argument("--minutes", type=float, help="of training, compilation included; default 5")
    parser.add_argument("--small", action="store_true", help="tiny shapes and networks: a trial on a CPU")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_report"), help="folder of the report")
    args = parser.parse_args(argv)
    # Memory is taken as it is needed, which leaves the checks' process and PyTorch some
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if args.small:  # compiles five times quicker
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
    sizes = SMALL if args.small else Sizes()
    sizes = sizes._replace(minutes=args.minutes or sizes.minutes)
    try:
        failed = run(args.parts, sizes, args.small, args.output)
    except InputError as error:
        print(f"gpu_report: error: {error}", file=sys.stderr)
        return 2
    print((args.output / FILES[1]).read_text())
    say(f"written to {args.output}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
