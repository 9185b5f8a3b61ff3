"""How programs are compiled on this device, and a cache on disk of traced programs.

JAX's compilation cache holds what the compiler made. To find it there, JAX must first trace the network and lower it to
StableHLO, which takes seconds. So that text is cached too, by `jax.export`, in a folder inside JAX's cache. Its key
covers this package's code, the versions of JAX, flax and NumPy, JAX's settings, and what the caller adds. A file that
cannot be read or written counts as missing, and without JAX's cache nothing is written.

Whoever can write there can have programs run. So a folder is used only if it belongs to the user and no one else may
change it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shlex
import stat
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from dff_jax.runtime.files import write_whole
from dff_jax.runtime.progress import say

# XLA's newer CPU convolutions (YNNPACK) run on one core wherever a row of the image is little work, which is most of
# this package; without them all cores work. Measured with `dff-jax bench model`.
_CPU_OPTIONS: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": ""}
# For a program that runs once or twice: the network of this package compiles in 0.7 of the time and runs 4 % slower
# (ten frames of 640 x 480 on two cores; `XLA_FLAGS=--xla_backend_optimization_level=1 dff-jax bench` measures others).
_QUICKLY = {"xla_backend_optimization_level": 1, "xla_cpu_parallel_codegen_split_count": os.cpu_count() or 1}

_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl")  # on which tracing depends


@functools.cache
def compiler_options(quickly: bool = False) -> dict[str, Any] | None:
    """For `jax.jit(..., compiler_options=...)`; None where the device or this version of XLA knows none.

    Args:
      quickly: for a program that runs once or twice, so that compiling it counts for more.
    """
    if jax.default_backend() != "cpu":
        return None
    flags = os.environ.get("XLA_FLAGS", "")  # which these options would override
    options = _CPU_OPTIONS | {name: value for name, value in _QUICKLY.items() if quickly and name not in flags}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return compiler_options() if quickly else None
    return options


def jit(function: Callable, quickly: bool = False, **options: Any) -> Any:
    """`jax.jit` with `compiler_options`, chosen at the first call or `lower`, as choosing them starts JAX's backend."""

    @functools.cache
    def compiled() -> Any:
        return jax.jit(function, compiler_options=compiler_options(quickly), **options)

    call: Any = functools.wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))
    call.lower = lambda *args, **kwargs: compiled().lower(*args, **kwargs)
    return call


def exported(function: Callable, arguments: tuple[Any, ...], *key: Any) -> Callable:
    """A function that computes the same and need not be traced: from the cache, or traced now and put there.

    Args:
      function: takes and returns arrays in tuples, lists and dicts, on one device.
      arguments: the shapes of its arguments, trees of `jax.ShapeDtypeStruct`.
      key: names the function and these shapes, in values with a faithful repr.

    Returns:
      To be compiled by `jit` for these shapes; `function` itself where there is no cache or JAX cannot export it.
    """
    from jax import export

    if cache_folder() is None:
        return function
    with contextlib.suppress(Exception):  # written by another release of jaxlib, or damaged
        if (found := read_cached("program", *key)) is not None:
            return export.deserialize(bytearray(found)).call
    try:
        program = export.export(jax.jit(function))(*arguments)
        write_cached(bytes(program.serialize()), "program", *key)
    except (ValueError, NotImplementedError, ImportError):  # such as a custom call without a stable form
        return function
    return program.call


def keep_programs() -> None:
    """Turns on JAX's cache of compiled programs, unless JAX was told where to keep them; off, with a note, where other
    users could put programs of theirs."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        named = Path(os.environ.get("XDG_CACHE_HOME", ""))
        try:
            home = named if named.is_absolute() else Path("~/.cache").expanduser()
        except RuntimeError:  # a user without a home
            return
        jax.config.update("jax_compilation_cache_dir", str(home / "dff_jax" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    if _jax_folder() is not None and cache_folder() is None:
        jax.config.update("jax_enable_compilation_cache", False)


def cache_folder() -> Path | None:
    """Where `write_cached` writes; None while JAX's own cache is off, not on a disk, or open to other users."""
    if (inside := _jax_folder()) is None:
        return None
    if reason := _open_to_others(inside):
        _note(f"note: compiled programs are neither kept nor used: {reason}")
        return None
    return inside / "dff_jax"


def _jax_folder() -> Path | None:
    """The folder of JAX's cache, if there is one on a disk."""
    inside = jax.config.values["jax_compilation_cache_dir"]
    usable = inside and "://" not in str(inside) and jax.config.values["jax_enable_compilation_cache"]
    return Path(inside) if usable else None


_note = functools.cache(say)  # says the same only once


def _open_to_others(folder: Path) -> str | None:
    """How other users could change what lies in JAX's `folder` or in ours inside, which are made; None: they cannot.

    Its parents may be root's, too, and open to all if each may rename only what is theirs (such as /tmp).
    """
    ours = folder.resolve() / "dff_jax"
    with contextlib.suppress(OSError):
        for path in [path for path in (ours, *ours.parents) if not path.exists()][::-1]:
            path.mkdir(mode=0o700, exist_ok=True)
    for path in (ours, *ours.parents):
        try:
            found = path.stat()
        except OSError:  # could not be made
            continue
        inner = path in (ours, ours.parent)
        if found.st_uid not in ((os.getuid(),) if inner else (os.getuid(), 0)):
            return f"{path} belongs to another user; name a folder of your own in JAX_COMPILATION_CACHE_DIR"
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and (inner or not found.st_mode & stat.S_ISVTX):
            return f"others may write in {path}; chmod go-w {shlex.quote(str(path))}"
    return None


def read_cached(*key: Any) -> bytes | None:
    """What `write_cached` wrote under the same key, with the same code and versions."""
    if (folder := cache_folder()) is None:
        return None
    try:
        found = (folder / _file_name(key)).read_bytes()
    except OSError:
        return None
    content, digest = found[:-32], found[-32:]
    return content if hashlib.sha256(content).digest() == digest else None


def write_cached(content: bytes, *key: Any) -> None:
    """Keeps `content` under a key of values with a faithful repr."""
    if (folder := cache_folder()) is not None:
        with contextlib.suppress(OSError):
            write_whole(folder / _file_name(key), content + hashlib.sha256(content).digest())


def _file_name(key: tuple[Any, ...]) -> str:
    settings = [jax.config.values[name] for name in _SETTINGS]
    return hashlib.sha256(repr((_CODE, _versions(), jax.default_backend(), settings, key)).encode()).hexdigest()


@functools.cache
def _versions() -> tuple[str, ...]:
    return tuple(version(name) for name in ("jax", "jaxlib", "flax", "numpy"))


def _digest(root: Path) -> str:
    """A digest of every Python file below `root` and of when it was written."""
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        with contextlib.suppress(OSError):  # deleted meanwhile, or an editor's mark
            digest.update(f"{file.relative_to(root)} {file.stat().st_mtime_ns} ".encode() + file.read_bytes())
    return digest.hexdigest()


_CODE = _digest(Path(__file__).parent.parent)
