"""Checkpoints of a run, by orbax: state, data position, config and bookkeeping together.

A checkpoint is one folder `<run>/checkpoints/<step>`. It is written under a temporary name and renamed when it is
complete. So a process that is killed leaves either all of it or nothing that will be read. The checksums of its files
lie in it, as orbax itself would not notice a flipped bit.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from dff_jax import __version__
from dff_jax import config as configs
from dff_jax.config import Config, DataConfig
from dff_jax.data import pipeline
from dff_jax.errors import ConfigError, InputError, one_line
from dff_jax.runtime import processes
from dff_jax.runtime.files import write_whole, writing
from dff_jax.runtime.progress import say
from dff_jax.runtime.replacing import digest
from dff_jax.training.state import TrainState

FOLDER = "checkpoints"
SUMS = "SHA256SUMS"  # in each checkpoint; `sha256sum --check` reads it, too

# What may change when a run is resumed: how it is watched, where its data lies, and on which devices it computes; never
# what it computes. `training.num_steps` may not: the learning rate is a function of it, so a longer run is another run.
FREE_FIELDS = frozenset(
    {"name", "data.data_dir", "data.num_threads", "data.num_workers", "data.eval_batch_size"}
    | {f"training.{name}" for name in ("log_every", "eval_every", "save_every", "keep", "parallel")}
    | {f"training.{name}" for name in ("num_devices", "statistics", "tensorboard", "transfer")}
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
        with writing(folder, "choose another output folder"):
            return ocp.CheckpointManager(folder, item_handlers=handlers, options=options)
    except ValueError as error:  # orbax reads the metrics of all, and does not say whose are damaged
        if isinstance(error, InputError):
            raise
        where = next((one for one in folder.glob("[0-9]*") if _changed(one)), folder)
        raise InputError(f"{where}: damaged ({one_line(error)}); move this folder away") from None


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
    folder, first = Path(manager.directory), jax.process_index() == 0
    careful = partial(writing, folder, "what was saved before stands: make room, and the same command goes on from it")
    with processes.together(), careful():
        if first:
            _check_room(folder, state)
    with careful():
        code = None
        try:
            manager.save(step, metrics=metrics, args=ocp.args.Composite(**items), force=True)
        except ValueError as error:  # of tensorstore, which raises no other for a full disk
            if (code := re.search(r"os_error_code='(\d+)'", str(error))) is None:
                raise
        if code is not None:
            gc.collect()  # tensorstore's unfinished writes, now: at the end of Python they print tracebacks
            raise OSError(int(code[1]), os.strerror(int(code[1])))
        if first:
            write_whole(folder / str(step) / SUMS, "".join(f"{line}\n" for line in _sums(folder / str(step))).encode())


def _check_room(folder: Path, state: TrainState) -> None:
    """Raises OSError if the disk has no room: were it full while tensorstore writes, its threads print tracebacks."""
    leaves = jax.tree.leaves(state)
    with tempfile.TemporaryFile(dir=folder) as trial:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(trial.fileno(), 0, 2**18 + len(leaves) * 2**14 + sum(x.nbytes for x in leaves))


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
        if changed := _changed(Path(manager.directory) / str(step)):
            raise ValueError(f"{changed} is not as it was saved")
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
    return [f"{digest(path)}  {path.relative_to(folder)}" for path in sorted(folder.rglob("*")) if path.is_file()]


def _changed(folder: Path) -> str:
    """A file that is not as it was saved; "" if all are, or if the checkpoint has no checksums: an earlier version
    wrote it, or a process that was killed just then."""
    if not (folder / SUMS).exists():
        return ""
    now = {*_sums(folder), ""}
    lines = (folder / SUMS).read_text(errors="replace").split("\n")
    return next((ascii(line[66:] or SUMS) for line in lines if line not in now), "")


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


def check_same(config: Config, output: Path, resume: bool) -> None:
    """Checks that all processes do the same; each may have its data and its cores in its own way. All must call it."""
    own = ("data_dir", "num_threads", "num_workers")
    fields = flatten(configs.to_dict(config)).items()
    facts = {name: value for name, value in fields if name.rpartition(".")[2] not in own}
    processes.check_same(facts | {"version": __version__, "--output": str(output.resolve()), "--resume": resume})


def check_folders(progress: Progress, data: DataConfig) -> Progress:
    """Says which folders of stacks are not what they were when the run began; notes them if it begins here."""
    folders = pipeline.describe_folders(data)
    if progress.folders is None:
        return progress._replace(folders=folders)
    for root, now in folders.items():
        then = progress.folders.get(root, now)
        if then != now:
            counts = f"{then.partition(',')[0]} then, {now.partition(',')[0]} now"
            say(f"note: {root}: not the data with which the run began (names, sizes or dates differ; {counts})")
    return progress


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
