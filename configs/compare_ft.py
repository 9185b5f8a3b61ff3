"""The paper's Table 3 and Figures 7 and 8 on FlyingThings3D: its method, ours and all that it is compared with.

    dff-jax prepare flyingthings/focal_stack --source DIR
    dff-jax compare configs/compare_ft.py                     # trains all
    dff-jax compare configs/compare_ft.py:imported            # compared networks with weights published for PyTorch

`imported` reads runs/imported/{aifdnet,dfv_fv,dfv_diff,dwild}.safetensors, which are made so:

    dff-jax import-weights CHECKPOINT --model dfv_diff --output runs/imported/dfv_diff.safetensors

In the same way any method here can be given weights that exist: `weights="runs/paper_ft/weights_last.safetensors"`,
a run folder or a weights file, in place of its config.

`paper` is trained as in `paper_ft.py`, `physical` as in `physical_ft.py`, the others by their published recipes, as far
as they are published, for as many steps on as large crops. The paper does not say how it trained them. Should give (the
paper): MAE 1.46 for its method and 5.51 for DFV-Diff, a ratio of 0.265.
Six times 125,000 steps, for an accelerator. Not yet run: no score of ours to quote.
"""

import dataclasses

from dff_jax.config import (
    AiFDNet,
    Comparison,
    Config,
    DataConfig,
    DWild,
    LossConfig,
    Method,
    ModelConfig,
    OptimizerConfig,
    TestSet,
    TrainingConfig,
    dfv_diff,
    dfv_fv,
    paper,
    physical,
)

DATASET = "flyingthings/focal_stack"
PLAIN = DataConfig(dataset=DATASET, batch_size=2, crop=(256, 256), flips=False, colour=0.0, noise=0.0)
ADAM = OptimizerConfig(schedule="constant", peak_learning_rate=1e-4, weight_decay=0.0, clip_norm=None)
DFV_LOSS = LossConfig(
    kind="multi_scale", scale_weights=(8 / 15, 4 / 15, 2 / 15, 1 / 15), penalty="smooth_l1", region="in_range"
)


def _trained(
    label: str, model: ModelConfig, loss: LossConfig, optimizer: OptimizerConfig, data: DataConfig, flips: bool = True
) -> Method:
    data = dataclasses.replace(data, flips=flips)
    training = TrainingConfig(num_steps=125_000, log_every=50, eval_every=5000, save_every=1000)
    return Method(label, "", Config(model=model, loss=loss, optimizer=optimizer, data=data, training=training))


def _comparison(name: str, compared: tuple[Method, ...]) -> Comparison:
    onecycle = OptimizerConfig(peak_learning_rate=1e-4, schedule="torch_onecycle", decay="all")
    default = DataConfig(dataset=DATASET, batch_size=2, crop=(256, 256))
    mean_square, sequence = LossConfig(kind="mse_final", penalty="mse"), LossConfig()
    return Comparison(
        name=name,
        methods=(
            Method("RFVR-like", weights="rfvr_like"),
            *compared,
            _trained("paper", paper(), mean_square, onecycle, PLAIN, flips=False),
            _trained("physical", physical(), sequence, OptimizerConfig(peak_learning_rate=1e-4), default),
        ),
        seeds=(0,),
        test=TestSet(name="FlyingThings3D", dataset=DATASET),
        ratio=("paper", "DFV-Diff"),
        figure_stacks=(12, 28, 54, 65, 70, 97),
        chart_stack=54,
    )


def config() -> Comparison:
    """All trained here."""
    l1 = LossConfig(kind="multi_scale", scale_weights=(1.0,), penalty="l1")
    mse = LossConfig(kind="multi_scale", scale_weights=(1.0, 0.7, 0.5, 0.3), penalty="mse")
    clipped, smooth = dataclasses.replace(ADAM, clip_norm=0.5), dataclasses.replace(ADAM, beta2=0.99)
    compared = (
        _trained("AiFDNet", AiFDNet(), l1, ADAM, PLAIN),
        _trained("DFV-FV", dfv_fv(), DFV_LOSS, clipped, PLAIN),
        _trained("DFV-Diff", dfv_diff(), DFV_LOSS, clipped, PLAIN),
        _trained("DWild", DWild(), mse, smooth, dataclasses.replace(PLAIN, colour=0.4)),
    )
    return _comparison("compare_ft", compared)


def imported() -> Comparison:
    """The compared networks with weights published for PyTorch."""
    files = {"AiFDNet": "aifdnet", "DFV-FV": "dfv_fv", "DFV-Diff": "dfv_diff", "DWild": "dwild"}
    compared = (Method(label, weights=f"runs/imported/{file}.safetensors") for label, file in files.items())
    return _comparison("compare_ft_imported", tuple(compared))
