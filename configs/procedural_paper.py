"""The paper's network and training recipe, on procedural worlds in the image of FlyingThings3D.

    dff-jax train configs/procedural_paper.py

Crops of 256 x 256, batch 2, AdamW one-cycle with peak 1e-4 and PyTorch's momentum cycle, MSE of the refined depth.
250 epochs of 1000 stacks are 125,000 steps: for an accelerator. Not yet run to the end: no score to quote.
"""

from dff_jax.config import Config, DataConfig, LossConfig, OptimizerConfig, TrainingConfig, paper


def config() -> Config:
    return Config(
        name="procedural_paper",
        model=paper(),
        loss=LossConfig(kind="mse_final", penalty="mse"),
        optimizer=OptimizerConfig(peak_learning_rate=1e-4, schedule="torch_onecycle", decay="all"),
        data=DataConfig(
            dataset="procedural/standard", batch_size=2, crop=(256, 256), flips=False, colour=0.0, noise=0.0
        ),
        training=TrainingConfig(num_steps=125_000, log_every=50, eval_every=5000, save_every=1000),
    )
