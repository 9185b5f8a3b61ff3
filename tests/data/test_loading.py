"""Mixtures, fewer frames, changed focus, worker processes: what a batch holds depends on its number alone."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import training_fakes as fakes

from dff_jax import config as configs
from dff_jax.config import DataConfig, PartConfig
from dff_jax.config.load import override
from dff_jax.data import augment, live, pipeline
from dff_jax.data.parts import FilePart, Share, StackSource, to_batch
from dff_jax.errors import ConfigError, InputError
from dff_jax.training import checkpoint
from dff_jax.types import Batch, FocalStack

# Fewer frames, changed focus --------------------------------------------------------------------------------------


def _stack(i=0, frames=6, size=(24, 28), unit="disparity"):
    rng = np.random.default_rng(i)
    depth = rng.uniform(1, 9, size).astype(np.float32)
    focus = rng.permutation(np.cumsum(rng.uniform(0.5, 2, frames)))
    pictures = rng.integers(0, 256, (frames, *size, 3), np.uint8)
    pictures[:, 0, 0, 0] = np.arange(frames)  # which frame it was
    return FocalStack(pictures, focus, unit, depth, depth > 2, f"s{i}")


def test_thinned_stacks_keep_the_ends_and_the_order():
    stack, seen = _stack(frames=8), set()
    for seed in range(40):
        thin = augment.thin_frames(stack, 4, np.random.default_rng(seed))
        kept = thin.frames[:, 0, 0, 0]
        assert len(kept) == 4 and (np.diff(kept.astype(int)) > 0).all()
        np.testing.assert_array_equal(thin.focus, stack.focus[kept])
        assert thin.focus.min() == stack.focus.min() and thin.focus.max() == stack.focus.max()
        seen |= set(kept)
    assert seen == set(range(8))  # any of those between
    assert len(augment.thin_frames(stack, 2, np.random.default_rng(0)).focus) == 2
    assert augment.thin_frames(stack, 8, np.random.default_rng(0)) is stack
    with pytest.raises(ConfigError, match=r"data\.frames: 9 are asked for, but stack 's0' has 8"):
        augment.thin_frames(stack, 9, np.random.default_rng(0))


def test_few_numbers_of_frames_are_drawn():
    drawn = {augment.draw_frame_count((5, 15), np.random.default_rng(i)) for i in range(60)}
    assert drawn == {5, 10, 15}
    assert augment.draw_frame_count((7, 7), np.random.default_rng(0)) == 7
    assert augment.draw_frame_count(None, np.random.default_rng(0)) is None


def _refocused(batch, seed, reverse, jitter):
    turn, shares = augment.draw_focus(len(batch.focus[0]), np.random.default_rng(seed), reverse, jitter)
    return augment.refocus(batch, turn[None], shares[None]), bool(turn)


@pytest.mark.parametrize("unit", ["disparity", "metre", "index"])
def test_a_stack_turned_around_is_blurred_as_before(unit):
    """All that a lens sees are the distances |q - q_z|."""
    plain, turned = to_batch([_stack(unit=unit)]), []
    mask = plain.mask[0]
    for seed in range(12):
        out, turn = _refocused(plain, seed, True, 0.0)
        order = slice(None, None, -1 if turn else 1)
        np.testing.assert_array_equal(out.frames, plain.frames[:, order])
        before, after = (np.abs(b.depth - b.focus[0][:, None, None])[:, mask] for b in (plain, out))
        np.testing.assert_allclose(after[order], before, atol=2e-6)
        assert (out.depth[0][~mask] == 0).all() and (np.diff(out.focus) > 0).all()
        np.testing.assert_allclose(out.focus[:, [0, -1]], plain.focus[:, [0, -1]], rtol=1e-6)
        turned.append(turn)
    assert 0 < sum(turned) < 12


def test_jitter_moves_settings_a_little_and_never_past_each_other():
    plain, moved = to_batch([_stack(frames=9)]), []
    gaps = np.abs(plain.focus[0][:, None] - plain.focus[0]) + np.eye(9) * 1e9
    for seed in range(30):
        out, _ = _refocused(plain, seed, False, 0.4)
        share = (out.focus[0] - plain.focus[0]) / gaps.min(1)
        moved.append(share)
        assert np.abs(share).max() <= 0.4 + 1e-5 and (np.diff(out.focus) > 0).all()
        np.testing.assert_array_equal(out.depth, plain.depth)  # the truth stays
    assert np.abs(moved).max() > 0.38 and abs(np.mean(moved)) < 0.05


def test_on_the_device_it_is_the_same():
    plain, turned = to_batch([_stack()]), set()
    for seed in range(6):
        want, turn = _refocused(plain, seed, True, 0.3)
        draws = augment.draw_focus(len(plain.focus[0]), np.random.default_rng(seed), True, 0.3)
        got = live.refocus_batch(plain, *(draw[None] for draw in draws))
        for a, b in zip(got[:4], want[:4], strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)
        turned.add(turn)
    assert turned == {True, False}


# Mixtures ---------------------------------------------------------------------------------------------------------

PARTS = {
    "wide": [_stack(i, frames=6, size=(20, 40)) for i in range(5)],
    "deep": [_stack(i + 10, frames=4, unit="metre") for i in range(3)],
}
MIXED = DataConfig(
    batch_size=2, crop=(16, 20), colour=0.2, noise=0.01, reverse=True, focus_jitter=0.1, num_threads=2,
    mixture=(
        PartConfig(source="folder", dataset="wide", weight=3.0, crop=(16, 32), frames=(3, 6)),
        PartConfig(source="folder", dataset="deep", unit="metre", noise=0.0),
    ),
)  # fmt: skip


def _source(name):
    stacks = PARTS[name]
    return StackSource(name, stacks[0].unit, "made up", len(stacks), stacks.__getitem__)


@pytest.fixture
def sources(monkeypatch):
    monkeypatch.setattr(pipeline, "open_source", lambda data, split: _source(data.dataset))


def _take(count, data=MIXED, seed=3, state=None, **share):
    loader = pipeline.training_loader(data, seed, **share)
    try:
        if state is not None:
            loader.set_state(state)
        return list(itertools.islice(loader, count))
    finally:
        loader.close()


def _equal(a, b):
    assert a.names == b.names
    for x, y in zip(a.batch, b.batch, strict=True):
        np.testing.assert_array_equal(x, y)


def test_each_batch_is_of_one_part_with_its_own_frames_crop_and_unit(sources):
    batches = _take(24)
    wide = [b for b in batches if b.batch.frames.shape[2:4] == (16, 32)]
    deep = [b for b in batches if b.batch.frames.shape[2:4] == (16, 20)]
    assert len(wide) == 18 and len(deep) == 6  # by weight
    assert {b.batch.frames.shape[1] for b in wide} == {3, 4, 6} and {b.batch.frames.shape[1] for b in deep} == {4}
    assert {n for b in wide for n in b.names} == {f"s{i}" for i in range(5)}
    assert {n for b in deep for n in b.names} == {f"s{i}" for i in range(10, 13)}
    for b in batches:
        assert (np.diff(b.batch.focus) > 0).all() and np.isfinite(b.batch.depth).all()
    most = max(1 / s.focus.min() for s in PARTS["deep"])
    assert all(b.batch.focus.max() < most * 1.2 for b in deep)  # diopters


def test_a_resumed_mixture_goes_on_exactly(sources):
    want = _take(14)
    loader = pipeline.training_loader(MIXED, 3)
    for _ in range(5):
        next(loader)
    state = json.loads(json.dumps(loader.get_state()))
    loader.close()
    assert state == {"next_index": 5}
    one_thread = dataclasses.replace(MIXED, num_threads=1)
    for a, b in zip(want[5:], _take(9, one_thread, state=state), strict=True):
        _equal(a, b)
    assert any((a.batch.frames.shape != b.batch.frames.shape) or (a.batch.frames != b.batch.frames).any()
               for a, b in zip(want, _take(6, seed=4), strict=False))  # fmt: skip


def test_going_back_and_forth_in_one_loader(sources):
    want = _take(6)
    loader = pipeline.training_loader(MIXED, 3)
    for number in (0, 0, 1, 1, 4, 3, 5):
        loader.set_state({"next_index": number})
        assert loader.get_state() == {"next_index": number}
        _equal(next(loader), want[number])
    loader.close()


def test_processes_together_see_what_one_would(sources):
    whole = _take(6, dataclasses.replace(MIXED, batch_size=4))
    shares = [_take(6, process_index=p, process_count=2) for p in (0, 1)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert batch.names == parts[0].names + parts[1].names
        for field in Batch._fields[:4]:  # no pictures
            both = np.concatenate([getattr(p.batch, field) for p in parts])
            np.testing.assert_array_equal(getattr(batch.batch, field), both)


def test_bad_parts_are_found_before_the_first_step(sources):
    small = dataclasses.replace(MIXED.mixture[1], crop=(64, 64))
    with pytest.raises(ConfigError, match=r"data\.crop: 64 x 64 does not fit into stack 's1\d'"):
        pipeline.training_loader(dataclasses.replace(MIXED, mixture=(MIXED.mixture[0], small)), 0)
    many = dataclasses.replace(MIXED.mixture[1], frames=(9, 9))
    with pytest.raises(ConfigError, match=r"data\.frames: 9 are asked for"):
        pipeline.training_loader(dataclasses.replace(MIXED, mixture=(MIXED.mixture[0], many)), 0)


def test_stacks_without_truth_cannot_be_trained_on():
    stack = _stack()
    for bad in (stack._replace(depth=None, mask=None), stack._replace(mask=np.zeros_like(stack.mask))):
        part = FilePart(DataConfig(crop=(16, 16)), StackSource("mine", "index", "", 1, lambda i, b=bad: b), Share(0, 1))
        with pytest.raises(InputError, match="mine: stack 's0' has no ground truth to train on"):
            part.prepare(0)


# Configuration ----------------------------------------------------------------------------------------------------


def test_mixtures_survive_json_the_command_line_and_a_checkpoint():
    part = dataclasses.replace(MIXED.mixture[0], lens=configs.LensConfig(num_frames=5), world=configs.WorldConfig())
    config = configs.Config(data=dataclasses.replace(MIXED, mixture=(part, MIXED.mixture[1])))
    text = configs.to_json(config)
    assert configs.from_json(text) == config
    changed = override(config, ["--data.mixture.1.weight", "2.5", "--model.num-iterations", "4"])
    assert changed.data.mixture[1].weight == 2.5 and changed.data.mixture[0] == part
    assert override(configs.Config(), ["--data.frames", "4", "9"]).data.frames == (4, 9)
    with pytest.raises(ConfigError, match=r"--data\.mixture\.0\.weigth: unknown field"):
        override(config, ["--data.mixture.0.weigth", "2"])
    checkpoint.check_config(json.loads(text), configs.to_dict(config), "run")
    with pytest.raises(ConfigError, match=r"data\.mixture\.1\.weight \(1\.0 -> 2\.5\)"):
        checkpoint.check_config(json.loads(text), configs.to_dict(changed.__class__(data=changed.data)), "run")
    unused = dataclasses.replace(config.data, lens=configs.LensConfig(num_layers=3), num_workers=2)
    unused = dataclasses.replace(config, data=unused)  # nothing is rendered
    checkpoint.check_config(json.loads(text), configs.to_dict(unused), "run")


def test_a_part_is_the_rest_with_its_own_fields():
    wide, deep = MIXED.parts()
    assert (wide.crop, wide.frames, wide.dataset, wide.mixture) == ((16, 32), (3, 6), "wide", ())
    assert (deep.crop, deep.noise, deep.unit, deep.reverse) == ((16, 20), 0.0, "metre", True)
    assert DataConfig().parts() == (DataConfig(),)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"mixture": [{"source": "folder"}]}, r"data\.mixture\.dataset: source=folder needs one"),
        ({"mixture": [{"dataset": "x", "weight": 0.0}]}, r"data\.mixture\.weight: must be greater than 0"),
        ({"mixture": [{"dataset": "x", "wight": 1.0}]}, r"data\.mixture\.0\.wight: unknown field"),
        ({"mixture": [{"dataset": "x", "crop": [8, 64]}]}, r"data\.crop: each side needs at least 16"),
        ({"mixture": [3]}, r"data\.mixture\.0: expected fields"),
        ({"frames": [9, 4]}, r"data\.frames: needs 2 <= fewest <= most"),
        ({"focus_jitter": 0.5}, r"data\.focus_jitter: from 0 to below 0\.5"),
        ({"num_workers": -1}, r"data\.num_workers: must be at least 0"),
        ({"lens": {"blur_radius": [5.0, 4.0]}}, r"data\.lens\.blur_radius"),
        ({"lens": {"focus_range": [5.0, 5.0]}}, r"data\.lens\.focus_range: needs low < high"),
    ],
)
def test_errors_name_the_field(data, match):
    with pytest.raises(ConfigError, match=match):
        configs.from_dict({"data": data})


def test_one_plane_a_frame_needs_one_length():
    paper = configs.paper()
    for data in (MIXED, DataConfig(frames=(5, 15))):
        with pytest.raises(ConfigError, match="model.num_planes: None"):
            configs.Config(model=paper, data=data)
    parts = tuple(dataclasses.replace(p, frames=(4, 4)) for p in MIXED.mixture)
    configs.Config(model=paper, data=dataclasses.replace(MIXED, mixture=parts))
    configs.Config(model=paper)


# Worker processes -------------------------------------------------------------------------------------------------

SCRIPT = """
import dataclasses, itertools, multiprocessing, os, signal, sys
import numpy as np
from dff_jax.config import DataConfig, PartConfig
from dff_jax.data import pipeline
from dff_jax.errors import ConfigError, InputError

def batches(workers, threads, start, count):
    loader = pipeline.training_loader(dataclasses.replace(DATA, num_workers=workers, num_threads=threads), 5)
    loader.set_state({"next_index": start})
    found = list(itertools.islice(loader, count))
    loader.set_state({"next_index": start + 1})
    found.append(next(loader))
    return loader, found

if __name__ == "__main__":
    part = {"source": "folder", "dataset": sys.argv[1]}
    DATA = DataConfig(batch_size=2, crop=(16, 16), mixture=(PartConfig(**part), PartConfig(**part, frames=(2, 2))))
    here, want = batches(0, 1, 3, 5)
    there, got = batches(2, 1, 3, 5)
    for a, b in zip(want, got, strict=True):
        assert a.names == b.names
        for x, y in zip(a.batch, b.batch, strict=True):
            np.testing.assert_array_equal(x, y)
    here.close()
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGKILL)
    try:
        for _ in range(20):
            next(there)
    except InputError as error:
        print(error)
    there.close()
    alone = DataConfig(source="folder", dataset=sys.argv[1], batch_size=2, crop=(16, 16), num_workers=1)
    loader = pipeline.training_loader(alone, 5)
    os.remove(sys.argv[1] + "/train/stack0/disp.npy")
    try:
        for _ in range(9):
            next(loader)
    except InputError as error:
        print(type(error).__name__, error)
    loader.close()
    assert not multiprocessing.active_children()
"""


@pytest.mark.slow
def test_worker_processes_in_a_plain_script(tmp_path):
    """No absl app, no test runner: the same batches as without workers, one error for a dead one, and for bad data."""
    fakes.write_stacks(tmp_path / "stacks")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path / "stacks"], capture_output=True, text=True, timeout=300,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    dead, bad = done.stdout.splitlines()
    assert dead.startswith("data.num_workers: Worker process was terminated unexpectedly with exit code -9")
    assert bad.startswith("InputError ") and "stack0: no ground truth; looked for" in bad
    assert done.stderr == ""
