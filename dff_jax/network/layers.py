"""Small layers shared by the network. Everything is channel-last; volumes are [B,Z,H,W,C].

A layer computes in the type of its input; parameters and the statistics of norms are float32 whatever that is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dff_jax.ops.convolutions import conv3d, conv_general, conv_transpose3d, upsampled_conv_general
from dff_jax.ops.resize import enlarge_axis
from dff_jax.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.1),
    "silu": nn.silu,
}

# PyTorch's default for convolutions, U(-1/sqrt(fan_in), 1/sqrt(fan_in)); He's for what a
# ReLU follows: without norms in between, PyTorch's default leaves 5e-5 of a signal after ten 8-channel layers (He: 0.4)
torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def he_beside(own: int, beside: int) -> Callable:
    """`he_fan_in` for a kernel over `own` channels whose output is added to that of another over `beside` channels."""
    return nn.initializers.variance_scaling(2.0 * own / (own + beside), "fan_in", "truncated_normal")



DEVICE_AXIS = "devices"
"""The axis over which `jax.pmap` splits a batch in training: norms average over it where it is bound."""


def device_axis() -> str | None:
    """DEVICE_AXIS inside a function that is mapped over it; None elsewhere: jit sees the whole batch."""
    try:
        lax.axis_size(DEVICE_AXIS)
    except NameError:
        return None
    return DEVICE_AXIS


def apply(module: nn.Module, params: Mapping[str, Any], *inputs: Any) -> Any:
    """What the module gives with these parameters."""
    return module.apply({"params": params}, *inputs)


def torch_bias(fan_in: int) -> Callable:
    """PyTorch's default for the biases of convolutions: as for their kernels."""

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / math.sqrt(fan_in)

    return init


def channels(count: int, width: float) -> int:
    """A channel count scaled by the width multiplier, at least 4."""
    return max(4, round(count * width))


def resize(x: Array, height: int, width: int) -> Array:
    """Bilinear, half-pixel centres, no anti-aliasing: [...,h,w,C] -> [...,height,width,C]."""
    if x.shape[-3:-1] == (height, width):
        return x
    h, w = x.shape[-3:-1]
    if height % h == width % w == 0 and max(height // h, width // w) <= 4:  # else the matrices are quicker
        return enlarge_axis(enlarge_axis(x, height // h, x.ndim - 3), width // w, x.ndim - 2)
    return jax.image.resize(x, (*x.shape[:-3], height, width, x.shape[-1]), "bilinear", antialias=False)


class _KernelAndBias(nn.Module):
    """The arrays of a convolution, under the names that flax's own gives them."""

    shape: tuple[int, int, int, int]
    use_bias: bool
    kernel_init: Callable
    bias_init: Callable

    @nn.compact
    def __call__(self) -> tuple[Array, Array | None]:
        kernel = self.param("kernel", self.kernel_init, self.shape)
        return kernel, self.param("bias", self.bias_init, self.shape[-1:]) if self.use_bias else None


class Conv(nn.Module):
    """2-D convolution of [..., H, W, C], padded by kernel // 2 on each side (as PyTorch's).

    Several arrays are convolved as if they lay side by side, in the type of the first. With `upsample` (3x3, stride 1,
    no bias) the image is enlarged to twice the size by repetition first.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    use_bias: bool = True
    kernel_init: Callable = torch_default
    bias_init: Callable = nn.initializers.zeros
    upsample: bool = False

    @nn.compact
    def __call__(self, *parts: Array) -> Array:
        parts = tuple(x.astype(parts[0].dtype) for x in parts)
        if len(parts) > 1 and jax.default_backend() != "cpu":
            parts = (jnp.concatenate(parts, -1),)
        shape = (self.kernel, self.kernel, sum(x.shape[-1] for x in parts), self.features)
        kernel, bias = _KernelAndBias(shape, self.use_bias, self.kernel_init, self.bias_init, name="Conv_0")()
        ends = np.cumsum([x.shape[-1] for x in parts])[:-1]
        # conv(cat(a, b)) = conv(a) + conv(b): on CPU, laying channels side by side costs more than convolving them
        first, *others = (self._convolve(x, own) for x, own in zip(parts, jnp.split(kernel, ends, 2), strict=True))
        y = sum(others, first)
        return y if bias is None else y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))

    def _convolve(self, x: Array, kernel: Array) -> Array:
        general = upsampled_conv_general if self.upsample else conv_general
        y = general(
            x.reshape(-1, *x.shape[-3:]), kernel.astype(x.dtype), (self.stride,) * 2, [(self.kernel // 2,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return y.reshape(*x.shape[:-3], *y.shape[1:])


class Conv3d(nn.Module):
    """k x k x k convolution over (Z, H, W) of [B,Z,H,W,C] with a kernel [k,k,k,C,features], slice axis first.

    `kernel` may differ by axis; `stride` and `dilation` are those of H and W. See `conv3d`.
    """

    features: int
    kernel: int | tuple[int, int, int] = 3
    use_bias: bool = False
    kernel_init: Callable = he_fan_out
    bias_init: Callable = nn.initializers.zeros
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = (self.kernel,) * 3 if isinstance(self.kernel, int) else self.kernel
        kernel = self.param("kernel", self.kernel_init, (*size, x.shape[-1], self.features))
        y = conv3d(x, kernel.astype(x.dtype), self.stride, self.dilation)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            y = y + bias.astype(x.dtype).reshape((1,) * 4 + (-1,))
        return y


class ConvTranspose3d(nn.Module):
    """Transposed convolution to twice H and W, kernel [kz,ky,kx,features,C] (PyTorch's axes); see `conv_transpose3d`.

    Both inits follow PyTorch's default, whose fan-in is counted over `features`.
    """

    features: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", torch_default, (*self.kernel, self.features, x.shape[-1]))
        y = conv_transpose3d(x, kernel.astype(x.dtype))
        if self.use_bias:
            init = torch_bias(math.prod(self.kernel) * self.features)
            y = y + self.param("bias", init, (self.features,)).astype(x.dtype).reshape((1,) * 4 + (-1,))
        return y


def torch_leaf(leaf: str) -> str:
    """PyTorch's name of a layer's own array: "kernel" and "scale" are its weight, "mean" its running mean."""
    return {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(leaf, leaf)


def torch_name(path: str) -> str:
    """"params/a/b.0/kernel" -> "a.b.0.weight": for networks whose modules are named as PyTorch's are."""
    _, *modules, leaf = path.split("/")
    return ".".join([*modules, torch_leaf(leaf)])


class TorchBatchNorm(nn.Module):
    """BatchNorm over all axes but the last as PyTorch's, whose running variance is the unbiased one (flax: the biased).

    For preset `paper` and the compared networks: where a pooled map leaves few values, the two differ by up to a factor
    of 2.
    """


    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        features = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        mean, var = running_mean.value, running_var.value
        if train:
            axis = device_axis()

            def over_batch(values):
                found = values.astype(jnp.float32).mean(tuple(range(x.ndim - 1)))
                return lax.pmean(found, axis) if axis else found

            mean = over_batch(x)
            var = over_batch(jnp.square(x.astype(jnp.float32) - mean.reshape((1,) * (x.ndim - 1) + (-1,))))
            if not self.is_initializing():
                count = x.size // x.shape[-1] * (lax.axis_size(axis) if axis else 1)
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                running_var.value = 0.9 * running_var.value + 0.1 * var * (count / max(count - 1, 1))
        gain = scale * lax.rsqrt(var + 1e-5)
        to_x = (1,) * (x.ndim - 1) + (-1,)
        return (x * gain.reshape(to_x) + (bias - mean * gain).reshape(to_x)).astype(x.dtype)


class Norm(nn.Module):
    """BatchNorm (PyTorch's momentum and epsilon), or GroupNorm with up to 8 groups."""

    kind: str  # "batch", "torch_batch" or "group"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.kind == "group":
            return nn.GroupNorm(num_groups=math.gcd(8, x.shape[-1]), epsilon=1e-5, dtype=x.dtype)(x)
        if self.kind == "torch_batch":
            return TorchBatchNorm()(x, train)
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=1e-5, axis_name=device_axis(), dtype=x.dtype
        )(x)


class ConvNormAct(nn.Module):
    """Convolution without bias, norm, LeakyReLU(0.1): DFV's building block."""

    features: int
    kernel: int = 3
    norm: str = "batch"
    upsample: bool = False  # to twice the size first, by repetition

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = Conv(self.features, self.kernel, use_bias=False, upsample=self.upsample)(x)
        return nn.leaky_relu(Norm(self.norm)(x, train), 0.1)
