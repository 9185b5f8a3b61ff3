"""The gated proximal network (18-25): a U-Net with attention gates on its skips. One set of weights serves all
iterations, so there are no normalisation layers inside."""

from __future__ import annotations

import flax.linen as nn
import jax

from dff_jax.config import Proximal
from dff_jax.network.layers import ACTIVATIONS, Conv, channels, he_fan_in, resize, torch_default
from dff_jax.types import Array


class DoubleConv(nn.Module):
    """phi: two activated 3x3 convolutions of the parts side by side; `heard` is added to what the first one says."""

    features: int
    activation: str

    @nn.compact
    def __call__(self, *parts: Array, heard: Array | None = None) -> Array:
        x = Conv(self.features, kernel_init=he_fan_in)(*parts)
        x = ACTIVATIONS[self.activation](x if heard is None else x + heard)
        return ACTIVATIONS[self.activation](Conv(self.features, kernel_init=he_fan_in)(x))


class Gate(nn.Module):
    """gate(e, u) = sigmoid(conv1_1(act(conv1(e) + conv1(u)))) * e, inner width C_e / 2 (23); act is the paper's ReLU
    in preset `paper`, elsewhere one that cannot die."""

    activation: str = "relu"

    @nn.compact
    def __call__(self, e: Array, u: Array) -> Array:
        inner = max(1, e.shape[-1] // 2)
        mixed = ACTIVATIONS[self.activation](Conv(inner, 1, name="skip")(e) + Conv(inner, 1, name="up")(u))
        return jax.nn.sigmoid(Conv(1, 1, name="project")(mixed)) * e


class GatedProximalNetwork(nn.Module):
    """z [B,H,W,c] -> correction or depth [B,H,W]. `heard` [B,H,W,n] is the first convolution of further inputs.

    With one level (the paper): e1, e2 at full resolution, e3 at half; d2 and d1 on the way up. Each further level
    of `prox_levels` adds a halving below, for a wider receptive field.
    """

    config: Proximal

    @nn.compact
    def __call__(self, z: Array, heard: Array | None = None) -> Array:
        c = self.config
        block = lambda features, name: DoubleConv(channels(features, c.head_width), c.activation, name=name)  # noqa: E731
        e1 = block(32, "phi1")(z, heard=heard)
        skips = [block(32, "phi2")(e1)]
        for level in range(c.prox_levels):
            pooled = max_pool_2x2(skips[-1])
            skips.append(block(64, f"phi{3 + level}")(pooled))
        x = skips.pop()
        for level, skip in enumerate(reversed(skips)):
            u = resize(x, *skip.shape[1:3])
            features = 32 if level == len(skips) - 1 else 64
            gated = Gate(c.activation, name=f"gate_e{len(skips) + 1 - level}")(skip, u)
            x = block(features, f"phi_d{len(skips) + 1 - level}")(u, gated)
        # e1 and e2 share a resolution, so u1 = d2
        x = block(32, "phi_d1")(x, Gate(c.activation, name="gate_e1")(e1, x))
        last = nn.initializers.zeros if c.prox_output == "residual" else torch_default
        return Conv(1, 1, kernel_init=last, name="output")(x)[..., 0]


def max_pool_2x2(x: Array) -> Array:
    """2x2 max-pooling of [B,H,W,c]; an odd last row or column is pooled on its own."""
    return nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
