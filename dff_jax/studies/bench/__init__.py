"""Benchmarks: `dff-jax bench`, and `accelerator` for `scripts/gpu_report`."""

from __future__ import annotations

from typing import Literal, TypeVar

from dff_jax.errors import InputError

T = TypeVar("T")


def bench(
    subject: Literal["model", "unroll", "loader"] = "model",
    *,
    preset: tuple[str, ...] = (),
    size: tuple[int, ...] = (),
    frames: tuple[int, ...] = (15,),
    iterations: tuple[int, ...] = (),
    batch: tuple[int, ...] = (1,),
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32",),
    train: bool = False,
    parts: bool = False,
    against: Literal["torch"] | None = None,
    profile: str | None = None,
    rounds: int = 5,
    dataset: str | None = None,
    data_dir: str | None = None,
    output: str | None = None,
) -> str:
    """Speed, memory and compile time, measured side by side. Options with several values measure all combinations.

    Args:
      subject: model: inference, training step and parts of networks; unroll: compile time and memory over K in every
        gradient mode; loader: stacks per second from disk.
      preset: Networks, by the names of the model presets; default physical and dfv_diff, for unroll tiny.
      size: Side of the images or crops, pixels; default 256, for unroll 96.
      frames: Frames in a stack.
      iterations: Iterations K of the unroll; default the preset's, for unroll 2 4 8 16.
      batch: Stacks at once (model).
      dtype: Number format of the networks' computation (model).
      train: Time a training step as well (model).
      parts: Time inference up to the end of each part of the network as well (model).
      against: Time a PyTorch implementation of the same networks in the same rounds (model).
      profile: Folder for a trace of one inference of each preset, whose most expensive operations are listed (model).
      rounds: Rounds to time; the median counts (model).
      dataset: A prepared dataset to load; default folders of noise, 540 x 960 (loader).
      data_dir: Where the prepared datasets are (loader).
      output: Folder for the table (.md) and the numbers (.json).

    Returns:
      The table as markdown.

    Raises:
      InputError: a value out of range, several values where a subject takes one, or an output that cannot be written.
    """
    for name, values, least in (("frames", frames, 1), ("batch", batch, 1), ("iterations", iterations or (), 0)):
        if min(values, default=least) < least:
            raise InputError(f"--{name}: must be at least {least}, got {min(values)}")
    if subject == "unroll":
        from dff_jax.studies.bench import unroll

        chosen = _one("preset", preset, "tiny"), iterations or (2, 4, 8, 16), _one("size", size, 96)
        return unroll.markdown(unroll.bench_unroll(*chosen, _one("frames", frames, 15), output))
    if subject == "loader":
        from dff_jax.studies.bench import loader

        number = _one("frames", frames, 15)
        report = loader.bench_loader(dataset, data_dir, size=_one("size", size, 256), num_frames=number, output=output)
        return loader.markdown(report)
    from dff_jax.studies.bench import model

    presets = preset or ("physical", "dfv_diff")
    report = model.bench_model(
        presets, sizes=size or (256,), frames=frames, batches=batch, iterations=iterations or (None,), dtypes=dtype,
        training=train, parts=parts, against=against, rounds=rounds, output=output,
    )  # fmt: skip
    text = model.markdown(report)
    if profile:
        from dff_jax.studies.bench.profile import profile as traced

        for name in presets:
            text += "\n" + traced(name, profile, size=(size or (256,))[0], num_frames=frames[0])
    return text


def _one(name: str, values: tuple[T, ...], default: T) -> T:
    if len(values) > 1:
        raise InputError(f"--{name}: this subject takes one value, got {len(values)}")
    return values[0] if values else default
