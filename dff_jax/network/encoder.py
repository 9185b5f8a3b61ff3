"""Encoder Phi (1): each frame on its own, [n,H,W,3] -> four levels at 1/4, 1/8, 1/16 and 1/32."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from dff_jax.network.layers import Conv, Norm, channels, he_fan_out, torch_leaf
from dff_jax.types import Array


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a skip (He et al., CVPR 2016); the skip is projected when the shape changes."""

    features: int
    stride: int
    norm: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = lambda name: Norm(self.norm, name=name)  # noqa: E731
        conv = lambda kernel, stride, name: Conv(  # noqa: E731
            self.features, kernel, stride, use_bias=False, kernel_init=he_fan_out, name=name
        )
        y = nn.relu(norm("bn1")(conv(3, self.stride, "conv1")(x), train))
        y = norm("bn2")(conv(3, 1, "conv2")(y), train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = norm("downsample_bn")(conv(1, self.stride, "downsample_conv")(x), train)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """ResNet-18 without its classifier; torchvision's layout and names."""

    width: float = 1.0
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, ...]:
        stem = Conv(channels(64, self.width), 7, 2, use_bias=False, kernel_init=he_fan_out, name="conv1")(x)
        x = nn.relu(Norm(self.norm, name="bn1")(stem, train))
        padding: Any = ((1, 1), (1, 1))  # flax takes pairs, too, but its annotation says str
        x = nn.max_pool(x, (3, 3), (2, 2), padding)
        levels = []
        for i, features in enumerate((64, 128, 256, 512)):
            for j in range(2):
                block = BasicBlock(
                    channels(features, self.width), 2 if i and not j else 1, self.norm,
                    name=f"layer{i + 1}_{j}",
                )  # fmt: skip
                x = block(x, train)
            levels.append(x)
        return tuple(levels)


class TinyEncoder(nn.Module):
    """One residual block a level behind a 3x3 stem: the shape of ResNet-18 at a fraction of its cost."""

    width: float = 1.0
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, ...]:
        stem = Conv(channels(32, self.width), 3, 2, use_bias=False, kernel_init=he_fan_out, name="conv1")(x)
        x = nn.relu(Norm(self.norm, name="bn1")(stem, train))
        levels = []
        for i, features in enumerate((64, 128, 256, 512)):
            block = BasicBlock(channels(features, self.width), 2, self.norm, name=f"layer{i + 1}_0")
            x = block(x, train)
            levels.append(x)
        return tuple(levels)


ENCODERS = {"resnet18": ResNet18, "tiny": TinyEncoder}


TORCH_IDLE = r"fc\.(weight|bias)"  # published keys that an encoder does not use


def torch_key(path: str) -> str:
    """Where torchvision and timm keep a variable of ResNet18: "params/layer2_0/downsample_conv/Conv_0/kernel" ->
    "layer2.0.downsample.0.weight".
    """
    _, *modules, _, leaf = path.split("/")
    names = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}
    names |= {f"layer{i}_{j}": f"layer{i}.{j}" for i in range(1, 5) for j in range(2)}
    return ".".join([*(names.get(name, name) for name in modules if name != "TorchBatchNorm_0"), torch_leaf(leaf)])
