"""Programs and structures kept between runs: found again, never wrong, never in the way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax import config, estimators, kept
from dff_jax.estimators import weights

FOLDER = kept.folder


@pytest.fixture(autouse=True)
def folder(nothing_kept, monkeypatch):
    monkeypatch.setattr(kept, "folder", FOLDER)


@pytest.fixture
def cache(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    yield tmp_path / "jax"
    jax.config.update("jax_compilation_cache_dir", before)


def test_what_is_kept_is_found_under_its_own_key_only(cache):
    assert kept.load("a", 1) is None
    kept.store(b"content", "a", 1)
    assert kept.load("a", 1) == b"content" and kept.load("a", 2) is None
    assert [file.name[0] != "." for file in kept.folder().iterdir()] == [True]


def test_another_version_of_the_code_finds_nothing(cache, monkeypatch):
    kept.store(b"content", "a")
    monkeypatch.setattr(kept, "_AT_IMPORT", "another")
    monkeypatch.setattr(kept, "_code", lambda: "another")
    kept._surroundings.cache_clear()
    assert kept.load("a") is None
    monkeypatch.undo()
    kept._surroundings.cache_clear()
    assert kept.load("a") == b"content"


def test_code_that_was_edited_after_it_was_loaded_keeps_and_finds_nothing(cache, monkeypatch):
    kept.store(b"content", "a")
    monkeypatch.setattr(kept, "_code", lambda: "edited")
    assert kept.load("a") is None
    kept.store(b"other", "b")
    monkeypatch.undo()
    assert kept.load("a") == b"content" and kept.load("b") is None


def test_damage_and_a_cache_that_cannot_be_written_are_as_if_nothing_was_kept(cache):
    kept.store(b"content", "a")
    (file,) = kept.folder().iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert kept.load("a") is None
    file.write_bytes(b"")
    assert kept.load("a") is None
    file.unlink()
    kept.folder().rmdir()
    kept.folder().write_text("in the way")
    kept.store(b"content", "a")
    assert kept.load("a") is None


def test_nothing_is_kept_without_a_cache():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        assert kept.folder() is None
        kept.store(b"content", "a")
        assert kept.load("a") is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_program_runs_again_with_its_note(cache):
    compiled = jax.jit(lambda v, x: {"y": v["a"] @ x}).lower(
        {"a": jax.ShapeDtypeStruct((4, 4), jnp.float32)}, jax.ShapeDtypeStruct((4,), jnp.float32)
    ).compile()  # fmt: skip
    assert kept.load_program("p") is None
    kept.store_program(compiled, {"memory": 7, "names": ["x"]}, "p")
    run, note = kept.load_program("p")
    assert note == {"memory": 7, "names": ["x"]}
    np.testing.assert_array_equal(run({"a": 2 * jnp.eye(4)}, jnp.arange(4.0))["y"], 2 * np.arange(4.0))
    kept.store(b"not a program", "program", "p")
    assert kept.load_program("p") is None


def test_a_structure_is_worked_out_once_and_still_checked(cache, monkeypatch):
    model = dataclasses.replace(config.tiny(), width=0.125, head_width=0.125, num_iterations=0, refiner_steps=0)
    first = weights._structure(model, 15)
    monkeypatch.setattr(estimators, "build", lambda model: pytest.fail("worked out again"))
    assert weights._structure(model, 15) == first and len(first) > 50
    tensors = {key: np.zeros(shape, np.float32) for key, shape in first.items() if shape is not None}
    weights.fit("f", tensors, model, 15)
    tensors.popitem()
    with pytest.raises(weights.WeightsError, match="missing"):
        weights.fit("f", tensors, model, 15)


def test_code_of_the_users_own_is_not_kept():
    assert weights.identity(config.tiny())
    for name in ("scheme", "prox"):
        assert weights.identity(dataclasses.replace(config.tiny(), **{name: "mine:function"})) is None
