"""The sister of `paper_ft.py`: the same data, crops and number of steps with the library's default network and loss.

    dff-jax train configs/physical_ft.py
    dff-jax evaluate runs/physical_ft --dataset flyingthings/focal_stack --iterations 5 --output results/physical_ft
    dff-jax evaluate runs/physical_ft --dataset middlebury/focal_stack --resize 512 512 --output results/physical_mb

To compare with: the paper's MAE 1.460 on FlyingThings3D. Its planes are focus settings, so that Middlebury's other
range should not cost it the factor that it costs the paper's network (MAE 23.59).
125,000 steps, for an accelerator. Not yet run: no score to quote.
"""

from dff_jax.config import Config, DataConfig, OptimizerConfig, TrainingConfig, physical


def config() -> Config:
    return Config(
        name="physical_ft",
        model=physical(),
        optimizer=OptimizerConfig(peak_learning_rate=1e-4),
        data=DataConfig(dataset="flyingthings/focal_stack", batch_size=2, crop=(256, 256)),
        training=TrainingConfig(num_steps=125_000, log_every=50, eval_every=5000, save_every=1000),
    )
