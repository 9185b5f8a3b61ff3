"""Small layers shared by the network. Everything is channel-last; volumes are [B,Z,H,W,C]."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

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


def channels(count: int, width: float) -> int:
    """A channel count scaled by the width multiplier, at least 4."""
    return max(4, round(count * width))


def resize(x: Array, height: int, width: int) -> Array:
    """Bilinear, half-pixel centres, no anti-aliasing: [...,h,w,C] -> [...,height,width,C]."""
    if x.shape[-3:-1] == (height, width):
        return x
    return jax.image.resize(x, (*x.shape[:-3], height, width, x.shape[-1]), "bilinear", antialias=False)


_NHWC = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def narrow_conv(x: Array, kernel: Array) -> Array:
    """SAME 3x3 convolution [B,H,W,C] by [3,3,C,O] whose kernel gradient is one matrix product.

    XLA's own kernel gradient is 3 to 6 times slower on CPU when C O is small and the image large.
    """
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_NHWC)


def _narrow_forward(x: Array, kernel: Array):
    return narrow_conv(x, kernel), (x, kernel)


def _narrow_backward(saved: tuple[Array, Array], g: Array):
    x, kernel = saved
    b, h, w, c = x.shape
    dx = lax.conv_general_dilated(
        g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), (1, 1), "SAME", dimension_numbers=_NHWC
    )
    padded = jnp.pad(g, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, 2 - i : 2 - i + h, 2 - j : 2 - j + w] for i in range(3) for j in range(3)]
    columns = jnp.concatenate(shifted, -1).reshape(b * h * w, -1)
    dkernel = (x.reshape(b * h * w, c).T @ columns).reshape(c, 3, 3, -1)
    return dx, jnp.transpose(dkernel, (1, 2, 0, 3))


narrow_conv.defvjp(_narrow_forward, _narrow_backward)


def conv_general(x: Array, kernel: Array, strides, padding, **options) -> Array:
    """`lax.conv_general_dilated`, by `narrow_conv` where that is the same and quicker."""
    same = all(tuple(p) == (1, 1) for p in padding) and all(s == 1 for s in strides)
    narrow = kernel.shape[:2] == (3, 3) and kernel.shape[2] * kernel.shape[3] < 1024
    if jax.default_backend() == "cpu" and same and narrow and x.ndim == 4:
        return narrow_conv(x, kernel)
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


class Conv(nn.Module):
    """2-D convolution of [..., H, W, C], padded by kernel // 2 on each side (as PyTorch's)."""

    features: int
    kernel: int = 3
    stride: int = 1
    use_bias: bool = True
    kernel_init: Callable = torch_default
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Conv(
            self.features, (self.kernel, self.kernel), (self.stride, self.stride), padding=self.kernel // 2,
            use_bias=self.use_bias, kernel_init=self.kernel_init, bias_init=self.bias_init,
            conv_general_dilated=conv_general,
        )(x)  # fmt: skip


class Conv3d(nn.Module):
    """k x k x k convolution over (Z, H, W) of [B,Z,H,W,C] with a kernel [k,k,k,C,features], slice axis first.

    On CPU it is lowered as one 2-D convolution over the k neighbouring slices, concatenated on channels: the same
    sum in another order, several times faster there.
    """

    features: int
    kernel: int = 3
    use_bias: bool = False
    kernel_init: Callable = he_fan_out

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, c = self.kernel, x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (k, k, k, c, self.features))
        if k == 1:
            y = jnp.einsum("bzhwc,cf->bzhwf", x, kernel[0, 0, 0])
        elif jax.default_backend() == "cpu":
            y = conv3d_by_slices(x, kernel)
        else:
            y = lax.conv_general_dilated(
                x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
            )
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).reshape((1,) * 4 + (-1,))
        return y


def conv3d_by_slices(x: Array, kernel: Array) -> Array:
    """SAME 3-D convolution of [B,Z,H,W,C] by [k,k,k,C,O] as one 2-D convolution over k slices on channels."""
    b, z, h, w, c = x.shape
    k, out = kernel.shape[0], kernel.shape[-1]
    padded = jnp.pad(x, ((0, 0), (k // 2, k // 2), (0, 0), (0, 0), (0, 0)))
    slices = jnp.concatenate([padded[:, i : i + z] for i in range(k)], -1).reshape(b * z, h, w, k * c)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(k, k, k * c, out)
    y = conv_general(slices, flat, (1, 1), [(k // 2, k // 2)] * 2, dimension_numbers=_NHWC)
    return y.reshape(b, z, h, w, out)


class TorchBatchNorm(nn.Module):
    """BatchNorm over all axes but the last as PyTorch's, whose running variance is the unbiased one (flax: the biased).

    For the compared networks: where a pooled map leaves few values, the two differ by up to a factor of 2.
    """

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        features = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        mean, var = running_mean.value, running_var.value
        if train:
            def over_batch(values):
                found = values.mean(tuple(range(x.ndim - 1)))
                return lax.pmean(found, self.axis_name) if self.axis_name else found

            mean = over_batch(x)
            var = over_batch(jnp.square(x - mean.reshape((1,) * (x.ndim - 1) + (-1,))))
            if not self.is_initializing():
                count = x.size // x.shape[-1] * (lax.axis_size(self.axis_name) if self.axis_name else 1)
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                running_var.value = 0.9 * running_var.value + 0.1 * var * (count / max(count - 1, 1))
        gain = scale * lax.rsqrt(var + 1e-5)
        to_x = (1,) * (x.ndim - 1) + (-1,)
        return x * gain.reshape(to_x) + (bias - mean * gain).reshape(to_x)


class Norm(nn.Module):
    """BatchNorm (PyTorch's momentum and epsilon), or GroupNorm with up to 8 groups."""

    kind: str  # "batch", "torch_batch" or "group"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.kind == "group":
            return nn.GroupNorm(num_groups=math.gcd(8, x.shape[-1]), epsilon=1e-5)(x)
        if self.kind == "torch_batch":
            return TorchBatchNorm(self.axis_name)(x, train)
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=1e-5, axis_name=self.axis_name
        )(x)


class ConvNormAct(nn.Module):
    """Convolution without bias, norm, LeakyReLU(0.1): DFV's building block."""

    features: int
    kernel: int = 3
    norm: str = "batch"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = Conv(self.features, self.kernel, use_bias=False)(x)
        return nn.leaky_relu(Norm(self.norm, self.axis_name)(x, train), 0.1)


def pool_bins(*lengths: int) -> list[int]:
    """DFV's pyramid: four bin counts, linspace(1, min(lengths) // 2, 4) rounded down."""
    most = min(lengths) // 2
    return [int(1 + i * (most - 1) / 3 + 1e-6) for i in range(4)]


def average_pool(x: Array, window: tuple[int, ...]) -> Array:
    """VALID average pooling with stride = window over the axes before the channels."""
    return nn.avg_pool(x, window, strides=window)
