"""Weights to give away: half precision, with the scores that were measured inside; `dff-jax pack`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import empty_node, flatten_dict

from dff_jax.errors import InputError
from dff_jax.estimators.weights import file_of, load_weights, read, save_weights

_METRICS = ("MAE", "RMS", "AbsRel", "Acc_1")


def pack(run: str | Path, output: str | Path, evaluations: Mapping[str, str | Path]) -> dict[str, Any]:
    """Writes the weights of a run as float16, with its config, command and step, and what evaluations found.

    Args:
      run: a run folder (its best weights), or a weights file, such as its `weights_last.safetensors`.
      evaluations: name -> the output folder of `dff-jax evaluate` with these weights.

    Returns:
      What is known of the weights: `info` of the file.

    Raises:
      InputError: unusable weights or evaluations; as `check_target`.
    """
    check_target(output)
    found = load_weights(file_of(run))
    scores = {name: _scores(folder) for name, folder in evaluations.items()}
    flat: dict[str, Any] = flatten_dict(found.variables, sep="/", keep_empty_nodes=True)
    empty = sorted(key for key, value in flat.items() if value is empty_node)
    count = sum(np.size(x) for key, x in flat.items() if key.startswith("params/") and x is not empty_node)
    info = {**found.info, "parameters": count, "stored": "float16", "scores": scores, "empty": empty}
    if isinstance(info.get("command"), str):
        info["command"] = _to_repeat(info["command"])
    if "config" in info:
        info["config"] = _without_folders(info["config"])
    save_weights(output, found.model, found.variables, info, half=True)
    load_weights(output)  # what was written can be read
    return info


def check_target(path: str | Path) -> None:
    """Raises InputError for a file that is no weights file of this program, which writing weights there would lose."""
    if Path(path).exists():
        try:
            read(path)
        except InputError:
            raise InputError(
                f"{path}: is there, and no weights file of this program; move it away, or choose another --output"
            ) from None


def _to_repeat(command: str) -> str:
    """The command that anyone could type: without where the program lay and where the run went."""
    words = shlex.split(command)[1:]
    if "--output" in words[:-1]:
        at = words.index("--output")
        del words[at : at + 2]
    return shlex.join(["dff-jax", *_without_folders(words)])


def _without_folders(value: Any) -> Any:
    """The same with every absolute path in it reduced to its name: those who are given the file have other folders."""
    if isinstance(value, Mapping):
        return {key: _without_folders(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(x) for x in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _scores(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / "metrics.json"
    try:
        found = json.loads(path.read_text())
        rows, meta = found["rows"], found["meta"]
        rows = {name: {metric: row[metric] for metric in _METRICS} for name, row in rows.items()}
        kept = {name: rows[name] for name in ("final", "classical", "sml") if name in rows}
        return {
            "dataset": meta["dataset"], "unit": meta["unit"], "stacks": meta["stacks"], "rows": kept,
            "most_confident_half": found.get("calibration", {}).get("half"),
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not the metrics of an evaluation ({error}); give the output of dff-jax evaluate"
        ) from None
