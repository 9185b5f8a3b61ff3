"""How tests compile: the compiler's flags and where programs are cached."""

import pathlib

import jax

# Tests compile much and compute little: five times quicker without the compiler's optimisations.
# Split into many parts, to be compiled side by side, a program takes a quarter more work.
QUICK = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):  # an unknown flag ends the process, and these may go
    QUICK += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]

CACHE = pathlib.Path(__file__).parents[2] / ".cache" / "jax"

# For a process that a test starts: every program is kept, as the next one begins with none.
CHILD = {
    "JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}  # fmt: skip
