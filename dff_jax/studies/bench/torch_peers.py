"""DFV in PyTorch, written from the paper and its published layout, to be timed beside ours.

Only this file of the package needs PyTorch at its import. `state_dict` keys are the published ones, so that the same
weights run in both.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from dff_jax.errors import InputError

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError:
    raise InputError("bench --against torch: PyTorch is not installed; pip install 'dff-jax[torch]'") from None

SCALE_WEIGHTS = (8 / 15, 4 / 15, 2 / 15, 1 / 15)


def runs(preset: str, shape: tuple[int, int, int], training: bool) -> dict[str, Callable[[], None]]:
    """Calls to time, of a preset that is here: "torch_inference_s" and, with `training`, "torch_step_s".

    They run on the GPU, if there is one, with the channels last in memory.

    Args:
      shape: B, Z and the side of the images.
    """
    if preset not in ("dfv_fv", "dfv_diff"):
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    B, Z, size = shape
    frames = torch.rand(B, Z, 3, size, size, device=device)
    focus = torch.linspace(10.0, 100.0, Z, device=device).expand(B, Z)
    net = DFV(difference=preset == "dfv_diff").to(device)
    if device == "cuda":
        frames = frames.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        net = net.to(memory_format=torch.channels_last)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def infer() -> None:
        net.eval()
        with torch.inference_mode():
            net(frames, focus)
        wait()

    def step() -> None:
        net.train()
        optimizer.zero_grad(set_to_none=True)
        depths = net(frames, focus)
        losses = [w * F.smooth_l1_loss(d, truth) for w, d in zip(SCALE_WEIGHTS, depths, strict=True)]
        torch.stack(losses).sum().backward()
        optimizer.step()
        wait()

    found = {"torch_inference_s": infer}
    if training:
        truth = 10 + 90 * frames[:, 0, 0]
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
        found["torch_step_s"] = step
    for run in found.values():
        run()
    return found


class DFV(nn.Module):
    """Normalised frames [B,Z,3,H,W], H and W multiples of 32, and focus [B,Z] -> depths [B,H,W], finest first.

    Four when training, else one.
    """

    def __init__(self, difference: bool) -> None:
        super().__init__()
        self.difference = difference
        self.feature_extraction = Features()
        self.decoder3 = Decoder(32, 32, None, False)
        self.decoder4 = Decoder(64, 32, 16, False)
        self.decoder5 = Decoder(128, 64, 32, True)
        self.decoder6 = Decoder(128, 128, 64, True)

    def forward(self, frames: Tensor, focus: Tensor) -> list[Tensor]:
        b, z, _, height, width = frames.shape
        features = self.feature_extraction(frames.flatten(0, 1))
        volumes = [f.reshape(b, z, *f.shape[1:]).transpose(1, 2) for f in features]
        if self.difference:
            volumes = [torch.cat([v[:, :, :-1] - v[:, :, 1:], v[:, :, -1:]], 2) for v in volumes]
        scores, up = [], None
        for level in (3, 2, 1, 0):
            volume = volumes[level] if up is None else torch.cat([up, volumes[level]], 1)
            score, up = getattr(self, f"decoder{level + 3}")(volume, self.training or level == 0)
            scores.insert(0, score)
        whole = [F.interpolate(s, (height, width), mode="bilinear") for s in scores if s is not None]
        return [(s.softmax(1) * focus[:, :, None, None]).sum(1) for s in whole]


class Features(nn.Module):
    """ResNet-18, pyramid pooling and a top-down path: [n,3,H,W] -> 16, 32, 64, 128 channels at 1/4 to 1/32."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ResNet18()
        self.pyramid_pooling = PyramidPooling(512)
        for level, wide, out in ((5, 512, 256), (4, 256, 128), (3, 128, 64)):
            up = nn.Sequential(nn.Upsample(scale_factor=2), _conv_unit(wide, out, 3))
            setattr(self, f"upconv{level + 1}", up)
            setattr(self, f"iconv{level}", _conv_unit(2 * out, out, 3))
        for level, wide, out in ((6, 512, 128), (5, 256, 64), (4, 128, 32), (3, 64, 16)):
            setattr(self, f"proj{level}", _conv_unit(wide, out, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = self.encoder(x)
        x = self.pyramid_pooling(levels[3])
        found = [self.proj6(x)]
        for level in (5, 4, 3):
            up = getattr(self, f"upconv{level + 1}")(x)
            x = getattr(self, f"iconv{level}")(torch.cat([levels[level - 3], up], 1))
            found.insert(0, getattr(self, f"proj{level}")(x))
        return found


class ResNet18(nn.Module):
    """Torchvision's layout, with its classifier, which nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        for i, (wide, out, stride) in enumerate(((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))):
            setattr(self, f"layer{i + 1}", nn.Sequential(BasicBlock(wide, out, stride), BasicBlock(out, out, 1)))
        self.fc = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            levels.append(layer(levels[-1]))
        return levels[1:]


class BasicBlock(nn.Module):
    def __init__(self, wide: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        shortcut = nn.Sequential(nn.Conv2d(wide, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.downsample = nn.Identity() if stride == 1 else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.downsample(x))


def _conv_unit(wide: int, out: int, kernel: int) -> nn.Module:
    conv = nn.Conv2d(wide, out, kernel, 1, kernel // 2, bias=False)
    unit = nn.Sequential(conv, nn.BatchNorm2d(out), nn.LeakyReLU(0.1))
    return nn.Sequential(OrderedDict(cbr_unit=unit))


def _pool(x: Tensor, branches: list[nn.Module], average: Callable[..., Tensor], mode: str) -> Tensor:
    """`x` and what four branches make of its means over ever smaller windows."""
    size, total = x.shape[2:], 0.0
    for i, branch in enumerate(branches):
        bins = int(1 + i * (min(size) // 2 - 1) / 3 + 1e-6)
        window = [n // bins for n in size]
        total = total + F.interpolate(branch(average(x, window, window)), size, mode=mode)
    return F.relu((x + 0.25 * total) / 2)


class PyramidPooling(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.path_module_list = nn.ModuleList([_conv_unit(channels, channels, 1) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        return _pool(x, list(self.path_module_list)[::-1], F.avg_pool2d, "bilinear")


def _conv3d(wide: int, out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(wide, out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm3d(out))


class Projection(nn.Module):
    """1x1 over frames and pixels at once, as a 2-D convolution."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide, out, 1, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv1(x.flatten(3))).reshape(x.shape[0], -1, *x.shape[2:])


class Residual3d(nn.Module):
    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.downsample = nn.Identity() if wide == out else Projection(wide, out)
        self.conv1 = _conv3d(wide, out, 3)
        self.conv2 = _conv3d(out, out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.downsample(x))


class Decoder(nn.Module):
    def __init__(self, wide: int, channels: int, up_to: int | None, pool: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(Residual3d(wide, channels), Residual3d(channels, channels))
        head = nn.Sequential(nn.Conv3d(channels, 1, 3, padding=1))
        self.classify = nn.Sequential(_conv3d(channels, channels, 3), nn.ReLU(), head)
        self.pool_convs = nn.ModuleList([_conv3d(channels, channels, 1) for _ in range(4)]) if pool else None
        self.up = None
        if up_to is not None:
            enlarged = nn.Upsample(scale_factor=(1, 2, 2), mode="trilinear")
            self.up = nn.Sequential(enlarged, _conv3d(channels, up_to, 3), nn.ReLU())

    def forward(self, x: Tensor, with_score: bool) -> tuple[Tensor | None, Tensor | None]:
        x = self.convs(x)
        if self.pool_convs is not None:
            x = _pool(x, list(self.pool_convs), F.avg_pool3d, "trilinear")
        score = self.classify(x).squeeze(1) if with_score else None
        return score, None if self.up is None else self.up(x)
