"""AiFDNet (Wang et al., ICCV 2021) with one class: one attention over the frames gives depth and all-in-focus image.

The network is an I3D-like 3-D encoder and decoder, written anew from the published layout. Its modules have the names
of the published tensors, so that `torch_key` has little to do.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dff_jax import config as configs
from dff_jax.estimators import soft_depth
from dff_jax.estimators.padding import pad_to_multiple
from dff_jax.network.layers import Conv3d, ConvTranspose3d, TorchBatchNorm, channels, torch_bias, torch_default
from dff_jax.network.layers import torch_name as torch_key
from dff_jax.ops.convolutions import max_pool3d
from dff_jax.types import Array, Estimator, Prediction, Variables

__all__ = ["AiFDNet", "aifdnet", "torch_key"]

# Channels of the four branches: 1x1x1; 1x1x1 to 3x3x3; 1x1x1 to 3x3x3; pooled to 1x1x1
MIXED = {
    "3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64), "4c": (160, 112, 224, 24, 64, 64), "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64), "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128), "5c": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


def convolution(features: int, kernel: int, fan_in: int, stride: int = 1, *, name: str) -> Conv3d:
    """With a bias, as PyTorch makes one."""
    bias_init = torch_bias(fan_in * kernel**3)
    return Conv3d(features, kernel, True, torch_default, bias_init, stride, name=name)


class Unit(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    features: int
    kernel: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = convolution(self.features, self.kernel, x.shape[-1], self.stride, name="conv3d.0")(x)
        return nn.relu(TorchBatchNorm(name="conv3d.1")(x, train))


class Mixed(nn.Module):
    """Four branches side by side on channels (Inception's), channels as in `MIXED`."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def unit(i: int, kernel: int, name: str):
            module = Unit(self.features[i], kernel, name=name)
            return lambda x: module(x, train)

        branches = [
            unit(0, 1, "branch0")(x),
            unit(2, 3, "branch1_1")(unit(1, 1, "branch1_0")(x)),
            unit(4, 3, "branch2_1")(unit(3, 1, "branch2_0")(x)),
            unit(5, 1, "branch3_1")(max_pool3d(x, (3, 3, 3))),
        ]
        return jnp.concatenate(branches, -1)


class Up(nn.Module):
    """Transposed convolution to twice the size, BatchNorm, ReLU, and a `Unit`."""

    between: int
    features: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = ConvTranspose3d(self.between, (3, 4, 4), use_bias=True, name="trans3d.0")(x)
        x = nn.relu(TorchBatchNorm(name="trans3d.1")(x, train))
        return Unit(self.features, 3, name="trans3d.3")(x, train)


class AiFDNet(nn.Module):
    """Frames [B,Z,H,W,3] in [0,1], H and W multiples of 32, any Z -> attention logits [B,Z,H,W]."""

    width: float = 1.0
    frame_position: bool = False

    @nn.compact
    def __call__(self, frames: Array, train: bool) -> Array:
        if self.frame_position:
            z = frames.shape[1]
            place = (jnp.arange(z, dtype=frames.dtype) + 1).reshape(1, z, 1, 1, 1) / z
            frames = jnp.concatenate([frames, jnp.broadcast_to(place, (*frames.shape[:-1], 1))], -1)
        wide = lambda count: channels(count, self.width)  # noqa: E731

        def unit(x: Array, features: int, name: str, kernel: int = 1, stride: int = 1) -> Array:
            return Unit(wide(features), kernel, stride, name=name)(x, train)

        def mixed(x: Array, *names: str) -> Array:
            for name in names:
                features = tuple(wide(count) for count in MIXED[name])
                x = Mixed(features, name=f"Mixed_{name}")(x, train)
            return x

        def up(x: Array, between: int, features: int, name: str) -> Array:
            return Up(wide(between), wide(features), name=name)(x, train)

        half = unit(frames, 64, "conv3d_1a", 7, 2)
        x = unit(max_pool3d(half, (1, 3, 3), 2), 64, "conv3d_2b")
        quarter = unit(x, 192, "conv3d_2c", 3)
        eighth = mixed(max_pool3d(quarter, (1, 3, 3), 2), "3b", "3c")
        sixteenth = mixed(max_pool3d(eighth, (1, 3, 3), 2), "4b", "4c", "4d", "4e", "4f")
        x = mixed(max_pool3d(sixteenth, (1, 2, 2), 2), "5b", "5c")

        x = jnp.concatenate([up(x, 64, 64, "up_5c"), unit(sixteenth, 64, "up_4f")], -1)
        x = jnp.concatenate([up(x, 64, 64, "up_5c4f"), unit(eighth, 64, "up_3c")], -1)
        x = jnp.concatenate([up(x, 32, 32, "up_5c4f3c"), unit(quarter, 32, "up_2c")], -1)
        x = jnp.concatenate([up(x, 32, 16, "up_5c4f3c2c"), unit(half, 16, "up_1a")], -1)
        x = ConvTranspose3d(wide(32), (3, 4, 4), use_bias=True, name="final_up")(x)
        return convolution(1, 3, x.shape[-1], name="out")(x)[..., 0]


def aifdnet(config: configs.AiFDNet) -> Estimator:
    """The estimator of `config`; see `estimators.build`."""
    net = AiFDNet(config.width, config.frame_position)

    def attention(logits: Array) -> Array:
        return jax.nn.softmax(logits, 1) if config.attention == "softmax" else soft_depth.share(jax.nn.softplus(logits))

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, Any]:
        padded = pad_to_multiple(frames, least=32, mode="black")
        logits, stats = soft_depth.run(net, variables, padded.astype(config.dtype), train)
        return soft_depth.answer(frames, focus, [attention(logits.astype(jnp.float32))], config.in_metres), stats

    estimator = Estimator(soft_depth.initializer(net), apply)
    return soft_depth.in_order(estimator, config.frame_order)
