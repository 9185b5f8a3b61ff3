"""A small physical model on procedural worlds: what `scripts/quickstart` trains.

    dff-jax train configs/procedural_tiny.py

Data: procedural/quickstart (made in about a minute). Two CPU cores: about 8 minutes.
Should score, on the 24 test stacks: MAE of the refined depth at most 0.8 x the classical yardstick's.
"""

from dff_jax.config import Config, DataConfig, LossConfig, OptimizerConfig, TrainingConfig, tiny


def config() -> Config:
    return Config(
        name="procedural_tiny",
        model=tiny(),
        # a short run does better when the answer counts most; 0.8 would weigh D(0) at almost half of it
        loss=LossConfig(kind="sequence", gamma=0.3),
        optimizer=OptimizerConfig(peak_learning_rate=2e-3),
        data=DataConfig(dataset="procedural/quickstart", batch_size=2, crop=(96, 96)),
        training=TrainingConfig(num_steps=1200, log_every=20, eval_every=200, save_every=200),
    )
