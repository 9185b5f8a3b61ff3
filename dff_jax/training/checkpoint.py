"""Checkpoints of a run, by orbax: state, data position, config and bookkeeping together.

A checkpoint is one folder `<run>/checkpoints/<step>`. It is written under a temporary name and renamed when it is
complete. So a process that is killed leaves either all of it or nothing that will be read. The checksums of its files
lie in it, as orbax itself would not notice a flipped bit.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from dff_jax import config as configs
from dff_jax.config import Config
from dff_jax.errors import ConfigError, InputError, one_line
from dff_jax.runtime import processes
from dff_jax.training.state import TrainState

FOLDER = "checkpoints"
SUMS = "SHA256SUMS"  # in each checkpoint; `sha256sum --check` reads it, too

# What may change when a run is resumed: how it is watched, where its data lies, and on which devices it computes; never
# what it computes. `training.num_steps` may not: the learning rate is a function of it, so a longer run is another run.
FREE_FIELDS = frozenset(
    {"name", "data.data_dir", "data.num_threads", "data.num_workers", "data.eval_batch_size"}
    | {f"training.{name}" for name in ("log_every", "eval_every", "save_every", "keep", "parallel")}
    | {f"training.{name}" for name in ("num_devices", "tensorboard", "transfer")}
)


class Progress(NamedTuple):
    """Bookkeeping of the loop that has to survive with the state."""

    evaluated: int = -1  # the last step that was evaluated
    best_step: int = -1  # the step with the lowest validation MAE; -1: not evaluated yet
    best_mae: float = math.inf
    folders: dict[str, str] | None = None  # `pipeline.describe_folders` when the run began; None: not known


class Restored(NamedTuple):
    """A checkpoint's contents."""

    state: TrainState
    data: dict[str, Any]  # the loader's state
    progress: Progress


def open_manager(run: Path, keep: int) -> ocp.CheckpointManager:
    """The run's checkpoints; keeps the newest `keep` and the best. Use it as a context.

    Both `best_fn` and the policy are needed: the first alone deletes the newest when it is not among the best, the
    second alone does not know which is best. Saves are synchronous: the update donates the state's buffers, and a log
    or a weights file must never be ahead of a checkpoint that is still being written.

    Raises:
      InputError: the folder cannot be made or has a name that is not UTF-8, or a checkpoint's metrics are damaged.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax reports every file, and raises what it calls an error

    mae = itemgetter("MAE")
    best = policies.BestN(get_metric_fn=mae, reverse=True, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        best_fn=mae,
        best_mode="min",
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
    )
    handlers = {"state": ocp.StandardCheckpointHandler()}
    handlers |= {"data": ocp.JsonCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    folder = Path(run).resolve() / FOLDER
    try:
        str(folder).encode()
    except UnicodeEncodeError:  # which tensorstore cannot open
        raise InputError(f"{folder}: no name in UTF-8, as checkpoints need; choose another output folder") from None
    try:
        return ocp.CheckpointManager(folder, item_handlers=handlers, options=options)
    except OSError as error:
        raise InputError(f"{folder}: cannot hold checkpoints ({error.strerror or error})") from None
    except ValueError as error:  # orbax reads the metrics of all, and does not say whose are damaged
        where = next((file.parent.parent for file in folder.glob("*/metrics/metrics") if _is_damaged(file)), folder)
        raise InputError(f"{where}: damaged ({one_line(error)}); move this folder away") from None


def _is_damaged(file: Path) -> bool:
    try:
        return json.loads(file.read_bytes()) is None
    except ValueError:
        return True


def save(
    manager: ocp.CheckpointManager, config: Config, state: TrainState, data: dict[str, Any], progress: Progress
) -> None:
    """Writes the checkpoint of `state.step`, unless there is one. Every process calls this.

    The validation MAE counts towards "best" if this step was evaluated and is the best so far.

    Raises:
      InputError: the disk is full or the folder is read-only; no half-written checkpoint remains visible.
    """
    step = int(state.step)
    if step in manager.all_steps():
        return
    best_mae = progress.best_mae if math.isfinite(progress.best_mae) else None  # JSON has no infinity
    meta = {"config": configs.to_dict(config), "progress": progress._asdict() | {"best_mae": best_mae}}
    metrics = {"MAE": progress.best_mae} if progress.best_step == step == progress.evaluated else None
    items = {
        "state": ocp.args.StandardSave(_items(state)),
        "data": ocp.args.JsonSave(data),
        "meta": ocp.args.JsonSave(meta),
    }
    with processes.together():
        if jax.process_index() == 0:
            _check_room(Path(manager.directory), state)
    try:
        manager.save(step, metrics=metrics, args=ocp.args.Composite(**items), force=True)
        if jax.process_index() == 0:
            where = Path(manager.directory) / str(step)
            unfinished = where / f".{SUMS}"
            unfinished.write_text("".join(f"{line}\n" for line in _sums(where)))
            unfinished.rename(where / SUMS)
    except OSError as error:
        failed = error.strerror or str(error)
    except ValueError as error:  # of tensorstore, which raises no other for a full disk
        if (code := re.search(r"os_error_code='(\d+)'", str(error))) is None:
            raise
        failed = os.strerror(int(code[1]))
    else:
        return
    gc.collect()  # tensorstore's unfinished writes, now: at the end of Python they print tracebacks
    raise _not_written(manager.directory, failed)


def _check_room(folder: Path, state: TrainState) -> None:
    """Raises InputError if the disk has no room for the checkpoint. Tried before, as tensorstore's threads, too, print
    tracebacks when it is full while they write."""
    leaves = jax.tree.leaves(state)
    needed = 2**18 + len(leaves) * 2**14 + sum(x.nbytes for x in leaves)
    try:
        with tempfile.TemporaryFile(dir=folder) as trial:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(trial.fileno(), 0, needed)
    except OSError as error:
        raise _not_written(folder, error.strerror or str(error)) from None


def _not_written(folder: Any, reason: str) -> InputError:
    return InputError(
        f"{folder}: cannot write a checkpoint ({reason}); what was saved before stands: make room, and the same "
        "command goes on from there"
    )


def _items(state: TrainState) -> dict[str, Any]:
    """What is stored of a state. A state without an average has no such item, as in older checkpoints."""
    return {name: value for name, value in state._asdict().items() if name != "average" or value}


def restore(manager: ocp.CheckpointManager, config: Config, abstract_state: TrainState) -> Restored | None:
    """The newest complete checkpoint, or None if there is none.

    Args:
      abstract_state: TrainState of ShapeDtypeStructs with the shardings to restore to.

    Raises:
      ConfigError: the checkpoint is of a run with another config; names the fields (see FREE_FIELDS).
      InputError: it is damaged, or of a network that this version makes otherwise.
    """
    step = manager.latest_step()
    if step is None:
        return None
    wanted = _items(abstract_state)
    with _readable(manager, step):
        _check_sums(Path(manager.directory) / str(step))
        plain = ocp.args.Composite(data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
        data, meta = itemgetter("data", "meta")(manager.restore(step, args=plain))
        saved, progress = meta["config"], Progress(**meta["progress"])
        stored = manager.item_metadata(step)["state"]
    check_config(saved, configs.to_dict(config), manager.directory)
    if _shapes(stored) != _shapes(wanted):  # the config is the same, but the code makes another network of it
        raise InputError(
            f"{manager.directory / str(step)}: does not fit the network of this version; resume with the version that "
            "began the run"
        )
    with _readable(manager, step):
        state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted)))["state"]
    if progress.best_mae is None:
        progress = progress._replace(best_mae=math.inf)
    return Restored(TrainState(**state), dict(data), progress)


def _sums(folder: Path) -> list[str]:
    """A line for each file below `folder`: its SHA-256 and its name."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (SUMS, f".{SUMS}"):
            with path.open("rb") as file:
                found.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder)}")
    return found


def _check_sums(folder: Path) -> None:
    """Raises ValueError if a file is not as it was saved. A checkpoint without checksums, of an earlier version or of
    a process that was killed just then, passes."""
    if not (folder / SUMS).exists():
        return
    now = {*_sums(folder), ""}
    for line in (folder / SUMS).read_text(errors="replace").split("\n"):
        if line not in now:
            raise ValueError(f"{ascii(line[66:] or SUMS)} is not as it was saved")


@contextmanager
def _readable(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    """Turns orbax's errors of reading into InputError. A lack of memory or a lost process is no damage and passes."""
    where = manager.directory / str(step)
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise InputError(f"{where}: cannot be read ({error.strerror or one_line(error)})") from None
        older = [other for other in manager.all_steps() if other < step]
        then = f"goes on from step {max(older)}" if older else "begins anew, as no other is left"
        raise InputError(
            f"{where}: damaged ({one_line(error)}); move this folder away: the run then {then}"
        ) from None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each array by its name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def check_config(saved: dict[str, Any], now: dict[str, Any], where: Any) -> None:
    """Checks that two configs (nested dicts) train the same way.

    A field that is newer than the run has its default there, which is how the run was computed.

    Raises:
      ConfigError: names each field that differs.
    """
    with suppress(ConfigError):  # it may have fields that this version lacks; they are named below
        saved = configs.to_dict(configs.from_dict(saved))
    old, new = flatten(saved), flatten(now)
    free = FREE_FIELDS
    # The world and the lens matter only where data is rendered, not where it has been prepared.
    used = {value for name, value in new.items() if re.fullmatch(r"data\.(mixture\.\d+\.)?source", name)}
    for source, section in (("procedural_live", "world"), ("rgbd", "lens")):
        if source not in used:
            free = free | {name for name in old.keys() | new.keys() if name.startswith(f"data.{section}.")}
    changed = [
        f"{name} ({old.get(name, 'absent')} -> {new.get(name, 'absent')})"
        for name in sorted(old.keys() | new.keys())
        if name not in free and old.get(name) != new.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{where}: holds a run with another configuration, which would not continue as it began: "
            f"{', '.join(changed)}; choose another output folder, or the run's own values"
        )


def abstract(state: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
    """Shapes and types of a state with the sharding to restore it to."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def flatten(config: dict[str, Any]) -> dict[str, Any]:
    """The config's values by their dotted names. Lists of sections have names of their own, other lists are values."""

    def is_value(x: Any) -> bool:
        return x is None or isinstance(x, list | tuple) and not (x and isinstance(x[0], dict))

    leaves = jax.tree_util.tree_leaves_with_path(config, is_leaf=is_value)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): list(x) if isinstance(x, tuple) else x
        for path, x in leaves
    }
