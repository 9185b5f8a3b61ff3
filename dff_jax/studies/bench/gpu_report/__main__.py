"""`scripts/gpu_report`: the parts in order, each written down as soon as it is there."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from dff_jax import __version__
from dff_jax.errors import InputError
from dff_jax.evaluation.tables import finite
from dff_jax.runtime.files import check_output
from dff_jax.studies.bench.gpu_report import checks, device, models, training
from dff_jax.studies.bench.gpu_report.job import FULL, SMALL, Job, say
from dff_jax.studies.bench.gpu_report.table import markdown

VERSION = 1
FILES = ("report.json", "report.md")
PARTS = ("device", "checks", "bench", "memory", "scaling", "training", "precision")
RESERVE_S = {"precision": 60.0}  # for what comes after the training
SHARES = {"checks": 0.35, "bench": 0.6, "memory": 0.6, "scaling": 0.9}
"""Of the time that is left to all parts before the training."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 0 if every part ran and every check passed, else 1; 2 for bad input."""
    args = _parser().parse_args(argv)
    _before_jax_starts(args.small)
    try:
        return _run(args)
    except InputError as error:
        print(f"gpu_report: error: {error}", file=sys.stderr)
        return 2


def _before_jax_starts(small: bool) -> None:
    # Memory is taken as it is needed, which leaves PyTorch some
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if small:  # compiles five times quicker
        flags = ["--xla_backend_optimization_level=0"]
        if jax.__version_info__ < (0, 11):  # an unknown flag ends the process, and this one may go
            flags.append("--xla_cpu_use_fusion_emitters=false")
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):  # to check the device against
        jax.config.update("jax_platforms", f"{platforms},cpu")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_report", description="All that only an accelerator can show, into one JSON and one table. "
        "Each part is written down as soon as it is there; parts that are not asked for again stay as they are.",
    )  # fmt: skip
    parts = f"of {', '.join(PARTS)}; default all"
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=parts)
    parser.add_argument("--minutes", type=float, help="of training, compilation included; default 5, small 3")
    parser.add_argument("--limit", type=float, help="minutes for everything; default 9.5, small 30")
    parser.add_argument("--small", action="store_true", help="tiny shapes and networks: a trial of the report on a CPU")
    parser.add_argument("--output", default="runs/gpu_report", help="folder of report.json and report.md")
    return parser


def _run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    minutes = args.minutes or (3.0 if args.small else 5.0)
    limit = args.limit or (30.0 if args.small else 9.5)
    if min(minutes, limit) <= 0:
        raise InputError("--minutes, --limit: give more than 0")
    folder = Path(args.output)
    check_output(folder, FILES)
    folder.mkdir(parents=True, exist_ok=True)
    report = _begun(folder / FILES[0], args.small)
    wanted = [part for part in PARTS if part in args.parts]
    later = sum(RESERVE_S.get(part, 0.0) + 60 * minutes * (part == "training") for part in wanted)
    runs: dict[str, Callable[[Job, dict], None]] = {
        "device": device.run, "checks": checks.run, "bench": models.bench, "memory": models.memory,
        "scaling": models.scaling, "training": partial(training.train, minutes=minutes),
        "precision": training.precision,
    }  # fmt: skip
    save = partial(_write, folder, report)
    failed = []
    for part in wanted:
        end = began + 60 * limit
        if part in SHARES:
            end = time.monotonic() + SHARES[part] * (end - later - time.monotonic())
        elif part == "training":
            end -= RESERVE_S["precision"] * ("precision" in wanted)
        out: dict[str, Any] = {}
        report["parts"][part] = out
        job = Job(SMALL if args.small else FULL, folder, report, end, save)
        say(f"{part}: begins, {max(0, end - time.monotonic()):.0f} s for it")
        start = time.perf_counter()
        try:
            runs[part](job, out)
        except Exception as error:  # written down, and the next part goes on
            traceback.print_exc()
            out["raised"] = f"{type(error).__name__}: {error}"[:1000]
        circumstances = {"command": " ".join(sys.argv[1:]), "date": time.strftime("%Y-%m-%d %H:%M:%S")}
        out["run"] = circumstances | {"seconds": time.perf_counter() - start}
        bad = [row for row in out.get("rows", ()) if "raised" in row or row.get("passed") is False]
        if bad or "raised" in out:
            failed.append(part)
        say(f"{part}: {'FAILED' if part in failed else 'done'}, {out['run']['seconds']:.0f} s")
        save()
    print((folder / FILES[1]).read_text())
    say(f"written to {folder}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _begun(path: Path, small: bool) -> dict[str, Any]:
    """A new report, or the one that is there, to be completed.

    Raises:
      InputError: that one is of another machine, size or version.
    """
    new = {
        "version": VERSION, "dff_jax": __version__, "small": small, "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(), "python": platform.python_version(), "versions": device.versions(),
    }  # fmt: skip
    if not path.exists():
        return new | {"parts": {}}
    try:
        old = json.loads(path.read_text())
        parts = old.pop("parts")
    except (ValueError, KeyError):
        raise InputError(f"{path}: not a report; choose another --output") from None
    if old != new:
        different = ", ".join(key for key in new if old.get(key) != new[key])
        raise InputError(f"{path}: a report of other circumstances ({different}); choose another --output")
    return new | {"parts": parts}


def _write(folder: Path, report: dict[str, Any]) -> None:
    """Both files, each whole at any moment."""
    texts = json.dumps(finite(report), indent=1) + "\n", markdown(report)
    for name, text in zip(FILES, texts, strict=True):
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text)
        os.replace(temporary, folder / name)


if __name__ == "__main__":
    sys.exit(main())
