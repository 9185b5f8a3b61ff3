"""RGB-D scenes: which files belong together, at what scale, what is rendered from them, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dff_jax.data import datasets
from dff_jax.data.files.rgbd import find_scenes, list_scenes, read_scene
from dff_jax.errors import InputError
from dff_jax.optics.render import add_sensor_noise, render_stack
from dff_jax.optics.rgbd import fill_holes, lens_limits

H, W = 32, 40


def rgb(seed=0, h=H, w=W):
    return np.random.default_rng(seed).integers(40, 216, (h, w, 3), np.uint8)


def disparity(h=H, w=W):
    """A slope of 12 to 58, with a hole."""
    values = np.broadcast_to(np.linspace(12, 58, w, dtype=np.float32), (h, w)).copy()
    values[4:8, 10:14] = 0
    return values


def write_pfm(path, values, order="<"):
    height, width = values.shape
    head = f"Pf\n{width} {height}\n{-1 if order == '<' else 1}\n".encode()
    path.write_bytes(head + values[::-1].astype(f"{order}f4").tobytes())  # rows run bottom to top


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def middlebury2005(folder, width=W):
    save(folder / "view1.png", rgb(1, H, width))
    save(folder / "view5.png", rgb(2, H, width))
    save(folder / "disp1.png", np.rint(disparity(H, width) * 3).astype(np.uint8))
    save(folder / "disp5.png", np.full((H, width), 7, np.uint8))
    (folder / "dmin.txt").write_text("200")


def middlebury_v2(folder):
    save(folder / "imL.png", rgb(3))
    save(folder / "imR.png", rgb(4))
    save(folder / "groundtruth.png", np.rint(disparity() * 4).astype(np.uint8))
    for name in ("nonocc", "disc", "all"):
        save(folder / f"{name}.png", np.full((H, W), 255, np.uint8))
    (folder / "info.txt").write_text("4\n59")


def left_and_npz(folder):
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "motorcycle_left.png", rgb(5))
    save(folder / "motorcycle_right.png", rgb(6))
    values = disparity()
    values[values == 0] = np.inf
    np.savez(folder / "motorcycle_disp.npz", values)


def plain(folder, name="disp.pfm"):
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "rgb.png", rgb(7))
    write_pfm(folder / name, disparity())


# Finding ----------------------------------------------------------------------------------------------------------


def test_every_layout_is_found_with_its_scale(tmp_path):
    middlebury2005(tmp_path / "art")
    middlebury_v2(tmp_path / "cones")
    left_and_npz(tmp_path / "moto")
    plain(tmp_path / "deep" / "room2")
    plain(tmp_path / "deep" / "room10")
    save(tmp_path / "m2014" / "im0.png", rgb(8))
    write_pfm(tmp_path / "m2014" / "disp0.pfm", disparity(), ">")
    scenes = {scene.name: scene for scene in list_scenes(tmp_path)}
    assert list(scenes) == ["art", "cones", "deep/room2", "deep/room10", "m2014", "moto/motorcycle"]  # natural order
    assert scenes["art"].rgb.name == "view1.png" and scenes["art"].scale == pytest.approx(1 / 3)
    assert scenes["cones"].scale == 0.25 and scenes["moto/motorcycle"].scale == 1
    for name, files in scenes.items():
        scene = read_scene(files)
        assert scene.unit == "disparity" and scene.rgb.shape == (H, W, 3) and scene.name == name
        np.testing.assert_array_equal(scene.mask, disparity() != 0)
        tolerance = 0.17 if files.scale < 1 else 1e-5  # 8 bit are rounded
        np.testing.assert_allclose(scene.depth, disparity(), atol=tolerance)
        assert (scene.depth[~scene.mask] == 0).all()


def test_reduced_sizes_of_middlebury_have_their_own_divisor(tmp_path):
    for width, divisor in ((463, 3), (695, 2), (1390, 1)):
        folder = tmp_path / str(width)
        save(folder / "view1.png", np.zeros((16, width, 3), np.uint8))
        save(folder / "disp1.png", np.full((16, width), 60, np.uint8))
        (found,) = list_scenes(folder)
        assert found.name == str(width) and found.scale == pytest.approx(1 / divisor)


def test_flat_pairs_and_folders_side_by_side(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "flat" / f"{name}_rgb.jpg", rgb())
        np.save(tmp_path / "flat" / f"{name}_depth.npy", disparity() / 10)
        save(tmp_path / "beside" / "rgb" / f"{name}.png", rgb())
        save(tmp_path / "beside" / "depth" / f"{name}.png", np.rint(disparity() * 100).astype(np.uint16))
    (tmp_path / "beside" / "depth" / "scale.txt").write_text("0.001\n")  # millimetres
    scenes = list_scenes(tmp_path)
    assert [s.name for s in scenes] == ["beside/a", "beside/b", "flat/a", "flat/b"]
    for files in scenes:
        scene = read_scene(files)
        assert scene.unit == "metre"
        np.testing.assert_allclose(scene.depth, disparity() / 10, atol=1e-3)


def test_scale_may_come_from_a_file_or_an_option(tmp_path):
    plain(tmp_path / "s")
    assert list_scenes(tmp_path)[0].scale == 1
    (tmp_path / "s" / "scale.txt").write_text("1/4\n")
    assert list_scenes(tmp_path)[0].scale == 0.25
    assert list_scenes(tmp_path, scale=2.0, unit="diopter")[0][3:] == ("diopter", 2.0)
    (tmp_path / "s" / "scale.txt").write_text("0\n")
    with pytest.raises(InputError, match="scale.txt.*positive"):
        list_scenes(tmp_path)


def test_every_problem_is_found(tmp_path):
    save(tmp_path / "a" / "rgb.png", rgb())  # no map
    (tmp_path / "b").mkdir()
    write_pfm(tmp_path / "b" / "disp.pfm", disparity())  # no picture
    save(tmp_path / "c" / "rgb.png", rgb())
    save(tmp_path / "c" / "disp.png", np.full((H, W), 9, np.uint8))  # no scale
    save(tmp_path / "d" / "imL.png", rgb())  # no map
    (tmp_path / "e").mkdir()
    np.save(tmp_path / "e" / "x_disp.npy", disparity())  # no picture
    plain(tmp_path / "good")
    scenes, problems = find_scenes(tmp_path)
    assert [s.name for s in scenes] == ["good"] and len(problems) == 5
    for part in ("a/rgb.png", "b/disp.pfm", "c/disp.png: a PNG needs a scale", "groundtruth", "x_disp.npy"):
        assert any(part in p for p in problems), part
    with pytest.raises(InputError):
        list_scenes(tmp_path)
    with pytest.raises(InputError, match="looked for rgb.png"):
        list_scenes(_empty(tmp_path))
    with pytest.raises(InputError, match="scale"):
        list_scenes(tmp_path / "good", scale=-1.0)


def _empty(tmp_path):
    (tmp_path / "z").mkdir(exist_ok=True)
    return tmp_path / "z"


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda f: write_pfm(f / "disp.pfm", disparity(H, W - 1)), "39 x 32 where rgb.png is 40 x 32"),
        (lambda f: write_pfm(f / "disp.pfm", np.zeros((H, W))), "no depth anywhere"),
        (lambda f: (f / "disp.pfm").write_bytes((f / "disp.pfm").read_bytes()[:-9]), "disp.pfm"),
        (lambda f: (f / "rgb.png").write_bytes((f / "rgb.png").read_bytes()[:60]), "rgb.png"),
    ],
)
def test_a_damaged_scene_is_refused_by_name(tmp_path, damage, words):
    plain(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=words):
        read_scene(list_scenes(tmp_path)[0])


def test_negative_metres_are_refused_and_16_bit_pictures_read(tmp_path):
    save(tmp_path / "rgb.png", rgb()[..., 0].astype(np.uint16) * 257)
    np.save(tmp_path / "depth.npy", disparity() - 20)
    (files,) = list_scenes(tmp_path)
    with pytest.raises(InputError, match="negative"):
        read_scene(files)
    scene = read_scene(files._replace(unit="disparity"))
    assert scene.rgb.dtype == np.uint8 and (scene.rgb == rgb()[..., :1]).all()


# Filling and rendering --------------------------------------------------------------------------------------------


def test_holes_take_the_nearest_valid_value():
    depth, mask = np.full((5, 7), np.nan, np.float32), np.zeros((5, 7), bool)
    depth[2, 1], depth[2, 5] = 3.0, 8.0
    mask[2, [1, 5]] = True
    filled = fill_holes(depth, mask)
    y, x = np.mgrid[:5, :7]
    left, right = np.hypot(y - 2, x - 1), np.hypot(y - 2, x - 5)
    differ = left != right
    np.testing.assert_array_equal(filled[differ], np.where(left < right, 3.0, 8.0)[differ])
    assert np.isin(filled, [3.0, 8.0]).all() and filled.dtype == np.float32
    whole = np.ones((5, 7), bool)
    np.testing.assert_array_equal(fill_holes(filled, whole), filled)
    with pytest.raises(InputError):
        fill_holes(depth, np.zeros((5, 7), bool))
    with pytest.raises(InputError):
        fill_holes(depth, whole)


def test_lens_limits_cover_the_scene_and_come_from_short_lists():
    depth = np.array([[5.0, 70.0]])
    radius, layers = lens_limits(depth, np.linspace(10, 60, 15), 0.1)
    assert radius >= 0.1 * 60 and layers >= 0.1 * 65 / 0.5
    assert lens_limits(depth - 0.5, np.linspace(10, 60, 15), 0.1) == (radius, layers)
    assert lens_limits(np.full((2, 2), 3.0), np.array([3.0, 4.0]), 1e-9) == (2, 8)
    assert lens_limits(np.array([[0.0, 1e9]]), np.array([0.0, 1.0]), 1.0) == (64, 128)


def test_a_photograph_is_sharp_where_the_plane_is_and_noisy_as_told(key):
    picture = jnp.asarray(rgb() / np.float32(255))
    depth = jnp.full((H, W), 30.0)
    focus = jnp.array([10.0, 30.0, 60.0])
    lens = dict(blur_per_q=0.1, max_radius=4, num_layers=8)
    shoot = jax.jit(lambda k, noise: add_sensor_noise(k, render_stack(picture, depth, focus, **lens), noise))
    clean = shoot(key, 0.0)
    np.testing.assert_allclose(clean[1], picture, atol=1e-4)
    contrast = clean.std((1, 2, 3))
    assert contrast[1] > 1.3 * contrast[0] and contrast[1] > 1.3 * contrast[2]
    noisy = shoot(key, 0.02)
    np.testing.assert_allclose((noisy - clean).std(), 0.02, rtol=0.1)
    np.testing.assert_array_equal(noisy, shoot(key, 0.02))
    assert (noisy != shoot(jax.random.key(1), 0.02)).any()


# The dataset ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("rgbd")
    middlebury2005(root / "source" / "art")
    left_and_npz(root / "source" / "moto")
    options = dict(focus_range=(10.0, 60.0), frames=6)
    datasets.prepare("rgbd/mine", root / "tfds", source=root / "source", **options)
    return root


def _records(folder, name="rgbd/mine", split="train"):
    return list(datasets.open_builder(name, folder).as_data_source(split=split))


def test_scenes_are_prepared_with_their_truth(prepared):
    builder = datasets.open_builder("rgbd/mine", prepared / "tfds")
    assert builder.info.metadata["unit"] == "disparity" and builder.info.metadata["focus_range"] == [10.0, 60.0]
    records = _records(prepared / "tfds")
    assert [r["name"] for r in records] == [b"train/art", b"train/moto/motorcycle"]
    for record in records:
        np.testing.assert_allclose(record["focus"], np.linspace(10, 60, 6))
        np.testing.assert_array_equal(record["mask"], disparity() != 0)  # holes are rendered, and are not truth
        np.testing.assert_allclose(record["depth"], disparity(), atol=0.17)
        assert record["stack"].shape == (6, H, W, 3) and record["stack"].dtype == np.uint8


def test_each_frame_is_sharp_where_the_depth_is_its_setting(prepared):
    record = _records(prepared / "tfds")[1]
    frames = record["stack"].astype(float)
    error = np.abs(frames - rgb(5)).mean(-1)[:, 10:]  # below the hole
    columns = [np.abs(disparity()[0] - s).argmin() for s in record["focus"]]
    for z in (1, 2, 3, 4):
        at = error[:, :, columns[z] - 1 : columns[z] + 2].mean((1, 2))
        assert at.argmin() == z and at.min() < 5


def test_preparing_again_gives_the_same_and_another_noise_another(prepared, tmp_path):
    options = dict(source=prepared / "source", focus_range=(10.0, 60.0), frames=6)
    datasets.prepare("rgbd/again", tmp_path, **options)
    for a, b in zip(_records(prepared / "tfds"), _records(tmp_path, "rgbd/again"), strict=True):
        assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
    with pytest.raises(InputError, match="noise"):
        datasets.prepare("rgbd/again", tmp_path, **options, noise=0.1)


def test_metres_stay_metres_and_are_spaced_in_diopters(tmp_path):
    source = tmp_path / "source"
    for split in ("train", "val"):
        save(source / split / "room" / "rgb.png", rgb())
        np.save(source / split / "room" / "depth.npy", disparity() / 10)
    datasets.prepare("rgbd/room", tmp_path, source=source, focus_range=(1.0, 5.0), frames=3)
    (record,) = _records(tmp_path, "rgbd/room", "validation")
    np.testing.assert_allclose(record["focus"], [5.0, 1 / 0.6, 1.0], rtol=1e-6)  # far to near, even in 1/m
    assert datasets.open_builder("rgbd/room", tmp_path).info.metadata["unit"] == "metre"


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "--focus-range"),
        ({"focus_range": (60.0, 10.0)}, "low < high"),
        ({"focus_range": (10.0, float("nan"))}, "low < high"),
        ({"focus_range": (10.0, 60.0), "frames": 1}, "--frames"),
        ({"focus_range": (10.0, 60.0), "noise": -1.0}, "--noise"),
        ({"focus_range": (10.0, 60.0), "blur_per_q": 0.0}, "--blur-per-q"),
        ({"focus_range": (10.0, 60.0), "bgr": True}, "--bgr"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(prepared, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        datasets.prepare("rgbd/bad", tmp_path / "out", source=prepared / "source", **options)
    assert not (tmp_path / "out").exists()


def test_all_problems_come_in_one_report(tmp_path):
    plain(tmp_path / "source" / "good")
    save(tmp_path / "source" / "a" / "rgb.png", rgb())
    save(tmp_path / "source" / "b" / "imL.png", rgb())
    with pytest.raises(InputError) as caught:
        datasets.prepare("rgbd/bad", tmp_path / "out", source=tmp_path / "source", focus_range=(10.0, 60.0))
    assert len(caught.value.problems) == 2
    with pytest.raises(InputError, match="looked for rgb.png"):
        datasets.prepare("rgbd/bad", tmp_path / "out", source=_empty(tmp_path), focus_range=(10.0, 60.0))
    plain(tmp_path / "metres" / "a")
    plain(tmp_path / "metres" / "b", "depth.pfm")
    with pytest.raises(InputError, match="several units"):
        datasets.prepare("rgbd/bad", tmp_path / "out", source=tmp_path / "metres", focus_range=(10.0, 60.0))
    assert not (tmp_path / "out").exists()
