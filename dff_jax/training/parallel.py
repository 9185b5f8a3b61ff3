"""Devices: the update by jit over a mesh (default) or by pmap. Both give the same numbers and the same checkpoints.

The mesh has one axis, DEVICE_AXIS. Batches are split over it, and the state is whole on every device. Under jit the
compiler reduces as for one global batch (BatchNorm included). Under pmap the state has a leading device axis and the
update sums over the devices itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dff_jax.config import TrainingConfig
from dff_jax.errors import ConfigError
from dff_jax.network.layers import DEVICE_AXIS
from dff_jax.runtime.compile import compiler_options
from dff_jax.training.step import Update
from dff_jax.types import Batch


class Devices(NamedTuple):
    """Where a run computes, and by which of the two ways."""

    mesh: Mesh  # 1-D, axis DEVICE_AXIS
    pmap: bool

    @property
    def split(self) -> NamedSharding:
        return NamedSharding(self.mesh, P(DEVICE_AXIS))

    @property
    def whole(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())


def choose_devices(training: TrainingConfig, batch_size: int) -> Devices:
    """The devices of a run.

    Raises:
      ConfigError: there are fewer devices than asked for, the batch does not divide over them and into its parts, or a
        run of several processes does not use all devices.
    """
    found = jax.devices()
    number = training.num_devices or len(found)
    if number > len(found):
        raise ConfigError(f"training.num_devices: {number} asked for, but there are only {len(found)}")
    if jax.process_count() > 1 and number != len(found):
        raise ConfigError(f"training.num_devices: a run of several processes uses all {len(found)} devices")
    if batch_size % number:
        raise ConfigError(
            f"data.batch_size: {batch_size} stacks do not divide over {number} devices; "
            f"choose a multiple of {number}, or fewer devices with training.num_devices"
        )
    if batch_size // number % training.accumulate:
        raise ConfigError(
            f"training.accumulate: {batch_size // number} stacks a device do not divide into {training.accumulate} "
            f"parts; choose a data.batch_size that is a multiple of {number * training.accumulate}"
        )
    return Devices(Mesh(np.array(found[:number]), (DEVICE_AXIS,)), training.parallel == "pmap")


def compile_update(devices: Devices, update: Update) -> Update:
    """`update` for states of `to_devices` and batches of `put_batch`. The state is donated: use only the new one."""
    if devices.pmap:
        return jax.pmap(update, axis_name=DEVICE_AXIS, donate_argnums=0, devices=list(devices.mesh.devices.flat))
    whole = devices.whole
    return jax.jit(
        update, donate_argnums=0, in_shardings=(whole, devices.split), out_shardings=(whole, whole),
        compiler_options=compiler_options(),
    )  # fmt: skip


def put_batch(devices: Devices, batch: Batch) -> Batch:
    """This process's share of a batch, numpy or device arrays, onto its devices."""

    def put(x):
        if jax.process_count() == 1:
            x = jax.device_put(x, devices.split)
        else:
            x = jax.make_array_from_process_local_data(devices.split, np.asarray(x))
        if devices.pmap:
            x = x.reshape(devices.mesh.size, -1, *x.shape[1:])
        return x

    return jax.tree.map(put, batch)


def to_devices(devices: Devices, state: Any) -> Any:
    """Copies a state, from `canonical`, one device or the host, to where the update wants it."""

    def put(x):
        # A copy, because the update donates its state and must not take the caller's buffers.
        x = np.array(_first(x))
        if devices.pmap:
            x = np.repeat(x[None], len(devices.mesh.local_devices), axis=0)
        return jax.make_array_from_process_local_data(devices.split if devices.pmap else devices.whole, x)

    return jax.tree.map(put, state)


def canonical(devices: Devices, state: Any) -> Any:
    """The state as checkpoints have it: replicated over the mesh, without pmap's device axis."""
    if not devices.pmap:
        return state
    return to_devices(devices._replace(pmap=False), local_copy(devices, state))


def local_copy(devices: Devices, tree: Any) -> Any:
    """One device's copy of a state, of part of one, or of the update's metrics, without a device axis."""
    return jax.tree.map(lambda x: _first(x)[0] if devices.pmap else _first(x), tree)


def _first(x: Any) -> Any:
    return x.addressable_data(0) if isinstance(x, jax.Array) else x
