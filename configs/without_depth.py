"""Training without depth: the all-in-focus picture teaches, no ground truth (loss A_FS of AiFDNet, ICCV 2021).

    dff-jax prepare procedural/quickstart --overwrite       # once, if the data are from a version without pictures
    dff-jax train configs/without_depth.py                  # AiFDNet at a quarter of the width
    dff-jax train configs/without_depth.py:ours             # preset `tiny`, by its soft all-in-focus image
    dff-jax train configs/without_depth.py:dfv              # DFV-Diff at a quarter of the width, the same way

Depth is only measured: `mae` in the log and the MAE of each validation, beside that of a constant prediction.
`--loss.depth 1` adds the loss of the depth (DA_FS).
"""

import dataclasses

from dff_jax.config import DFV, AiFDNet, Config, DataConfig, LossConfig, OptimizerConfig, TrainingConfig, tiny


def config() -> Config:
    return Config(
        name="without_depth",
        model=AiFDNet(width=0.25, coordinate="unit"),  # so that the weight of smoothness does not depend on the unit
        loss=LossConfig(image=1.0, smoothness=0.02, depth=0.0),
        optimizer=OptimizerConfig(peak_learning_rate=2e-3),
        data=DataConfig(dataset="procedural/quickstart", batch_size=2, crop=(96, 96)),
        training=TrainingConfig(num_steps=1000, log_every=20, eval_every=250, save_every=250),
    )


def ours() -> Config:
    return dataclasses.replace(config(), name="without_depth_ours", model=tiny())


def dfv() -> Config:
    model = DFV(volume="diff", width=0.25, coordinate="unit")
    return dataclasses.replace(config(), name="without_depth_dfv", model=model)
