"""The command `dff-jax`: each command is a function, and its options are the parameters of that function.

Exit status: 0 done, 2 bad input or usage (one line says what to do; nothing was written), 1 training diverged,
130 interrupted (while JAX is imported, by the signal itself).
"""

from __future__ import annotations

import functools
import inspect
import io
import os
import pkgutil
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import tyro
from tyro._errors import on_parse_error
from tyro.conf import Positional, Suppress, UseAppendAction

from dff_jax import __version__
from dff_jax.errors import InputError, one_line, printable
from dff_jax.prediction.words import in_words
from dff_jax.runtime.stopping import interruptible

REPLACED = {"--near-first": "--frame-order descending", "--bgr": "--bgr True", "--no-bgr": "--bgr False"}
READS_WEIGHTS = ("train", "evaluate", "predict", "ablate", "compare", "pack")
TRUST = tyro.conf.arg(help="module:function of a scheme or prox of your own that the weights name; may be repeated.")
WITHOUT_VALUE = {"--align": "similarity", "--report": "24"}  # what these options mean when no value follows


class UsageError(Exception):
    """Words that the command does not understand."""


class Command(NamedTuple):
    """A function that can be run from the command line."""

    summary: str
    function: Callable[..., Any] | str
    """The function, or "module:function", which is imported when the command runs."""
    show: Callable[[Any, dict[str, Any]], None] | None = None
    """Prints the result, given the arguments too; None: the result is the exit status."""
    positional: str | None = None
    """The parameter that is given without its name; a function of this module says so itself."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):  # a console that cannot show a character shows its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    name, *words = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help"):
        print("usage: dff-jax COMMAND ...\n\nDepth from focus in JAX. dff-jax COMMAND --help shows its options.\n")
        print("\n".join(f"  {command:<16}{summary}" for command, (summary, *_) in COMMANDS.items()))
        return 0
    if name == "--version":
        print(f"dff-jax {__version__}")
        return 0
    if name not in COMMANDS:
        return _refused("dff-jax", f"{name!r} is no command" if name else "give a command")
    # XLA's alarms of slow compilation look like failures; what goes wrong is raised, not logged
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with interruptible():
        status, agreed = _run(name, words)
    import jax

    if jax.distributed.is_initialized():
        from dff_jax.runtime import processes

        processes.leave(status, agreed)
    return status


def _run(name: str, words: list[str]) -> tuple[int, bool]:
    """The exit status, and whether the command came to its own end."""
    try:
        function, given = parse(name, words)
        if name != "bench":  # which times compilation
            from dff_jax.runtime.compile import keep_programs

            keep_programs()
        result = function(**given)
        show = COMMANDS[name].show  # which returns nothing
        return (result if show is None else show(result, given)) or 0, True
    except UsageError as error:
        return _refused(f"dff-jax {name}", str(error)), True
    except InputError as error:
        problems = getattr(error, "problems", ())  # of a SourceError: all that is missing or damaged
        if len(problems) > 1:
            print("\n".join(one_line(problem, None) for problem in problems), file=sys.stderr)
        print(f"dff-jax: error: {one_line(error, None)}", file=sys.stderr)
        return 2, error.everywhere
    except MemoryError as error:
        print(f"dff-jax: error: not enough memory for so large images or numbers ({one_line(error)})", file=sys.stderr)
        return 2, False
    except KeyboardInterrupt:
        print("dff-jax: interrupted", file=sys.stderr)
        return 130, False
    except BrokenPipeError:
        return 1, True


def _refused(program: str, reason: str) -> int:
    print(f"{program}: error: {one_line(reason, None)}; {program} --help shows what there is", file=sys.stderr)
    return 2


def parse(name: str, words: list[str]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function of a command, and the words as its arguments, by tyro; raises UsageError."""
    function, positional = COMMANDS[name].function, COMMANDS[name].positional
    if isinstance(function, str):
        function = pkgutil.resolve_name(function)
    signature = inspect.signature(function)
    hints = typing.get_type_hints(function, include_extras=True)
    if positional:
        hints[positional] = Positional[hints[positional]]
    parameters = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]
    if name in READS_WEIGHTS:
        hints["trust"] = Annotated[UseAppendAction[tuple[str, ...]], TRUST]
        parameters.append(parameters[-1].replace(name="trust", default=(), annotation=hints["trust"]))

    def keep(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return dict(zip(signature.parameters, args, strict=False)) | kwargs

    functools.update_wrapper(keep, function)
    del keep.__wrapped__  # whose types tyro would take
    keep.__annotations__ = hints
    keep.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    found: list[str] = []
    for word, after in zip(words, [*words[1:], "--"], strict=False):
        found += REPLACED[word].split() if word in REPLACED else [word]
        if word in WITHOUT_VALUE and after.startswith("--"):
            found.append(WITHOUT_VALUE[word])
    with on_parse_error(_explain):
        how = [tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands]
        given, rest = tyro.cli(keep, prog=f"dff-jax {name}", args=found, return_unknown_args=True, config=how)
    required = [p.name for p in parameters if p.default is p.empty]
    if missing := [parameter for parameter in required if given[parameter] in ((), [])]:
        raise UsageError(f"missing: {', '.join(missing)}")
    from dff_jax.config import base, methods, trust  # not before: JAX is imported, which reads the environment

    trust(*given.pop("trust", ()))
    for parameter, value in given.items():
        most = methods.MOST_ITERATIONS if parameter == "iterations" else base.MOST
        for number in value if isinstance(value, tuple | list) else (value,):
            if isinstance(number, int) and number > most:
                raise UsageError(f"--{parameter.replace('_', '-')}: at most {most}, got {one_line(number, 40)}")
    if "changes" in signature.parameters:
        given["changes"] = tuple(rest)
    elif rest:
        raise UsageError(f"unrecognized arguments: {' '.join(rest)}")
    return function, given


def _explain(event: Any) -> NoReturn:
    """Raises UsageError that says in one line what tyro found wrong."""

    def option(argument: Any) -> str:
        return argument.field.intern_name if argument.is_positional() else argument.lowered.name_or_flags[-1]

    kind, argument = type(event).__name__, getattr(event, "argument", None)
    if kind == "MissingArgs":
        raise UsageError(f"missing: {', '.join(option(missing.arg) for missing in event.missing_arguments)}")
    if kind == "InvalidChoice":
        choices = ", ".join(sorted(set(event.choices) - {"None"}))
        raise UsageError(f"{option(argument)}: {event.value!r} is not a choice; choose one of {choices}")
    if argument is not None:
        raise UsageError(f"{option(argument)}: expected {argument.lowered.metavar.removeprefix('{None}|').strip('{}')}")
    raise UsageError(getattr(event, "message", kind))


def train(
    config: Positional[str], *, output: str | None = None, resume: bool = True, fields: bool = False,
    distributed: bool = False, coordinator: str | None = None, num_processes: int | None = None,
    process_id: int | None = None, changes: Suppress[tuple[str, ...]] = (),
) -> int:  # fmt: skip
    """Trains what a config file describes. Any field of the config can be changed behind it.

    dff-jax train configs/procedural_tiny.py --model.num-iterations 5 --data.crop 128 128

    dff-jax train configs/procedural_tiny.py --fields        lists them all

    Repeat the same command to go on where an interrupted run left off. For a run of several processes give the same
    command in each; see scripts/README.md.

    Args:
      config: A file such as configs/procedural_tiny.py, or file.py:function.
      output: Run folder; default runs/<name of the config>.
      resume: Go on with a run that is in the folder; with --no-resume such a folder is refused.
      fields: List the config's fields with their values, and stop.
      distributed: Several processes, as SLURM, a TPU pod or Open MPI describes them.
      coordinator: HOST:PORT of process 0, where several processes meet.
      num_processes: Number of processes of the run, on all hosts.
      process_id: Number of this process, from 0.
      changes: Fields of the config to change.
    """
    from dff_jax.config.load import fields_of, load_config, override

    wanted = override(load_config(config), list(changes))
    if fields:
        _print("\n".join(f"--{name.replace('_', '-')} {value}" for name, (value, _) in fields_of(wanted).items()))
        return 0
    from dff_jax.runtime import processes
    from dff_jax.training import loop

    if distributed or not (coordinator is num_processes is process_id is None):
        processes.join(coordinator, num_processes, process_id)
    try:
        summary = loop.train(wanted, output or Path("runs") / wanted.name, resume=resume)
    except (loop.TrainingDiverged, processes.ProcessLost) as error:
        print(f"dff-jax: {one_line(error, None)}", file=sys.stderr)
        return 1
    return 130 if summary.get("interrupted") else 0


def compare(
    comparison: Positional[str], *, output: str | None = None, only: tuple[str, ...] = (), overwrite: bool = False
) -> int:
    """Trains the methods of a comparison and measures them on the same stacks. Repeat the same command to go on where
    an interrupted one left off: finished steps are not repeated.

    Args:
      comparison: A file such as configs/compare_procedural.py, or file.py:function.
      output: Folder of the runs, tables and images; default runs/<name of the comparison>.
      only: Only the methods with these labels.
      overwrite: Replace files in the output folder that this program did not write, too; never a run.
    """
    from dff_jax.config import Comparison
    from dff_jax.config.load import load_config
    from dff_jax.studies import compare as study
    from dff_jax.training.loop import TrainingDiverged

    wanted = load_config(comparison, Comparison)
    folder = Path(output or Path("runs") / wanted.name)
    try:
        table = study.compare(wanted, folder, only=list(only), overwrite=overwrite)
    except TrainingDiverged as error:
        print(f"dff-jax: {one_line(error, None)}", file=sys.stderr)
        return 1
    if table is None:
        return 130
    _show_table(table, {"output": folder})
    return 0


def pack(weights: Positional[str], *, output: str, score: UseAppendAction[tuple[tuple[str, str], ...]] = ()) -> None:
    """Writes the weights of a run in half precision, with its config, its command and measured scores.

    Args:
      weights: A run folder, or one of its weights files.
      output: The weights file to write.
      score: NAME and DIR: the output folder of an evaluation of these weights, and what to call it; may be repeated.
    """
    from dff_jax.estimators import release

    info = release.pack(weights, output, dict(score))
    size, scores = Path(output).stat().st_size / 1e6, ", ".join(info["scores"]) or "none"
    _print(f"{output}: {info['parameters']:,} parameters, {size:.2f} MB, scores of {scores}")


# What is printed of the results of other rooms' functions ---------------------------------------------------------


def _print(text: str) -> None:
    """Prints lines, without what a terminal would obey: they may hold names from files."""
    print("\n".join(map(printable, text.split("\n"))))


def _show_import(done: Any, given: dict[str, Any]) -> None:
    unused = f"; never used, and left out: {', '.join(done.idle)}" if done.idle else ""
    _print(f"{given['model']}: {done.parameters:,} parameters written to {done.output}{unused}")
    for note in done.notes:
        _print(f"note: {note}")


def _show_table(result: Any, given: dict[str, Any]) -> None:
    several = len(given.get("runs", ())) > 1
    _print((Path(given["output"]) / ("comparison.md" if several else "table.md")).read_text("utf-8"))
    _print(f"written to {given['output']}")


COMMANDS = {
    "train": Command("Train a network.", train),
    "evaluate": Command(
        "Measure a network, or a method without one, on stacks with ground truth.",
        "dff_jax.evaluation.folder:evaluate_to_folder", _show_table, "spec",
    ),
    "predict": Command(
        "Depth of your own photographs.", "dff_jax.prediction.predict:predict_to_folder",
        lambda summary, given: _print(in_words(summary, given["output"])), "source",
    ),
    "ablate": Command(
        "What the unroll contributes: trained runs at many K and schemes.", "dff_jax.studies.ablate:ablate",
        _show_table, "runs",
    ),
    "compare": Command("Methods side by side: train each, measure all.", compare),
    "prepare": Command("Make or convert a dataset.", "dff_jax.data.prepare:prepare", positional="name"),
    "import-weights": Command(
        "Use weights published for PyTorch.", "dff_jax.estimators.torch_weights:import_weights", _show_import, "source"
    ),
    "pack": Command("Weights to give away: half precision, scores inside.", pack),
    "bench": Command(
        "Speed, memory and compile time, measured side by side.", "dff_jax.studies.bench:bench",
        lambda table, _: print(table), "subject",
    ),
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
