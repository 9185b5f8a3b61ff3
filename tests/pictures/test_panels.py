"""Colours, bars and sheets."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageCms

from dff_jax.data.files import images
from dff_jax.pictures import panels
from dff_jax.pictures.panels import Panel


def test_what_is_no_text_in_a_name_is_shown_as_its_number():
    image = np.zeros((9, 9, 3), np.uint8)
    one, two = (
        panels.sheet([[Panel(image, f"fr{name}.png\nfocus 1")]], title=f"stack{name}")
        for name in ("\udce9\x1b\u202e", r"\udce9\x1b\u202e")
    )
    np.testing.assert_array_equal(one, two)
    figure = panels.new_figure(1, 1)
    figure.suptitle(panels.literal("\udce9$x$"))
    assert panels.pixels(figure).min() < 128


def test_a_matplotlibrc_in_the_working_directory_has_no_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    with matplotlib.rc_context({"text.usetex": True}):
        panels.new_figure(1, 1)
        assert not matplotlib.rcParams["text.usetex"]


def test_to_uint8():
    np.testing.assert_array_equal(
        panels.to_uint8(np.array([-1.0, 0.0, 0.5, 1.0, 2.0])), [0, 0, 128, 255, 255]
    )
    np.testing.assert_array_equal(panels.to_uint8(np.array([0, 257 * 7, 65535], np.uint16)), [0, 7, 255])


def test_robust_range_ignores_outliers_and_holes():
    values = np.linspace(0, 1, 1001)
    values[:3] = [1e9, np.nan, -1e9]
    low, high = panels.robust_range(values)
    assert 0 < low < 0.02 and 0.98 < high < 1
    assert panels.robust_range(values, mask=values > 0.5)[0] > 0.5
    low, high = panels.robust_range(np.full(5, 3.0))
    assert low < 3 < high
    assert panels.robust_range(np.full(5, np.nan)) == (0.0, 1.0)


def test_colorize_ends_and_holes():
    values = np.array([[-5.0, 0.0, 1.0, 9.0, np.nan, 0.5]])
    mask = np.array([[True, True, True, True, True, False]])
    colours = panels.colorize(values, 0.0, 1.0, mask=mask)[0].astype(int)
    assert colours.shape == (6, 3)
    assert (colours[0] == colours[1]).all() and (colours[2] == colours[3]).all()
    assert colours[2][0] > colours[2][2] and colours[1][2] > colours[1][0]  # high is red, low is blue
    assert colours[4].tolist() == colours[5].tolist() == list(panels.HOLE)


def test_metres_are_labelled_as_metres():
    bar = panels.depth_bar(1 / 4.0, 1 / 0.5, "metre")
    for q, text in bar.ticks:
        assert float(text) == pytest.approx(1 / q) and 0.5 <= float(text) <= 4
    assert len(bar.ticks) >= 4 and list(bar.ticks) == sorted(bar.ticks)
    far = panels.depth_bar(1e-7, 0.1, "metre")
    assert far.ticks[0] == (1e-7, "∞") and far.ticks[-1][1] == "10"
    assert all(float(text).is_integer() for _, text in panels.depth_bar(0, 3, "index").ticks)


def test_bar_beside_picture_leaves_it_alone():
    picture = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    bar = panels.plain_bar(0, 5, "x")
    joined = panels.beside_bar(picture, bar)
    np.testing.assert_array_equal(joined[:, :200], picture)
    strip = joined[:, 200:].astype(int)
    assert joined.shape[0] == 300 and strip.shape[1] >= 100
    column = strip[20:280, 30]  # inside the bar: warm above, cold below
    assert column[10, 0] > column[10, 2] and column[-10, 2] > column[-10, 0]
    assert panels.beside_bar(picture[:50], bar).shape[0] >= 240


def test_sheet_shows_every_panel():
    red, green = np.zeros((40, 60, 3), np.uint8), np.zeros((90, 30, 3), np.uint8)
    red[..., 0], green[..., 1] = 255, 255
    rows = [[Panel(red, "a"), Panel(red, "b")], [Panel(green, "c", panels.plain_bar(0, 1, "x"))]]
    page = panels.sheet(rows, title="t", width=600)
    assert page.shape[1:] == (600, 3) and page.dtype == np.uint8
    is_red, is_green = (page == [255, 0, 0]).all(-1), (page == [0, 255, 0]).all(-1)
    assert is_red[:, :300].any() and is_red[:, 300:].any() and is_green.any()
    assert np.argwhere(is_green)[:, 0].min() > np.argwhere(is_red)[:, 0].max()  # the second row is below


def test_captions_are_wrapped_and_make_room():
    long = "a caption of many words that does not fit beside its neighbour at all"
    lines = panels._wrapped(f"first\n{long} $x$", 200, 14)
    assert lines[0] == "first" and " ".join(lines[1:]) == f"{long} $x$" and len(lines) > 3
    assert all(panels._font(14).getlength(line) <= 200 for line in lines)
    lines = panels._wrapped("a " + "oneverylongname" * 9, 60, 14)
    assert len(lines) > 3 and "".join(lines).replace(" ", "") == "a" + "oneverylongname" * 9
    assert all(panels._font(14).getlength(line) <= 60 for line in lines)
    assert panels._wrapped("wide", 1, 14) == list("wide") and panels._wrapped("", 9, 14) == [""]
    red = np.zeros((40, 60, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    tops = [np.argwhere((panels.sheet([[Panel(red, text)] * 2], width=400) == [255, 0, 0]).all(-1))[:, 0].min()
            for text in ("a", long)]  # fmt: skip
    assert tops[1] > tops[0] + 15


def test_a_low_or_narrow_picture_and_a_tall_one_have_their_place_in_a_sheet():
    low, tall = np.full((2, 300, 3), 7, np.uint8), np.full((900, 10, 3), 9, np.uint8)
    bar = panels.plain_bar(0, 1, "x")
    page = panels.sheet([[Panel(low, "low", bar), Panel(tall, "tall", bar)]], width=500)
    assert page.flags.writeable and panels.color_bar(1, bar).shape[0] == 1
    assert (page == 7).all(-1).any() and (page == 9).all(-1).sum() > 200


def test_png_keeps_16_bits(tmp_path):
    depth = np.arange(600, dtype=np.uint16).reshape(20, 30) * 109
    panels.save_png(tmp_path / "d.png", depth)
    with Image.open(tmp_path / "d.png") as image:
        np.testing.assert_array_equal(np.asarray(image), depth)


def test_png_keeps_16_bits_of_colour_a_profile_and_holes(tmp_path):
    deep = np.arange(20 * 30 * 3, dtype=np.uint16).reshape(20, 30, 3) * 36
    hole = np.indices((20, 30))[1] < 4
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for image in (deep, panels.to_uint8(deep)):
        panels.save_png(tmp_path / "d.png", panels.see_through(image, hole), profile)
        read = images.read_picture(tmp_path / "d.png")
        np.testing.assert_array_equal(read.pixels, image)
        np.testing.assert_array_equal(read.opaque, ~hole)
        assert read.profile == profile
    assert panels.see_through(deep, None) is deep
    bar = panels.plain_bar(0, 1, "x")
    beside = panels.beside_bar(panels.see_through(panels.to_uint8(deep), hole), bar)
    assert beside.shape[2] == 4 and (beside[:, :48, 3] == 0).all() and (beside[:, 48:, 3] == 255).all()


def test_no_matplotlib_until_drawn_and_never_its_figures():
    code = (
        "import sys, numpy as np; from dff_jax.pictures import panels; import dff_jax.prediction.predict;"
        "assert 'matplotlib' not in sys.modules;"
        "panels.sheet([[panels.Panel(np.zeros((20, 20, 3), np.uint8), 'x')]], width=100);"
        "assert 'matplotlib' in sys.modules and not {'matplotlib.pyplot', 'matplotlib.figure'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
