"""The sister of `paper_hci.py`: the same data, crops and number of steps with the library's default network and loss.

    dff-jax train configs/physical_hci.py
    dff-jax evaluate runs/physical_hci --dataset hci/lightfields --output results/physical_hci

To compare with: the paper's MAE 0.07, RMS 0.16, Corr 0.97.
10,000 steps, for an accelerator. Not yet run: no score to quote.
"""

from dff_jax.config import Config, DataConfig, OptimizerConfig, TrainingConfig, physical


def config() -> Config:
    return Config(
        name="physical_hci",
        model=physical(),
        optimizer=OptimizerConfig(peak_learning_rate=1e-4),
        data=DataConfig(dataset="hci/lightfields", batch_size=2, crop=(256, 256)),
        training=TrainingConfig(num_steps=10_000, log_every=50, eval_every=1000, save_every=1000),
    )
