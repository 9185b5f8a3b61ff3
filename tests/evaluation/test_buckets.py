"""Which sizes share a program, and that sharing it changes no metric."""

from __future__ import annotations

from itertools import product

import jax
import numpy as np
import pytest

from dff_jax import config, estimators
from dff_jax.config import Proximal
from dff_jax.data import pipeline
from dff_jax.data.parts import StackSource
from dff_jax.data.shapes import of_folders
from dff_jax.evaluation import buckets as module
from dff_jax.evaluation import conventions, programs, resampling
from dff_jax.evaluation.buckets import Bucket, buckets, place, plan
from dff_jax.evaluation.evaluate import evaluate
from dff_jax.types import Batch, FocalStack, LoadedBatch

Z = 3
SMALL = Proximal(
    encoder="tiny", width=0.1, head_width=0.1, pooling="none", num_planes=3, num_iterations=1, prox_levels=1
)
SIZES = ((33, 64), (40, 40), (48, 70), (57, 33), (64, 64), (64, 97), (96, 35))


def area(size):
    return size[0] * size[1]


def test_few_sizes_keep_their_own():
    assert buckets({(40, 50): 3, (41, 50): 1}) == {size: Bucket(size, False) for size in ((40, 50), (41, 50))}


@pytest.mark.parametrize("seed", range(5))
def test_buckets_hold_their_sizes_are_few_and_not_far_from_the_best(seed):
    rng = np.random.default_rng(seed)
    sizes = {tuple(map(int, rng.integers(32, 400, 2))): int(rng.integers(1, 50)) for _ in range(7)}
    found = buckets(sizes, most=3)
    assert set(found) == set(sizes) and len(set(found.values())) <= 3
    for size, bucket in found.items():
        assert bucket.size[0] >= size[0] and bucket.size[1] >= size[1]
        assert bucket.size == size if not bucket.shared else bucket.size[0] % 32 == bucket.size[1] % 32 == 0
    cost = sum(number * area(found[size].size) for size, number in sizes.items())

    def padded(groups):
        total = 0
        for group in set(groups):
            members = [size for size, of in zip(sizes, groups, strict=True) if of == group]
            joined = [-(-max(side) // 32) * 32 for side in zip(*members, strict=True)]
            total += area(members[0] if len(members) == 1 else joined) * sum(sizes[size] for size in members)
        return total

    best = min(padded(groups) for groups in product(range(3), repeat=7))
    assert best <= cost <= 1.25 * best


def test_thousands_of_sizes_are_quickly_sorted():
    rng = np.random.default_rng(0)
    sizes = {tuple(map(int, rng.integers(100, 4000, 2))): 1 for _ in range(2000)}
    found = buckets(sizes)
    assert len(set(found.values())) == 4
    assert all(b.size[0] >= s[0] and b.size[1] >= s[1] for s, b in found.items())
    assert sum(area(b.size) for b in found.values()) < 0.75 * len(sizes) * area((4000, 4000))


def test_sizes_that_were_not_known_find_a_place_as_they_come():
    of = plan()
    assert of((5, 540, 960)) == Bucket((540, 960), False)  # most sets have one size
    second = of((5, 500, 900))
    assert second.shared and second.size == (512, 1024)
    assert of((5, 490, 1000)) == second and of((5, 540, 960)) == Bucket((540, 960), False)
    assert of((5, 100, 100)).size == (128, 128)  # too much waste
    large = of((5, 1000, 200))
    assert large.size == (1024, 1024)  # the last one holds all that came before
    assert of((5, 600, 1000)) == large and of((5, 300, 10)).shared
    assert len({of(shape) for shape in product((5,), range(10, 1000, 90), range(10, 1000, 90))}) <= 4
    assert of((5, 1500, 1500)).size == (1536, 1536)  # there is no other way
    assert of((7, 500, 900)) == Bucket((500, 900), False)  # of another number of frames
    assert place((40, 40), [Bucket((64, 64), False)]).shared


def stacks(count, sizes):
    """Smooth noise with a made-up truth, a tenth of it missing."""
    rng = np.random.default_rng(0)
    for i in range(count):
        h, w = sizes[i % len(sizes)]
        frames = np.kron(rng.integers(0, 256, (Z, h // 4 + 1, w // 4 + 1, 3)), np.ones((1, 4, 4, 1)))[:, :h, :w]
        frames = np.clip(frames + rng.integers(-9, 10, frames.shape), 0, 255).astype(np.uint8)
        truth = np.kron(rng.uniform(8, 42, (h // 16 + 1, w // 16 + 1)), np.ones((16, 16)))[:h, :w]
        mask = rng.random((h, w)) > 0.1
        yield FocalStack(
            frames, np.linspace(10.0, 40.0, Z), "disparity", (truth * mask).astype(np.float32), mask, f"stack{i}"
        )


def traced(model):
    """The estimator of a model, and a list that grows with each trace of its program."""
    estimator, traces = estimators.build(model), []

    def apply(variables, frames, focus, **options):
        traces.append(frames.shape)
        return estimator.apply(variables, frames, focus, **options)

    return estimator._replace(apply=apply), traces


def variables_of(estimator):
    shapes = np.zeros((1, Z, 64, 64, 3), np.float32), np.linspace(10, 40, Z, dtype=np.float32)[None]
    like = jax.eval_shape(estimator.init, jax.random.key(0), *shapes)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: (0.1 * rng.standard_normal(x.shape) / max(1, x.ndim - 1)).astype(np.float32), like)
    return drawn | {"batch_stats": jax.tree.map(lambda x: np.ones(x.shape, np.float32), like["batch_stats"])}


def assert_same(line, other):
    """A line of the table, to 1e-6: of each metric, but of 1 for a correlation, which may be near 0."""
    assert line.keys() == other.keys()
    for name, value in line.items():
        near = {"abs": 1e-6} if name == "Corr" else {"rel": 1e-6}
        assert value == (other[name] if isinstance(value, str) else pytest.approx(other[name], **near)), (line, name)


@pytest.mark.slow
def test_two_hundred_stacks_of_seven_sizes_take_four_programs_and_the_metrics_stay():
    made = list(stacks(200, SIZES))
    shapes = {(Z, *size): sum(s.frames.shape[1:3] == size for s in made) for size in SIZES}
    source = StackSource("made up", "disparity", "", 200, made.__getitem__, shapes=lambda limit: shapes)
    estimator, traces = traced(SMALL)
    variables = variables_of(estimator)
    before = programs.measure._cache_size()
    batches = pipeline.evaluation_batches(source, 2)
    found = evaluate(estimator, variables, batches, yardstick=False, bucket_of=plan(source.shapes(None)))
    assert 1 < len(traces) <= 4 and found.seconds["programs"] == len(traces)
    assert programs.measure._cache_size() - before <= 4
    shared = len(traces)

    own = estimator._replace(not_within="for this test")
    alone = evaluate(own, variables, pipeline.evaluation_batches(source, 1), yardstick=False)
    assert len(traces) == shared + len(SIZES)
    others = {(line["stack"], line["row"], line["region"]): line for line in alone.per_stack}
    assert len(found.per_stack) == len(others) == 200 * 2 * len(found.rows)
    for line in found.per_stack:
        assert_same(line, others[line["stack"], line["row"], line["region"]])
    for name in found.dynamics:
        assert found.dynamics[name] == pytest.approx(alone.dynamics[name], rel=1e-6, abs=1e-6)


def test_a_few_stacks_measured_in_shared_programs_have_the_metrics_of_each_alone():
    made = list(stacks(4, ((33, 40), (57, 33))))
    source = StackSource("made up", "disparity", "", 4, made.__getitem__)
    estimator, traces = traced(config.SML())
    convention = conventions.find("middlebury")
    shapes = {(Z, 33, 40): 2, (Z, 57, 33): 2}
    batches = list(pipeline.evaluation_batches(source, 2))
    seen = []
    found = evaluate(
        estimator, {}, batches, yardstick=False, convention=convention, bucket_of=plan(shapes, most=1),
        on_batch=lambda done, loaded, predicted: seen.append((loaded, predicted())),
    )  # fmt: skip
    assert traces == [(2, Z, 64, 64, 3)]
    assert [x.depth.shape for _, x in seen] == [b.batch.mask.shape for b in batches]
    own = estimator._replace(not_within="for this test")
    kept = []
    alone = evaluate(
        own, {}, batches, yardstick=False, convention=convention,
        on_batch=lambda done, loaded, predicted: kept.append(predicted()),
    )  # fmt: skip
    for line, other in zip(found.per_stack, alone.per_stack, strict=True):
        assert_same(line, other)
    for (_, a), b in zip(seen, kept, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-3), a, b)
    assert alone.notes == found.notes


def test_what_heeds_no_extent_gets_a_program_a_size_and_a_note(monkeypatch):
    monkeypatch.setattr(module, "MOST", 1)
    sizes = [(20, 24), (22, 24)]
    made = list(stacks(2, sizes))
    source = StackSource("made up", "disparity", "", 2, made.__getitem__)
    estimator, traces = traced(config.SML())
    own = estimator._replace(not_within="model.prox=mine:prox is not of this package")
    found = evaluate(own, {}, pipeline.evaluation_batches(source, 1), yardstick=False, bucket_of=plan())
    assert sorted(shape[2:4] for shape in traces) == sizes
    assert "a program for each of 2 sizes, as model.prox=mine:prox is not of this package" in found.notes


def test_times_hold_no_compilation(monkeypatch):
    """Each program is compiled before its first run, and the run does not compile again."""
    estimator, traces = traced(config.SML())
    batch = next(pipeline.evaluation_batches(StackSource("", "disparity", "", 1, lambda i: next(stacks(1, SIZES))), 1))
    events = []
    monkeypatch.setattr(programs.Compiler, "prepare", _noting(programs.Compiler.prepare, events, traces))
    jax.monitoring.register_event_duration_secs_listener(
        listener := lambda name, seconds, **_: events.append("compiled") if "backend_compile" in name else None
    )
    try:
        found = evaluate(estimator, {}, [batch], yardstick=False)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    prepared = events.index("prepared")
    assert "compiled" in events[:prepared] and "compiled" not in events[prepared:]
    assert found.seconds["compilation"] > 0 and found.seconds["programs"] == 1


def _noting(prepare, events, traces):
    def noting(self, *args):
        prepare(self, *args)
        events.append("prepared")

    return noting


def test_sources_tell_their_shapes_without_reading(tmp_path):
    from PIL import Image

    for name, size in (("a", (20, 30)), ("b", (20, 30)), ("c", (25, 30))):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", size[::-1]).save(tmp_path / name / f"{10 + i}.0.png")
    (tmp_path / "c" / "12.0.png").unlink()
    (tmp_path / "d").mkdir()
    for i in range(2):
        (tmp_path / "d" / f"{i}.5.png").write_bytes(b"no picture")
    source = pipeline.folder_source(tmp_path, "test", "disparity")
    assert source.shapes(None) == {(3, 20, 30): 2, (2, 25, 30): 1} and source.shapes(1) == {(3, 20, 30): 1}
    assert resampling.resized(source, (16, 20)).shapes(None) == {(3, 16, 20): 2, (2, 16, 20): 1}
    assert resampling.edge_padded(source).shapes(None) == {(3, 32, 32): 2, (2, 32, 32): 1}
    assert of_folders([], None) == {}


def test_a_batch_padded_to_its_bucket_holds_the_stack_and_nothing_else():
    batch = Batch(
        np.ones((1, Z, 20, 24, 3), np.float32), np.ones((1, Z), np.float32), np.ones((1, 20, 24), np.float32),
        np.ones((1, 20, 24), bool),
    )  # fmt: skip
    placed = programs.place(LoadedBatch(batch, ("x",)), lambda shape: Bucket((32, 64), True))
    assert placed.size == (20, 24) and placed.batch.frames.shape == (1, Z, 32, 64, 3)
    assert placed.batch.mask.sum() == 20 * 24 and placed.batch.depth.sum() == 20 * 24
    same = programs.place(LoadedBatch(batch, ("x",)), lambda shape: Bucket((20, 24), False))
    assert same.size is None and same.batch.frames.shape == batch.frames.shape
