"""A network of a few hundred parameters and a folder of small stacks: what the training tests train."""

import dataclasses
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.data import pipeline
from dff_jax.network.layers import device_axis
from dff_jax.types import Batch, Estimator, History, LoadedBatch, Prediction

FRAMES, SIZE = 3, 24
BUILD = estimators.build


class Net(nn.Module):
    """Scores for each frame -> Dbar -> two candidates -> K identical steps towards their mean -> refined."""

    @nn.compact
    def __call__(self, frames, focus, train, num_iterations):
        b, z, h, w, _ = frames.shape
        x = nn.Conv(4, (3, 3), use_bias=False)(frames.reshape(b * z, h, w, 3))
        x = nn.BatchNorm(use_running_average=not train, axis_name=device_axis(), momentum=0.9)(x)
        scores = nn.Conv(1, (3, 3))(nn.relu(x)).reshape(b, z, h, w)
        low, span = focus[:, 0, None, None], (focus[:, -1] - focus[:, 0])[:, None, None]
        probability = nn.softmax(scores, axis=1)
        expected = jnp.sum(probability * focus[:, :, None, None], axis=1)
        t = (expected - low) / span
        candidates = t[..., None] + 0.1 * nn.Conv(2, (3, 3))(t[..., None])
        move = self.param("move", nn.initializers.constant(0.5), ())
        iterates = [candidates[..., 0]]
        for _ in range(num_iterations):
            iterates.append(iterates[-1] + move * (jnp.mean(candidates, -1) - iterates[-1]))
        refined = iterates[-1] + 0.1 * nn.Conv(1, (3, 3))(iterates[-1][..., None])[..., 0]

        def to_q(x):
            return x * span.reshape((b,) + (1,) * (x.ndim - 1)) + low.reshape((b,) + (1,) * (x.ndim - 1))

        history = History(
            expected,
            to_q(candidates),
            jnp.full(candidates.shape, 0.5),
            to_q(jnp.stack(iterates, 1)),
            to_q(refined[:, None]),
        )
        sharp = jnp.sum(probability[..., None] * frames, axis=1)
        return Prediction(to_q(refined), jnp.ones((b, h, w)), jnp.zeros((b, h, w)), sharp, history)


def build(model: configs.ModelConfig) -> Estimator:
    """In the place of `estimators.build`; the baselines of an evaluation are the real ones."""
    if not isinstance(model, configs.Proximal):
        return BUILD(model)
    net = Net()

    @jax.jit  # one small program: each process of a test would compile a hundred otherwise
    def init(key, frames, focus):
        return net.init(key, jnp.zeros(frames.shape), focus, False, model.num_iterations)

    def apply(variables, frames, focus, *, train=False, num_iterations=None):
        k = model.num_iterations if num_iterations is None else num_iterations
        if not train:
            return net.apply(variables, frames, focus, False, k), variables["batch_stats"]
        prediction, changed = net.apply(variables, frames, focus, True, k, mutable=["batch_stats"])
        return prediction, changed["batch_stats"]

    return Estimator(init, apply)


def small_model(**changes) -> configs.Proximal:
    """`tiny` with 4 to 8 channels, for tests of the real network."""
    return dataclasses.replace(configs.tiny(), **({"width": 0.13, "head_width": 0.13, "num_iterations": 1} | changes))


@contextmanager
def loading(change: Callable[[Any, Callable[[], LoadedBatch]], LoadedBatch]) -> Iterator[None]:
    """Lets `change(loader, next)` give the batches of every training loader that is opened inside."""
    make = pipeline.training_loader

    def opened(*args, **kwargs):
        loader = make(*args, **kwargs)
        following = type(loader).__next__

        class Changed(type(loader)):
            def __next__(self):
                return change(self, lambda: following(self))

        loader.__class__ = Changed
        return loader

    pipeline.training_loader = opened
    try:
        yield
    finally:
        pipeline.training_loader = make


def interrupting(after: int | None, number: int = signal.SIGINT):
    """`loading` that sends this process a signal before batch `after`, counted from 1; None: never."""
    count = itertools.count(1)

    def change(loader, following):
        if next(count) == after:
            os.kill(os.getpid(), number)
        return following()

    return loading(change)


def batch(size: int, seed: int = 0, num_frames: int = FRAMES, side: int = 16) -> Batch:
    """Random stacks; a third of the pixels, unevenly spread over the stacks, has no truth."""
    rng = np.random.default_rng(seed)
    shape = (size, side, side)
    mask = rng.random(shape) > np.linspace(0.1, 0.6, size)[:, None, None]
    depth = np.where(mask, rng.uniform(10, 100, shape), 0).astype(np.float32)
    focus = np.sort(rng.uniform(10, 100, (size, num_frames)), axis=1).astype(np.float32)
    frames = rng.random((size, num_frames, side, side, 3), np.float32)
    return Batch(frames, focus, depth, mask)


def write_stacks(root, train: int = 5, val: int = 3, pictures: bool = False):
    """Stack folders laid out like FlyingThings3D's: noise that is sharpest where the frame's focus is the depth."""
    import imagecodecs  # which an accelerator's bare image has not, and `build` does not need

    rng = np.random.default_rng(0)
    focus = np.linspace(10, 100, FRAMES)
    for split, number in (("train", train), ("val", val)):
        for i in range(number):
            folder = root / split / f"stack{i}"
            folder.mkdir(parents=True)
            depth = np.tile(np.linspace(10, 100, SIZE), (SIZE, 1)) + rng.normal(0, 3, (SIZE, SIZE))
            texture = rng.uniform(-1, 1, (SIZE, SIZE, 3))
            for q in focus:
                near = np.exp(-(((depth - q) / 30) ** 2))[..., None]
                picture = np.uint8(np.clip(127 + 120 * near * texture, 0, 255))
                (folder / f"{q:.1f}.png").write_bytes(imagecodecs.png_encode(picture))
            sharp = np.uint8(np.clip(127 + 120 * texture, 0, 255))
            if pictures:
                (folder / "AiF.png").write_bytes(imagecodecs.png_encode(sharp))
            np.save(folder / "disp.npy", depth.astype(np.float32))
    return root


def small_config(root, **training) -> configs.Config:
    """A run of 12 steps on `write_stacks(root)`, on one device."""
    return configs.Config(
        name="small",
        model=dataclasses.replace(configs.tiny(), num_iterations=2),
        optimizer=configs.OptimizerConfig(peak_learning_rate=1e-2),
        data=configs.DataConfig(
            source="folder", dataset=str(root), batch_size=2, crop=(16, 16), num_threads=1, eval_batch_size=2
        ),
        training=configs.TrainingConfig(
            **{
                "num_steps": 12, "log_every": 3, "eval_every": 5, "save_every": 4, "keep": 1,
                "num_devices": 1, "tensorboard": False, "statistics": 0,
            } | training
        ),
    )  # fmt: skip
