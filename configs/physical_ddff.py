"""The sister of `paper_ddff.py`: the same data, crops and number of steps with the library's default network and loss.

    dff-jax train configs/physical_ddff.py
    dff-jax evaluate runs/physical_ddff --dataset ddff12/test --output results/physical_ddff

For numbers, train and evaluate on ddff12/scenes, as `paper_ddff.py` says.
75,000 steps, for an accelerator. Not yet run: no score to quote.
"""

from dff_jax.config import Config, DataConfig, OptimizerConfig, TrainingConfig, physical


def config() -> Config:
    return Config(
        name="physical_ddff",
        model=physical(),
        optimizer=OptimizerConfig(peak_learning_rate=1e-4),
        data=DataConfig(dataset="ddff12/trainval", batch_size=2, crop=(224, 224), eval_limit=200),
        training=TrainingConfig(num_steps=75_000, log_every=50, eval_every=5000, save_every=1000),
    )
