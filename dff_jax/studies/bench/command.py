"""`dff-jax bench`: arguments, and which benchmark they ask for."""

from __future__ import annotations

import argparse

from dff_jax.config import DTYPES, MODEL_PRESETS
from dff_jax.errors import InputError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command; its `run` is set as a default of the parser."""
    bench = commands.add_parser(
        "bench", help="speed, memory and compile time, measured side by side",
        description="model (the default): inference, training step and parts of presets and compared networks; "
        "unroll: compile time and memory over K, in every gradient mode; loader: stacks per second from disk. "
        "Options that take several values measure all combinations.",
    )  # fmt: skip
    bench.add_argument("subject", nargs="?", default="model", choices=["model", "unroll", "loader"])
    bench.add_argument(
        "--preset", nargs="+", choices=list(MODEL_PRESETS), metavar="NAME",
        help=f"of {', '.join(MODEL_PRESETS)}; default physical and dfv_diff; for unroll and loader one, default tiny",
    )  # fmt: skip
    bench.add_argument("--size", nargs="+", type=int, help="side of pictures or crops, pixels; default 256, unroll 96")
    bench.add_argument("--frames", nargs="+", type=int, default=[15], help="frames in the stack; default 15")
    bench.add_argument("--iterations", nargs="+", type=int, metavar="K", help="of the unroll; default as the preset")
    bench.add_argument("--candidates", nargs="+", type=int, metavar="N", help="model: default as the preset")
    bench.add_argument("--batch", nargs="+", type=int, default=[1], help="model: stacks at once; default 1")
    bench.add_argument(
        "--dtype", nargs="+", default=["float32"], choices=DTYPES, help="model: what to compute in; default float32"
    )
    bench.add_argument("--train", action="store_true", help="model: a training step, too")
    bench.add_argument("--parts", action="store_true", help="model: up to the end of each part of the network, too")
    bench.add_argument(
        "--against", choices=["torch"], help="model: a PyTorch implementation of the same networks, in the same rounds"
    )
    bench.add_argument("--profile", metavar="DIR", help="model: a trace of one inference, and its dearest operations")
    bench.add_argument("--rounds", type=int, default=5, help="model: how often to time; the median counts; default 5")
    bench.add_argument("--dataset", help="loader: a prepared tfds dataset; default noise of 540 x 960")
    bench.add_argument("--data-dir", help="loader: where tfds keeps its files")
    bench.add_argument("--stacks", type=int, default=24, help="loader: how many stacks of noise; default 24")
    bench.add_argument("--steps", type=int, default=4, help="loader: training steps to time, 0 for none; default 4")
    bench.add_argument("--output", help="folder for the table (.md) and the numbers (.json)")


def run(args: argparse.Namespace, rest: list[str]) -> None:
    """Measures what `args` ask for and prints the table."""
    {"model": _model, "unroll": _unroll, "loader": _loader}[args.subject](args)


def _model(args: argparse.Namespace) -> None:
    from dff_jax.studies.bench import model

    presets = args.preset or ["physical", "dfv_diff"]
    report = model.bench_model(
        presets, sizes=args.size or [256], frames=args.frames, batches=args.batch,
        iterations=args.iterations or [None], candidates=args.candidates or [None], dtypes=args.dtype,
        training=args.train, parts=args.parts, against=args.against, rounds=args.rounds, output=args.output,
    )  # fmt: skip
    print(model.markdown(report))
    if args.profile:
        from dff_jax.studies.bench import profile

        for name in presets:
            print(profile.profile(name, args.profile, size=(args.size or [256])[0], num_frames=args.frames[0]))


def _unroll(args: argparse.Namespace) -> None:
    from dff_jax.studies.bench import unroll

    size, frames = _one(args, "size", 96), _one(args, "frames")
    report = unroll.bench_unroll(_trainable(args), args.iterations or [2, 4, 8, 16], size, frames, args.output)
    print(unroll.markdown(report))


def _loader(args: argparse.Namespace) -> None:
    from dff_jax.studies.bench import loader

    report = loader.bench_loader(
        args.dataset, args.data_dir, preset=_trainable(args), size=_one(args, "size", 256),
        num_frames=_one(args, "frames"), stacks=args.stacks, steps=args.steps, output=args.output,
    )  # fmt: skip
    print(loader.markdown(report))


def _trainable(args: argparse.Namespace) -> str:
    name = _one(args, "preset", "tiny")
    trainable = [name for name, preset in MODEL_PRESETS.items() if preset().method == "proximal"]
    if name not in trainable:
        raise InputError(f"--preset: {args.subject} takes one of {', '.join(trainable)}, got {name}")
    return name


def _one(args: argparse.Namespace, name: str, default=None):
    values = getattr(args, name) or [default]
    if len(values) > 1:
        raise InputError(f"--{name}: {args.subject} takes one, got {len(values)}")
    return values[0]
