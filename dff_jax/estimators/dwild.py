"""DWild, depth from focus in the wild (Won and Jeon, ECCV 2022), without its alignment network.

Sharpness features, a 3-D pyramid and stacked hourglasses, written anew from the published layout. The modules have the
names of the published tensors, numbers of PyTorch's sequences included, so that `torch_key` has little to do. Blocks
that are published and unused have parameters, too, and no effect.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dff_jax import config as configs
from dff_jax.estimators import soft_depth
from dff_jax.estimators.padding import pad_to_multiple
from dff_jax.network.layers import Conv3d, ConvTranspose3d, TorchBatchNorm, channels, resize, torch_name
from dff_jax.ops.convolutions import max_pool3d
from dff_jax.types import Array, Estimator, Prediction, Variables

LEAST_SHARE = 1e-6  # added to every weight, so that their sum is never 0


def torch_key(path: str) -> str:
    """The published name of the tensor at a flat path such as "params/dres0.0/0/kernel"."""
    return f"DFF_net.{torch_name(path)}"


class ConvNorm(nn.Module):
    """Convolution without bias and BatchNorm; `up`: transposed, to twice the size."""

    features: int
    kernel: int | tuple[int, int, int] = 3
    stride: int = 1
    dilation: int = 1
    up: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.up:
            x = ConvTranspose3d(self.features, name="0")(x)
        else:
            x = Conv3d(self.features, self.kernel, stride=self.stride, dilation=self.dilation, name="0")(x)
        return TorchBatchNorm(name="1")(x, train)


class Sharpness(nn.Module):
    """Features within each frame, with a skip; then what neighbouring frames add to them."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def within(x: Array, name: str) -> Array:
            module = ConvNorm(x.shape[-1], (1, 3, 3), name=f"Focus_Measure.conv.{name}")
            return module(x, train)

        x = nn.relu(x + within(nn.relu(within(x, "0")), "2"))
        across = nn.relu(Conv3d(x.shape[-1], (3, 1, 1), name="N_ch_attention.0")(x))
        return x + nn.relu(Conv3d(x.shape[-1], 1, name="N_ch_attention.2")(across))


class Halve(nn.Module):
    """To half the size by a strided convolution and by max-pooling, added."""

    features: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        strided = ConvNorm(self.features, stride=2, name="stride_conv")(x, train)
        pooled = max_pool3d(x, (1, 2, 2), 2)
        return nn.relu(
            strided + ConvNorm(self.features, name="max_pooling.1")(pooled, train)
        )


class Pyramid(nn.Module):
    """Features at 1/4 -> 1/8, from average pools over 2, 4 and 8 pixels merged down to 1/32 and back up."""

    width: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def block(x: Array, features: int, name: str, kernel: int = 3, up: bool = False) -> Array:
            count = channels(features, self.width)
            return ConvNorm(count, kernel, up=up, name=name)(x, train)

        def strided(x: Array, features: int, name: str) -> Array:
            return Conv3d(channels(features, self.width), stride=2, name=name)(x)

        def pooled(scale: int, features: int) -> Array:
            window = scale // 4
            y, name = nn.avg_pool(x, (1, window, window), (1, window, window)), f"dres{scale}"
            y = nn.relu(block(nn.relu(block(y, features, f"{name}_0.0")), features, f"{name}_0.2"))
            return y + block(nn.relu(block(y, features, f"{name}_1.0")), features, f"{name}_1.2")

        eighth, sixteenth, thirtysecond = pooled(8, 32), pooled(16, 64), pooled(32, 64)
        y = nn.relu(block(jnp.concatenate([strided(eighth, 64, "conv1"), sixteenth], -1), 64, "combine1.0"))
        sixteenth = nn.relu(block(y, 64, "conv2.0"))
        y = nn.relu(block(jnp.concatenate([strided(sixteenth, 128, "conv3"), thirtysecond], -1), 128, "combine2.0"))
        y = nn.relu(block(y, 128, "conv4.0"))
        if self.is_initializing():
            block(y, 128, "redir3", 1)  # idle
        y = nn.relu(block(y, 64, "conv8", up=True) + block(sixteenth, 64, "redir2", 1))
        return nn.relu(block(y, 32, "conv9", up=True) + block(eighth, 32, "redir1", 1))


class Hourglass(nn.Module):
    """Down to 1/4 and back up, with what the hourglass at the next coarser scale gives.

    (x [B,Z,h,w,2c], its first features and its output [B,Z,h/2,w/2,2c] or None) -> output and first features
    [B,Z,h,w,c].
    """

    features: int
    width: float

    @nn.compact
    def __call__(self, x: Array, first: Array | None, last: Array | None, train: bool) -> tuple[Array, Array]:
        def block(x: Array, double: bool, name: str, kernel: int = 3, stride: int = 1, up: bool = False) -> Array:
            count = channels(self.features * (2 if double else 1), self.width)
            return ConvNorm(count, kernel, stride, up=up, name=name)(x, train)

        start = nn.relu(block(x, False, "conv0.0"))
        y = nn.relu(block(start, True, "conv1.0", stride=2))
        if self.is_initializing():
            block(y, True, "pre_conv.0", 1)  # idle
        before = block(y, True, "conv2")
        before = nn.relu(before if last is None else before + last)
        y = nn.relu(block(before, True, "conv3.0", stride=2))
        y = nn.relu(block(y, True, "conv4.0"))
        y = nn.relu(block(y, True, "conv5", up=True) + (before if first is None else first))
        return block(y, False, "conv6", up=True), start


class DWild(nn.Module):
    """Frames [B,Z,H,W,3] in [-1,1], BGR, H and W multiples of 32, any Z -> logits [B,Z,H,W], the answer's first.

    When training also those of the three coarser scales, from fine to coarse.
    """

    width: float = 1.0

    @nn.compact
    def __call__(self, frames: Array, train: bool) -> list[Array]:
        heads = train or self.is_initializing()
        size = frames.shape[2:4]

        def block(x: Array, features: int, name: str, up: bool = False, **how) -> Array:
            count = channels(features, self.width)
            return ConvNorm(count, up=up, name=name, **how)(x, train)

        def logits(x: Array, name: str, kernel: int = 1) -> Array:
            return resize(Conv3d(1, kernel, name=name)(x).astype(jnp.float32), *size)[..., 0]

        def hourglass(features: int, x: Array, skip: Array, first: Array | None, last: Array | None, name: str):
            module = Hourglass(features, self.width, name=name)
            output, start = module(jnp.concatenate([x, skip], -1), first, last, train)
            return x + output, output, start

        x = nn.relu(block(frames, 8, "FM_measure.Focus_extraction.0", kernel=(1, 9, 9), dilation=2))
        levels = [Sharpness(name="FM_measure.Focus_extraction.2")(x, train)]
        for i, features in enumerate((16, 32), 1):
            x = Halve(channels(features, self.width), name=f"FM_conv{i}.0")(levels[-1], train)
            levels.append(Sharpness(name=f"FM_conv{i}.1")(x, train))
        x = Pyramid(self.width, name="SPP_module")(levels[2], train)

        found = []
        if heads:
            found.append(logits(nn.relu(block(x, 32, "confidence.0")), "confidence.2", 3))
        x = nn.relu(block(nn.relu(block(x, 64, "dres0.0")), 64, "dres0.2"))
        last = first = None
        for i, features in enumerate((32, 16, 8), 1):
            x = block(x, features, f"deconv_{i}", up=True)
            x, last, first = hourglass(features, x, levels[3 - i], first, last, f"dres{i + 1}")
            if heads or i == 3:
                found.insert(0, logits(x, f"classif{i}.0"))
        return found


def dwild(config: configs.DWild) -> Estimator:
    """The estimator of `config`; see `estimators.build`.

    When training it answers at four scales (the finest is the answer), otherwise at the finest alone.
    """
    net = DWild(config.width)

    def attention(logits: Array) -> Array:
        return soft_depth.share(jax.nn.softplus(logits.astype(jnp.float32)) + LEAST_SHARE)

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, Any]:
        bgr = 2 * pad_to_multiple(frames, least=32, mode="black")[..., ::-1] - 1
        logits, stats = soft_depth.run(net, variables, bgr.astype(config.dtype), train)
        return soft_depth.answer(frames, focus, [attention(scale) for scale in logits], config.in_metres), stats

    estimator = Estimator(soft_depth.initializer(net), apply)
    return soft_depth.in_order(estimator, config.frame_order)
