"""The command `dff-jax`: parse, call one function, print.

Exit status: 0 done, 2 bad input or usage (one line says what to do; nothing was written), 1 training diverged,
130 interrupted (while JAX is imported, by the signal itself).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from dff_jax.arguments import PREPARE_OPTIONS, make_parser
from dff_jax.config import Comparison
from dff_jax.config.load import fields_of, load_config, override
from dff_jax.errors import InputError
from dff_jax.runtime.stopping import interruptible
from dff_jax.studies.bench import command as bench_command


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command != "train":
        parser.commands[args.command].error(f"unrecognized arguments: {' '.join(rest)}")
    # XLA's alarms of slow compilation look like failures; what goes wrong is raised, not logged
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if os.getcwd() not in sys.path:  # a scheme or prox of the user's own, by its dotted name
        sys.path.append(os.getcwd())
    several = args.command == "train" and _of_several(args)
    with interruptible():
        status, agreed = _run(args, rest)
    if several:
        from dff_jax.runtime import processes

        processes.leave(status, agreed)
    return status


def _run(args: argparse.Namespace, rest: list[str]) -> tuple[int, bool]:
    """The exit status, and whether the command came to its own end."""
    try:
        if args.command != "bench":  # which times compilation
            _compilation_cache()
        return _COMMANDS[args.command](args, rest) or 0, True
    except InputError as error:
        problems = getattr(error, "problems", ())  # of a SourceError: all that is missing or damaged
        if len(problems) > 1:
            print("\n".join(map(_one_line, problems)), file=sys.stderr)
        print(f"dff-jax: error: {_one_line(error)}", file=sys.stderr)
        return 2, True
    except KeyboardInterrupt:
        print("dff-jax: interrupted", file=sys.stderr)
        return 130, False
    except BrokenPipeError:
        return 1, True


def _of_several(args: argparse.Namespace) -> bool:
    return args.distributed or not (args.coordinator is args.num_processes is args.process_id is None)


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())


def _compilation_cache() -> None:
    """Keeps compiled programs between runs, unless JAX was told where to."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(home / "dff_jax" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _train(args: argparse.Namespace, rest: list[str]) -> int:
    config = override(load_config(args.config), rest)
    if args.fields:
        print("\n".join(f"--{name.replace('_', '-')} {value}" for name, (value, _) in fields_of(config).items()))
        return 0
    from dff_jax.runtime import processes
    from dff_jax.training.loop import TrainingDiverged, train

    output = Path(args.output or Path("runs") / config.name)
    if _of_several(args):
        processes.join(args.coordinator, args.num_processes, args.process_id)
    try:
        summary = train(config, output, resume=not args.no_resume)
    except (TrainingDiverged, processes.ProcessLost) as error:
        print(f"dff-jax: {_one_line(error)}", file=sys.stderr)
        return 1
    return 130 if summary.get("interrupted") else 0


def _evaluate(args: argparse.Namespace, rest: list[str]) -> None:
    from dff_jax.evaluation.evaluate import evaluate_to_folder

    evaluate_to_folder(
        args.weights, args.output, dataset=args.dataset, source=args.source, unit=args.unit, split=args.split,
        data_dir=args.data_dir, iterations=args.iterations, batch_size=args.batch_size, limit=args.limit,
        convention=args.convention, resize=tuple(args.resize) if args.resize else None, edge_pad=args.edge_pad,
        figure_stacks=args.figure_stacks, page_stacks=args.report,
    )  # fmt: skip
    print((Path(args.output) / "table.md").read_text())
    print(f"written to {args.output}")


def _ablate(args: argparse.Namespace, rest: list[str]) -> None:
    from dff_jax.studies.ablate import ablate

    ablate(
        args.runs, args.output, dataset=args.dataset, source=args.source, unit=args.unit, split=args.split,
        data_dir=args.data_dir, iterations=args.iterations, schemes=args.schemes, batch_size=args.batch_size,
        limit=args.limit,
    )  # fmt: skip
    print((Path(args.output) / ("comparison.md" if len(args.runs) > 1 else "table.md")).read_text())
    print(f"written to {args.output}")


def _compare(args: argparse.Namespace, rest: list[str]) -> int:
    from dff_jax.studies.compare import compare
    from dff_jax.training.loop import TrainingDiverged

    comparison = load_config(args.comparison, Comparison)
    output = Path(args.output or Path("runs") / comparison.name)
    try:
        table = compare(comparison, output, only=args.only)
    except TrainingDiverged as error:
        print(f"dff-jax: {_one_line(error)}", file=sys.stderr)
        return 1
    if table is None:
        return 130
    print((output / "table.md").read_text())
    print(f"written to {output}")
    return 0


def _predict(args: argparse.Namespace, rest: list[str]) -> None:
    from dff_jax.prediction.predict import predict_to_folder

    summary = predict_to_folder(
        args.stack[0] if len(args.stack) == 1 else args.stack, args.output, focus=args.focus, unit=args.unit,
        reverse=args.reverse, method=args.method, weights=args.weights, iterations=args.iterations,
        max_size=args.max_size, tile=args.tile, overlap=args.overlap, memory=args.memory, devices=args.devices,
        align=args.align,
    )  # fmt: skip
    for note in summary["notes"]:
        print(f"note: {note}")
    height, width = summary["size"]
    memory = summary["memory"]
    if memory["tiles"] > 1:
        tile, frames = memory["tile"], ", frames kept on disk" if memory["frames_on_disk"] else ""
        print(f"{memory['tiles']} tiles of {tile[1]} x {tile[0]}, within {memory['bound_gb']:g} GB of memory{frames}")
    print(
        f"{len(summary['frames'])} frames of {width} x {height}, {summary['method']}, unit {summary['unit']}: "
        f"{summary['seconds']:.1f} s; look at {Path(args.output) / 'overview.png'}"
    )


def _prepare(args: argparse.Namespace, rest: list[str]) -> None:
    from dff_jax.data import datasets

    if args.list or args.name is None:
        if not args.list:
            raise InputError("prepare: give a name; dff-jax prepare --list shows them")
        print(datasets.describe_all())
        return
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit: must be at least 1, got {args.limit}")
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers: must be at least 1, got {args.workers}")
    options = {flag.strip("-").replace("-", "_"): None for _, flag, _ in PREPARE_OPTIONS}
    options = {key: getattr(args, key) for key in options if getattr(args, key) is not None}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    path = datasets.prepare(
        args.name, args.data_dir, source=args.source, overwrite=args.overwrite, workers=args.workers or 0, **options
    )
    from dff_jax.data.datasets.summary import describe

    print(describe(path))
    if args.export:
        from dff_jax.config import DataSpec
        from dff_jax.data.export import export_stacks
        from dff_jax.data.pipeline import open_data

        source = open_data(DataSpec(dataset=args.name, split=args.split, data_dir=args.data_dir))
        for folder in export_stacks(source, args.export, args.limit):
            print(folder)
        if source.unit != "disparity":  # as which a folder of stacks is read unless told otherwise
            print(f"note: settings and truth are in {source.unit}; read these folders with --unit {source.unit}")


def _import_weights(args: argparse.Namespace, rest: list[str]) -> None:
    from dff_jax.estimators.torch_weights import import_weights

    order = "descending" if args.near_first else "ascending"
    done = import_weights(args.file, args.model, args.output, frame_order=order)
    idle = f"; never used, and left out: {', '.join(done.idle)}" if done.idle else ""
    print(f"{args.model}: {done.parameters:,} parameters written to {done.output}{idle}")


def _pack(args: argparse.Namespace, rest: list[str]) -> None:
    from dff_jax.estimators.release import pack

    info = pack(args.weights, args.output, dict(args.score))
    size = Path(args.output).stat().st_size / 1e6
    scores = ", ".join(info["scores"]) or "none"
    print(f"{args.output}: {info['parameters']:,} parameters, {size:.2f} MB, scores of {scores}")


_COMMANDS = {
    "train": _train, "evaluate": _evaluate, "predict": _predict, "ablate": _ablate, "compare": _compare,
    "prepare": _prepare, "import-weights": _import_weights, "pack": _pack, "bench": bench_command.run,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
