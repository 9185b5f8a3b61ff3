"""Eight simulated devices, strict broadcasting, and a compilation cache, so that the suite is quick and unforgiving."""

import gc
import os
import signal
from collections import Counter

# Before jax starts its backend
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import pytest
from compiler import CACHE, QUICK

for flag in QUICK:
    if flag.split("=")[0] not in os.environ["XLA_FLAGS"]:
        os.environ["XLA_FLAGS"] += f" {flag}"

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

# Traced programs are millions of small objects, and Python's collector looks through them again and again: with its
# own thresholds that took two thirds of the suite's time.
gc.set_threshold(200_000, 20, 50)

try:  # grain reads absl flags, which nobody parses under pytest
    from absl import flags

    flags.FLAGS.mark_as_parsed()
except ImportError:
    pass


def pytest_configure(config):
    config.option.loadscopereorder = False  # else pytest-xdist begins with the files that have most tests


def pytest_collection_modifyitems(items):
    """Files with the most slow tests first, so that no worker is left with a long one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees what a module compiled; kept to the end, a worker would grow to 6 GB."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def default_signals():
    """Python's own handlers, for tests of interrupts: SIGINT is ignored in what a script starts in the background."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def key():
    """A PRNG key."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def small_world():
    """A small procedural world's configuration: 64 x 64, 7 frames."""
    from dff_jax.config import WorldConfig

    return WorldConfig(height=64, width=64, num_frames=7, num_objects=4, max_blur_radius=5, num_layers=12)
