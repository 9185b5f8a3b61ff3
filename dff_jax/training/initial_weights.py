"""Weights to begin training with, put into the variables of a new network."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict
from scipy.linalg import block_diag

from dff_jax.config import ModelConfig, Proximal
from dff_jax.errors import WeightsError
from dff_jax.estimators.weights import differences, file_of, read, shorten
from dff_jax.network.inputs import ORDER, Counts, counts
from dff_jax.network.planes import VOLUME_SCALE
from dff_jax.types import Variables
from dff_jax.unroll import average_stack, repeat_shared, resize_stack


def load_encoder(path: str | Path, variables: Variables) -> Variables:
    """The variables with the encoder from a file that `dff-jax import-weights --model resnet18` wrote.

    The network's BatchNorm may be of either kind: both hold the same four arrays.

    Raises:
      WeightsError: as `weights.read`; the file holds no encoder, or the network has none or another one.
    """
    _, tensors, info = read(path)
    if info.get("part") != "encoder":
        raise WeightsError(f"{path}: not an encoder; dff-jax import-weights --model resnet18 makes such a file")
    flat = _flat(variables)
    places = {}
    for key, x in flat.items():
        if x is not empty_node and (found := re.fullmatch(r"(params|batch_stats)/(?:volume/)?(encoder/.*)", key)):
            places[f"{found[1]}/{found[2]}".replace("/BatchNorm_0/", "/TorchBatchNorm_0/")] = key
    if not places:
        raise WeightsError(f"{path}: this network (model.method) has no encoder to take it")
    shapes = {name: flat[key].shape for name, key in places.items()}
    if complaint := differences(shapes, {name: x.shape for name, x in tensors.items()}):
        raise WeightsError(
            f"{path}: another encoder than the network's, which needs model.encoder=resnet18, model.norm=batch and "
            f"model.width=1 for it: {complaint}"
        )
    return unflatten_dict(flat | {places[name]: jnp.asarray(x) for name, x in tensors.items()}, sep="/")


def load_matching(spec: str | Path, variables: Variables, model: ModelConfig) -> tuple[Variables, str]:
    """Takes every array from `spec` that has a place in the network.

    Inputs of a kernel are found by their names (`network.inputs`); those that are not in `spec` begin as zeros, as if
    they were not there. Planes are found by their place on the focus axis. Parameters of a tied unroll are repeated for
    an untied one, those of an untied one are averaged for a tied one, and its last step is repeated for a larger K.

    Args:
      spec: a weights file, a run folder (its best weights) or "pretrained".
      variables: of the new network.
      model: of the new network.

    Returns:
      The variables, and what is new in them or was left out, as text ("": nothing).

    Raises:
      WeightsError: as `weights.read`; less than half of the network's numbers are there.
    """
    path = file_of(spec)
    theirs, tensors, info = read(path)
    if info.get("part") == "encoder":
        raise WeightsError(f"{path}: an encoder alone; name it in training.encoder_weights")
    flat = _flat(variables)
    shapes = {key: x.shape for key, x in flat.items() if x is not empty_node}
    fitted = {key: _fitted(key, shape, tensors, theirs, model) for key, shape in shapes.items()}
    same = {key: x for key, x in fitted.items() if x is not None and x.shape == shapes[key]}
    taken, total = (sum(math.prod(shapes[key]) for key in keys) for keys in (same, shapes))
    if 2 * taken < total:
        loss = ", loss=LossConfig(uncertainty=0.02)" if getattr(theirs, "uncertainty", "") == "learned" else ""
        raise WeightsError(
            f"{path}: has {taken:,} of the {total:,} numbers of this network, too few to begin with; to fine-tune "
            f"these weights, train their own network: Config(model=load_estimator({str(spec)!r}).model{loss}, ...)"
        )
    merged = unflatten_dict(flat | {key: jnp.asarray(x, flat[key].dtype) for key, x in same.items()}, sep="/")
    new = shorten(sorted(shapes.keys() - same.keys()))
    return merged, "; ".join([f"new: {new}"] * bool(new) + _left_out(theirs, model))


def _flat(variables: Variables) -> dict[str, Any]:
    return dict(flatten_dict(variables, sep="/", keep_empty_nodes=True))


PLACES = {
    r"candidates/\w+/Conv_0/Conv_0": "heads",
    r"context/(\w+/Conv_0|hidden)/Conv_0": "features",
    r"prox/(phi1/Conv_0|Conv_0|encode)/Conv_0": "prox",
    r"prox/static/Conv_0": "static",
    r"refiner/Conv_0/Conv_0": "refiner",
    r"expected_error/head/Conv_0/Conv_0": "expected_error",
    r"volume/decoder\d/Residual3d_0/Conv3d_[02]": "decoder",
}
"""The convolutions whose inputs have names."""


def _fitted(
    key: str, shape: tuple[int, ...], tensors: dict[str, np.ndarray], theirs: ModelConfig, model: ModelConfig
) -> np.ndarray | None:
    """The array for `key` of the new network, of whatever shape comes out; None: there is none."""
    x = tensors.get(key)
    if x is None or not (isinstance(theirs, Proximal) and isinstance(model, Proximal)):
        return x
    if key.startswith("params/unroll/per_iteration/"):
        x = np.asarray(resize_stack(x, shape[0]))
    elif key.startswith("params/prox/"):
        if not theirs.tied:
            x = np.asarray(average_stack(x) if model.tied else resize_stack(x, shape[0]))
        elif not model.tied:
            x = np.asarray(repeat_shared(x, shape[0]))
    for pattern, place in PLACES.items():
        if re.fullmatch(f"params/{pattern}/kernel", key):
            return _with_inputs(x, shape[-2], place, counts(theirs), counts(model))
    return x


def _with_inputs(kernel: np.ndarray, num: int, place: str, before: Counts, after: Counts) -> np.ndarray:
    """The kernel [...,in,out] of a place with its `num` new inputs instead; unchanged if they do not add up."""
    names = [own for name in ORDER[place] for own in ORDER.get(name, (name,))]
    given, wanted = ([each.get(name, 1) for name in names] for each in (before, after))
    for sizes, total in ((given, kernel.shape[-2]), (wanted, num)):
        rest = total - sum(n or 0 for n in sizes)
        if rest < 0 or (rest and None not in sizes):
            return kernel
        sizes[:] = [rest if n is None else n for n in sizes]
    blocks = [np.eye(new or 0, old) for new, old in zip(wanted, given, strict=True)]
    if "planes" in names:  # F at the old planes, from F at the new ones: both uniform in t, linear between neighbours
        new, old = blocks[i := names.index("planes")].shape
        distance = np.arange(old) * (new - 1) / max(old - 1, 1) - np.arange(new)[:, None]
        scale = (after["planes"] is None) - (before["planes"] is None)  # where C = Z, F has no scale
        blocks[i] = np.maximum(0, 1 - np.abs(distance)) * VOLUME_SCALE**scale
    return np.einsum("ni,...io->...no", np.asarray(block_diag(*blocks)), kernel).astype(kernel.dtype)


def _left_out(theirs: ModelConfig, model: ModelConfig) -> list[str]:
    """What of `theirs` the new network does not see, or sees otherwise, in words."""
    if not (isinstance(theirs, Proximal) and isinstance(model, Proximal)):
        return []
    before, after = counts(theirs), counts(model)
    gone = [name for name, n in before.items() if n and after[name] == 0]
    moved = before["log_p"] and after["log_p"] and before["planes"] != after["planes"]
    return [f"left out: {', '.join(gone)}"] * bool(gone) + ["log_p is of other planes (model.num_planes)"] * bool(moved)
