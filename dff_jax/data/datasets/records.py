"""The layout of a record: stacks to bytes and back."""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from dff_jax.focus_axis import to_q
from dff_jax.types import FocalStack


@functools.cache
def record_features(all_in_focus: bool = False) -> tfds.features.FeaturesDict:
    """The layout of every record, with an all-in-focus picture or without. Z, H and W may differ between records."""
    image = tfds.features.Tensor(shape=(None, None, 3), dtype=np.uint8, encoding="bytes")
    # Raw bytes: array_record compresses them, and faster than tfds does.
    return tfds.features.FeaturesDict({
        "stack": tfds.features.Tensor(shape=(None, None, None, 3), dtype=np.uint8, encoding="bytes"),
        "focus": tfds.features.Tensor(shape=(None,), dtype=np.float32),
        "depth": tfds.features.Tensor(shape=(None, None), dtype=np.float32, encoding="bytes"),
        "mask": tfds.features.Tensor(shape=(None, None), dtype=np.bool_, encoding="bytes"),
        "name": tfds.features.Text(),
        **({"all_in_focus": image} if all_in_focus else {}),
    })  # fmt: skip


def read_record(record: bytes) -> dict[str, Any]:
    """The arrays of a record but its all-in-focus picture, and its name as bytes."""
    return cast(dict[str, Any], record_features().deserialize_example_np(record))


def write_record(stack: FocalStack, name: str) -> bytes:
    """A stack as it is written; equal stacks give equal bytes.

    Raises:
      ValueError: a reader that does not keep the promise of `Item.read` (shapes, types, order, truth).
    """
    frames, focus = stack.frames, np.asarray(stack.focus)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"{name}: frames are {frames.dtype} {frames.shape}, not uint8 [Z,H,W,3]")
    if focus.shape != frames.shape[:1]:
        raise ValueError(f"{name}: {focus.shape} focus settings for {len(frames)} frames")
    if not np.all(np.diff(to_q(focus, stack.unit)) > 0):
        raise ValueError(f"{name}: frames are not sorted by ascending q: {focus.tolist()} in {stack.unit}")
    size = frames.shape[1:3]
    depth, mask = stack.depth, stack.mask
    if depth is None or mask is None:
        depth, mask = np.zeros(size, np.float32), np.zeros(size, bool)
    if depth.shape != size or mask.shape != size or mask.dtype != bool:
        raise ValueError(f"{name}: depth {depth.shape}, mask {mask.dtype} {mask.shape}, frames {size}")
    if not np.isfinite(depth).all() or depth[~mask].any():
        raise ValueError(f"{name}: depth must be finite, and 0 where the mask is False")
    sharp = stack.all_in_focus
    if sharp is not None and (sharp.dtype != np.uint8 or sharp.shape != (*size, 3)):
        raise ValueError(f"{name}: its all-in-focus picture is {sharp.dtype} {sharp.shape}, frames {size}")
    features = record_features(sharp is not None)
    example = {"stack": frames, "focus": focus.astype(np.float32), "depth": depth.astype(np.float32), "mask": mask}
    example |= {"name": name} | ({} if sharp is None else {"all_in_focus": sharp})
    specs: Any = features.get_serialized_info()  # a dict, by any name
    message = ExampleSerializer(specs).get_tf_example(features.encode_example(example))
    return message.SerializeToString(deterministic=True)  # else its fields come in any order
