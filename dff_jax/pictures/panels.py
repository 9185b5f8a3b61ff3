"""Arrays to images: colour maps, colour bars, sheets of panels with captions; and figures for curves.

Pillow draws the images, as a canvas of matplotlib would take a second. Matplotlib gives the colours, the ticks and the
font, and draws curves.
"""

from __future__ import annotations

import functools
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dff_jax import focus_axis
from dff_jax.errors import printable
from dff_jax.pictures.encode import bands, save_png, see_through, to_uint8, to_uint16  # noqa: F401

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOUR_MAP = "turbo"  # many distinct steps, and red, which is where near goes, stands out
HOLE = (96, 96, 96)  # the grey of pixels without a value

_UNIT_LABELS = {
    "disparity": "disparity (larger = nearer)",
    "diopter": "diopters, 1/m (larger = nearer)",
    "metre": "metres (red = near)",
    "index": "frame index (near end not known)",
    "mm": "mm (larger = nearer)",
    "micron": "µm (larger = nearer)",
    "-mm": "mm (smaller = nearer)",
    "-micron": "µm (smaller = nearer)",
}


class Bar(NamedTuple):
    """A colour bar."""

    low: float  # value of the first colour
    high: float  # value of the last colour
    label: str
    ticks: tuple[tuple[float, str], ...]  # (value, text)
    cmap: str = COLOUR_MAP


class Panel(NamedTuple):
    """One image of a sheet."""

    image: np.ndarray  # [H,W,3] uint8
    caption: str
    bar: Bar | None = None


def load() -> None:
    """Imports what the first image needs, so that a thread can do it while the device works."""
    from matplotlib import colormaps, ticker  # noqa: F401


def literal(text: str) -> str:
    """A text that matplotlib shows unchanged; between two dollar signs it would look for a formula."""
    return printable(text).replace("$", r"\$")


@contextmanager
def any_script() -> Iterator[None]:
    """Lets matplotlib draw boxes, without a warning, for letters that its font does not have."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        yield


def robust_range(
    values: np.ndarray, *, mask: np.ndarray | None = None, percentiles: tuple[float, float] = (1.0, 99.0)
) -> tuple[float, float]:
    """(low, high) percentiles of the finite values [...] where `mask` [...] holds; low < high always."""
    values = np.asarray(values)
    keep = np.isfinite(values) if mask is None else np.isfinite(values) & mask
    low, high = np.percentile(values[keep], percentiles).tolist() if keep.any() else (0.0, 1.0)
    rounding = 8 * np.finfo(values.dtype if values.dtype.kind == "f" else np.float32).eps
    margin = rounding * max(abs(low), abs(high), 1e-6)
    return (low, high) if high - low > margin else (low - 0.5, low + 0.5)


def colorize(
    values: np.ndarray, low: float, high: float, *, mask: np.ndarray | None = None, cmap: str = COLOUR_MAP
) -> np.ndarray:
    """Colours a map. `low` and what is below gets the first colour of `cmap`, `high` and what is above the last.

    Args:
      values: [H,W].
      mask: [H,W] bool; pixels where it is False, or the value is not finite, come out grey.

    Returns:
      [H,W,3] uint8.
    """
    values, table = np.asarray(values), colour_table(cmap)
    image = np.empty((*values.shape, 3), np.uint8)
    for rows in bands(values):
        part = (values[rows] - low).astype(np.float32)
        keep = np.isfinite(part) if mask is None else np.isfinite(part) & mask[rows]
        scaled = np.where(keep, part / (high - low), 0.0)
        image[rows] = np.where(keep[..., None], table[np.clip(scaled * 256, 0, 255).astype(np.uint8)], HOLE)
    return image


def colour_table(cmap: str, count: int = 256) -> np.ndarray:
    """`count` colours from the first to the last of a colour map of matplotlib, [count,3] uint8."""
    from matplotlib import colormaps

    return np.rint(colormaps[cmap](np.linspace(0, 1, count))[:, :3] * 255).astype(np.uint8)


def depth_bar(low: float, high: float, unit: str, *, cmap: str = COLOUR_MAP) -> Bar:
    """The colour bar of a depth map drawn in q, from `low` to `high`, labelled in `unit`.

    Colours are linear in q: metres have even colours near by, and "∞" stands where q is almost 0.
    """
    from matplotlib.ticker import MaxNLocator

    if unit[0] == "-":
        bar = plain_bar(-high, -low, _UNIT_LABELS[focus_axis.check_unit(unit)], cmap=cmap)
        return bar._replace(low=low, high=high, ticks=tuple((-at, text) for at, text in bar.ticks))
    if unit != "metre":
        return plain_bar(low, high, _UNIT_LABELS[focus_axis.check_unit(unit)], cmap=cmap, whole=unit == "index")
    infinity = max(1e-4 * high, 1 / focus_axis.FARTHEST)
    metres = {f"{1.0 / q:.2g}" for q in MaxNLocator(6).tick_values(low, high) if q > infinity}
    ticks = sorted((1.0 / float(text), f"{float(text):g}") for text in metres)
    ticks = [(low, "∞")] * (low < infinity) + [tick for tick in ticks if low <= tick[0] <= high]
    return Bar(low, high, _UNIT_LABELS[unit], tuple(ticks), cmap)


def plain_bar(low: float, high: float, label: str, *, cmap: str = COLOUR_MAP, whole: bool = False) -> Bar:
    """A colour bar from `low` to `high` with round ticks, or whole ones."""
    from matplotlib.ticker import MaxNLocator

    ticks = [float(v) for v in MaxNLocator(6, integer=whole).tick_values(low, high) if low <= v <= high]
    ticks = [0.0 if abs(v) < 1e-9 * (high - low) else v for v in ticks]
    offset = math.floor(low) if abs(low) > 1e4 * (high - low) else 0  # as of a stage encoder
    label += f" + {offset}" if offset else ""
    return Bar(low, high, label, tuple((v, f"{v - offset:.6g}") for v in ticks), cmap)


def beside_bar(image: np.ndarray, bar: Bar) -> np.ndarray:
    """`image` [H,W,3 or 4] uint8 with the colour bar drawn on white to its right: [H',W',3 or 4] uint8.

    An image that is too low for a readable bar is scaled up by a whole number.
    """
    height = image.shape[0]
    if height < 240:
        factor = -(-240 // height)
        image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    drawn = color_bar(image.shape[0], bar)
    drawn = drawn if image.shape[2] == 3 else see_through(drawn, np.zeros(drawn.shape[:2], bool))
    return np.concatenate([image, drawn], axis=1)


def color_bar(height: int, bar: Bar) -> np.ndarray:
    """A vertical colour bar with ticks and label, high end up: [height,W,3] uint8, W about a fifth of it."""
    width = min(max(110, height // 5), height)
    image = Image.new("RGB", (width, height), "white")
    _draw_bar(image, (0.12 * width, 0.05 * height, 0.32 * width, 0.95 * height), bar, max(10, height // 55))
    return np.array(image)


def sheet(
    rows: Sequence[Sequence[Panel]], *, title: str = "", width: int = 1600, columns: int | None = None
) -> np.ndarray:
    """Images with captions in rows, the panels of a row equally wide: [H,width,3] uint8 on white.

    Args:
      rows: panels; each row fills the width.
      title: a line above all.
      width: pixels of the sheet.
      columns: a row with fewer panels than this is laid out for so many, which keeps single panels small.
    """
    margin, gap, bar_share, size = 10, 12, 0.19, 14  # pixels, except the third: width of a bar by that of its image
    line = round(1.25 * size)
    layout, top = [], 45 if title else margin  # (top of the images, panel width, panels, captions)
    for row in rows:
        shares = [1.0 + (bar_share if panel.bar else 0.0) for panel in row]
        total = max(sum(shares), float(columns or 0))
        panel_width = max(1, int((width - 2 * margin - gap * (len(row) - 1)) / total))
        captions = [_wrapped(panel.caption, panel_width, size) for panel in row]
        tallest = max(panel.image.shape[0] / panel.image.shape[1] for panel in row)
        top += line * max(len(lines) for lines in captions) + 6
        layout.append((top, panel_width, row, captions))
        top += round(panel_width * min(tallest, 1.5)) + gap
    page = Image.new("RGB", (width, top - gap + margin), "white")
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((margin, margin + 2), printable(title), "black", _font(18, bold=True))
    for top, panel_width, row, captions in layout:
        x = margin
        for panel, lines in zip(row, captions, strict=True):
            for i, text in enumerate(reversed(lines)):
                draw.text((x, top - 6 - line * (i + 1)), text, "black", _font(size))
            image = _fit(panel.image, panel_width)
            page.paste(image, (x, top))
            x += panel_width + gap
            if panel.bar:
                _draw_bar(page, (x - 4, top + 5, x + 12, top + image.height - 5), panel.bar, size - 2)
                x += round(panel_width * bar_share)
    return np.array(page)


_COLOURS = "#1b1b1b #3b6fb6 #e0913a #3f9b5b #c0504d #8064a2 #7f7f7f #2aa5a5 #b5a02c #d667a8".split()


def line_style(i: int) -> dict[str, Any]:
    """Colour and dashes of line `i` of a chart."""
    return {"color": _COLOURS[i % len(_COLOURS)], "linestyle": ("-", "--", ":")[i // len(_COLOURS) % 3]}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of matplotlib for curves, width x height inches, without pyplot: no display, no global state."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if Path(matplotlib.matplotlib_fname()).resolve().parent == Path.cwd():
        matplotlib.rcdefaults()  # a matplotlibrc beside photographs may be somebody else's, and have LaTeX run
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as PNG."""
    with any_script():
        figure.savefig(path, dpi=100, format="png")


def pixels(figure: Figure) -> np.ndarray:
    """What is drawn in a figure of `new_figure`, [H,W,3] uint8."""
    with any_script():
        figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has the letters of many scripts."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _wrapped(text: str, width: int, size: int) -> list[str]:
    """Lines no wider than `width` pixels, broken at spaces where there are any."""
    lines: list[str] = []
    for part in map(printable, text.split("\n")):
        for count in range(max(1, len(part)), 0, -1):  # characters a line
            broken = textwrap.wrap(part, count) or [""]
            if all(_font(size).getlength(line) <= width for line in broken):
                break
        lines += broken
    return lines


def _fit(image: np.ndarray, width: int) -> Image.Image:
    """The image scaled to `width` pixels, or to a height of 1.5 times that where it would be higher."""
    height, own = image.shape[:2]
    scale = min(width / own, 1.5 * width / height)
    size = max(1, round(own * scale)), max(1, round(height * scale))
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    return Image.fromarray(np.ascontiguousarray(image)).resize(size, how, reducing_gap=3.0)


def _draw_bar(page: Image.Image, box: tuple[float, float, float, float], bar: Bar, size: int) -> None:
    """Draws `bar` into `page`: the colours in `box` (left, top, right, bottom), ticks and label to the right of it with
    letters of `size` pixels."""
    left, top, right, bottom = (round(x) for x in box)
    height, right = max(2, bottom - top), max(left + 1, right)
    ramp = colour_table(bar.cmap, height)[::-1, None]
    page.paste(Image.fromarray(ramp).resize((right - left, height), Image.Resampling.NEAREST), (left, top))
    draw, widest = ImageDraw.Draw(page), 0.0
    draw.rectangle((left, top, right - 1, top + height - 1), outline="black")
    tick, font = max(2, size // 3), _font(size)
    for value, text in bar.ticks:
        y = top + round((bar.high - value) / (bar.high - bar.low) * (height - 1))
        draw.line((right, y, right + tick, y), "black")
        draw.text((right + 2 * tick, y), text, "black", font, anchor="lm")
        widest = max(widest, font.getlength(text))
    box = font.getbbox(bar.label)
    label = Image.new("L", (max(1, math.ceil(box[2])), max(1, math.ceil(box[3]))))
    ImageDraw.Draw(label).text((0, 0), bar.label, 255, font)
    label = label.rotate(90, expand=True)
    at = min(round(right + 3 * tick + widest), page.width - label.width), top + (height - label.height) // 2
    page.paste("black", at, label)
