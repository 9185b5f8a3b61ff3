"""The paper's experiment on FlyingThings3D focal stacks: its Tables 1 and 3, and without more training its Figure 5.

    dff-jax prepare flyingthings/focal_stack --source DIR
    dff-jax train configs/paper_ft.py
    dff-jax evaluate runs/paper_ft --dataset flyingthings/focal_stack --iterations 5 --output results/ft
    dff-jax ablate runs/paper_ft --dataset flyingthings/focal_stack --figure-stacks 1 16 54 --output results/stages
    dff-jax prepare middlebury/focal_stack --source DIR           # zero-shot: Table 2 (MB), Figure 5
    dff-jax evaluate runs/paper_ft --dataset middlebury/focal_stack --resize 512 512 --output results/mb

Should score (the paper, refined): MAE 1.460, RMS 2.842, AbsRel 0.035, Acc_1 99.28; on Middlebury MAE 23.59, because
index planes answer in FlyingThings3D's units. Not stated there and chosen here: 250 epochs (500 steps each, 125,000
in all), gradient clip 1.0, no augmentation but the crop. The published data have no validation split: the best
checkpoint is chosen on the test set, so take weights_last.safetensors for a score that saw none of it.
For an accelerator. Not yet run: no score of ours to quote.
"""

from dff_jax.config import Config, DataConfig, LossConfig, OptimizerConfig, TrainingConfig, paper


def config() -> Config:
    return Config(
        name="paper_ft",
        model=paper(),
        loss=LossConfig(kind="mse_final", penalty="mse"),
        optimizer=OptimizerConfig(peak_learning_rate=1e-4, schedule="torch_onecycle", decay="all"),
        data=DataConfig(
            dataset="flyingthings/focal_stack", batch_size=2, crop=(256, 256), flips=False, colour=0.0, noise=0.0
        ),
        training=TrainingConfig(num_steps=125_000, log_every=50, eval_every=5000, save_every=1000),
    )
