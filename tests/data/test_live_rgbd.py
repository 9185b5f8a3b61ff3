"""RGB-D scenes photographed while training: crops, lenses, truth; and a run that mixes them with other stacks."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest
import training_fakes as fakes
from PIL import Image

from dff_jax import config as configs
from dff_jax import estimators
from dff_jax.config import DataConfig, LensConfig, PartConfig
from dff_jax.data import live_rgbd, pipeline
from dff_jax.data.live_rgbd import SharpScene, draw_focus_range, take_view
from dff_jax.errors import ConfigError, InputError
from dff_jax.training import logging, loop

LENS = LensConfig(num_frames=4, blur_radius=(2.5, 3.0), max_blur_radius=3, num_layers=4, noise=(0.0, 0.01))
DATA = DataConfig(source="rgbd", batch_size=2, crop=(20, 24), colour=0.1, noise=0.01, num_threads=1, lens=LENS)
SIZE = (30, 40)


def write_scenes(root, splits=(("train", 3), ("val", 2)), kind="disp"):
    """Noise, near on the right and far on the left, with a hole."""
    import imagecodecs

    rng = np.random.default_rng(0)
    for split, number in splits:
        for i in range(number):
            folder = root / split / f"scene{i}"
            folder.mkdir(parents=True)
            (folder / "rgb.png").write_bytes(imagecodecs.png_encode(rng.integers(0, 256, (*SIZE, 3), np.uint8)))
            depth = np.where(np.arange(SIZE[1]) < SIZE[1] // 2, 20.0, 50.0) + np.zeros(SIZE)
            depth[5:9, 5:20] = 0
            np.save(folder / f"{kind}.npy", np.float32(depth if kind == "disp" else depth / 10))
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


def _load(scenes, count, state=None, seed=1, **changes):
    loader = pipeline.training_loader(dataclasses.replace(DATA, dataset=str(scenes), **changes), seed)
    if state is not None:
        loader.set_state({"next_index": state})
    found = [jax.device_get(next(loader)) for _ in range(count)]
    loader.close()
    return found


def _numbers(size=SIZE, mask=None):
    """A scene whose pixels say where they are: q = row + column/100."""
    y, x = np.mgrid[: size[0], : size[1]]
    q = (y + x / 100).astype(np.float32)
    rgb = np.stack([y, x, 0 * x], -1).astype(np.uint8)
    return SharpScene(rgb, q, np.ones(size, bool) if mask is None else mask, (0.0, float(size[0])), "numbers")


def test_views_keep_picture_depth_and_mask_together():
    mask = np.random.default_rng(0).random(SIZE) > 0.3
    scene, seen = _numbers(mask=mask), set()
    for seed in range(40):
        view = take_view(scene, DATA, None, np.random.default_rng(seed))
        assert view.rgb.shape == (26, 30, 3) and view.q.shape == (26, 30) and view.mask.shape == (20, 24)
        y, x = view.rgb[..., 0].astype(int), view.rgb[..., 1].astype(int)
        np.testing.assert_allclose(view.q, y + x / 100, rtol=1e-6)
        inside = slice(3, -3), slice(3, -3)
        np.testing.assert_array_equal(view.mask, mask[y[inside], x[inside]])
        y, x = y[inside], x[inside]
        steps = (y[1, 0] - y[0, 0], x[1, 0] - x[0, 0], y[0, 1] - y[0, 0], x[0, 1] - x[0, 0])
        assert np.abs(steps).sum() == 2  # whole pixels inside the scene; the margin may repeat its border
        seen.add(steps)
        assert (np.diff(view.focus) > 0).all() and len(view.focus) == 4
    assert len(seen) == 8
    with pytest.raises(ConfigError, match=r"data\.crop: 64 x 24 does not fit into scene 'numbers' of 30 x 40"):
        take_view(scene, dataclasses.replace(DATA, crop=(64, 24)), None, np.random.default_rng(0))


def test_focus_ranges_go_with_what_is_in_view():
    scene = _numbers()
    some = np.linspace(10, 20, 100)
    ranges = [draw_focus_range(some, scene, LENS, np.random.default_rng(i)) for i in range(50)]
    assert all(0 <= first < 13 and 17 < last < 24 for first, last in ranges)
    assert len({round(first, 3) for first, _ in ranges}) > 40
    flat = draw_focus_range(np.full(9, 15.0), scene, LENS, np.random.default_rng(0))
    assert 0.2 * 30 < flat[1] - flat[0] < 0.5 * 30 and flat[0] < 15 < flat[1]
    none = draw_focus_range(np.zeros(0), scene, LENS, np.random.default_rng(0))
    assert none[0] >= 0 and none[1] - none[0] > 15
    fixed = dataclasses.replace(LENS, focus_range=(3.0, 4.0))
    assert draw_focus_range(some, scene, fixed, np.random.default_rng(0)) == (3.0, 4.0)


def test_batches_of_rendered_scenes(scenes):
    first, *others = _load(scenes, 5)
    batch = first.batch
    assert batch.frames.shape == (2, 4, 20, 24, 3) and batch.frames.dtype == np.float32
    assert 0 <= batch.frames.min() and batch.frames.max() <= 1 and batch.frames.std() > 0.05
    assert set(np.unique(batch.depth)) <= {0.0, 20.0, 50.0} and (batch.depth[~batch.mask] == 0).all()
    assert (batch.depth[batch.mask] > 0).all()
    assert {n for b in (first, *others) for n in b.names} == {"scene0", "scene1", "scene2"}
    settings = np.stack([f for b in (first, *others) for f in b.batch.focus])
    assert len(np.unique(settings[:, 0])) == 10  # a new lens each time
    for a, b in zip(others[2:], _load(scenes, 2, state=3), strict=True):
        assert a.names == b.names
        jax.tree.map(np.testing.assert_array_equal, a.batch, b.batch)


def test_what_is_in_focus_is_sharp(scenes):
    """Also after a stack was turned around: then near is far in frames, settings and truth."""
    lens = dataclasses.replace(LENS, focus_range=(20.0, 50.0), noise=(0.0, 0.0))
    seen = []
    for loaded in _load(scenes, 4, lens=lens, crop=(20, 36), flips=False, reverse=True):
        frames, focus, depth, mask, _ = loaded.batch
        np.testing.assert_allclose(focus, np.tile(np.linspace(20, 50, 4), (2, 1)), rtol=1e-6)
        grey = frames.mean(-1)
        sharp = np.abs(np.diff(grey, axis=3))[..., 2:-2, 2:-2]
        for b, (q, z) in ((b, qz) for b in range(2) for qz in ((20.0, 0), (50.0, 3))):
            where = ((depth[b] == q) & mask[b])[2:-2, 2:-3]
            assert where.sum() > 100 and sharp[b, :, where].mean(0).argmax() == z
        seen += [float(row[-1]) for row in depth.max(1)]
    assert set(seen) == {20.0, 50.0}  # near lies on the right, unless turned around


def test_held_out_scenes_are_photographed_once_and_for_all(scenes, tmp_path):
    data = dataclasses.replace(DATA, dataset=str(scenes))
    source = pipeline.open_source(data, "validation")
    assert len(source) == 2 and source.unit == "disparity" and source.name.endswith("/val")
    stack = source[1]
    assert stack is source[1] and stack.frames.dtype == np.uint8 and stack.frames.shape == (4, 20, 24, 3)
    again = pipeline.open_source(dataclasses.replace(data, flips=False, colour=0.0, frames=(2, 3)), "validation")[1]
    np.testing.assert_array_equal(stack.frames, again.frames)
    np.testing.assert_array_equal(stack.depth, again.depth)
    rgb = np.asarray(Image.open(scenes / "val/scene1/rgb.png"))
    windows = np.lib.stride_tricks.sliding_window_view(rgb, (20, 24), (0, 1))
    assert source.has_all_in_focus  # it is the scene's own picture, cut out
    assert (np.moveaxis(windows, 2, -1) == stack.all_in_focus).all((2, 3, 4)).sum() == 1

    metres = write_scenes(tmp_path / "metres", (("train", 1), ("val", 1)), kind="depth")
    source = pipeline.open_source(dataclasses.replace(data, dataset=str(metres)), "validation")
    assert source.unit == "diopter"
    assert set(np.unique(source[0].depth).astype(float).round(4)) <= {0.0, 0.5, 0.2}
    write_scenes(metres / "val", (("more", 1),))
    with pytest.raises(InputError, match="depth in several units"):
        pipeline.open_source(dataclasses.replace(data, dataset=str(metres)), "validation")
    with pytest.raises(InputError, match="no val/ or validation/ or test/ inside"):
        pipeline.open_source(dataclasses.replace(data, dataset=str(scenes / "train")), "validation")


def test_the_cache_keeps_scenes_within_its_budget(scenes, monkeypatch):
    _, files = pipeline.scene_files(scenes / "train", "train")  # without split folders: all of it
    reads = []
    read = live_rgbd.read_scene
    monkeypatch.setattr(live_rgbd, "read_scene", lambda file: reads.append(file.name) or read(file))
    monkeypatch.setattr(live_rgbd, "_CACHE_BYTES", 2 * SIZE[0] * SIZE[1] * 8 + 10)
    cache = live_rgbd.SceneCache(files)
    for i in (0, 1, 2, 0, 1, 2):
        assert cache[i].name == f"scene{i}"
    assert reads == ["scene0", "scene1", "scene2", "scene2"]
    assert np.isfinite(cache[0].q).all() and not cache[0].mask.all()
    there = pickle.loads(pickle.dumps(cache))  # as for a worker process: the files, not what is kept
    assert there[1].name == "scene1" and len(pickle.dumps(cache)) < 2000


# A run ------------------------------------------------------------------------------------------------------------


def _run(config, output, stop_after=None):
    with pytest.MonkeyPatch.context() as patch, fakes.interrupting(stop_after):
        patch.setattr(estimators, "build", fakes.build)
        return loop.train(config, output)


def _losses(run):
    return {line["step"]: line["loss"] for line in logging.read_log(run) if line["kind"] == "train"}


@pytest.mark.slow
def test_a_run_on_a_mixture_interrupted_and_resumed_is_uninterrupted(scenes, tmp_path, default_signals):
    """Stacks in a folder (3 frames, disparity), and scenes in metres rendered to 4 frames: losses bit for bit."""
    folder = fakes.write_stacks(tmp_path / "stacks")
    metres = write_scenes(tmp_path / "metres", (("train", 2),), kind="depth")
    config = fakes.small_config(folder, num_steps=8, log_every=1, eval_every=8, save_every=3)
    parts = (
        PartConfig(source="folder", dataset=str(folder)),
        PartConfig(source="rgbd", dataset=str(metres), crop=(16, 24), lens=LENS, reverse=True),
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=parts, focus_jitter=0.1))
    assert configs.from_json(configs.to_json(config)) == config
    whole = _run(config, tmp_path / "whole")
    assert whole["step"] == 8 and not whole["interrupted"]
    cut = _run(config, tmp_path / "cut", stop_after=6)  # the first batch was the look at the shapes
    assert cut["interrupted"] and cut["step"] == 5
    assert _run(config, tmp_path / "cut")["step"] == 8
    want = _losses(tmp_path / "whole")
    assert sorted(want) == list(range(1, 9)) and np.isfinite(list(want.values())).all()
    assert _losses(tmp_path / "cut") == want


def test_scenes_are_checked_before_any_is_photographed(tmp_path, capsys):
    root = write_scenes(tmp_path)
    with pytest.raises(InputError, match="data.crop: 64 x 24 does not fit into scene 'scene0' of 30 x 40"):
        _load(root, 0, crop=(64, 24))
    lens = dataclasses.replace(LENS, focus_range=(0.02, 0.05))
    _load(root, 0, lens=lens)
    err = capsys.readouterr().err
    assert err.count("note: ") == 1 and "scene0/disp.npy" in err and "about 1000 times larger" in err
    _load(root, 0, lens=dataclasses.replace(LENS, focus_range=(30.0, 60.0)))
    assert not capsys.readouterr().err
    np.save(root / "train/scene1/disp.npy", np.ones((30, 41), np.float32))
    with pytest.raises(InputError, match="scene1/disp.npy: 41 x 30 where rgb.png is 40 x 30"):
        _load(root, 0)
