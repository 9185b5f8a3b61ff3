"""Arrays to pictures: colour maps, colour bars, captioned sheets, PNG files.

Pillow draws them; of matplotlib, whose canvas would take a second, they have the colours, the ticks and the type.
"""

from __future__ import annotations

import functools
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dff_jax import focus_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOUR_MAP = "turbo"  # many distinct steps, and red, which is where near goes, stands out
HOLE = (96, 96, 96)  # the grey of pixels without a value
BAND = 256  # rows that are worked on together

_UNIT_LABELS = {
    "disparity": "disparity (larger = nearer)",
    "diopter": "diopters, 1/m (larger = nearer)",
    "metre": "metres (red = near)",
    "index": "frame index (near end not known)",
}


class Bar(NamedTuple):
    """What a colour bar says."""

    low: float  # value of the first colour
    high: float  # value of the last colour
    label: str
    ticks: tuple[tuple[float, str], ...]  # (value, text)
    cmap: str = COLOUR_MAP


class Panel(NamedTuple):
    """One picture of a sheet."""

    image: np.ndarray  # [H,W,3] uint8
    caption: str
    bar: Bar | None = None


def load() -> None:
    """Imports what the first picture would, for a thread to do while the device works."""
    from matplotlib import colormaps, ticker  # noqa: F401


def literal(text: str) -> str:
    """A name of the user's, as matplotlib shows it unchanged: between two dollar signs it would look for formulas."""
    return text.replace("$", r"\$")


@contextmanager
def any_script() -> Iterator[None]:
    """In here matplotlib draws boxes for letters that its font lacks without warning of each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        yield


def bands(picture: np.ndarray) -> Iterator[slice]:
    """Some rows of `picture` [H,...] after others, so that what is worked out on the way stays small."""
    return (slice(top, top + BAND) for top in range(0, len(picture), BAND))


def to_uint8(rgb: np.ndarray) -> np.ndarray:
    """Floats in [0,1] (clipped) or uint16, [H,...], to uint8; uint8 as it is."""
    rgb = np.asarray(rgb)
    if rgb.dtype == np.uint8:
        return rgb
    picture = np.empty(rgb.shape, np.uint8)
    for rows in bands(rgb):
        if rgb.dtype == np.uint16:
            picture[rows] = np.rint(rgb[rows] / np.float32(257))
        else:
            picture[rows] = np.rint(np.clip(np.nan_to_num(rgb[rows]), 0.0, 1.0) * 255.0)
    return picture


def robust_range(
    values: np.ndarray, *, mask: np.ndarray | None = None, percentiles: tuple[float, float] = (1.0, 99.0)
) -> tuple[float, float]:
    """(low, high) percentiles of the finite values [...] where `mask` [...] holds; low < high always."""
    values = np.asarray(values)
    keep = np.isfinite(values) if mask is None else np.isfinite(values) & mask
    low, high = np.percentile(values[keep], percentiles).tolist() if keep.any() else (0.0, 1.0)
    margin = 1e-6 * max(abs(low), abs(high), 1e-6)
    return (low, high) if high - low > margin else (low - 0.5, low + 0.5)


def colorize(
    values: np.ndarray, low: float, high: float, *, mask: np.ndarray | None = None, cmap: str = COLOUR_MAP
) -> np.ndarray:
    """Colours a map: `low` gets the first colour of `cmap`, `high` the last, values beyond them the same.

    Args:
      values: [H,W].
      mask: [H,W] bool; pixels where it is False, or the value is not finite, come out grey.

    Returns:
      [H,W,3] uint8.
    """
    from matplotlib import colormaps

    values = np.asarray(values)
    table = np.rint(colormaps[cmap](np.arange(256))[:, :3] * 255).astype(np.uint8)
    picture = np.empty((*values.shape, 3), np.uint8)
    for rows in bands(values):
        part = values[rows].astype(np.float32)
        keep = np.isfinite(part) if mask is None else np.isfinite(part) & mask[rows]
        scaled = np.where(keep, (part - low) / (high - low), 0.0)
        picture[rows] = np.where(keep[..., None], table[np.clip(scaled * 256, 0, 255).astype(np.uint8)], HOLE)
    return picture


def depth_bar(low: float, high: float, unit: str, *, cmap: str = COLOUR_MAP) -> Bar:
    """The colour bar of a depth map drawn in q, from `low` to `high`, labelled in `unit`.

    Colours are linear in q, so that metres get even colours near by and "∞" where q has shrunk to nothing.
    """
    from matplotlib.ticker import MaxNLocator

    if unit != "metre":
        return plain_bar(
            low, high, _UNIT_LABELS[focus_axis.check_unit(unit)], cmap=cmap, whole=unit == "index"
        )
    metres = {f"{1.0 / q:.2g}" for q in MaxNLocator(6).tick_values(low, high) if q > 1e-4 * high}
    ticks = sorted((1.0 / float(text), f"{float(text):g}") for text in metres)
    ticks = [(low, "∞")] * (low < 1e-4 * high) + [tick for tick in ticks if low <= tick[0] <= high]
    return Bar(low, high, _UNIT_LABELS[unit], tuple(ticks), cmap)


def plain_bar(low: float, high: float, label: str, *, cmap: str = COLOUR_MAP, whole: bool = False) -> Bar:
    """A colour bar from `low` to `high` with round ticks, or whole ones."""
    from matplotlib.ticker import MaxNLocator

    ticks = [float(v) for v in MaxNLocator(6, integer=whole).tick_values(low, high) if low <= v <= high]
    ticks = [0.0 if abs(v) < 1e-9 * (high - low) else v for v in ticks]
    return Bar(low, high, label, tuple((v, f"{v:.6g}") for v in ticks), cmap)


def beside_bar(picture: np.ndarray, bar: Bar) -> np.ndarray:
    """`picture` [H,W,3] uint8, untouched, with the colour bar drawn on white to its right: [H',W',3] uint8.

    The picture is scaled up by a whole number, or padded below, where it is too low for a readable bar.
    """
    height = picture.shape[0]
    if height < 240:
        factor = -(-240 // height)
        picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.concatenate([picture, color_bar(picture.shape[0], bar)], axis=1)


def color_bar(height: int, bar: Bar) -> np.ndarray:
    """A vertical colour bar with ticks and label, high end up: [height,W,3] uint8, W about a fifth of it."""
    width = min(max(110, height // 5), height)
    picture = Image.new("RGB", (width, height), "white")
    size = max(10, height // 55)  # type grows with the picture
    _draw_bar(picture, (0.12 * width, 0.05 * height, 0.32 * width, 0.95 * height), bar, size)
    return np.array(picture)


def sheet(
    rows: Sequence[Sequence[Panel]], *, title: str = "", width: int = 1600, columns: int | None = None
) -> np.ndarray:
    """Captioned pictures in rows, each panel of a row equally wide: [H,width,3] uint8 on white.

    Args:
      rows: panels; a row with fewer panels than the longest is drawn larger, to fill the width.
      title: a line above all.
      width: pixels of the sheet.
      columns: how many panels of the width a row is laid out for at least, so that single ones stay moderate.
    """
    margin, gap, bar_share, size = 10, 12, 0.19, 14  # pixels, but for the third: of a bar for each of its picture
    line = round(1.25 * size)
    layout, top = [], 45 if title else margin  # (top of the pictures, panel width, panels, captions)
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
        draw.text((margin, margin + 2), title, "black", _font(18, bold=True))
    for top, panel_width, row, captions in layout:
        x = margin
        for panel, lines in zip(row, captions, strict=True):
            for i, text in enumerate(reversed(lines)):
                draw.text((x, top - 6 - line * (i + 1)), text, "black", _font(size))
            picture = _fit(panel.image, panel_width)
            page.paste(picture, (x, top))
            x += panel_width + gap
            if panel.bar:
                _draw_bar(page, (x - 4, top + 5, x + 12, top + picture.height - 5), panel.bar, size - 2)
                x += round(panel_width * bar_share)
    return np.array(page)


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Writes [H,W,3] uint8, [H,W] uint8 or [H,W] uint16 as PNG."""
    Image.fromarray(np.ascontiguousarray(picture)).save(path, format="PNG", compress_level=4)


def png_bytes(picture: np.ndarray) -> bytes:
    """The same as `save_png`, in memory."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


@functools.cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: it has the letters of many scripts."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _wrapped(text: str, width: int, size: int) -> list[str]:
    """Lines no wider than `width` pixels, broken at spaces where there are any."""
    fits = lambda line: len(line) < 2 or _font(size).getlength(line) <= width  # noqa: E731
    lines: list[str] = []
    for part in text.split("\n"):
        lines.append("")
        for word in part.split(" "):
            longer = f"{lines[-1]} {word}".strip()
            if fits(longer):
                lines[-1] = longer
                continue
            lines[-1:] = [lines[-1], word] if lines[-1] else [word]
            while not fits(lines[-1]):  # a word of its own line that is too long, as names of files are
                line = lines[-1]
                most = next(n for n in range(len(line) - 1, 0, -1) if fits(line[:n]))
                lines[-1:] = [line[:most], line[most:]]
    return lines


def _fit(image: np.ndarray, width: int) -> Image.Image:
    """The picture `width` pixels wide, or, where it is taller than 1.5 of that, so high."""
    height, own = image.shape[:2]
    scale = min(width / own, 1.5 * width / height)
    size = max(1, round(own * scale)), max(1, round(height * scale))
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    return Image.fromarray(np.ascontiguousarray(image)).resize(size, how, reducing_gap=3.0)


def _draw_bar(page: Image.Image, box: tuple[float, float, float, float], bar: Bar, size: int) -> None:
    """Colours, ticks and label of `bar` into `page`: the colours in `box` (left, top, right, bottom), the rest to its
    right in type of `size` pixels."""
    from matplotlib import colormaps

    left, top, right, bottom = (round(x) for x in box)
    height, right = max(2, bottom - top), max(left + 1, right)
    ramp = np.rint(colormaps[bar.cmap](np.linspace(1, 0, height))[:, None, :3] * 255).astype(np.uint8)
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


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of matplotlib for curves, in inches: without pyplot, so no global state and no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as PNG."""
    with any_script():
        figure.savefig(path, dpi=100, format="png")


def pixels(canvas) -> np.ndarray:
    """What is drawn on a canvas of matplotlib, [H,W,3] uint8."""
    with any_script():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
