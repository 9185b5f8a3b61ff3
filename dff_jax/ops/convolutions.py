"""Convolutions and poolings, each in the form that is quickest on the device. Volumes are [B,Z,H,W,C]."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from dff_jax.types import Array

_NHWC = ("NHWC", "HWIO", "NHWC")
_AT_ONCE = 2**20  # numbers; larger batches are processed image by image
_UNIT = ("lhs_dilation", "rhs_dilation")
_NDHWC = ("NDHWC", "DHWIO", "NDHWC")


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_by_products(x: Array, kernel: Array, stride: int, padding: tuple[tuple[int, int], ...]) -> Array:
    """Convolution [B,H,W,C] by [ky,kx,C,O] whose kernel gradient is a few matrix products.

    XLA's own kernel gradient on CPU is 2 to 8 times slower: of wide layers, too, and of strided ones.
    """
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_NHWC)


def _forward(x: Array, kernel: Array, stride: int, padding: tuple[tuple[int, int], ...]):
    return conv_by_products(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: tuple[tuple[int, int], ...], saved: tuple[Array, Array], g: Array):
    x, kernel = saved
    conv = lambda x: lax.conv_general_dilated(  # noqa: E731
        x, kernel, (stride, stride), padding, dimension_numbers=_NHWC
    )
    (dx,) = jax.linear_transpose(conv, x)(g)
    ky, kx, c, out = kernel.shape
    h, w = g.shape[1:3]
    if stride == 1 and 2 * out <= c and (ky, kx) == (3, 3) and padding == ((1, 1), (1, 1)):
        # few outputs: their nine shifts side by side are less to copy than nine shifts of the inputs
        padded = jnp.pad(g, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [padded[:, 2 - i : 2 - i + h, 2 - j : 2 - j + w] for i in range(3) for j in range(3)]
        columns = jnp.concatenate(shifted, -1).reshape(-1, 9 * out)
        dkernel = (x.reshape(-1, c).T @ columns).reshape(c, 3, 3, out)
        return dx, jnp.transpose(dkernel, (1, 2, 0, 3))
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))

    def taps(padded: Array, g: Array) -> Array:
        def tap(i: int, j: int) -> Array:
            seen = padded[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]
            return seen.reshape(-1, c).T @ g.reshape(-1, out)

        return jnp.stack([jnp.stack([tap(i, j) for j in range(kx)]) for i in range(ky)])

    # with several devices a scan over the batch would fetch the images of the others
    if jax.device_count() > 1 or max(x.size, g.size) < _AT_ONCE:
        return dx, taps(padded, g)
    # image by image, what the taps share stays in the processor's cache
    add = lambda total, one: (total + taps(*(a[None] for a in one)), None)  # noqa: E731
    return dx, lax.scan(add, jnp.zeros((ky, kx, c, out), jnp.result_type(x, g)), (padded, g))[0]


conv_by_products.defvjp(_forward, _backward)


def conv_upsampled(x: Array, kernel: Array) -> Array:
    """SAME 3x3 convolution of [B,H,W,C] enlarged to twice its size by repetition: [B,2H,2W,O].

    Each of the four phases of the result sees only 2 x 2 pixels of x: four ninths of the multiplications.
    """
    b, h, w, c = x.shape
    out = kernel.shape[-1]

    def phases(k: Array) -> Array:  # [3,...] -> [tap,phase,...]: phase 0 sees x[i-1], x[i]; phase 1 x[i], x[i+1]
        return jnp.stack([jnp.stack([k[0], k[0] + k[1]]), jnp.stack([k[1] + k[2], k[2]])])

    by_row = phases(kernel)  # [tap,phase,3,C,O]
    both = phases(jnp.moveaxis(by_row, 2, 0))  # [tap,phase] of columns, [tap,phase] of rows, C, O
    small = jnp.transpose(both, (2, 0, 4, 3, 1, 5)).reshape(2, 2, c, 4 * out)
    y = jnp.reshape(conv_by_products(x, small, 1, ((1, 1), (1, 1))), (b, h + 1, w + 1, 2, 2, out))
    rows = [jnp.stack([y[:, p : p + h, q : q + w, p, q] for q in range(2)], 3) for p in range(2)]
    return jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, out)


def upsampled_conv_general(x: Array, kernel: Array, strides, padding, **options) -> Array:
    """`conv_general` of x [B,H,W,C] enlarged to twice H and W by repetition, by phases on CPU; 3x3 and SAME."""
    if jax.default_backend() == "cpu":
        return conv_upsampled(x, kernel)
    return conv_general(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2), kernel, strides, padding, **options)


def conv_general(x: Array, kernel: Array, strides, padding, **options) -> Array:
    """`lax.conv_general_dilated`; by `conv_by_products` on CPU, where that computes the same."""
    plain = options.keys() <= {"dimension_numbers", "precision", "feature_group_count", *_UNIT}
    plain &= all(options.get(name) is None or set(options[name]) == {1} for name in _UNIT)
    plain &= options.get("feature_group_count", 1) == 1 and options.get("precision") is None and x.ndim == 4
    square = len(set(strides)) == 1 and not isinstance(padding, str)
    if jax.default_backend() == "cpu" and plain and square and kernel.shape[:2] != (1, 1):
        return conv_by_products(x, kernel, int(strides[0]), tuple(tuple(map(int, p)) for p in padding))
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def conv3d(x: Array, kernel: Array, stride: int = 1, dilation: int = 1) -> Array:
    """Convolution of [B,Z,H,W,C] by [kz,ky,kx,C,O], kernels odd, padded with zeros as for an output of the same size.

    Args:
      stride: of H and W, which must be multiples of it.
      dilation: of ky and kx.
    """
    if kernel.shape[:3] == (1, 1, 1) and stride == 1:
        return jnp.einsum("bzhwc,cf->bzhwf", x, kernel[0, 0, 0])
    if jax.default_backend() == "cpu":
        return conv3d_by_slices(x, kernel, stride, dilation)
    return conv3d_by_lax(x, kernel, stride, dilation)


def conv3d_by_lax(x: Array, kernel: Array, stride: int = 1, dilation: int = 1) -> Array:
    """`conv3d` by XLA's own convolution: the plain form."""
    by_axis = (1, dilation, dilation)
    padding = [(d * (k // 2), d * (k // 2)) for k, d in zip(kernel.shape[:3], by_axis, strict=True)]
    return lax.conv_general_dilated(
        x, kernel, (1, stride, stride), padding, rhs_dilation=by_axis, dimension_numbers=_NDHWC
    )


def conv3d_by_slices(x: Array, kernel: Array, stride: int = 1, dilation: int = 1) -> Array:
    """`conv3d` by 2-D convolutions: for 3x3x3 three of them, else one over kz neighbouring slices, concatenated.

    The same sum in another order: on CPU several times faster for 3x3x3, and fifty times for the gradient of 7x7x7.
    """
    b, z, h, w, _ = x.shape
    if dilation > 1 and stride == 1 and h % dilation == w % dilation == 0:
        # the pixels that a dilated kernel reads form a smaller image, which is quicker
        d = dilation
        parts = jnp.moveaxis(x.reshape(b, z, h // d, d, w // d, d, -1), (3, 5), (0, 1))
        y = conv3d_by_slices(parts.reshape(d * d * b, *parts.shape[3:]), kernel)
        return jnp.moveaxis(y.reshape(d, d, b, *y.shape[1:]), (0, 1), (3, 5)).reshape(b, z, h, w, -1)
    if kernel.shape[:3] == (3, 3, 3) and stride == dilation == 1:
        return _conv3d_by_taps(x, kernel)
    ky, kx, out = kernel.shape[1], kernel.shape[2], kernel.shape[-1]
    slices = _neighbouring_slices(x, kernel.shape[0])
    flat = jnp.moveaxis(kernel, 0, 2).reshape(ky, kx, -1, out)
    padding = [(dilation * (k // 2), dilation * (k // 2)) for k in (ky, kx)]
    if ky == kx == stride == 1:
        y = slices @ flat[0, 0]
    elif dilation == 1:
        y = conv_general(slices, flat, (stride, stride), padding, dimension_numbers=_NHWC)
    else:
        rhs = (dilation, dilation)
        y = lax.conv_general_dilated(slices, flat, (stride, stride), padding, rhs_dilation=rhs, dimension_numbers=_NHWC)
    return y.reshape(b, z, *y.shape[1:])


def _conv3d_by_taps(x: Array, kernel: Array) -> Array:
    """`conv3d` by [3,3,3,C,O] as the sum of three 2-D convolutions, one for each of the slices that a slice sees.

    Nothing is copied, which of few channels is most of the work; for very few outputs the three are one convolution.
    """
    b, z, h, w, c = x.shape
    out = kernel.shape[-1]
    flat = x.reshape(b * z, h, w, c)
    conv = lambda k: conv_general(flat, k, (1, 1), [(1, 1), (1, 1)], dimension_numbers=_NHWC)  # noqa: E731
    if out < 32:
        y = conv(jnp.moveaxis(kernel, 0, 3).reshape(3, 3, c, 3 * out)).reshape(b, z, h, w, 3, out)
        before, here, after = (y[..., i, :] for i in range(3))
    else:
        before, here, after = (conv(k).reshape(b, z, h, w, out) for k in kernel)
    shift = lambda y, d: jnp.pad(y, ((0, 0), (max(d, 0), max(-d, 0)), *((0, 0),) * 3))  # noqa: E731
    return here + shift(before[:, :-1], 1) + shift(after[:, 1:], -1)


def conv_transpose3d(x: Array, kernel: Array) -> Array:
    """Transposed convolution of [B,Z,H,W,C] by [kz,ky,kx,O,C] to [B,Z,2H,2W,O].

    PyTorch's with stride (1,2,2), padding (kz // 2, 1, 1) and an output padding that gives twice the size: 0 for
    ky = kx = 4, 1 for 3.
    """
    if jax.default_backend() == "cpu":
        return conv_transpose3d_by_slices(x, kernel)
    return conv_transpose3d_by_lax(x, kernel)


def conv_transpose3d_by_lax(x: Array, kernel: Array) -> Array:
    """`conv_transpose3d` by XLA's own convolution: the plain form."""
    kz, *k = kernel.shape[:3]
    padding = [(kz // 2, kz // 2)] + [(n - 2, 2) for n in k]
    mirrored = jnp.flip(kernel, (0, 1, 2)).swapaxes(3, 4)
    return lax.conv_general_dilated(
        x, mirrored, (1, 1, 1), padding, lhs_dilation=(1, 2, 2), dimension_numbers=_NDHWC
    )


def conv_transpose3d_by_slices(x: Array, kernel: Array) -> Array:
    """`conv_transpose3d` as one 2-D transposed convolution over kz neighbouring slices."""
    b, z = x.shape[:2]
    kz, ky, kx, out, _ = kernel.shape
    flat = jnp.moveaxis(jnp.flip(kernel, (0, 1, 2)).swapaxes(3, 4), 0, 2).reshape(ky, kx, -1, out)
    y = lax.conv_general_dilated(
        _neighbouring_slices(x, kz), flat, (1, 1), [(ky - 2, 2), (kx - 2, 2)], lhs_dilation=(2, 2),
        dimension_numbers=_NHWC,
    )  # fmt: skip
    return y.reshape(b, z, *y.shape[1:])


def _neighbouring_slices(x: Array, count: int) -> Array:
    """[B,Z,H,W,C] -> [B*Z,H,W,count*C]: each slice with those around it, zeros beyond the ends."""
    b, z, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (count // 2, count // 2), (0, 0), (0, 0), (0, 0)))
    return jnp.concatenate([padded[:, i : i + z] for i in range(count)], -1).reshape(b * z, h, w, -1)


def max_pool3d(x: Array, window: tuple[int, int, int], stride: int = 1) -> Array:
    """Max-pooling of [B,Z,H,W,C], with `stride` along H and W; odd windows are padded by their half, even ones not.

    As maxima of shifted slices, whose gradient is many times quicker than XLA's own; as there, of equal values the
    first in row order gets it.
    """
    for axis, size in ((3, window[2]), (2, window[1]), (1, window[0])):
        step = stride if axis > 1 else 1
        count = x.shape[axis] // step
        pad = [(size // 2, size // 2) if size % 2 and a == axis else (0, 0) for a in range(5)]
        padded = jnp.pad(x, pad, constant_values=-jnp.inf)
        x = lax.slice_in_dim(padded, 0, step * (count - 1) + 1, step, axis)
        for i in range(1, size):
            shifted = lax.slice_in_dim(padded, i, i + step * (count - 1) + 1, step, axis)
            x = jnp.where(x >= shifted, x, shifted)
    return x
