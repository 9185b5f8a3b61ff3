"""Where the time of one inference goes: a trace for a viewer, and its dearest operations, by part of the network."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.errors import InputError
from dff_jax.studies.bench import measuring

# part: how flax and the estimators name what belongs to it
PARTS = {
    "encoder": r"/encoder/", "decoder": r"/(top_down|decoder\d)/", "heads": r"/(Candidates|ContextHeads)/",
    "refiner": r"/Refiner/", "unroll": r"/(while|closed_call|scan|checkpoint|GatedProximalNetwork)",
    "focus volume, rest": r"/(FocusVolume|DFV)/",
}  # fmt: skip
MOST = 20


def profile(preset: str, folder: str | Path, *, size: int = 256, num_frames: int = 15) -> str:
    """Traces one inference of 1 x Z x size x size with random weights into `folder`/<preset>.

    On CPU the program is compiled as XLA does by default: its faster convolutions (`compilation`) leave no times in a
    trace. Shares are then only about right.

    Returns:
      The table as markdown.

    Raises:
      InputError: a folder that cannot be written.
    """
    model = configs.model_preset(preset)
    estimator = estimators.build(model)
    frames = jax.random.uniform(jax.random.key(0), (1, num_frames, size, size, 3))
    focus = jnp.linspace(10.0, 100.0, num_frames)[None]
    variables = estimator.init(jax.random.key(1), frames, focus)

    program = jax.jit(measuring.without_history(estimator)).lower(variables, frames, focus).compile()
    jax.block_until_ready(program(variables, frames, focus))
    path = Path(folder) / preset
    try:
        path.mkdir(parents=True, exist_ok=True)
        with jax.profiler.trace(str(path)):
            jax.block_until_ready(program(variables, frames, focus))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    traces = sorted(path.rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
    spent = _milliseconds(traces[-1])
    return _table(preset, frames.shape, spent, _names(program.as_text()), path)


def _milliseconds(trace: Path) -> Counter[str]:
    """By operation of the compiled program; work of several threads counts several times."""
    spent: Counter[str] = Counter()
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation is not None:
                    spent[operation] += event.duration_ns / 1e6
    return spent


def _names(program: str) -> dict[str, tuple[str, str]]:
    """Operation -> where in the code it comes from, and its result's type; from the text of a compiled program."""
    found = {}
    for line in program.splitlines():
        head = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\S+)", line)
        origin = re.search(r'op_name="([^"]+)"', line)
        if head:
            found[head[1]] = (origin[1] if origin else "", re.sub(r"\{.*", "", head[2]))
    return found


def _part(origin: str) -> str:
    return next((part for part, pattern in PARTS.items() if re.search(pattern, origin + "/")), "elsewhere")


def _table(
    preset: str, shape: tuple[int, ...], spent: Counter[str], names: dict[str, tuple[str, str]], path: Path
) -> str:
    total = sum(spent.values()) or 1.0
    parts: Counter[str] = Counter()
    for operation, value in spent.items():
        parts[_part(names.get(operation, ("", ""))[0])] += value
    lines = [
        f"{preset}, {' x '.join(map(str, shape[:4]))}, {jax.devices()[0].device_kind}: {total:.0f} ms, summed over "
        f"threads. Trace: {path}",
        "",
        "| part | ms | share |",
        "|---|---:|---:|",
        *(f"| {part} | {value:.1f} | {100 * value / total:.0f} % |" for part, value in parts.most_common()),
        "",
        "| dearest operations | part | result | ms |",
        "|---|---|---|---:|",
    ]
    for operation, value in spent.most_common(MOST):
        origin, kind = names.get(operation, ("", ""))
        short = re.sub(r"^jit\([^)]*\)/", "", origin) or operation
        lines.append(f"| {short} | {_part(origin)} | {kind} | {value:.1f} |")
    return "\n".join(lines) + "\n"
