"""The command `dff-jax`: parse, call one function, print.

Exit status: 0 done, 2 bad input or usage (one line says what to do; nothing was written), 1 training diverged,
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from dff_jax import __version__
from dff_jax.bench import command as bench_command
from dff_jax.config import UNTRAINED, Comparison, Config
from dff_jax.config.files import fields_of, load_config, override
from dff_jax.errors import InputError
from dff_jax.focus_axis import UNITS


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if args.command != "bench":  # which times compilation
        _compilation_cache()
    if os.getcwd() not in sys.path:  # a scheme or prox of the user's own, by its dotted name
        sys.path.append(os.getcwd())
    status = _run(args, rest)
    if args.command == "train" and _of_several(args):
        from dff_jax import processes

        processes.leave(status)
    return status


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    try:
        return args.run(args, rest) or 0
    except InputError as error:
        problems = getattr(error, "problems", ())  # of a SourceError: all that is missing or damaged
        if len(problems) > 1:
            print("\n".join(map(_one_line, problems)), file=sys.stderr)
        print(f"dff-jax: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dff-jax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dff-jax", description="Depth from focus in JAX.")
    parser.add_argument("--version", action="version", version=f"dff-jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train", help="train a network", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Trains what a config file describes. Any field can be changed behind it:\n"
        "  dff-jax train configs/procedural_tiny.py --model.num-iterations 5 --data.crop 128 128\n"
        "  dff-jax train configs/procedural_tiny.py --fields        lists them all\n"
        "Repeat the same command to go on where an interrupted run left off.",
    )  # fmt: skip
    train.add_argument("config", help="a file such as configs/procedural_tiny.py, or file.py:function")
    train.add_argument("--output", help="run folder; default runs/<name of the config>")
    train.add_argument("--no-resume", action="store_true", help="refuse a folder that holds a run")
    train.add_argument(
        "--dry-run", action="store_true", help="prove it from end to end on a few small stacks made for it; keeps "
        "nothing, or all in --output",
    )  # fmt: skip
    together = train.add_argument_group("several processes", "The same command in each; see scripts/README.md.")
    together.add_argument("--distributed", action="store_true", help="as SLURM, a TPU pod or Open MPI says")
    together.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, where they meet")
    together.add_argument("--num-processes", type=int, metavar="N", help="of the run, on all hosts")
    together.add_argument("--process-id", type=int, metavar="I", help="which of them this is, from 0")
    train.add_argument("--fields", action="store_true", help="list the config's fields with their values, and stop")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="measure a network, or a method without one, on stacks with truth")
    evaluate.add_argument("weights", help=f"a run folder, a .safetensors file, or one of {', '.join(UNTRAINED)}")
    data = evaluate.add_mutually_exclusive_group(required=True)
    data.add_argument("--dataset", help="a tfds dataset, such as procedural/quickstart")
    data.add_argument("--source", help="a folder of stacks: <scene>/<focus>.png ..., disp.exr or disp.npy")
    evaluate.add_argument("--output", required=True, help="folder for tables and figures")
    evaluate.add_argument("--split", default="test", choices=["train", "validation", "test"])
    evaluate.add_argument("--unit", choices=UNITS, help="of --source; default disparity")
    evaluate.add_argument("--data-dir", help="where tfds keeps its files")
    evaluate.add_argument("--iterations", type=int, help="K of the unroll; default as trained")
    evaluate.add_argument("--batch-size", type=int, default=1)
    evaluate.add_argument("--limit", type=int, help="only the first so many stacks")
    evaluate.add_argument(
        "--convention", metavar="NAME", help="masks of the literature: flyingthings, middlebury, hci, ddff12, fod500, "
        "default; default: as the dataset says",
    )  # fmt: skip
    evaluate.add_argument("--resize", nargs=2, type=int, metavar=("H", "W"), help="of the frames; truth keeps values")
    evaluate.add_argument("--edge-pad", action="store_true", help="repeat edges up to multiples of 32, as DDL-GRU does")
    evaluate.add_argument("--figure-stacks", nargs="+", type=int, metavar="N", help="to show in the paper's figure")
    evaluate.add_argument(
        "--report", nargs="?", type=int, const=24, default=0, metavar="N", help="also a page to look at, report.html, "
        "with the worst N stacks; default 24",
    )  # fmt: skip
    evaluate.set_defaults(run=_evaluate)

    predict = commands.add_parser("predict", help="depth of your own photographs")
    predict.add_argument("stack", nargs="+", help="a folder, a glob, or the files of one focal stack")
    predict.add_argument("--output", required=True, help="folder for the maps and pictures")
    predict.add_argument("--focus", nargs="+", type=float, help="focus settings, one a frame, in order of file names")
    predict.add_argument("--unit", choices=UNITS, help="of the focus settings")
    predict.add_argument("--reverse", action="store_true", help="count the frame index from the other end")
    predict.add_argument("--method", choices=UNTRAINED, help="an estimator that needs no weights")
    predict.add_argument("--weights", help="a run folder or a .safetensors file")
    predict.add_argument("--iterations", type=int, help="K of the unroll; default as trained")
    predict.add_argument("--max-size", type=int, help="shrink frames whose longer side exceeds this many pixels")
    predict.add_argument(
        "--align", nargs="?", const="similarity", choices=["similarity", "translation", "affine", "homography"],
        help="bring the frames onto the middle one first; default motion: magnification, rotation and translation",
    )  # fmt: skip
    predict.add_argument("--tile", type=int, default=1024, help="largest side of the tiles of large images, pixels")
    predict.add_argument("--overlap", type=int, help="of neighbouring tiles, pixels; default by the method, 32 to 320")
    predict.add_argument(
        "--memory", type=float, default=4.0, metavar="GB", help="to keep within, by smaller tiles and frames on disk; "
        "default 4",
    )  # fmt: skip
    predict.add_argument("--devices", type=int, default=1, metavar="N", help="that work on a tile each; default 1")
    predict.set_defaults(run=_predict)

    ablate = commands.add_parser("ablate", help="what the unroll contributes: trained runs at many K and schemes")
    ablate.add_argument("runs", nargs="+", metavar="RUN", help="a run folder or a .safetensors file")
    data = ablate.add_mutually_exclusive_group(required=True)
    data.add_argument("--dataset", help="a tfds dataset, such as procedural/quickstart")
    data.add_argument("--source", help="a folder of stacks: <scene>/<focus>.png ..., disp.exr or disp.npy")
    ablate.add_argument("--output", required=True, help="folder for tables and figures; several runs: one inside each")
    ablate.add_argument("--split", default="test", choices=["train", "validation", "test"])
    ablate.add_argument("--unit", choices=UNITS, help="of --source; default disparity")
    ablate.add_argument("--data-dir", help="where tfds keeps its files")
    ablate.add_argument("--iterations", nargs="+", type=int, default=[0, 1, 2, 3, 5, 8, 16], metavar="K")
    ablate.add_argument(
        "--schemes", nargs="*", metavar="SCHEME[+PROX]", help="for the same parameters; none: only as trained"
    )
    ablate.add_argument("--batch-size", type=int, default=1)
    ablate.add_argument("--limit", type=int, help="only the first so many stacks")
    ablate.set_defaults(run=_ablate)

    compare = commands.add_parser(
        "compare", help="methods side by side: trains each, measures all",
        description="Trains the methods of a comparison and measures them on the same stacks. Repeat the same command "
        "to go on where an interrupted one left off: what is done is not done again.",
    )  # fmt: skip
    compare.add_argument("comparison", help="a file such as configs/compare_procedural.py, or file.py:function")
    compare.add_argument("--output", help="folder of the runs, tables and pictures; default runs/<its name>")
    compare.add_argument("--only", nargs="+", metavar="METHOD", help="only these entrants")
    compare.set_defaults(run=_compare)

    prepare = commands.add_parser(
        "prepare", help="make or convert a dataset",
        description="Makes a dataset, or converts the files of one: checks them all first, writes records, pictures "
        "(overview.png) and statistics. `dff-jax prepare --list` names them.",
    )  # fmt: skip
    prepare.add_argument("name", nargs="?", help="such as procedural/quickstart; see --list")
    prepare.add_argument("--list", action="store_true", help="all names, with unit, frames and where to get them")
    prepare.add_argument("--source", metavar="DIR", help="the folder of downloaded files, or your own")
    prepare.add_argument("--workers", type=int, help="processes that read; default one a core")
    prepare.add_argument("--data-dir", help="where tfds keeps its files; default ~/tensorflow_datasets")
    prepare.add_argument("--overwrite", action="store_true", help="make it again even if it is there")
    prepare.add_argument("--export", metavar="DIR", help="also write stacks as folders of PNG frames and disp.npy")
    prepare.add_argument("--split", default="test", choices=["train", "validation", "test"], help="for --export")
    prepare.add_argument("--limit", type=int, help="for --export: only the first so many stacks")
    for family, flag, settings in _PREPARE_OPTIONS:
        prepare.add_argument(flag, **(settings | {"help": f"{family}: {settings['help']}"}))
    prepare.set_defaults(run=_prepare)

    imported = commands.add_parser(
        "import-weights", help="use weights published for PyTorch",
        description="Converts a published checkpoint (.safetensors, or what torch.save wrote) to a weights file.",
    )  # fmt: skip
    imported.add_argument("file", help="the checkpoint")
    imported.add_argument(
        "--model", required=True, choices=["dfv_fv", "dfv_diff", "aifdnet", "dwild", "resnet18"],
        help="whose it is; DFV's two cannot be told apart by their files; resnet18 (torchvision, timm): an encoder for "
        "training.encoder_weights",
    )  # fmt: skip
    imported.add_argument("--output", help="the weights file to write; default <model>.safetensors")
    imported.add_argument(
        "--near-first", action="store_true", help="the network saw its frames from near to far in training, as DDFF-12 "
        "and FoD500 come",
    )  # fmt: skip
    imported.set_defaults(run=_import_weights)

    bench_command.add_parser(commands)
    return parser


# options of some datasets: which, flag, argparse's settings
_PREPARE_OPTIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("stacks, rgbd", "--unit", {"choices": UNITS, "help": "of focus settings and truth; default as the files say"}),
    ("stacks", "--reverse", {"action": "store_const", "const": True, "help": "count the frame index from the end"}),
    ("stacks", "--max-size", {"type": int, "help": "shrink frames whose longer side exceeds this many pixels"}),
    ("stacks", "--align", {"nargs": "?", "const": "similarity", "metavar": "MODEL", "help": "align the frames"}),
    ("rgbd, hci", "--focus-range", {"nargs": 2, "type": float, "metavar": ("LOW", "HIGH"), "help": "in the unit"}),
    ("rgbd, hci", "--frames", {"type": int, "help": "number of frames to make"}),
    ("rgbd", "--blur-per-q", {"type": float, "help": "blur radius, pixels per unit of focus"}),
    ("rgbd", "--noise", {"type": float, "help": "standard deviation, of full scale"}),
    ("rgbd", "--seed", {"type": int, "help": "of the noise"}),
    ("rgbd", "--scale", {"type": float, "help": "factor from stored values to depth"}),
    ("ddff12", "--bgr", {"action": argparse.BooleanOptionalAction, "help": "whether the file has blue first"}),
]


def _train(args: argparse.Namespace, rest: list[str]) -> int:
    config = override(load_config(args.config), rest)
    if args.fields:
        print("\n".join(f"--{name.replace('_', '-')} {value}" for name, (value, _) in fields_of(config).items()))
        return 0
    from dff_jax import processes
    from dff_jax.training.loop import TrainingDiverged, advice, train

    output = Path(args.output or Path("runs") / config.name)
    if _of_several(args):
        processes.join(args.coordinator, args.num_processes, args.process_id, advice(output))
    try:
        if args.dry_run:
            return _dry_run(config, args.output)
        summary = train(config, output, resume=not args.no_resume)
    except (TrainingDiverged, processes.ProcessLost) as error:
        print(f"dff-jax: {_one_line(error)}", file=sys.stderr)
        return 1
    return 130 if summary.get("interrupted") else 0


def _dry_run(config: Config, output: str | None) -> int:
    from dff_jax.training.dry_run import dry_run

    done = dry_run(config, output)
    for table in done["tables"].values():
        print(table)
    kept = f"; kept in {output}" if output else ""
    print(f"dry run of {config.name}: all parts ran, in {done['seconds']:.0f} s{kept}. The numbers above mean nothing.")
    return 0


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
    from dff_jax.evaluation.ablate import ablate

    ablate(
        args.runs, args.output, dataset=args.dataset, source=args.source, unit=args.unit, split=args.split,
        data_dir=args.data_dir, iterations=args.iterations, schemes=args.schemes, batch_size=args.batch_size,
        limit=args.limit,
    )  # fmt: skip
    print((Path(args.output) / ("comparison.md" if len(args.runs) > 1 else "table.md")).read_text())
    print(f"written to {args.output}")


def _compare(args: argparse.Namespace, rest: list[str]) -> int:
    from dff_jax.comparison.compare import compare
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
    from dff_jax.prediction import predict_to_folder

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
    import signal

    from dff_jax.data import datasets
    from dff_jax.data.datasets.listing import describe_all, describe_made

    if args.list or args.name is None:
        if not args.list:
            raise InputError("prepare: give a name; dff-jax prepare --list shows them")
        print(describe_all())
        return
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit: must be at least 1, got {args.limit}")
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers: must be at least 1, got {args.workers}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing half made is left
    options = {flag.strip("-").replace("-", "_"): None for _, flag, _ in _PREPARE_OPTIONS}
    options = {key: getattr(args, key) for key in options if getattr(args, key) is not None}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    path = datasets.prepare(
        args.name, args.data_dir, source=args.source, overwrite=args.overwrite, workers=args.workers or 0, **options
    )
    print(describe_made(path))
    if args.export:
        from dff_jax.data.export import export_stacks
        from dff_jax.data.pipeline import open_named

        source = open_named(args.name, split=args.split, data_dir=args.data_dir)
        for folder in export_stacks(source, args.export, args.limit):
            print(folder)
        if source.unit != "disparity":  # as which a folder of stacks is read unless told otherwise
            print(f"note: settings and truth are in {source.unit}; read these folders with --unit {source.unit}")


def _import_weights(args: argparse.Namespace, rest: list[str]) -> None:
    from dff_jax.estimators.torch_import import import_weights

    order = "descending" if args.near_first else "ascending"
    done = import_weights(args.file, args.model, args.output, frame_order=order)
    idle = f"; never used, and left out: {', '.join(done.idle)}" if done.idle else ""
    print(f"{args.model}: {done.parameters:,} parameters written to {done.output}{idle}")


if __name__ == "__main__":
    sys.exit(main())
