"""Loaders: exact resume, disjoint shares, nothing dropped, sorted and converted focus settings."""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dff_jax.config import DataConfig, DataSpec
from dff_jax.data import pipeline
from dff_jax.data.parts import Wanted
from dff_jax.errors import ConfigError, InputError, SourceError
from dff_jax.types import FocalStack

DATA = DataConfig(crop=(16, 20), batch_size=2, colour=0.2, noise=0.01, num_threads=2)


def _stack(i, size=(24, 28), frames=3, unit="disparity"):
    rng = np.random.default_rng(i)
    depth = rng.uniform(1, 9, size).astype(np.float32)
    pictures = rng.integers(0, 256, (frames, *size, 3), np.uint8)
    return FocalStack(pictures, np.linspace(1.0, 9.0, frames), unit, depth, depth > 2, f"s{i}")


def _source(stacks):
    return pipeline.StackSource("made up", stacks[0].unit, "for a test", len(stacks), stacks.__getitem__)


@pytest.fixture
def five(monkeypatch):
    monkeypatch.setattr(pipeline, "open_source", lambda data, split: _source([_stack(i) for i in range(5)]))


def _equal(a, b):
    assert a.names == b.names
    for x, y in zip(a.batch, b.batch, strict=True):
        np.testing.assert_array_equal(x, y)


def _take(loader, count):
    try:
        return list(itertools.islice(loader, count))
    finally:
        loader.close()


def test_pictures_are_in_batches_of_those_who_ask(monkeypatch):
    stacks = [stack._replace(all_in_focus=stack.frames[i % 3]) for i, stack in enumerate(map(_stack, range(4)))]
    source = dataclasses.replace(_source(stacks), has_all_in_focus=True)
    monkeypatch.setattr(pipeline, "open_source", lambda data, split: source)
    data = dataclasses.replace(DATA, noise=0.0, reverse=True)
    (plain,) = _take(pipeline.training_loader(data, 0), 1)
    (asked,) = _take(pipeline.training_loader(data, 0, wanted=Wanted(all_in_focus=True)), 1)
    assert plain.batch.all_in_focus is None
    np.testing.assert_array_equal(plain.batch.frames, asked.batch.frames)
    assert asked.batch.all_in_focus.dtype == np.float32
    for frames, picture in zip(asked.batch.frames, asked.batch.all_in_focus, strict=True):
        assert (frames == picture).all((1, 2, 3)).sum() == 1  # one of the frames, exactly

    batches = list(pipeline.evaluation_batches(source, 3))
    assert [batch.all_in_focus.shape for batch, _ in batches] == [(3, 24, 28, 3)] * 2
    np.testing.assert_allclose(batches[1].batch.all_in_focus[0], stacks[3].all_in_focus / 255, rtol=1e-6)
    stacks[1] = stacks[1]._replace(all_in_focus=None)
    assert next(pipeline.evaluation_batches(source, 2)).batch.all_in_focus is None


def test_without_pictures_that_are_asked_for_nothing_begins(five):
    with pytest.raises(ConfigError, match=r"loss\.image and .*: made up has no all-in-focus pictures; make it anew by"):
        pipeline.training_loader(DATA, 0, wanted=Wanted(all_in_focus=True))


def test_ground_truth_may_be_missing_where_it_is_not_asked_for(monkeypatch):
    source = _source([_stack(i)._replace(depth=None, mask=None) for i in range(2)])
    monkeypatch.setattr(pipeline, "open_source", lambda data, split: source)
    with pytest.raises(InputError, match="no ground truth to train on"):
        _take(pipeline.training_loader(DATA, 0), 1)
    (loaded,) = _take(pipeline.training_loader(DATA, 0, wanted=Wanted(depth=False)), 1)
    assert not loaded.batch.mask.any() and not loaded.batch.depth.any()


def test_a_resumed_loader_sees_the_same_batches_across_an_epoch_end(five):
    loader = pipeline.training_loader(DATA, seed=3)
    first = [next(loader) for _ in range(2)]
    state = json.loads(json.dumps(loader.get_state()))
    assert state == {"next_index": 2}
    rest = _take(loader, 6)  # batches 2..7; epochs of 5 end inside batches 2 and 7
    resumed = pipeline.training_loader(DATA, seed=3)
    resumed.set_state(state)
    for a, b in zip(rest, _take(resumed, 6), strict=True):
        _equal(a, b)
    other = _take(pipeline.training_loader(DATA, seed=4), 2)
    assert any((a.batch.frames != b.batch.frames).any() for a, b in zip(first, other, strict=True))


def test_stepping_back_in_the_same_loader(five):
    loader = pipeline.training_loader(DATA, seed=3)
    state, first = loader.get_state(), next(loader)
    next(loader)
    loader.set_state(state)
    _equal(first, next(loader))
    loader.close()


def test_the_number_of_threads_changes_nothing(five):
    settings = [dataclasses.replace(DATA, num_threads=n) for n in (1, 3)]
    one, three = (_take(pipeline.training_loader(data, seed=1), 6) for data in settings)
    for a, b in zip(one, three, strict=True):
        _equal(a, b)


def test_every_epoch_is_whole_and_shuffled_anew_with_fresh_views(five):
    data = dataclasses.replace(DATA, batch_size=5)
    epochs = _take(pipeline.training_loader(data, seed=0), 4)
    assert all(sorted(e.names) == [f"s{i}" for i in range(5)] for e in epochs)
    assert len({e.names for e in epochs}) > 1
    a, b = (e.batch.frames[e.names.index("s0")] for e in epochs[:2])
    assert (a != b).any()


def test_processes_share_an_epoch_without_overlap(five):
    data = dataclasses.replace(DATA, batch_size=1)
    shares = [
        [b.names[0] for b in _take(pipeline.training_loader(data, 7, process_index=p, process_count=2), n)]
        for p, n in ((0, 3), (1, 2))
    ]
    assert sorted(shares[0] + shares[1]) == [f"s{i}" for i in range(5)]


def test_what_a_global_batch_holds_does_not_depend_on_the_number_of_processes(five):
    whole = _take(pipeline.training_loader(dataclasses.replace(DATA, batch_size=4), 7), 3)
    half = dataclasses.replace(DATA, batch_size=2)
    shares = [_take(pipeline.training_loader(half, 7, process_index=p, process_count=2), 3) for p in (0, 1)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert batch.names == parts[0].names + parts[1].names
        np.testing.assert_array_equal(batch.batch.frames, np.concatenate([p.batch.frames for p in parts]))


def test_a_batch_has_the_promised_shapes_and_types(five):
    (loaded,) = _take(pipeline.training_loader(DATA, seed=0), 1)
    batch = loaded.batch
    assert batch.frames.shape == (2, 3, 16, 20, 3) and batch.frames.dtype == np.float32
    assert batch.focus.shape == (2, 3) and batch.focus.dtype == np.float32
    assert batch.depth.shape == (2, 16, 20) and batch.depth.dtype == np.float32
    assert batch.mask.dtype == bool and 0 < batch.mask.mean() < 1
    assert (batch.depth[~batch.mask] == 0).all() and (batch.depth[batch.mask] > 2).all()
    assert 0 <= batch.frames.min() and batch.frames.max() <= 1


def test_metres_become_ascending_diopters():
    focus = np.array([0.5, 4.0, 1.0])
    frames = np.stack([np.full((16, 16, 3), k, np.uint8) for k in (50, 40, 10)])
    depth = np.full((16, 16), 2.0, np.float32)
    depth[0] = 0.0
    batch = pipeline.to_batch([FocalStack(frames, focus, "metre", depth, depth > 0, "m")])
    np.testing.assert_allclose(batch.focus, [[0.25, 1.0, 2.0]])
    np.testing.assert_allclose(batch.frames[0, :, 0, 0, 0] * 255, [40, 10, 50], rtol=1e-6)  # moved along
    assert (batch.depth[0, 1:] == 0.5).all() and (batch.depth[0, 0] == 0).all()


def test_stacks_of_unequal_length_cannot_share_a_training_batch(monkeypatch):
    mixed = _source([_stack(0, frames=3), _stack(1, frames=4)])
    monkeypatch.setattr(pipeline, "open_source", lambda data, split: mixed)
    with pytest.raises(InputError, match=r"data\.batch_size.*s. has \d frames, s. has \d frames"):
        _take(pipeline.training_loader(DATA, seed=0), 3)


def test_an_unreadable_stack_stops_training_with_its_own_message(monkeypatch):
    def read(index):
        raise InputError("scene/10.0.png: truncated")

    broken = pipeline.StackSource("broken", "disparity", "", 2, read)
    monkeypatch.setattr(pipeline, "open_source", lambda data, split: broken)
    with pytest.raises(InputError) as caught:
        _take(pipeline.training_loader(DATA, seed=0), 1)
    assert str(caught.value) == "scene/10.0.png: truncated"


def test_evaluation_drops_nothing_and_pads_with_masked_copies():
    shapes = [(24, 28), (20, 20), (24, 28), (24, 28), (20, 20), (24, 28), (24, 28)]
    stacks = [_stack(i, size) for i, size in enumerate(shapes)]
    batches = list(pipeline.evaluation_batches(_source(stacks), 3))
    names = [n for b in batches for n in b.names if n]
    assert sorted(names) == [s.name for s in stacks]
    assert [b.names for b in batches] == [("s0", "s2", "s3"), ("s5", "s6", ""), ("s1", "s4", "")]
    for loaded in batches:
        assert len(loaded.batch.frames) == 3
        for i, name in enumerate(loaded.names):
            if name:
                stack = stacks[int(name[1:])]
                np.testing.assert_array_equal(loaded.batch.mask[i], stack.mask)
                np.testing.assert_allclose(loaded.batch.frames[i], stack.frames / 255.0, atol=1e-6)
            else:
                assert not loaded.batch.mask[i].any() and np.isfinite(loaded.batch.frames[i]).all()
    wide = next(pipeline.evaluation_batches(_source(stacks[:2]), 10**9))  # no more than there are
    assert wide.batch.frames.shape[0] == 2
    limited = list(pipeline.evaluation_batches(_source(stacks), 1, limit=2))
    assert [b.names for b in limited] == [("s0",), ("s1",)]


def _write_stack(folder, depth=5.0):
    folder.mkdir(parents=True)
    for k, focus in enumerate((10.0, 100.0, 55.0)):
        Image.fromarray(np.full((24, 24, 3), 40 * k + 10, np.uint8)).save(folder / f"{focus}.png")
    np.save(folder / "disp.npy", np.full((24, 24), depth, np.float32))


def test_folders_with_and_without_splits(tmp_path):
    _write_stack(tmp_path / "set/train/a")
    _write_stack(tmp_path / "set/val/b", 7.0)
    data = DataConfig(source="folder", dataset=str(tmp_path / "set"), crop=(16, 16), batch_size=1)
    (loaded,) = _take(pipeline.training_loader(data, seed=0), 1)
    assert loaded.names == ("a",) and (loaded.batch.depth == 5).all()
    np.testing.assert_array_equal(loaded.batch.focus, [[10, 55, 100]])
    assert loaded.batch.frames[0, 1].mean() > loaded.batch.frames[0, 0].mean()  # 55.0 between 10.0 and 100.0
    for split in ("validation", "test"):  # published sets call their test set `val`
        source = pipeline.open_source(data, split)
        assert len(source) == 1 and source[0].name == "b" and source.unit == "disparity"
        assert next(pipeline.evaluation_batches(source, 1)).batch.frames.shape == (1, 3, 24, 24, 3)
    bare = pipeline.open_data(DataSpec(source=str(tmp_path / "set/val"), unit="index"))
    assert len(bare) == 1 and bare.unit == "index" and "set/val" in bare.describe
    only_train = tmp_path / "only"
    _write_stack(only_train / "train/a")
    with pytest.raises(InputError, match="no val/ or validation/ or test/ inside"):
        pipeline.open_data(DataSpec(source=str(only_train), split="validation"))
    with pytest.raises(InputError, match="no train/ inside"):
        pipeline.folder_source(tmp_path / "set/val", "train", "disparity")


def test_a_folder_is_checked_before_any_stack_is_read(tmp_path):
    for name in "abcdef":
        _write_stack(tmp_path / "train" / name, 50.0)
    (tmp_path / "train/a/100.0.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((25, 24, 3), np.uint8)).save(tmp_path / "train/b/55.0.png")
    np.save(tmp_path / "train/c/disp.npy", np.ones((24, 25), np.float32))
    (tmp_path / "train/d/disp.npy").unlink()
    (tmp_path / "train/e/55.0.png").rename(tmp_path / "train/e/middle.png")
    data = DataConfig(source="folder", dataset=str(tmp_path), crop=(16, 16), batch_size=1)
    with pytest.raises(SourceError) as error:
        pipeline.training_loader(data, seed=0)
    problems = "\n".join(error.value.problems)
    for part in ("a/100.0.png", "b/55.0.png: 24 x 25", "c/disp.npy: 25 x 24", "d: no ground truth", "e/middle.png"):
        assert part in problems
    assert len(error.value.problems) == 5
    for name in "abcde":
        shutil.rmtree(tmp_path / "train" / name)
    for change, message in (({"crop": (32, 16)}, "data.crop: 32 x 16"), ({"frames": (3, 4)}, "data.frames: 4 are")):
        with pytest.raises(ConfigError, match=message):
            pipeline.training_loader(dataclasses.replace(data, **change), seed=0)


@pytest.mark.parametrize(
    ("depth", "unit", "said"),
    [
        (50.0, "disparity", None),
        (5.0, "disparity", "truth of 5 to 5 disparity lies wholly outside the focus settings of 10 to 100 disparity"),
        (55000.0, "metre", "of 10 to 100 metre; it is about 1000 times larger: is one of them in another unit?"),
    ],
)
def test_truth_outside_the_focus_settings_is_told_before_training(tmp_path, capsys, depth, unit, said):
    for name in "ab":
        _write_stack(tmp_path / "train" / name, depth)
    pipeline.training_loader(DataConfig(source="folder", dataset=str(tmp_path), unit=unit, crop=(16, 16)), seed=0)
    err = capsys.readouterr().err
    if said is None:
        assert not err
    else:
        assert err.count("\n") == 1 and said in err and "note: " in err and "a/disp.npy" in err
        assert "(so do 1 more of 2 stacks)" in err


def test_open_data_wants_one_place(tmp_path):
    for arguments in ({}, {"dataset": "procedural/tiny", "source": "x"}):
        with pytest.raises(InputError, match="needs exactly one of dataset, source and world"):
            DataSpec(**arguments)
    with pytest.raises(InputError, match="choose one of train, validation, test"):
        DataSpec(source=str(tmp_path), split="dev")
    with pytest.raises(InputError, match="no such folder"):
        pipeline.open_data(DataSpec(source=str(tmp_path / "absent")))


def test_a_source_ends():
    source = _source([_stack(0), _stack(1)])
    assert [s.name for s in source] == ["s0", "s1"]
    with pytest.raises(IndexError):
        source[2]


def test_training_on_files_needs_no_parsed_flags_and_no_tensorflow():
    """In a plain script, where nobody parses absl's flags; grain and tfds stay out until they are needed."""
    program = """
import sys
import numpy as np
from dff_jax.config import DataConfig
from dff_jax.data import pipeline
from dff_jax.types import FocalStack
heavy = {"tensorflow", "tensorflow_datasets", "grain", "orbax", "matplotlib", "PIL", "tyro"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
depth = np.ones((16, 16), np.float32)
stack = FocalStack(np.zeros((2, 16, 16, 3), np.uint8), np.arange(2.0), "index", depth, depth > 0, "s")
pipeline.open_source = lambda data, split: pipeline.StackSource("s", "index", "", 1, lambda i: stack)
loader = pipeline.training_loader(DataConfig(crop=(16, 16)), 0)
assert next(loader).batch.frames.shape == (2, 2, 16, 16, 3)
loader.close()
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
