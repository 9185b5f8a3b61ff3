"""The forward pass of preset `paper` in NumPy, float64, after the equations of the paper and DFV's description.

It shares no code with the library but the names of the parameters. `fault` plants one of FAULTS, so that a test can
show that it would notice.
"""

from __future__ import annotations

from itertools import product

import numpy as np

FAULTS = (
    "planes from 0", "a gate on the wrong skip", "heads without activation", "inputs of the prox exchanged",
    "a refiner that starts at D(0)", "a bounded step", "a level left out", "the prox sees D(0)",
    "a gate without activation", "pooling without its own branch",
)  # fmt: skip


def relu(x):
    return np.maximum(x, 0)


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def conv(x, kernel, bias=0.0, stride=1):
    """Cross-correlation over the last axes before the channels, zeros outside: [...,c] with [k..,c,n] -> [...,n]."""
    sizes = kernel.shape[:-2]
    first = x.ndim - 1 - len(sizes)
    padded = np.pad(x, [(0, 0)] * first + [(k // 2, k // 2) for k in sizes] + [(0, 0)])
    lengths = [(n - 1) // stride + 1 for n in x.shape[first:-1]]
    total = bias
    for at in product(*map(range, sizes)):
        window = [slice(a, a + (n - 1) * stride + 1, stride) for a, n in zip(at, lengths, strict=True)]
        total = total + padded[(slice(None),) * first + tuple(window)] @ kernel[at]
    return total


def pool(x, windows, mean=np.mean):
    """Over windows side by side on the axes before the channels; what is left over at the end is left out."""
    for axis, window in zip(range(x.ndim - 1 - len(windows), x.ndim - 1), windows, strict=True):
        count = x.shape[axis] // window
        x = np.take(x, range(count * window), axis)
        x = mean(x.reshape(*x.shape[:axis], count, window, *x.shape[axis + 1 :]), axis + 1)
    return x


def enlarge(x, *lengths):
    """Linear interpolation between the centres of pixels, on the last axes before the channels."""
    for axis, length in zip(range(x.ndim - 1 - len(lengths), x.ndim - 1), lengths, strict=True):
        n = x.shape[axis]
        at = np.clip((np.arange(length) + 0.5) * n / length - 0.5, 0, n - 1)
        low = at.astype(int)
        share = (at - low).reshape(-1, *[1] * (x.ndim - 1 - axis))
        x = np.take(x, low, axis) * (1 - share) + np.take(x, np.minimum(low + 1, n - 1), axis) * share
    return x


def paper(weights, frames, num_iterations, regularization=0.1, fault=""):
    """Dbar, candidates, weights, D(0..K) and the refined depth for frames [B,Z,H,W,3] in [0,1].

    Args:
      weights: flat names, joined by "/", and arrays of the library's variables.
    """
    assert fault in ("", *FAULTS)
    weights = {name: np.asarray(x, np.float64) for name, x in weights.items()}

    def layer(name, *parts, stride=1):  # a convolution with its bias, if it has one
        name = f"params/{name}"
        kernel = next(weights[key] for key in (f"{name}/kernel", f"{name}/Conv_0/kernel") if key in weights)
        bias = weights.get(f"{name}/bias", weights.get(f"{name}/Conv_0/bias", 0.0))
        return conv(np.concatenate(parts, -1), kernel, bias, stride)

    def norm(name, x):  # BatchNorm at inference
        scale, bias = (weights[f"params/{name}/TorchBatchNorm_0/{kind}"] for kind in ("scale", "bias"))
        stats = f"batch_stats/{name.removeprefix('volume/')}/TorchBatchNorm_0"
        mean, var = weights[f"{stats}/mean"], weights[f"{stats}/var"]
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    # (1) the encoder: ResNet-18
    B, Z, H, W, _ = frames.shape
    x = 2 * frames.astype(np.float64).reshape(B * Z, H, W, 3) - 1
    x = relu(norm("volume/encoder/bn1", layer("volume/encoder/conv1", x, stride=2)))
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    n = x.shape[1] - 2, x.shape[2] - 2
    x = np.max([x[:, i : i + n[0] : 2, j : j + n[1] : 2] for i, j in product(range(3), repeat=2)], 0)
    levels = []
    for i, j in product(range(1, 5), range(2)):
        at, stride = f"volume/encoder/layer{i}_{j}", 2 if i > 1 and j == 0 else 1
        y = relu(norm(f"{at}/bn1", layer(f"{at}/conv1", x, stride=stride)))
        y = norm(f"{at}/bn2", layer(f"{at}/conv2", y))
        if stride == 2:
            x = norm(f"{at}/downsample_bn", layer(f"{at}/downsample_conv", x, stride=2))
        x = relu(x + y)
        if j == 1:
            levels.append(x)

    # (2, 3) DFV's top-down path, 3-D decoder and four score heads, whose mean is F
    def cbl(name, x):
        y = norm(f"volume/top_down/{name}/Norm_0", layer(f"volume/top_down/{name}/Conv_0", x))
        return np.where(y > 0, y, 0.1 * y)

    def pyramid(x, dims, branch):
        lengths = x.shape[-1 - dims : -1]
        total = 0
        for i, bins in enumerate(np.linspace(1, min(lengths) // 2, 4).astype(int)):
            total = total + enlarge(branch(i, pool(x, [n // bins for n in lengths])), *lengths)
        return relu(((0 if fault == "pooling without its own branch" else x) + 0.25 * total) / 2)

    x = pyramid(levels[3], 2, lambda i, y: cbl(f"pool{3 - i}", y))
    volumes = [cbl("project4", x)]
    for k in (3, 2, 1):
        up = cbl(f"up{k}", x.repeat(2, 1).repeat(2, 2))
        x = cbl(f"merge{k}", np.concatenate([levels[k - 1], up], -1))
        volumes.append(cbl(f"project{k}", x))

    scores, x = [], None
    for level, volume in zip((4, 3, 2, 1), volumes, strict=True):
        volume, at = volume.reshape(B, Z, *volume.shape[1:]), f"volume/decoder{level}"
        x = volume if x is None else np.concatenate([x, volume], -1)

        def cb(i, y, at=at):
            return norm(f"{at}/Norm_{i}", layer(f"{at}/Conv3d_{i}", y))

        for unit in (f"{at}/Residual3d_0", f"{at}/Residual3d_1"):
            y = relu(norm(f"{unit}/Norm_0", layer(f"{unit}/Conv3d_0", x)))
            y = norm(f"{unit}/Norm_1", layer(f"{unit}/Conv3d_1", y))
            if x.shape[-1] != y.shape[-1]:
                x = norm(f"{unit}/Norm_2", layer(f"{unit}/Conv3d_2", x))
            x = relu(x + y)
        branches = 4 if level > 2 else 0
        if branches:
            x = pyramid(x, 3, cb)
        score = layer(f"{at}/Conv3d_{branches + 1}", relu(cb(branches, x)))
        scores.append(enlarge(score, H, W)[..., 0])
        if level > 1:
            x = enlarge(x, 2 * x.shape[2], 2 * x.shape[3])
            x = relu(norm(f"{at}/Norm_{branches + 1}", layer(f"{at}/Conv3d_{branches + 2}", x)))
    if fault == "a level left out":
        scores = scores[1:]
    F = np.moveaxis(np.mean(scores, 0), 1, -1)

    # (4-7, 13, 14) planes 1..C, candidates, attention, D(0)
    planes = np.arange(Z) + (0 if fault == "planes from 0" else 1)
    expected = softmax(F, -1) @ planes

    def head(name):
        act = (lambda x: x) if fault == "heads without activation" else relu
        x = act(layer(f"candidates/{name}/Conv_0", F))
        return layer(f"candidates/{name}/Conv_2", act(layer(f"candidates/{name}/Conv_1", x)))

    D = expected[..., None] + np.concatenate([head(f"residual{i}") for i in range(3)], -1)
    W2 = softmax(head("attention"), -1)
    S, b = W2.sum(-1), (W2 * D).sum(-1)
    iterates = [b / S]

    # (17-25) the proximal network
    def phi(name, x):
        return relu(layer(f"prox/{name}/Conv_1", relu(layer(f"prox/{name}/Conv_0", x))))

    def gate(name, e, u):
        mixed = layer(f"prox/{name}/skip", e) + layer(f"prox/{name}/up", u)
        mixed = mixed if fault == "a gate without activation" else relu(mixed)
        return e / (1 + np.exp(-layer(f"prox/{name}/project", mixed)))

    def prox(moved, eta, before):
        if fault == "inputs of the prox exchanged":
            moved, before = before, moved
        # z = cat(Dtilde, F, eta, lambda, D(k-1)), of which the library has the kernel in two
        maps = np.stack([moved, np.full_like(moved, eta), np.full_like(moved, regularization), before], -1)
        first = layer("prox/phi1/Conv_0", maps) + layer("prox/static", F)
        e1 = relu(layer("prox/phi1/Conv_1", relu(first)))
        e2 = phi("phi2", e1)
        e3 = phi("phi3", pool(e2, (2, 2), np.max))
        u2 = enlarge(e3, *e2.shape[1:3])
        d2 = phi("phi_d2", np.concatenate([u2, gate("gate_e2", e2, u2)], -1))
        skip = e2 if fault == "a gate on the wrong skip" else e1
        d1 = phi("phi_d1", np.concatenate([d2, gate("gate_e1", skip, d2)], -1))
        return layer("prox/output", d1)[..., 0]

    # (9, 12) the iterations
    for k in range(num_iterations):
        eta = np.log1p(np.exp(weights["params/unroll/per_iteration/step_size"][k]))
        eta = eta / (1 + eta) if fault == "a bounded step" else eta
        before = iterates[0 if fault == "the prox sees D(0)" else -1]
        iterates.append(prox(iterates[-1] - eta * (S * iterates[-1] - b), eta, before))

    # (15, 16) the refiner
    depth = iterates[0 if fault == "a refiner that starts at D(0)" else -1]
    x = np.concatenate([depth[..., None], F], -1)
    for i in range(3):
        x = relu(layer(f"refiner/Conv_{i}", x))
    refined = depth + layer("refiner/output", x)[..., 0]
    return {"expected": expected, "candidates": D, "weights": W2, "iterates": np.stack(iterates, 1), "depth": refined}
