"""`dff-jax bench` for the present parser; goes when the command line is made from signatures."""

from __future__ import annotations

import argparse
from typing import Any

from dff_jax.config import DTYPES, MODEL_PRESETS
from dff_jax.studies.bench import bench

_MANY = {"preset": str, "size": int, "frames": int, "iterations": int, "batch": int, "dtype": str}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser("bench", help="speed, memory and compile time, measured side by side")
    parser.add_argument("subject", nargs="?", default="model", choices=["model", "unroll", "loader"])
    for name, kind in _MANY.items():
        choices = {"preset": list(MODEL_PRESETS), "dtype": DTYPES}.get(name)
        parser.add_argument(f"--{name}", nargs="+", type=kind, choices=choices, default=argparse.SUPPRESS)
    for name in ("train", "parts"):
        parser.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=argparse.SUPPRESS)
    parser.add_argument("--against", choices=["torch"], default=argparse.SUPPRESS)
    for name in ("profile", "dataset", "data-dir", "output"):
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    """Measures what `args` ask for and prints the table."""
    given: dict[str, Any] = {key: value for key, value in vars(args).items() if key != "command"}
    given |= {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
    print(bench(**given))
