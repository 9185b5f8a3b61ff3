"""Weights of an estimator as one safetensors file: flat keys, the config inside, nothing to execute on load.

Keys are "params/<module>/.../kernel" and "batch_stats/...". The metadata holds the format version, the
model's config, what is known of the training (`info`) and checksums of the tensors and of these, which
safetensors itself has not. safetensors and flax are imported where they are used: a machine that only trains need not
have the one, and importing `predict` stays quick without the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dff_jax import config as configs
from dff_jax.config import ModelConfig, Proximal
from dff_jax.errors import ConfigError, InputError, UntrustedCode, WeightsError, one_line
from dff_jax.estimators.migration import migrate
from dff_jax.runtime.compile import read_cached, write_cached
from dff_jax.runtime.files import write_whole, writing
from dff_jax.types import Estimator, Variables

FORMAT = "dff_jax"
VERSION = "1"
FILE_NAME = "weights.safetensors"
"""What a run folder calls its best weights so far."""
PRETRAINED = "pretrained"
"""What the weights that come with the package are called."""
PRETRAINED_FILE = Path(configs.__file__).parent.parent / "pretrained.safetensors"


class Weights(NamedTuple):
    """The contents of a weights file."""

    model: ModelConfig
    variables: Variables  # numpy arrays, or on the device
    info: dict[str, Any]  # "config", "command", "step", "metric", "num_frames", ...


class LoadedEstimator(NamedTuple):
    """An estimator ready for use: `estimator.apply(variables, frames, focus)`."""

    model: ModelConfig
    estimator: Estimator
    variables: Variables
    label: str  # what to call it in a table
    info: dict[str, Any] = {}  # of the weights file; {} for a method without


def save_weights(
    path: str | Path, model: ModelConfig, variables: Mapping[str, Any], info: Mapping[str, Any], *, half: bool = False
) -> None:
    """Writes the file whole or not at all, in the arrays' own types.

    Args:
      half: parameters as float16, which halves the file; they are read as float32 again. Batch statistics stay as they
        are, as a variance may lie outside float16.
      variables: {"params": tree, "batch_stats": tree} of arrays.
      info: JSON-able. `num_frames`, the Z of training, is needed by a network with `num_planes=None`.

    Raises:
      InputError: the file cannot be written.
    """
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save as serialize

    path = Path(path)
    # np.asarray(order="C"), because safetensors stores a transposed view wrongly; ascontiguousarray would
    # turn scalars into vectors.
    tensors = {key: np.asarray(x, order="C") for key, x in flatten_dict(dict(variables), sep="/").items()}
    if half:
        shrunk = {key: x.astype(np.float16) for key, x in tensors.items() if key.startswith("params/")}
        if bad := [key for key, x in shrunk.items() if not np.isfinite(x).all()]:
            raise InputError(f"{path}: not to be had in half precision ({shorten(bad)})")
        tensors |= shrunk
    metadata = {"format": FORMAT, "version": VERSION, "model": configs.to_json(model)}
    metadata |= {"info": json.dumps(dict(info)), "sha256": _checksum(tensors)}
    metadata["sha256_config"] = _checksum_text(metadata)
    with writing(path, "choose another file, or make room"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, serialize(tensors, metadata))  # safetensors' save_file makes it readable by the owner only


def load_weights(path: str | Path) -> Weights:
    """Reads a weights file and checks it against the network that its config describes.

    Raises:
      WeightsError: as `read`; also an encoder alone, and keys and shapes that are not the network's.
    """
    model, tensors, info = read(path)
    if info.get("part") == "encoder":
        raise WeightsError(f"{path}: an encoder alone, to begin training with; name it in training.encoder_weights")
    num_frames = info.get("num_frames")
    if not (num_frames is None or (type(num_frames) is int and 0 < num_frames <= 10000)):
        raise WeightsError(f"{path}: the config inside cannot be used (num_frames is {num_frames!r})")
    return Weights(model, fit(path, tensors, model, num_frames), info)


def read(path: str | Path) -> tuple[ModelConfig, dict[str, np.ndarray], dict[str, Any]]:
    """The config, tensors by flat key and `info` of a weights file, unharmed but not yet fitted to a network.

    Raises:
      WeightsError: no such file, not a safetensors file, truncated or damaged, or not written by this library or
        by another version of the format; tensors of whole or complex numbers.
    """
    tensors, metadata = read_safetensors(Path(path))
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"{path}: a safetensors file, but not weights of dff-jax (no config inside)")
    if metadata.get("version") != VERSION:
        raise WeightsError(
            f"{path}: weights format {metadata.get('version')}, but this dff-jax reads {VERSION}; "
            "use the version that wrote it"
        )
    if metadata.get("sha256") != _checksum(tensors):
        raise WeightsError(f"{path}: damaged, the checksum of its tensors does not match; copy it again")
    if odd := [f"{key} ({x.dtype})" for key, x in tensors.items() if not jnp.issubdtype(x.dtype, jnp.floating)]:
        raise WeightsError(f"{path}: holds tensors that are not floats, so no weights: {shorten(odd)}")
    try:
        model = configs.from_json(metadata["model"], ModelConfig)
        info = json.loads(metadata["info"])
        if not isinstance(info, dict):
            raise ConfigError("info: expected fields")
    except UntrustedCode as error:
        raise WeightsError(f"{path}: {error}") from None
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: the config inside cannot be used ({one_line(error)})") from None
    if metadata.get("sha256_config", _checksum_text(metadata)) != _checksum_text(metadata):  # earlier files have none
        raise WeightsError(f"{path}: damaged, the checksum of its config does not match; copy it again")
    return model, migrate(model, tensors), info


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of a file; raises WeightsError if it is not there, no such file, or truncated."""
    from safetensors import safe_open

    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except Exception as error:  # SafetensorError, OSError, and what numpy says to types that it has not
        raise WeightsError(f"{path}: not a safetensors file, or truncated ({one_line(error)})") from None


def fit(where: Any, tensors: Mapping[str, np.ndarray], model: ModelConfig, num_frames: int | None) -> Variables:
    """Tensors by flat key as the variables of the estimator of `model`, parts without parameters included.

    Raises:
      WeightsError: keys or shapes are not the estimator's own; lists both sides, and calls the file `where`.
    """
    structure = _structure(model, num_frames or 15)
    want = {key: shape for key, shape in structure.items() if shape is not None}
    if complaint := differences(want, {key: x.shape for key, x in tensors.items()}):
        raise WeightsError(f"{where}: does not fit the network of its config: {complaint}")
    return _tree(tensors, structure.keys() - want.keys())


def _tree(tensors: Mapping[str, np.ndarray], empty: Iterable[str]) -> Variables:
    """Tensors by flat key as a tree, float16 as float32, with the parts that have no parameters, which are `empty`."""
    from flax.traverse_util import unflatten_dict

    whole = {key: x.astype(np.float32) if x.dtype == np.float16 else x for key, x in tensors.items()}
    return unflatten_dict({key: {} for key in empty} | whole, sep="/")


def identity(model: ModelConfig) -> str | None:
    """Names the estimator of `model` in the cache on disk; None if code of the user's own is part of it."""
    from dff_jax import estimators

    own = isinstance(model, Proximal) and model.own_code
    own = own or estimators.build.__module__ != estimators.__name__
    return None if own else configs.to_json(model)


def _structure(model: ModelConfig, num_frames: int) -> dict[str, tuple[int, ...] | None]:
    """Flat key -> shape of the variables of the estimator of `model`; None: a part without parameters."""
    from flax.traverse_util import flatten_dict

    from dff_jax import estimators

    name = "structure", identity(model), num_frames
    if name[1] and (found := read_cached(*name)) is not None:
        return {key: shape if shape is None else tuple(shape) for key, shape in json.loads(found).items()}
    shapes = (
        jax.ShapeDtypeStruct((1, num_frames, 64, 64, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, num_frames), jnp.float32),
    )
    tree = jax.eval_shape(estimators.build(model).init, jax.random.key(0), *shapes)
    flat = flatten_dict(tree, sep="/", keep_empty_nodes=True)
    structure = {key: getattr(x, "shape", None) for key, x in flat.items()}
    if name[1]:
        write_cached(json.dumps(structure).encode(), *name)
    return structure


def differences(want: Mapping[str, tuple[int, ...]], have: Mapping[str, tuple[int, ...]]) -> str:
    """Both sides of two sets of shapes by key, in words; "" if they are the same."""
    complaints = []
    if missing := sorted(want.keys() - have.keys()):
        complaints.append(f"missing {shorten(missing)}")
    if unknown := sorted(have.keys() - want.keys()):
        complaints.append(f"unknown {shorten(unknown)}")
    if wrong := sorted(k for k in want.keys() & have.keys() if want[k] != have[k]):
        complaints.append("wrong shape " + shorten([f"{k} {have[k]}, expected {want[k]}" for k in wrong]))
    return "; ".join(complaints)


def load_estimator(spec: str | Path, *, trusted: Iterable[str] = ()) -> LoadedEstimator:
    """An estimator by what a command line calls it; `spec` and what is raised are those of `load_named`.

    Args:
      trusted: names `module:function` of schemes and proxes outside this package that the weights may import.
    """
    from dff_jax import estimators

    configs.trust(*trusted)
    weights, label = load_named(spec)
    return LoadedEstimator(weights.model, estimators.build(weights.model), weights.variables, label, weights.info)


def load_named(spec: str | Path) -> tuple[Weights, str]:
    """The weights that a command line names, on the device, and what to call them in a table.

    Args:
      spec: a method without weights, such as "classical"; "pretrained", the weights of the package; a .safetensors
        file; or a run folder, of which the best weights so far are taken.

    Raises:
      WeightsError: nothing usable there; code of somebody's own that the user does not trust; as `load_weights`.
    """
    if str(spec) in configs.UNTRAINED:
        return Weights(configs.model_preset(str(spec)), {}, {}), str(spec)
    path = file_of(spec)
    label = path.resolve().parent.name if path_of(spec).is_dir() else path.stem
    if not path.exists():
        raise WeightsError(
            f"{spec}: neither one of {', '.join((PRETRAINED, *configs.UNTRAINED))} nor an existing weights file "
            "(.safetensors) or run folder"
        )
    if path == PRETRAINED_FILE:  # came with this code, and fits it (a test checks): no need to work that out
        model, tensors, info = read(path)
        found = Weights(model, _tree(tensors, info.get("empty", ())), info)
    else:
        found = load_weights(path)
    return found._replace(variables=jax.device_put(found.variables)), label


def path_of(spec: str | Path) -> Path:
    """The file or folder that `spec` names; raises WeightsError where the package should have weights and has none."""
    if str(spec) != PRETRAINED:
        return Path(spec)
    if not PRETRAINED_FILE.is_file():
        raise WeightsError(
            f"{PRETRAINED_FILE}: this copy of the package has no weights; install it again, make them with "
            "scripts/pretrained, give --weights, or use --method classical"
        )
    return PRETRAINED_FILE


def file_of(spec: str | Path) -> Path:
    """The weights file that `spec` names, in a run folder its best; raises WeightsError where there is none yet."""
    path = path_of(spec)
    if not path.is_dir():
        return path
    if not (path / FILE_NAME).is_file():
        raise WeightsError(
            f"{spec}: no {FILE_NAME} inside; a run folder has it once training came to an evaluation, to which the "
            "same train command goes on"
        )
    return path / FILE_NAME


def check_frames(loaded: LoadedEstimator, num_frames: int) -> None:
    """Raises InputError if these weights cannot take stacks of `num_frames` (a network with
    `num_planes=None`)."""
    trained = loaded.info.get("num_frames")
    if not loaded.model.any_length and trained is not None and trained != num_frames:
        raise InputError(
            f"{loaded.label}: weights for stacks of exactly {trained} frames (model.num_planes is None), but "
            f"the stack has {num_frames}; give {trained} frames or use weights of a preset with fixed planes"
        )


def _checksum(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        x = tensors[key]
        digest.update(f"{key} {x.dtype.name} {x.shape}".encode())
        digest.update(np.asarray(x, order="C").tobytes())
    return digest.hexdigest()


def _checksum_text(metadata: Mapping[str, str]) -> str:
    return hashlib.sha256(f"{metadata['model']}\n{metadata['info']}".encode()).hexdigest()


def shorten(items: list[str], most: int = 4) -> str:
    """The first few, and how many more there are."""
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
