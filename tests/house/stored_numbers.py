"""Numbers that a rearrangement of the code must not change: stored once, compared ever after.

    python tests/house/stored_numbers.py            # compares the code with tests/house/stored_numbers.npz
    python tests/house/stored_numbers.py --store    # makes that file anew; only when a number is meant to change
    python tests/house/stored_numbers.py --store paper    # only the section of that name; maps, metrics or a network

Depth and confidence of three procedural stacks by `pretrained`, `classical` and `sml`, to 1e-4 of the focus range; the
loss of ten training steps of six small networks, to 1e-5 of itself; every metric of one evaluation, to 1e-6. Weights
come from a closed formula under the names that they had when the file was made, so that a network whose parameters
were renamed or split is fed through the same migration as a weights file of that time.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import dff_jax
from dff_jax import config, estimators
from dff_jax.config import LossConfig, OptimizerConfig, WorldConfig
from dff_jax.optics.scenes import make_stack
from dff_jax.training import optimizer as optimizers
from dff_jax.training.state import TrainState
from dff_jax.training.step import make_update
from dff_jax.types import Batch

FILE = Path(__file__).with_suffix(".npz")
METHODS = ("pretrained", "classical", "sml")
WORLD = WorldConfig(height=64, width=64, num_frames=7, num_objects=4, max_blur_radius=5, num_layers=12)
LEVELS = 65535  # maps are stored in so many steps of the focus range
BATCH, FRAMES, SIZE, STEPS = 2, 5, 64, 10


def stacks() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Three procedural stacks: frames [Z,H,W,3] uint8, focus [Z] and depth [H,W]."""
    found = []
    for seed in range(3):
        stack = jax.device_get(jax.jit(lambda key: make_stack(key, WORLD))(jax.random.key(seed)))
        frames = np.uint8(np.round(np.clip(stack.frames, 0, 1) * 255))
        found.append((frames, np.asarray(stack.focus, np.float64), np.asarray(stack.depth)))
    return found


def maps(given: list) -> dict[str, np.ndarray]:
    """uint16 depth and confidence of each stack by each method."""
    found = {}
    for method in METHODS:
        how = {"weights": "pretrained"} if method == "pretrained" else {"method": method}
        for i, (frames, focus, _) in enumerate(given):
            result = dff_jax.predict(frames, focus, unit="disparity", **how)
            share = (result.depth - focus.min()) / (focus.max() - focus.min())
            # truth and answers may lie half a range outside
            found[f"depth/{method}/{i}"] = np.uint16(np.round(np.clip((share + 0.5) / 2, 0, 1) * LEVELS))
            found[f"confidence/{method}/{i}"] = np.uint16(np.round(result.confidence * LEVELS))
    return found


def metrics(given: list) -> dict[str, float]:
    """Every number of an evaluation of `pretrained` and its baselines, by its path in metrics.json."""
    with tempfile.TemporaryDirectory() as folder:
        for i, (frames, focus, depth) in enumerate(given):
            scene = Path(folder) / "stacks" / f"scene{i}"
            scene.mkdir(parents=True)
            for frame, value in zip(frames, focus, strict=True):
                Image.fromarray(frame).save(scene / f"{value:.3f}.png")
            np.save(scene / "disp.npy", depth)
        data = config.DataSpec(source=str(Path(folder) / "stacks"))
        report = dff_jax.evaluate_to_folder("pretrained", Path(folder) / "out", data)
    return dict(_numbers({k: v for k, v in report.items() if k not in ("meta", "seconds", "machine", "environment")}))


def _numbers(tree, path=""):
    if isinstance(tree, dict):
        for key, value in tree.items():
            if "seconds" not in key:
                yield from _numbers(value, f"{path}/{key}")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from _numbers(value, f"{path}/{i}")
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield path, float(tree)


def networks() -> dict[str, tuple]:
    """Small networks, each with the loss that it is trained by."""
    scales = lambda n: LossConfig(kind="multi_scale", scale_weights=(1.0,) * n, penalty="smooth_l1")  # noqa: E731
    small = dataclasses.replace
    narrow = {"width": 0.125, "head_width": 0.25, "decoder_width": 0.25}
    return {
        "paper": (small(config.paper(), **narrow), LossConfig(kind="mse_final")),
        "physical": (small(config.physical(), **narrow), LossConfig()),
        "tiny": (config.tiny(), LossConfig()),
        "dfv_diff": (small(config.dfv_diff(), width=0.125), scales(4)),
        "aifdnet": (small(config.AiFDNet(), width=0.125), scales(1)),
        "dwild": (small(config.DWild(), width=0.125), scales(4)),
    }  # fmt: skip


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Closed formula for the arrays named: kernels of about unit gain, scales and variances around 1, biases near 0."""
    found = {}
    for i, (name, shape) in enumerate(sorted(shapes.items())):
        j = np.arange(math.prod(shape), dtype=np.float64)
        wave = np.sin(i + 1.7 * j + 0.01 * j**2).reshape(shape)
        leaf = name.rsplit("/", 1)[1]
        if leaf == "kernel":
            wave *= math.sqrt(3 / math.prod(shape[:-1]))
        elif leaf in ("scale", "var"):
            wave = 1 + 0.4 * wave
        else:
            wave *= 0.2
        found[name] = np.float32(wave)
    return found


def batch() -> Batch:
    """Two stacks by a closed formula."""
    i, j, y, x, c = np.ogrid[:BATCH, :FRAMES, :SIZE, :SIZE, :3]
    frames = 0.25 * np.sin(0.9 * y + i + c) * np.cos(0.7 * x + 0.5 * j) + 0.25 * np.sin(0.13 * y * (j + 1) + 2 * c)
    focus = np.tile(10 + 90 * np.linspace(0, 1, FRAMES) ** 1.5, (BATCH, 1))
    depth = 55 + 40 * np.sin(0.05 * y[:, 0] + i[:, 0] + 0.03 * x[:, 0])[..., 0]
    mask = (x + 2 * y)[:, 0, ..., 0] % 7 > 0
    return Batch(
        jnp.float32(np.broadcast_to(0.5 + frames, (BATCH, FRAMES, SIZE, SIZE, 3))), jnp.float32(focus),
        jnp.float32(np.where(mask, depth, 0)), jnp.asarray(np.broadcast_to(mask, depth.shape)),
    )  # fmt: skip


def flat_shapes(estimator) -> dict[str, list[int]]:
    """Name -> shape of an estimator's variables."""
    from flax.traverse_util import flatten_dict

    data = batch()
    tree = jax.eval_shape(estimator.init, jax.random.key(0), data.frames, data.focus)
    return {name: list(x.shape) for name, x in flatten_dict(tree, sep="/").items()}


def losses(model, loss, shapes: dict[str, list[int]]) -> list[float]:
    """The loss of each of ten training steps, from the weights of the formula."""
    from flax.traverse_util import empty_node, flatten_dict, unflatten_dict

    from dff_jax.estimators.migration import migrate

    estimator = estimators.build(model)
    data = batch()
    tree = jax.eval_shape(estimator.init, jax.random.key(0), data.frames, data.focus)
    flat = flatten_dict(tree, sep="/", keep_empty_nodes=True)
    empty = {name: x for name, x in flat.items() if x is empty_node}
    given = unflatten_dict(empty | migrate(model, weights(shapes)), sep="/")
    optimizer = optimizers.build(OptimizerConfig(), 1000)
    params = jax.tree.map(jnp.asarray, given["params"])
    stats = jax.tree.map(jnp.asarray, given.get("batch_stats", {}))
    state = TrainState(jnp.int32(0), params, stats, optimizer.init(params), jnp.int32(-1))
    update = jax.jit(make_update(estimator, optimizer, loss, model.coordinate))
    found = []
    for _ in range(STEPS):
        state, told = update(state, data)
        found.append(float(told["loss"]))
    return found


def compute(names: dict[str, dict[str, list[int]]] | None = None, only: list[str] | None = None) -> dict:
    """All of it; `names` are the stored names and shapes of each network's variables. `only`: some sections."""
    found = {}
    given = stacks()
    if only is None or "maps" in only:
        found |= maps(given)
    if only is None or "metrics" in only:
        found["metrics"] = metrics(given)
    known = {}
    for name, (model, loss) in networks().items():
        if only is None or name in only:
            known[name] = names[name] if names else flat_shapes(estimators.build(model))
            found[f"loss/{name}"] = np.array(losses(model, loss, known[name]))
            print(name, found[f"loss/{name}"], flush=True)
    found["names"] = known
    return found


def compare(found: dict, stored: dict) -> list[str]:
    """What differs by more than it may."""
    wrong = []
    for key, value in found.items():
        if key == "names":
            continue
        if key == "metrics":
            gone = sorted(set(stored[key]) - set(value))
            wrong += [f"metrics: {len(gone)} are gone, such as {gone[:5]}"] if gone else []
            for name, old in stored[key].items():
                if name in value and not math.isclose(value[name], old, rel_tol=1e-6, abs_tol=1e-6):
                    wrong.append(f"metrics {name}: {value[name]!r}, was {old!r}")
            continue
        old = stored[key]
        if key.startswith("loss"):
            far = np.abs(value / old - 1).max()
            print(f"{key}: largest relative difference {far:.1e}")
            wrong += [f"{key}: relative difference {far:.1e}, more than 1e-5"] if far > 1e-5 else []
        else:
            far = np.abs(np.float64(value) - old).max() / LEVELS * (2 if key.startswith("depth") else 1)
            print(f"{key}: largest difference {far:.1e} of the range")
            wrong += [f"{key}: difference {far:.1e} of the range, more than 1e-4"] if far > 1e-4 else []
    return wrong


def main(arguments: list[str]) -> int:
    sections = [word for word in arguments if word != "--store"]
    stored = {}
    if sections or "--store" not in arguments:
        with np.load(FILE) as file:
            stored = {key: file[key] for key in file.files}
        stored |= {key: json.loads(str(stored[key])) for key in ("metrics", "names")}
    if "--store" in arguments:
        found = compute(only=sections or None)
        found["names"] = stored.get("names", {}) | found["names"]
        found = stored | found
        text = {key: json.dumps(found.pop(key)) for key in ("metrics", "names")}
        np.savez_compressed(FILE, **found, **text)
        print(f"wrote {FILE}, {FILE.stat().st_size} bytes")
        return 0
    wrong = compare(compute(stored["names"], sections or None), stored)
    print("\n".join(wrong) or "all numbers hold")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
