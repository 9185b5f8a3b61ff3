"""The paper's experiment on DDFF-12: Figure 9, pictures of the official test set, which has no truth.

    dff-jax prepare ddff12/trainval --source DIR
    dff-jax prepare ddff12/test --source DIR
    dff-jax train configs/paper_ddff.py
    dff-jax evaluate runs/paper_ddff --dataset ddff12/test --output results/ddff \\
        --against aifdnet.safetensors dfv_fv.safetensors dfv_diff.safetensors

The paper prints no numbers here. For numbers, train on the scene-disjoint split of DFV, because the official validation
patches share scenes with the training ones, and this run would have seen the test scenes of that split:
    dff-jax train configs/paper_ddff.py --data.dataset ddff12/scenes --output runs/paper_ddff_scenes
    dff-jax evaluate runs/paper_ddff_scenes --dataset ddff12/scenes --output results/ddff_scenes
Not stated there and chosen here: 75,000 steps of 2, which is 250 times as many patches as there are full stacks (600);
gradient clip 1.0; no augmentation. The truth is 0.02 to 0.28 pixels, where index planes answer 1 to 10.
For an accelerator. Not yet run: no score to quote.
"""

from dff_jax.config import Config, DataConfig, LossConfig, OptimizerConfig, TrainingConfig, paper


def config() -> Config:
    return Config(
        name="paper_ddff",
        model=paper(),
        loss=LossConfig(kind="mse_final", penalty="mse"),
        optimizer=OptimizerConfig(peak_learning_rate=1e-4, schedule="torch_onecycle", decay="all"),
        data=DataConfig(
            dataset="ddff12/trainval", batch_size=2, crop=(224, 224), flips=False, colour=0.0, noise=0.0, eval_limit=200
        ),
        training=TrainingConfig(num_steps=75_000, log_every=50, eval_every=5000, save_every=1000),
    )
