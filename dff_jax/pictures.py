"""Arrays to pictures: colour maps, colour bars, captioned sheets, PNG files.

matplotlib is imported when a picture is drawn, and only its Agg canvas: no pyplot, no display, no state.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dff_jax import focus_axis

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
    from matplotlib.backends import backend_agg  # noqa: F401


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
    dpi = max(80.0, height / 6.0)  # type grows with the picture
    figure, canvas = _figure(width / dpi, height / dpi, dpi)
    _draw_bar(figure.add_axes((0.12, 0.05, 0.2, 0.9)), bar)
    return pixels(canvas)[:height, :width]


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
    dpi = 100.0
    margin, gap, text, bar_share = 0.1, 0.12, 0.42, 0.19  # inches; the last: of a bar for each of its picture
    inches = width / dpi
    layout = []  # (top of row, height, panel width, panels)
    top = 0.45 if title else margin
    for row in rows:
        shares = [1.0 + (bar_share if panel.bar else 0.0) for panel in row]
        total = max(sum(shares), float(columns or 0))
        panel_width = (inches - 2 * margin - gap * (len(row) - 1)) / total
        tallest = max(panel.image.shape[0] / panel.image.shape[1] for panel in row)
        height = panel_width * min(tallest, 1.5)
        layout.append((top + text, height, panel_width, row))
        top += text + height + gap
    figure, canvas = _figure(inches, top + margin, dpi)
    size = figure.get_size_inches()

    def place(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        return x / size[0], 1 - (y + h) / size[1], w / size[0], h / size[1]

    if title:
        figure.text(margin / size[0], 1 - 0.12 / size[1], literal(title), va="top", fontsize=13, weight="bold")
    for top, height, panel_width, row in layout:
        x = margin
        for panel in row:
            axes = figure.add_axes(place(x, top, panel_width, height))
            axes.imshow(_fit(panel.image, int(panel_width * dpi)), interpolation="antialiased")
            axes.set_axis_off()
            axes.set_anchor("N")
            axes.set_title(literal(panel.caption), fontsize=10, loc="left", pad=4, wrap=True)
            x += panel_width + gap
            if panel.bar:
                drawn = min(height, panel_width * panel.image.shape[0] / panel.image.shape[1])
                _draw_bar(figure.add_axes(place(x - 0.04, top + 0.05, 0.16, drawn - 0.1)), panel.bar)
                x += panel_width * bar_share
    return pixels(canvas)


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Writes [H,W,3] uint8, [H,W] uint8 or [H,W] uint16 as PNG."""
    Image.fromarray(np.ascontiguousarray(picture)).save(path, format="PNG", compress_level=4)


def png_bytes(picture: np.ndarray) -> bytes:
    """The same as `save_png`, in memory."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def _fit(image: np.ndarray, width: int) -> np.ndarray:
    """Scales a large picture down once, well; matplotlib would do it slowly and in float."""
    if image.shape[1] <= 2 * width:
        return image
    size = (2 * width, max(1, round(image.shape[0] * 2 * width / image.shape[1])))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _draw_bar(axes, bar: Bar) -> None:
    from matplotlib import colormaps

    ramp = colormaps[bar.cmap](np.linspace(0, 1, 256))[:, None, :3]
    axes.imshow(ramp, aspect="auto", origin="lower", extent=(0, 1, bar.low, bar.high))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.set_yticks([value for value, _ in bar.ticks], [text for _, text in bar.ticks], fontsize=9)
    axes.set_ylabel(bar.label, fontsize=9)


def _figure(width: float, height: float, dpi: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    return figure, FigureCanvasAgg(figure)


def pixels(canvas) -> np.ndarray:
    """What is drawn on a canvas of matplotlib, [H,W,3] uint8."""
    with any_script():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
