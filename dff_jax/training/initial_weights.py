"""Weights to begin training with, put into the variables of a new network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict

from dff_jax.errors import WeightsError
from dff_jax.estimators.weights import differences, file_of, read, shorten
from dff_jax.types import Variables


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


def load_matching(spec: str | Path, variables: Variables) -> tuple[Variables, str]:
    """Takes every array from `spec` that has the same name and shape in the network.

    A kernel with more inputs than the one in `spec` gets that one and zeros for the further inputs, so that it begins
    as if they were not there.

    Args:
      spec: a weights file, a run folder (its best weights) or "pretrained".

    Returns:
      The variables, and the names of the arrays that stayed as they were, as text ("": none).

    Raises:
      WeightsError: as `weights.read`; no array fits.
    """
    path = file_of(spec)
    _, tensors, info = read(path)
    if info.get("part") == "encoder":
        raise WeightsError(f"{path}: an encoder alone; name it in training.encoder_weights")
    flat = _flat(variables)
    arrays = {key for key, x in flat.items() if x is not empty_node}
    fitted = {key: _with_more_inputs(tensors[key], flat[key].shape) for key in arrays & tensors.keys()}
    same = {key: x for key, x in fitted.items() if x.shape == flat[key].shape}
    if not same:
        raise WeightsError(f"{path}: has no array of this network's; training.initial_weights wants one like it")
    merged = unflatten_dict(flat | {key: jnp.asarray(x, flat[key].dtype) for key, x in same.items()}, sep="/")
    return merged, shorten(sorted(arrays - same.keys()))


def _flat(variables: Variables) -> dict[str, Any]:
    return dict(flatten_dict(variables, sep="/", keep_empty_nodes=True))


def _with_more_inputs(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The kernel [...,in,out] with zeros for the further inputs of `shape`; unchanged if more than these differs."""
    if kernel.ndim < 2 or len(shape) != kernel.ndim or shape[-2] <= kernel.shape[-2]:
        return kernel
    if (*shape[:-2], shape[-1]) != (*kernel.shape[:-2], kernel.shape[-1]):
        return kernel
    return np.concatenate([kernel, np.zeros((*shape[:-2], shape[-2] - kernel.shape[-2], shape[-1]), kernel.dtype)], -2)
