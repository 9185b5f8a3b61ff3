"""What the command `dff-jax` understands."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from dff_jax import __version__
from dff_jax.config import UNITS, UNTRAINED
from dff_jax.studies.bench import command as bench_command


class Parser(argparse.ArgumentParser):
    """`commands`: the parser of each command by its name."""

    commands: dict[str, argparse.ArgumentParser]

    def error(self, message: str) -> NoReturn:
        """One line, like every other error: all options would hide it."""
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help shows what there is\n")


def make_parser() -> Parser:
    """All commands and their options; `command` says which was given."""
    parser = Parser(prog="dff-jax", description="Depth from focus in JAX.")
    parser.add_argument("--version", action="version", version=f"dff-jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parser.commands = commands.choices

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
    together = train.add_argument_group("several processes", "The same command in each; see scripts/README.md.")
    together.add_argument("--distributed", action="store_true", help="as SLURM, a TPU pod or Open MPI says")
    together.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, where they meet")
    together.add_argument("--num-processes", type=int, metavar="N", help="of the run, on all hosts")
    together.add_argument("--process-id", type=int, metavar="I", help="which of them this is, from 0")
    train.add_argument("--fields", action="store_true", help="list the config's fields with their values, and stop")

    evaluate = commands.add_parser("evaluate", help="measure a network, or a method without one, on stacks with truth")
    methods = ", ".join(UNTRAINED)
    evaluate.add_argument("weights", help=f"a run folder, a .safetensors file, pretrained, or one of {methods}")
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

    predict = commands.add_parser("predict", help="depth of your own photographs")
    predict.add_argument("stack", nargs="+", help="a folder, a glob, or the files of one focal stack")
    predict.add_argument("--output", required=True, help="folder for the maps and pictures")
    predict.add_argument("--focus", nargs="+", type=float, help="focus settings, one a frame, in order of file names")
    predict.add_argument("--unit", choices=UNITS, help="of the focus settings")
    predict.add_argument("--reverse", action="store_true", help="count the frame index from the other end: "
        "for stacks whose first file is the nearest")
    predict.add_argument("--method", choices=UNTRAINED, help="an estimator that needs no weights")
    predict.add_argument("--weights", help="a run folder or a .safetensors file; default the package's own network")
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

    compare = commands.add_parser(
        "compare", help="methods side by side: trains each, measures all",
        description="Trains the methods of a comparison and measures them on the same stacks. Repeat the same command "
        "to go on where an interrupted one left off: what is done is not done again.",
    )  # fmt: skip
    compare.add_argument("comparison", help="a file such as configs/compare_procedural.py, or file.py:function")
    compare.add_argument("--output", help="folder of the runs, tables and pictures; default runs/<its name>")
    compare.add_argument("--only", nargs="+", metavar="METHOD", help="only these entrants")

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
    for family, flag, settings in PREPARE_OPTIONS:
        prepare.add_argument(flag, **(settings | {"help": f"{family}: {settings['help']}"}))

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

    packed = commands.add_parser(
        "pack", help="weights to give away: half precision, scores inside",
        description="Writes the weights of a run in half precision, with its config, its command and measured scores.",
    )  # fmt: skip
    packed.add_argument("weights", help="a run folder, or one of its weights files")
    packed.add_argument("--output", required=True, help="the weights file to write")
    packed.add_argument(
        "--score", nargs=2, action="append", default=[], metavar=("NAME", "DIR"), help="what an evaluation of these "
        "weights found: its output folder; may be repeated",
    )  # fmt: skip

    bench_command.add_parser(commands)
    return parser


# options of some datasets: which, flag, argparse's settings
PREPARE_OPTIONS: list[tuple[str, str, dict[str, Any]]] = [
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
