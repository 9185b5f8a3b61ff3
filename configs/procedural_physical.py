"""The library's default, at full width, on procedural worlds; for an accelerator.

    dff-jax train configs/procedural_physical.py

Fresh worlds are rendered on the accelerator itself; no files, no loader. Not yet run to the end: no score to quote.
"""

from dff_jax.config import Config, DataConfig, OptimizerConfig, TrainingConfig, WorldConfig, physical


def config() -> Config:
    return Config(
        name="procedural_physical",
        model=physical(),
        optimizer=OptimizerConfig(peak_learning_rate=3e-4),
        data=DataConfig(
            source="procedural_live", batch_size=8, crop=(256, 256), world=WorldConfig(height=256, width=256)
        ),
        training=TrainingConfig(num_steps=50_000, log_every=50, eval_every=2000, save_every=1000),
    )
