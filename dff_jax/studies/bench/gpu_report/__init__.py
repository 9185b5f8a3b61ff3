"""All that only an accelerator can show, in one command: `scripts/gpu_report`. Needs no more than jax, flax, optax,
orbax, chex and numpy."""
