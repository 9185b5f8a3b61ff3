"""The page, in a real browser where there is one; the point cloud."""

import html
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dff_jax.pictures import page as html_page
from dff_jax.pictures.pointcloud import write_points

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1200,1000 --virtual-time-budget=10000 --dump-dom"
).split()
TRICKY = "a </script><b>&amp; @data@"


def stack(name, offset=0.0, truth=True):
    h, w, z = 20, 30, 3
    depth = np.linspace(10, 40, h * w, dtype=np.float32).reshape(h, w) + offset
    frames = np.stack([np.full((h, w, 3), 40 * (i + 1), np.uint8) for i in range(z)])
    stages = [html_page.Stage("Dbar", depth + 3, 3.0), html_page.Stage("refined", depth + 1, 1.0)]
    mask = np.ones((h, w), bool)
    mask[:, :5] = False
    given = {"truth": depth, "mask": mask} if truth else {}
    confidence = np.full((h, w), 0.75, np.float32)
    return html_page.shown_stack(
        name, frames, [10.0, 25.0, 40.0], ["one.png", "two.png", TRICKY], stages, confidence, frames[1], **given
    )


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_a_page_holds_everything_and_nothing_of_it_ends_its_script():
    page = html_page.page(TRICKY, "about", "disparity", [stack(TRICKY), stack("second", 5.0)])
    assert not re.search(r"(src|href)=[\"']?(?!data:)", page.replace('src: ', ""))
    data = data_of(page)
    assert data["title"] == TRICKY and [s["name"] for s in data["stacks"]] == [TRICKY, "second"]
    assert "<title>a &lt;/script>&lt;b>&amp;amp; @data@</title>" in page
    assert data["stacks"][0]["frames"][2]["focus"] == 40.0 and len(data["stacks"][0]["stages"]) == 2


def test_maps_keep_their_values_to_a_4000th_of_the_range():
    import base64
    import io

    from PIL import Image

    values = np.random.default_rng(0).normal(size=(9, 11)).astype(np.float32)
    values[2, 3] = np.nan
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    coded = sys.modules["dff_jax.pictures.page"]._coded(values, low, high)
    rgb = np.asarray(Image.open(io.BytesIO(base64.b64decode(coded["png"].split(",")[1])))).astype(int)
    code = rgb[..., 0] * 16 + rgb[..., 1] // 16
    assert (code == 0).tolist() == np.isnan(values).tolist()
    back = low + (high - low) * (code - 1) / 4094
    assert np.nanmax(np.abs(np.where(code == 0, np.nan, back) - values)) <= (high - low) / 4094 / 2 * 1.01


def in_browser(page, actions, tmp_path):
    """The page's text after the JavaScript `actions`, whose results `say(name, value)` collects, as JSON."""
    script = """<script>
      const found = {}, say = (name, value) => { found[name] = value; };
      addEventListener("error", (event) => say("error", event.message));
      const ready = async () => {
        while ($("stack").dataset.ready !== "yes") await new Promise((r) => setTimeout(r, 20));
      };
      const point = (id, x, y) => {
        const box = $(id).getBoundingClientRect();
        const at = { clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true };
        $(id).dispatchEvent(new PointerEvent("pointermove", at));
      };
      const slide = (id, to) => { $(id).value = to; $(id).dispatchEvent(new Event("input")); };
      const pixel = (id, x, y) => [...$(id).getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3);
      (async () => { await ready(); ACTIONS; })().catch((e) => say("error", String(e))).finally(() => {
        const node = document.createElement("pre"); node.id = "found"; node.textContent = JSON.stringify(found);
        document.body.append(node);
      });
    </script></body>""".replace("ACTIONS", actions)
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", script), encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1]))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_works_in_a_browser(tmp_path):
    tables = [html_page.Table("Stacks", ["stack", "MAE"], [[TRICKY, 1.0], ["second", float("nan")]], stacks=True)]
    page = html_page.page("T", "about", "disparity", [stack(TRICKY), stack("second", 5.0)], tables)
    found = in_browser(page, """
      say("title", $("title").textContent); say("name", $("name").textContent);
      say("thumbnails", $("chooser").children.length); say("stage", $("stage-says").textContent);
      point("canvas-depth", 0.5, 0.5); say("readout", $("readout").textContent);
      point("canvas-frames", 0.05, 0.5); say("outside", $("readout").textContent);
      say("error map", pixel("canvas-error", 20, 10)); say("no truth", pixel("canvas-truth", 1, 10));
      slide("stage", 0); say("first stage", $("stage-says").textContent);
      point("canvas-error", 0.5, 0.5); say("first readout", $("readout").textContent);
      slide("frame", 2); say("frame", $("frame-says").textContent); say("grey", pixel("canvas-frames", 3, 3)[0]);
      dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" })); say("by key", $("frame-says").textContent);
      $("stack").dataset.ready = "no"; document.querySelectorAll("tr[data-stack]")[1].click(); await ready();
      say("second", $("name").textContent); say("hash", location.hash);
      point("canvas-truth", 0.5, 0.5); say("second readout", $("readout").textContent);
      say("undefined", document.querySelectorAll("td")[3].textContent);
    """, tmp_path)  # fmt: skip
    assert "error" not in found
    assert found["title"] == "T" and found["name"] == TRICKY and found["thumbnails"] == 2
    assert found["stage"] == "refined, MAE 1 px"
    values = dict(re.findall(r"(\w+) ([\d.]+)", found["readout"]))
    truth = 10 + 30 * (10 * 30 + 15) / 599
    assert abs(float(values["truth"]) - truth) < 0.02 and abs(float(values["depth"]) - truth - 1) < 0.02
    assert abs(float(values["error"]) - 1) < 0.03 and values["confidence"] == "0.75"
    assert "truth - " in found["outside"] and found["no truth"] == [96, 96, 96] and found["error map"] != [0, 0, 0]
    assert found["first stage"] == "Dbar, MAE 3 px"
    assert abs(float(re.search(r"error ([\d.]+)", found["first readout"])[1]) - 3) < 0.03
    assert found["frame"] == f"3 of 3: {TRICKY}" and abs(found["grey"] - 120) <= 2
    assert found["by key"] == "2 of 3: two.png"
    assert found["second"] == "second" and found["hash"] == "#second"
    assert abs(float(re.search(r"truth ([\d.]+)", found["second readout"])[1]) - truth - 5) < 0.02
    assert found["undefined"] == "-"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_page_of_one_stack_without_truth_in_metres(tmp_path):
    page = html_page.page("T", "about", "metre", [stack("only", truth=False)])
    found = in_browser(page, """
      say("panels", $("panels").children.length); say("thumbnails", $("chooser").children.length);
      point("canvas-depth", 0.5, 0.5); say("readout", $("readout").textContent);
    """, tmp_path)  # fmt: skip
    assert "error" not in found and found["panels"] == 4 and found["thumbnails"] == 0
    q = 10 + 30 * (10 * 30 + 15) / 599 + 1
    assert abs(float(re.search(r"depth ([\d.]+) m", found["readout"])[1]) - 1 / q) < 1e-4


# Points ---------------------------------------------------------------------------------------------------------


def read_ply(path):
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    kinds = {"float": "<f4", "uchar": "u1"}
    fields = [line.split()[1:] for line in lines if line.startswith("property")]
    points = np.frombuffer(body, [(name, kinds[kind]) for kind, name in fields])
    assert f"element vertex {len(points)}" in lines
    return points


def test_points_of_a_wall_two_metres_away(tmp_path):
    q = np.full((30, 40), 0.5, np.float32)
    q[0, 0] = 0.0  # at infinity
    rgb = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    told = write_points(tmp_path / "a.ply", q, rgb, np.full(q.shape, 0.3), "metre")
    points = read_ply(tmp_path / "a.ply")
    assert told["count"] == len(points) == 30 * 40 - 1
    np.testing.assert_allclose(points["z"], -2.0, rtol=1e-6)
    assert np.ptp(points["x"]) == pytest.approx(2 * 2 * np.tan(np.radians(25)) * 39 / 40, rel=1e-5)
    assert points["y"][0] > 0 > points["y"][-1] and points["x"][0] < points["x"][38]
    assert (points["red"][0], points["blue"][-1]) == (rgb[0, 1, 0], rgb[-1, -1, 2])
    np.testing.assert_allclose(points["confidence"], 0.3, rtol=1e-6)


def test_points_without_a_metric_are_a_relief_and_not_too_many(tmp_path, monkeypatch):
    q = np.linspace(0, 9, 60 * 80, dtype=np.float32).reshape(60, 80)
    monkeypatch.setattr("dff_jax.pictures.pointcloud.MOST", 1500)
    write_points(tmp_path / "a.ply", q, np.zeros((60, 80, 3), np.uint8), np.ones(q.shape), "index")
    points = read_ply(tmp_path / "a.ply")
    assert len(points) == 30 * 40 and np.ptp(points["x"]) < 1 and 0.3 < np.ptp(points["z"]) < 0.4
    assert points["z"][-1] > points["z"][0]  # larger is nearer, as far as one knows
