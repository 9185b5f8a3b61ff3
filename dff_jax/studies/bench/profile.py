"""Where the time of one inference goes: a trace for a viewer, and its most expensive operations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import jax

from dff_jax import config as configs
from dff_jax.errors import InputError
from dff_jax.runtime import markdown as texts
from dff_jax.studies.bench import subjects

MOST = 20


def profile(preset: str, folder: str | Path, *, size: int = 256, num_frames: int = 15) -> str:
    """Traces one inference of 1 x Z x size x size with random weights into `folder`/<preset>.

    On CPU the program is compiled as XLA does by default, without `runtime.compile`'s options: its faster convolutions
    leave no times in a trace. Shares are then approximate.

    Returns:
      The most expensive operations as a markdown table, named as in the compiled program.

    Raises:
      InputError: a folder that cannot be written.
    """
    function, arguments = subjects.inference(configs.model_preset(preset), (1, num_frames, size))
    program = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(program(*arguments))
    path = Path(folder) / preset
    try:
        path.mkdir(parents=True, exist_ok=True)
        with jax.profiler.trace(str(path)):
            jax.block_until_ready(program(*arguments))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    newest = max(path.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    spent: Counter[str] = Counter()  # milliseconds; work of several threads is added up
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation is not None:
                    spent[str(operation)] += event.duration_ns / 1e6
    total = sum(spent.values()) or 1.0
    head = (
        f"{preset}, 1 x {num_frames} x {size} x {size}, {jax.devices()[0].device_kind}: {total:.0f} ms, summed over "
        f"threads. Trace: {path}"
    )
    rows = [(name, ms, ms / total) for name, ms in spent.most_common(MOST)]
    return "\n".join([head, "", *texts.table(rows, ["operation", "ms", "share"], {"share": ".1%"})]) + "\n"
