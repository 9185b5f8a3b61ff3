"""The procedural dataset: what is frozen, that it can be read without this package's code, and live worlds."""

import dataclasses
import json
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax.config import DataConfig, WorldConfig
from dff_jax.data import datasets, live, pipeline
from dff_jax.data.parts import Wanted
from dff_jax.errors import ConfigError, InputError
from dff_jax.optics.scenes import RenderedStack

NAME = "procedural/tiny"  # 2, 1, 2 stacks of 5 x 48 x 48
WORLD = WorldConfig(height=32, width=32, num_frames=3)
LIVE = DataConfig(source="procedural_live", crop=(32, 32), batch_size=2, world=WORLD)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    datasets.prepare(NAME, folder)
    return folder


def _read(folder, split):
    return list(datasets.open_builder(NAME, folder).as_data_source(split=split))


def test_the_folder_alone_tells_everything(root):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(datasets.prepare(NAME, root))  # without our builder class
    metadata = builder.info.metadata
    assert metadata["unit"] == "disparity" and metadata["focus_range"] == [10.0, 100.0]
    assert json.loads(metadata["world"])["num_frames"] == 5 and metadata["seed"] == "0"
    assert {s: i.num_examples for s, i in builder.info.splits.items()} == {"train": 2, "validation": 1, "test": 2}
    record = builder.as_data_source(split="test")[1]
    assert record["name"] == b"test/00001"  # record i is world i
    assert record["stack"].shape == (5, 48, 48, 3) and record["stack"].dtype == np.uint8
    assert record["depth"].shape == (48, 48) and record["depth"].dtype == np.float32
    np.testing.assert_allclose(record["focus"], np.linspace(10, 100, 5))
    assert record["stack"].std() > 10 and record["depth"].std() > 1


def test_a_record_is_the_world_of_its_key(root):
    from dff_jax.data.datasets.procedural import _photograph, stack_key

    world = datasets.find(NAME).world
    frames, _, depth, sharp = _photograph(stack_key(0, "test", 1), world)
    record = _read(root, "test")[1]
    np.testing.assert_array_equal(record["depth"], depth)
    np.testing.assert_array_equal(record["stack"], frames)
    np.testing.assert_array_equal(record["all_in_focus"], sharp)


def test_the_same_machine_makes_the_same_data_and_splits_differ(root, tmp_path):
    datasets.prepare(NAME, tmp_path)
    records = [r for split in ("train", "validation", "test") for r in _read(root, split)]
    again = [r for split in ("train", "validation", "test") for r in _read(tmp_path, split)]
    for a, b in zip(records, again, strict=True):
        assert a["name"] == b["name"]
        np.testing.assert_array_equal(a["stack"], b["stack"])
        np.testing.assert_array_equal(a["depth"], b["depth"])
    assert len({r["depth"].tobytes() for r in records}) == len({r["name"] for r in records}) == 5


def test_an_interruption_leaves_nothing(monkeypatch, tmp_path):
    from dff_jax.data.datasets import procedural

    real, calls = procedural._photograph, []

    def interrupted(key, world):
        calls.append(key)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(key, world)

    monkeypatch.setattr(procedural, "_photograph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        datasets.prepare(NAME, tmp_path)
    assert not [p for p in (tmp_path / "procedural/tiny").rglob("*") if p.is_file()]
    monkeypatch.undo()
    assert len(_read(tmp_path, "train")) == 2  # and the next use makes it whole


def test_nothing_is_left_in_the_temporary_folder(monkeypatch, tmp_path):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    datasets.prepare(NAME, tmp_path)
    datasets.open_builder(NAME, tmp_path)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_made_on_first_use_and_said_so(tmp_path, capsys):
    data = DataConfig(dataset=NAME, data_dir=str(tmp_path), crop=(32, 32), batch_size=3)
    loader = pipeline.training_loader(data, seed=0)
    loaded = next(loader)
    loader.close()
    captured = capsys.readouterr()
    assert f"{NAME} is not in {tmp_path}; making it now" in captured.err
    assert "train: 2/2 stacks" in captured.err and captured.out == ""  # progress, and no banners of tfds
    assert loaded.batch.frames.shape == (3, 5, 32, 32, 3) and loaded.batch.mask.all()
    assert set(loaded.names) == {"train/00000", "train/00001"}
    np.testing.assert_allclose(loaded.batch.focus[0], np.linspace(10, 100, 5))
    source = pipeline.open_source(data, "test")
    assert len(source) == 2 and source.unit == "disparity" and source.name == "procedural/tiny/test"
    assert source[0].frames.dtype == np.uint8 and source[0].depth.shape == (48, 48)
    assert capsys.readouterr().err == ""  # not made twice
    with pytest.raises(InputError, match="no 'dev'; choose --split train or --split validation or --split test"):
        pipeline.tfds_source(NAME, "dev", tmp_path)


def test_data_of_other_settings_is_refused_and_can_be_replaced(root, tmp_path, monkeypatch):
    from dff_jax.data.datasets import procedural

    datasets.prepare(NAME, tmp_path)
    before = _read(tmp_path, "train")
    other = [dataclasses.replace(datasets.find(NAME), seed=1)]
    monkeypatch.setattr(procedural, "DATASETS", other)
    with pytest.raises(InputError, match="another seed than this version's.*--overwrite"):
        datasets.open_builder(NAME, tmp_path)

    monkeypatch.setattr(procedural, "_photograph", lambda key, world: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        datasets.prepare(NAME, tmp_path, overwrite=True)
    monkeypatch.undo()
    np.testing.assert_array_equal(_read(tmp_path, "train")[0]["stack"], before[0]["stack"])  # still there

    monkeypatch.setattr(procedural, "DATASETS", other)
    datasets.prepare(NAME, tmp_path, overwrite=True)
    after = _read(tmp_path, "train")
    assert (after[0]["stack"] != before[0]["stack"]).any()
    assert [p.name for p in (tmp_path / "procedural/tiny").iterdir()] == ["1.0.0"]


def test_wrong_names_and_places_are_one_clear_line(tmp_path):
    for name in ("procedural/huge", "flying", "procedural", "procedural/"):
        with pytest.raises(InputError, match="choose one of procedural/quickstart, procedural/five_frames"):
            datasets.prepare(name, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file"):
        datasets.prepare(NAME, tmp_path / "file")


def test_no_tensorflow_for_tfds_and_neither_loader_nor_images_for_live():
    program = """
import sys
import tempfile
import jax.numpy as jnp
from dff_jax.config import DataConfig, WorldConfig
from dff_jax.data import datasets, live, pipeline
from dff_jax.optics.scenes import RenderedStack

def blank(key, world):
    size = (world.height, world.width)
    return RenderedStack(jnp.zeros((2, *size, 3)), jnp.arange(2.0), jnp.ones(size), jnp.zeros((*size, 3)))

live.make_stack = blank
data = DataConfig(source="procedural_live", crop=(32, 32), batch_size=1)
assert next(pipeline.training_loader(data, 0)).batch.frames.shape == (1, 2, 32, 32, 3)
assert next(pipeline.evaluation_batches(pipeline.open_source(data, "test"), 1)).names == ("live/test/0",)
heavy = {"tensorflow", "tensorflow_datasets", "grain", "tyro", "PIL", "matplotlib", "orbax", "tqdm"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert "procedural/quickstart" in datasets.all_datasets()
assert "tensorflow_datasets" not in sys.modules
from dff_jax.data.datasets import procedural
procedural.make_stack = blank
assert len(list(datasets.prepare("procedural/tiny", tempfile.mkdtemp()).glob("*.array_record*"))) == 3
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def blobs(monkeypatch):
    """A stand-in for the renderer that compiles at once: one random picture, the same at every focus setting."""

    def make_blobs(key, world):
        k1, k2 = jax.random.split(key)
        size = (world.height, world.width)
        rgb, depth = jax.random.uniform(k1, (*size, 3)), jax.random.uniform(k2, size, minval=4.0, maxval=110.0)
        frames = jnp.broadcast_to(rgb, (world.num_frames, *rgb.shape))
        return RenderedStack(frames, jnp.linspace(*world.focus_range, world.num_frames), depth, rgb)

    live.make_batch.clear_cache()
    monkeypatch.setattr(live, "make_stack", make_blobs)
    yield
    live.make_batch.clear_cache()


def _equal(a, b):
    assert a.names == b.names
    jax.tree.map(np.testing.assert_array_equal, a.batch, b.batch)


def test_live_batches_depend_on_seed_and_number_alone(blobs):
    loader = pipeline.training_loader(LIVE, seed=5)
    first, second = next(loader), next(loader)
    assert json.loads(json.dumps(loader.get_state())) == {"next_index": 2}
    assert second.names == ("live/5/1/0", "live/5/1/1")
    again = pipeline.training_loader(LIVE, seed=5)
    again.set_state({"next_index": 1})
    _equal(second, next(again))
    other = next(pipeline.training_loader(LIVE, seed=6))
    worlds = [d.tobytes() for b in (first, second, other) for d in np.asarray(b.batch.depth)]
    assert len(set(worlds)) == 6
    batch = first.batch
    assert batch.frames.shape == (2, 3, 32, 32, 3) and isinstance(batch.frames, jax.Array)
    assert batch.mask.all() and float(batch.frames.min()) >= 0 and float(batch.frames.max()) <= 1
    np.testing.assert_allclose(batch.focus, np.broadcast_to(np.linspace(10, 100, 3), (2, 3)))


def test_live_stacks_of_a_batch_do_not_depend_on_the_processes(blobs):
    whole = next(pipeline.training_loader(LIVE, seed=1))
    half = dataclasses.replace(LIVE, batch_size=1)
    parts = [next(pipeline.training_loader(half, 1, process_index=p, process_count=2)) for p in range(2)]
    for i, part in enumerate(parts):
        assert part.names == whole.names[i : i + 1]
        np.testing.assert_allclose(part.batch.depth[0], whole.batch.depth[i], rtol=1e-5)


def test_live_colour_is_one_change_for_all_frames(blobs):
    keys = jax.random.split(jax.random.key(0), 2)
    plain, coloured = (live.make_batch(keys, WORLD, colour).frames for colour in (0.0, 0.3))
    np.testing.assert_allclose(plain * 255, jnp.round(plain * 255), atol=1e-3)  # 8 bits, as in photographs
    for frames in (plain, coloured):
        np.testing.assert_array_equal(frames, jnp.broadcast_to(frames[:, :1], frames.shape))
    change = (coloured - plain).mean((1, 2, 3, 4))
    assert (abs(change) > 0.005).all() and float(abs(change[0] - change[1])) > 0.005  # another one each
    noisy = live.make_batch(keys, WORLD, 0.0, 0.05).frames - plain
    assert 0 < float(noisy.std()) < 0.05 and float(abs(noisy[:, 0] - noisy[:, 1]).mean()) > 0


def test_live_pictures_have_the_colour_of_the_frames(blobs):
    plain = next(pipeline.training_loader(LIVE, seed=1))
    sharp = next(pipeline.training_loader(LIVE, seed=1, wanted=Wanted(all_in_focus=True)))
    assert plain.batch.all_in_focus is None
    np.testing.assert_array_equal(sharp.batch.frames, plain.batch.frames)
    keys = jax.random.split(jax.random.key(0), 2)
    noisy = live.make_batch(keys, WORLD, 0.3, 0.05, all_in_focus=True)
    clean = live.make_batch(keys, WORLD, 0.3)
    np.testing.assert_allclose(noisy.all_in_focus, clean.frames[:, 0], atol=1e-6)
    held_out = pipeline.open_source(LIVE, "test")
    assert held_out.has_all_in_focus
    np.testing.assert_array_equal(held_out[0].all_in_focus, held_out[0].frames[0])


@pytest.mark.slow
def test_live_worlds_are_the_renderers(small_world):
    data = dataclasses.replace(LIVE, world=small_world, crop=(48, 64), batch_size=1, colour=0.0, noise=0.0)
    loaded = next(pipeline.training_loader(data, seed=0))
    batch = loaded.batch
    assert batch.frames.shape == (1, 7, 48, 64, 3) and batch.depth.shape == (1, 48, 64)
    assert float(batch.frames.std()) > 0.02 and float(batch.depth.std()) > 1
    low, high = small_world.depth_range
    assert low <= float(batch.depth.min()) and float(batch.depth.max()) <= high and batch.mask.all()
    np.testing.assert_allclose(batch.focus[0], np.linspace(10, 100, 7), rtol=1e-6)


def test_live_evaluation_is_fixed_and_held_out(blobs):
    data = dataclasses.replace(LIVE, world=dataclasses.replace(WORLD, width=48))
    source = pipeline.open_source(data, "validation")
    assert len(source) == live.HELD_OUT["validation"] and source.unit == "disparity"
    assert source[0].frames.shape == (3, 32, 48, 3)  # the world's size: evaluation is not cropped
    assert source[0] is source[0]  # rendered once
    again = pipeline.open_source(data, "validation")[0]
    np.testing.assert_array_equal(source[0].frames, again.frames)
    assert (source[0].depth != pipeline.open_source(data, "test")[0].depth).any()
    with pytest.raises(InputError, match="choose validation, test"):
        pipeline.open_source(data, "train")
    with pytest.raises(ConfigError, match=r"data\.crop: procedural_live needs at least 32"):
        pipeline.training_loader(dataclasses.replace(LIVE, crop=(16, 32)), 0)


def test_live_all_at_once_equals_one_after_another(blobs, monkeypatch):
    keys = jax.random.split(jax.random.key(0), 3)
    in_turn = live.make_batch(keys, WORLD, 0.2, 0.02)
    live.make_batch.clear_cache()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # only decides between map and vmap
    at_once = live.make_batch(keys, WORLD, 0.2, 0.02)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), in_turn, at_once)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "pythonClass\\u004eame"])
def test_features_that_name_code_are_not_imported(tmp_path, key, monkeypatch):
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "features.json").write_text(f'{{"featuresDict": {{"features": {{"a": {{"{key}": "evil.Thing"}}}}}}}}')
    with pytest.raises(InputError, match="names code that is not part of tfds: evil.Thing"):
        datasets._open(tmp_path)
    assert not (tmp_path / "ran").exists()
