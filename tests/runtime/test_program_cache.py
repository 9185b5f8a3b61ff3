"""Programs and structures kept between runs: found again, never wrong, never in the way."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from dff_jax import config, estimators
from dff_jax.estimators import weights
from dff_jax.runtime import program_cache as kept

FOLDER = kept.folder
SMALL_TOO = ("jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes")


@pytest.fixture(autouse=True)
def folder(nothing_kept, monkeypatch):
    monkeypatch.setattr(kept, "folder", FOLDER)


@pytest.fixture
def cache(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    yield tmp_path / "jax"
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def test_what_is_kept_is_found_under_its_own_key_only(cache):
    assert kept.load("a", 1) is None
    kept.store(b"content", "a", 1)
    assert kept.load("a", 1) == b"content" and kept.load("a", 2) is None
    assert [file.name[0] != "." for file in kept.folder().iterdir()] == [True]


def test_another_version_of_the_code_finds_nothing(cache, monkeypatch):
    kept.store(b"content", "a")
    monkeypatch.setattr(kept, "_AT_IMPORT", "another")
    kept._surroundings.cache_clear()
    assert kept.load("a") is None
    monkeypatch.undo()
    kept._surroundings.cache_clear()
    assert kept.load("a") == b"content"


def test_code_that_was_edited_after_it_was_loaded_keeps_and_finds_nothing(cache, monkeypatch):
    kept.store(b"content", "a")
    monkeypatch.setattr(kept, "_stamp", lambda: "edited")
    assert kept.load("a") is None
    kept.store(b"other", "b")
    monkeypatch.undo()
    assert kept.load("a") == b"content" and kept.load("b") is None


def test_a_module_that_was_changed_or_is_gone_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "_ROOT", tmp_path)
    module = tmp_path / "module.py"
    module.write_text("a = 1")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    stamp, code = kept._stamp(), kept._code()
    assert len(stamp) == 1 and stamp == kept._stamp()
    module.write_text("a = 12")
    assert kept._stamp() != stamp and kept._code() != code


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


@pytest.mark.parametrize("anew", [True, False])
def test_a_program_that_jax_has_in_its_own_cache_is_kept_whole(cache, anew):
    """From JAX's cache, one cannot be serialised: the day when this is mended, `compiled_anew` may go."""

    def compiled():
        jax.clear_caches()
        of_two_functions = lambda x: jnp.concatenate([jnp.tanh(x[:, 1:]), jnp.sin(x[:, :1]) + 1], 1).sum(0)  # noqa: E731
        return jax.jit(of_two_functions).lower(x).compile()

    x = jnp.ones((64, 64))
    limits = {name: getattr(jax.config, name) for name in SMALL_TOO}
    try:
        for name in SMALL_TOO:
            jax.config.update(name, 0)
        compilation_cache.reset_cache()  # it goes by the folder at its first use
        want = compiled()(x)
        assert list(cache.glob("jit*-cache"))
        with kept.compiled_anew() if anew else contextlib.nullcontext():
            again = compiled()
        kept.store_program(again, {}, "p")
        run, _ = kept.load_program("p")
        if anew:
            np.testing.assert_array_equal(run(x), want)
        else:
            with pytest.raises(jax.errors.JaxRuntimeError, match="not found"):
                jax.block_until_ready(run(x))
    finally:
        for name, value in limits.items():
            jax.config.update(name, value)


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
