"""The compiler's options, and the cache of traced programs."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax.runtime import compile as compilation


@pytest.fixture
def no_memory():
    compilation.compiler_options.cache_clear()
    yield
    compilation.compiler_options.cache_clear()


def test_same_results_static_arguments_and_lowering(key):
    @functools.partial(compilation.jit, static_argnames="power")
    def raised(x, power):
        assert isinstance(power, int)
        return x**power

    x = jax.random.normal(key, (3, 4))
    np.testing.assert_allclose(raised(x, power=3), x**3, rtol=1e-6)
    assert raised.__name__ == "raised"
    assert raised.lower(x, power=2).compile()(x).shape == (3, 4)


def test_options_reach_the_compiler_on_cpu(key):
    if compilation.compiler_options() is None:
        pytest.skip("this XLA does not know the option")
    convolve = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME")  # noqa: E731
    x, kernel = jnp.ones((1, 8, 16, 16)), jnp.ones((8, 8, 3, 3))
    assert "ynn" not in compilation.jit(convolve).lower(x, kernel).compile().as_text()


def test_without_options_on_other_devices_and_on_an_xla_that_knows_none(no_memory, monkeypatch):
    monkeypatch.setattr(compilation, "_CPU_OPTIONS", {"xla_no_such_option": ""})
    assert compilation.compiler_options() is None
    compilation.compiler_options.cache_clear()
    monkeypatch.undo()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compilation.compiler_options() is None


# The cache on disk ------------------------------------------------------------


@pytest.fixture
def cache(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    yield tmp_path / "jax"
    jax.config.update("jax_compilation_cache_dir", before)


def test_what_was_written_is_read_under_its_own_key_only(cache):
    assert compilation.read_cached("a", 1) is None
    compilation.write_cached(b"content", "a", 1)
    assert compilation.read_cached("a", 1) == b"content" and compilation.read_cached("a", 2) is None
    assert [file.name[0] != "." for file in compilation.cache_folder().iterdir()] == [True]


def test_other_code_and_other_settings_find_nothing(cache, monkeypatch):
    compilation.write_cached(b"content", "a")
    with jax.default_matmul_precision("float32"):
        assert compilation.read_cached("a") is None
    monkeypatch.setattr(compilation, "_CODE", "another")
    assert compilation.read_cached("a") is None
    monkeypatch.undo()
    assert compilation.read_cached("a") == b"content"


def test_a_module_that_was_changed_shows_even_when_it_is_changed_back(tmp_path):
    module = tmp_path / "module.py"
    module.write_text("a = 1")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    before = compilation._digest(tmp_path)
    assert compilation._digest(tmp_path) == before
    module.write_text("a = 12")
    assert compilation._digest(tmp_path) != before
    module.write_text("a = 1")
    os.utime(module, ns=(1, 1))
    assert compilation._digest(tmp_path) != before


def test_damage_and_a_folder_that_cannot_be_written_count_as_missing(cache):
    compilation.write_cached(b"content", "a")
    (file,) = compilation.cache_folder().iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert compilation.read_cached("a") is None
    file.write_bytes(b"")
    assert compilation.read_cached("a") is None
    file.unlink()
    folder = compilation.cache_folder()
    folder.rmdir()
    folder.write_text("in the way")
    compilation.write_cached(b"content", "a")
    assert compilation.read_cached("a") is None


def test_programs_come_only_from_a_folder_that_others_cannot_change(cache, monkeypatch, capsys):
    monkeypatch.setattr(compilation, "_note", compilation.say)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    compilation.write_cached(b"content", "a")
    ours = compilation.cache_folder()
    assert ours.stat().st_mode & 0o777 == cache.stat().st_mode & 0o777 == 0o700
    for path, mode in ((ours, 0o770), (cache, 0o702), (cache, 0o1777), (cache.parent, 0o777), (cache.parent, 0o720)):
        before = path.stat().st_mode
        path.chmod(mode)
        assert compilation.cache_folder() is None and compilation.read_cached("a") is None
        capsys.readouterr()
        try:
            compilation.keep_programs()
            assert not jax.config.values["jax_enable_compilation_cache"]
        finally:
            jax.config.update("jax_enable_compilation_cache", True)
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and f"others may write in {path}; chmod go-w {path}" in told
        path.chmod(before)
        assert compilation.read_cached("a") == b"content"
    cache.parent.chmod(0o1777)  # as /tmp
    assert compilation.read_cached("a") == b"content"
    monkeypatch.setattr(os, "getuid", lambda: cache.stat().st_uid + 1)
    assert compilation.read_cached("a") is None and "belongs to another user" in capsys.readouterr().err


def test_the_note_on_an_open_folder_comes_once(cache, capsys):
    cache.mkdir()
    cache.chmod(0o777)
    compilation._note.cache_clear()
    assert compilation.cache_folder() is compilation.cache_folder() is None
    assert capsys.readouterr().err.count("note:") == 1


def test_nothing_is_written_without_jaxs_cache(cache):
    jax.config.update("jax_compilation_cache_dir", None)
    assert compilation.cache_folder() is None
    compilation.write_cached(b"content", "a")
    assert compilation.read_cached("a") is None
    double = lambda x: 2 * x  # noqa: E731
    assert compilation.exported(double, (jax.ShapeDtypeStruct((3,), jnp.float32),), "double") is double


def traced_by(function, arguments):
    """`function` through the cache, and how often it was traced."""
    traced = []

    def counted(*given):
        traced.append(1)
        return function(*given)

    program = compilation.jit(compilation.exported(counted, arguments, "f"))
    return program.lower(*arguments).compile(), len(traced)


def test_a_program_is_traced_once_and_anew_when_its_file_is_damaged(cache):
    pytest.importorskip("flatbuffers")
    arguments = {"a": jax.ShapeDtypeStruct((4, 4), jnp.float32)}, jax.ShapeDtypeStruct((4,), jnp.float32)
    function = lambda v, x: (v["a"] @ x, {"twice": jax.nn.relu(2 * x)})  # noqa: E731  (relu has a rule of its own)
    for count in (1, 0):
        program, traced = traced_by(function, arguments)
        assert traced == count
        product, rest = program({"a": 2 * jnp.eye(4)}, jnp.arange(4.0))
        np.testing.assert_array_equal(product, 2 * np.arange(4.0))
        np.testing.assert_array_equal(rest["twice"], 2 * np.arange(4.0))
    compilation.write_cached(b"no program", "program", "f")
    assert traced_by(function, arguments)[1] == 1 and traced_by(function, arguments)[1] == 0


def test_what_jax_cannot_export_is_compiled_all_the_same(cache):
    arguments = (jax.ShapeDtypeStruct((3,), jnp.float32),)

    def function(x):
        jax.debug.callback(lambda x: None, x)
        return x + 1

    for _ in range(2):
        program, traced = traced_by(function, arguments)
        assert traced == 1
        np.testing.assert_array_equal(program(jnp.zeros(3)), np.ones(3))
