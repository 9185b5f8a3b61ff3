"""The report as a page: what a reader wants to know first, each figure with its circumstances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """The whole page, of the parts that are there."""
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    small = ""
    if report["small"]:
        small = " Small mode: shapes of no interest, compiled without optimisation; it shows that the report runs."
    lines = [
        f"# {report['device']}", "",
        f"dff_jax {report['dff_jax']}, Python {report['python']}, {versions}.{small}", "",
    ]  # fmt: skip
    for name, section in SECTIONS.items():
        part = report["parts"].get(name)
        if part is None:
            continue
        lines += [f"## {name.capitalize()}", ""]
        try:
            lines += section(part)
        except KeyError:  # it was cut off before that
            lines += ["(incomplete)"]
        if "raised" in part:
            lines += ["", f"**This part failed:** {_cell(part['raised'])}"]
        if part.get("left_out"):
            lines += ["", f"No time was left for: {'; '.join(part['left_out'])}."]
        if "run" in part:
            run = part["run"]
            lines += ["", f"`scripts/gpu_report {run['command']}`, {run['date']}, {run['seconds']:.0f} s."]
        lines.append("")
    return "\n".join(lines)


def _device(part: dict[str, Any]) -> Iterator[str]:
    limit = f", {part['memory_limit_MB'] / 1000:.1f} GB for JAX" if part["memory_limit_MB"] else ""
    yield f"{part['number']} x {part['kind']}{limit}, {part['cores']} CPU cores. {part['driver'] or ''}".strip()
    yield ""
    published = part["published_TFLOPs_per_s"] or {}
    rows = []
    for name, found in part["peaks"].items():
        rows.append([name, _number(found["TFLOPs_per_s"]), f"{found['relative_error']:.1e}"])
    yield from _table(["product of two matrices", "TFLOP/s", "relative error"], rows)
    yield ""
    if "float32_is_tf32" in part:
        is_tf32 = part["float32_is_tf32"]
        yield "By default JAX multiplies float32 matrices here " + ("in TF32." if is_tf32 else "in full float32.")
    if published:
        yield "Published, dense, TFLOP/s: " + ", ".join(f"{name} {value:g}" for name, value in published.items()) + "."


def _checks(part: dict[str, Any]) -> Iterator[str]:
    passed = sum(row["passed"] for row in part["rows"])
    yield f"{passed} of {len(part['rows'])} passed; in the highest precision, unless a line says otherwise."
    yield ""
    rows = []
    for row in part["rows"]:
        error = f"{row['error']:.1e}" if "error" in row else _cell(row["raised"])
        tolerance = f"{row['tolerance']:.0e}" if "tolerance" in row else ""
        rows.append([row["check"], error, tolerance, "passed" if row["passed"] else "**FAILED**"])
    yield from _table(["check", "error", "tolerance", ""], rows)


def _bench(part: dict[str, Any]) -> Iterator[str]:
    rows = part["rows"]
    if rows:
        yield (
            f"Z = {rows[0]['Z']}, {rows[0]['size']} x {rows[0]['size']}. Latency: median of runs waited for; stacks/s: "
            "runs queued one behind the other. FLOPs are counted before optimisation, nothing computed twice; their "
            "shares are of the measured matrix product and of the published peak (float32: TF32 where that is the "
            "default). PyTorch: DFV in its own implementation, channels last, bfloat16 by autocast; milliseconds."
        )
        yield ""
    columns: list[tuple[str, Callable[[dict], str]]] = [
        ("", lambda r: f"{r['preset']}, {r['what']}"),
        ("dtype", lambda r: r["dtype"]),
        ("batch", lambda r: str(r["B"])),
        ("compile, s", lambda r: _number(r.get("compile_s"))),
        ("latency, ms", lambda r: _number(r.get("seconds"), 1e3)),
        ("stacks/s", lambda r: _number(r.get("stacks_per_s"))),
        ("GFLOPs", lambda r: _number(r.get("GFLOPs"))),
        ("of measured", lambda r: _percent(r.get("share_of_measured"))),
        ("of published", lambda r: _percent(r.get("share_of_published"))),
        ("temporaries, MB", lambda r: _number(r.get("temporary_MB"))),
        ("all, MB", lambda r: _number(r.get("planned_MB"))),
    ]
    if part.get("torch"):
        columns += [
            ("eager", lambda r: _number(r.get("torch_eager_s"), 1e3)),
            ("its MB", lambda r: _number(r.get("torch_eager_MB"))),
            ("torch.compile", lambda r: _number(r.get("torch_compiled_s"), 1e3)),
            ("ours / eager", lambda r: _ratio(r, "torch_eager_s")),
            ("ours / compiled", lambda r: _ratio(r, "torch_compiled_s")),
        ]
    shown = [row for row in rows if "raised" not in row]
    yield from _table([name for name, _ in columns], [[cell(row) for _, cell in columns] for row in shown])
    yield ""
    for row in rows:
        if "raised" in row:
            yield f"- {row['preset']}, {row['what']}, {row['dtype']}, batch {row['B']}: {_cell(row['raised'])}"
        if "torch_raised" in row:
            yield f"- PyTorch, {row['preset']}, {row['what']}, {row['dtype']}: {_cell(row['torch_raised'])}"
    if not part.get("torch"):
        yield "PyTorch is not installed here, so nothing is compared with it."


def _memory(part: dict[str, Any]) -> Iterator[str]:
    B, Z, size = part["shape"]
    yield (
        f"A training step of `{part['preset']}`, {B} x {Z} x {size} x {size}, float32: what the compiler plans; the "
        "device's peak is given where it rose above all before it."
    )
    yield ""
    rows = [
        [r["gradient"], str(r["K"]), _number(r.get("temporary_MB")), _number(r.get("planned_MB")),
         _number(r.get("device_peak_MB")), _number(r.get("seconds"), 1e3), _number(r.get("compile_s")),
         _cell(r.get("raised", ""))]
        for r in part["rows"]
    ]  # fmt: skip
    head = ["gradient", "K", "temporaries, MB", "all, MB", "device's peak, MB", "step, ms", "compile, s", ""]
    yield from _table(head, rows)


def _scaling(part: dict[str, Any]) -> Iterator[str]:
    yield f"Inference of one stack by `{part['preset']}`, float32, runs queued; the line is fitted by least squares."
    yield ""
    rows = []
    for name, line in part["lines"].items():
        times = ", ".join(f"{row['label']}: {_number(row['seconds'], 1e3)}" for row in line["rows"])
        rows.append([name, times, _percent(line.get("largest_deviation"))])
    yield from _table(["over", "ms", "largest distance from a straight line"], rows)


def _training(part: dict[str, Any]) -> Iterator[str]:
    yield (
        f"`{part['preset']}` on `procedural_live`, batch {part['batch']}, float32: {part['steps']} of "
        f"{part['planned_steps']} steps in {part['seconds']:.0f} s"
        + (", stopped when its time was up." if part["interrupted"] else ".")
    )
    yield ""
    first, last = part["loss"][0], part["loss"][-1]
    rows = [
        ["steps/s", _number(part.get("steps_per_s"))],
        ["stacks/s", _number(part.get("stacks_per_s"))],
        ["rendering alone, of a step", _percent(part.get("share_rendering"))],
        ["of the measured float32 peak", _percent(part.get("share_of_measured"))],
        ["of the published peak", _percent(part.get("share_of_published"))],
        [f"loss at step {first[0]}", _number(first[1])],
        [f"loss at step {last[0]}", _number(last[1])],
        *([f"validation MAE at step {step}", _number(mae)] for step, mae in part["validation_MAE"]),
    ]
    names = {"final": "the trained network", "expected": "its Dbar"}
    for name, mae in part.get("held_out", {}).items():
        rows.append([f"MAE on {part.get('stacks')} held-out worlds, {names.get(name, f'`{name}`')}", _number(mae)])
    yield from _table(["", ""], [row for row in rows if row[1]])


def _precision(part: dict[str, Any]) -> Iterator[str]:
    yield from _table(["the trained network in", "MAE"], [[name, _number(mae)] for name, mae in part["MAE"].items()])
    if "bfloat16_loss_percent" in part:
        yield ""
        yield f"bfloat16 costs {part['bfloat16_loss_percent']:+.2f} % of the MAE."


SECTIONS: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "device": _device, "checks": _checks, "bench": _bench, "memory": _memory, "scaling": _scaling,
    "training": _training, "precision": _precision,
}  # fmt: skip


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---|" + "---:|" * (len(head) - 1)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _number(value: float | None, factor: float = 1.0) -> str:
    return "" if value is None else f"{value * factor:.4g}" if abs(value * factor) < 1e4 else f"{value * factor:.0f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.3g} %"


def _ratio(row: dict[str, Any], other: str) -> str:
    return f"{row['seconds'] / row[other]:.2f}" if other in row else ""


def _cell(text: str) -> str:
    """One line that does not end a cell."""
    return " ".join(text.split()).replace("|", "/")[:200]
