"""A plain convolutional prox: the smallest network that can stand in for the gated U-Net (18-25)."""

from __future__ import annotations

import flax.linen as nn

from dff_jax.config import Proximal
from dff_jax.network.layers import ACTIVATIONS, Conv, channels, he_fan_in, torch_default
from dff_jax.types import Array


class ResidualCnn(nn.Module):
    """z [B,H,W,c] -> correction or depth [B,H,W]: three activated 3x3 convolutions of 32, then one of 1.

    As in DnCNN (Zhang et al., TIP 2017) it predicts what to add (prox_output="residual"), but without norms, as one set
    of weights serves iterations whose inputs differ. It sees 9 x 9 pixels.
    """

    config: Proximal

    @nn.compact
    def __call__(self, z: Array) -> Array:
        c = self.config
        x = z
        for _ in range(3):
            x = ACTIVATIONS[c.activation](Conv(channels(32, c.head_width), kernel_init=he_fan_in)(x))
        last = nn.initializers.zeros if c.prox_output == "residual" else torch_default
        return Conv(1, kernel_init=last, name="output")(x)[..., 0]
