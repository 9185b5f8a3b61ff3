"""DFV-FV and DFV-Diff (Yang, Huang and Zhou, Deep Depth from Focus with Differential Focus Volume, CVPR 2022).

Its parts are those of `network.focus_volume`, which follows it; here each of the four score maps gives a depth of its
own. Presets `dfv_fv`, `dfv_diff`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dff_jax import config as configs
from dff_jax.estimators import soft_depth
from dff_jax.estimators.padding import pad_to_multiple
from dff_jax.network import encoder
from dff_jax.network.encoder import ResNet18
from dff_jax.network.focus_volume import DecoderBlock, TopDown, frame_differences, normalize
from dff_jax.network.layers import channels, resize, torch_leaf
from dff_jax.types import Array, Estimator, Prediction, Variables

# level (1/2^(level + 1)), channels, channels of what goes up, pyramid pooling; coarsest first
PLAN = ((4, 128, 64, True), (3, 64, 32, True), (2, 32, 16, False), (1, 32, None, False))


class DFV(nn.Module):
    """Frames [B,Z,H,W,3] in [0,1], H and W multiples of 32 and at least 64 -> weights of the frames, [B,Z,H,W] each.

    Finest scale first: four when training, else only the finest.
    """

    width: float
    difference: bool  # DFV-Diff
    dtype: str = "float32"  # of the computation

    @nn.compact
    def __call__(self, frames: Array, train: bool) -> list[Array]:
        b, z, h, w, _ = frames.shape
        flat = normalize(frames, "imagenet").astype(self.dtype).reshape(b * z, h, w, 3)
        levels = ResNet18(self.width, "torch_batch", name="encoder")(flat, train)
        top_down = TopDown(self.width, "torch_batch", "pyramid", name="top_down")
        volumes = [v.reshape(b, z, *v.shape[1:]) for v in top_down(levels, train)]
        if self.difference:
            volumes = [frame_differences(v) for v in volumes]
        x, scores = None, []
        every_scale = train or self.is_initializing()
        for level, features, up_to, pool in PLAN:
            volume = volumes[level - 1]
            x = volume if x is None else jnp.concatenate([x, volume], -1)
            block = DecoderBlock(
                channels(features, self.width), up_to and channels(up_to, self.width), pool, "torch_batch",
                name=f"decoder{level}",
            )  # fmt: skip
            score, x = block(x, train, every_scale or level == 1)
            scores.insert(0, score)
        found = [s.astype(jnp.float32)[..., None] for s in scores if s is not None]
        return [nn.softmax(resize(s, h, w)[..., 0], axis=1) for s in found]


def dfv(config: configs.DFV) -> Estimator:
    """The estimator of `config`; see `estimators.build`.

    When training it answers at four scales (the finest is the answer), otherwise at the finest alone.
    """
    net = DFV(config.width, config.volume == "diff", config.dtype)

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, Any]:
        weights, stats = soft_depth.run(net, variables, pad_to_multiple(frames, mode="reflect"), train)
        return soft_depth.answer(frames, focus, weights, config.in_metres), stats

    estimator = Estimator(soft_depth.initializer(net, num_frames=2, side=64), apply)
    return soft_depth.in_order(estimator, config.frame_order)


TORCH_IDLE = r"feature_extraction\.encoder\.fc\.(weight|bias)"  # published keys that the network never uses


def torch_key(path: str) -> str:
    """Where the published code keeps a variable: "params/decoder4/Residual3d_0/Conv3d_0/kernel" ->
    "decoder6.convs.0.conv1.0.weight".
    """
    kind, part, *rest = path.split("/")
    leaf = torch_leaf(rest[-1])
    if part == "encoder":
        return "feature_extraction.encoder." + encoder.torch_key("/".join([kind, *rest]))
    if part == "top_down":
        return f"feature_extraction.{_BRANCHES[rest[0]]}.cbr_unit.{int(rest[1].startswith('Norm'))}.{leaf}"
    level = int(part.removeprefix("decoder"))
    module, *inner = rest[:-1]
    if module.startswith("Residual3d"):
        return f"decoder{level + 2}.convs.{module[-1]}.{_RESIDUAL[inner[0]]}.{leaf}"
    return f"decoder{level + 2}.{_decoder_modules(pool=level > 2)[module]}.{leaf}"


_BRANCHES = {f"pool{i}": f"pyramid_pooling.path_module_list.{i}" for i in range(4)}
_BRANCHES |= {f"up{level}": f"upconv{level + 3}.1" for level in (1, 2, 3)}
_BRANCHES |= {f"merge{level}": f"iconv{level + 2}" for level in (1, 2, 3)}
_BRANCHES |= {f"project{level}": f"proj{level + 2}" for level in (1, 2, 3, 4)}
_RESIDUAL = {
    "Conv3d_0": "conv1.0", "Norm_0": "conv1.1", "Conv3d_1": "conv2.0", "Norm_1": "conv2.1",
    "Conv3d_2": "downsample.conv1", "Norm_2": "downsample.bn",
}  # fmt: skip


def _decoder_modules(pool: bool) -> dict[str, str]:
    """Names in the order in which DecoderBlock makes its modules: the pooling branches, if any, come first."""
    branches = [f"pool_convs.{i}" for i in range(4)] if pool else []
    convs = [*(f"{branch}.0" for branch in branches), "classify.0.0", "classify.2.0", "up.1.0"]
    norms = [*(f"{branch}.1" for branch in branches), "classify.0.1", "up.1.1"]
    return {f"Conv3d_{i}": name for i, name in enumerate(convs)} | {f"Norm_{i}": name for i, name in enumerate(norms)}
