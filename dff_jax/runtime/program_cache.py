"""What is worked out once and kept between runs, beside JAX's own cache of compiled programs and only if that is on.

JAX keeps what the compiler made; tracing a network and lowering it, which come before, take seconds each time. So
whole programs are kept, ready to run, under a key of all that they depend on: this package's code, JAX, the device and
what the caller names. Whatever cannot be read or written is worked out anew: nothing here ever fails.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pickle
import platform
import secrets
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jaxlib

_FOLDER = "dff_jax-kept"


def folder() -> Path | None:
    """Where things are kept; None: nothing is."""
    inside = jax.config.jax_compilation_cache_dir
    usable = inside and "://" not in str(inside) and jax.config.jax_enable_compilation_cache
    return Path(inside) / _FOLDER if usable else None


def load(*what: Any) -> bytes | None:
    """What `store` has kept under the same key, on a machine like this one, by this version of the code."""
    where = folder()
    if where is None or _stamp() != _STAMP:
        return None
    try:
        found = (where / _key(what)).read_bytes()
    except OSError:
        return None
    body, digest = found[:-32], found[-32:]
    return body if hashlib.sha256(body).digest() == digest else None


def store(content: bytes, *what: Any) -> None:
    """Keeps `content` under a key of anything that has a faithful repr."""
    where = folder()
    if where is None or _stamp() != _STAMP:  # what runs here may be older than the files
        return
    trial = where / f".{os.getpid()}-{secrets.token_hex(4)}"
    with contextlib.suppress(OSError):
        where.mkdir(parents=True, exist_ok=True)
        try:
            trial.write_bytes(content + hashlib.sha256(content).digest())
            os.replace(trial, where / _key(what))
        finally:
            trial.unlink(missing_ok=True)


def load_program(*what: Any) -> tuple[Any, dict[str, Any]] | None:
    """A compiled program of one device and what was noted about it; None: not kept, or not usable here."""
    from jax.experimental import serialize_executable

    found = load("program", *what)
    if found is None:
        return None
    try:
        program, note = pickle.loads(found)  # written by `store_program`, in the user's own cache
        one = jax.local_devices()[:1]
        return serialize_executable.deserialize_and_load(*program, execution_devices=one), json.loads(note)
    except Exception:  # whatever another JAX says to it
        return None


@contextlib.contextmanager
def compiled_anew() -> Iterator[None]:
    """What is compiled in here is not taken from JAX's cache, nor put there.

    A program that came out of that cache can be serialised, but lacks its functions when it is loaded again (on CPU,
    jaxlib 0.10). So what goes to `store_program` is compiled in here. Where it then cannot be stored, it is compiled in
    every run.
    """
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # or it would not look at the switch again
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def store_program(compiled: jax.stages.Compiled, note: dict[str, Any], *what: Any) -> None:
    """Keeps a program compiled under `compiled_anew` with a note of plain numbers and strings."""
    from jax.experimental import serialize_executable

    if folder() is None:
        return
    with contextlib.suppress(Exception):  # a device that cannot
        store(pickle.dumps((serialize_executable.serialize(compiled), json.dumps(note))), "program", *what)


def _key(what: tuple[Any, ...]) -> str:
    return hashlib.sha256(repr((_surroundings(), what)).encode()).hexdigest()


@functools.cache
def _surroundings() -> tuple[Any, ...]:
    devices = [(device.platform, device.device_kind) for device in jax.local_devices()]
    options = {name: os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    switches = (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision, jax.config.jax_default_prng_impl)
    runtime = jax.local_devices()[0].client.platform_version
    versions = (jax.__version__, jaxlib.__version__, version("flax"), version("numpy"), sys.version, runtime)
    return versions, _AT_IMPORT, devices, _processor(), os.cpu_count(), sorted(options.items()), switches


def _code() -> str:
    """A digest of every module of this package, as it lies on the disk."""
    digest = hashlib.sha256()
    for file in sorted(_ROOT.rglob("*.py")):
        with contextlib.suppress(OSError):
            digest.update(f"{file.relative_to(_ROOT)} ".encode() + file.read_bytes())
    return digest.hexdigest()


def _stamp() -> list[tuple[str, int, int]]:
    """By which it shows, sooner than by its content, that a module was changed."""
    found = []
    for file in sorted(_ROOT.rglob("*.py")):
        with contextlib.suppress(OSError):  # gone meanwhile, or an editor's mark
            about = file.stat()
            found.append((str(file), about.st_mtime_ns, about.st_size))
    return found


_ROOT = Path(__file__).parent.parent
_STAMP, _AT_IMPORT = _stamp(), _code()


def _processor() -> str:
    """What programs for a CPU depend on: a home folder may be shared between machines."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
        return " ".join(sorted(set(told)))
    return f"{platform.machine()} {platform.processor()}"
