"""The paper's Table 3 on procedural worlds: its method, ours and all that it is compared with.

    dff-jax compare configs/compare_procedural.py           # a quarter of the width: some hours on two cores
    dff-jax compare configs/compare_procedural.py:full      # as published, for an accelerator
    dff-jax compare configs/compare_procedural.py:ladder    # from `paper` to `physical`, one switch after the other
    dff-jax compare configs/compare_procedural.py:iterations        # `paper` trained with K = 1, 3 and 5
    dff-jax compare configs/compare_procedural.py:long      # `paper` with four times the steps

Equal budget: the same data, steps, batch, crop and schedule for all; the loss is each method's own. Two seeds each.
Published recipe (`full` only): also optimizer, schedule, clipping and augmentation as far as they are published, for as
many steps.
"""

import dataclasses
from typing import Any

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
    WorldConfig,
    dfv_diff,
    dfv_fv,
    paper,
    physical,
    tiny,
)

DFV_LOSS = LossConfig(
    kind="multi_scale", scale_weights=(8 / 15, 4 / 15, 2 / 15, 1 / 15), penalty="smooth_l1", region="in_range"
)
AIFDNET_LOSS = LossConfig(kind="multi_scale", scale_weights=(1.0,), penalty="l1")
DWILD_LOSS = LossConfig(kind="multi_scale", scale_weights=(1.0, 0.7, 0.5, 0.3), penalty="mse")
LOSSES = {
    "physical": LossConfig(kind="sequence", gamma=0.3),
    "tiny": LossConfig(kind="sequence", gamma=0.3),
    "paper": LossConfig(kind="mse_final"),
    "DFV-FV": DFV_LOSS,
    "DFV-Diff": DFV_LOSS,
    "AiFDNet": AIFDNET_LOSS,
    "DWild": DWILD_LOSS,
}
ADAM = OptimizerConfig(schedule="constant", peak_learning_rate=1e-4, weight_decay=0.0, clip_norm=None)
# AiFDNet's and DWild's learning rates are not published: DFV's here
PUBLISHED = {
    "paper": OptimizerConfig(schedule="torch_onecycle", peak_learning_rate=1e-4, weight_decay=0.01, decay="all"),
    "DFV-FV": dataclasses.replace(ADAM, clip_norm=0.5),
    "DFV-Diff": dataclasses.replace(ADAM, clip_norm=0.5),
    "AiFDNet": ADAM,
    "DWild": dataclasses.replace(ADAM, beta2=0.99),
}
COLOUR = {"DWild": 0.4}  # the other recipes know none


def _comparison(
    name: str, models: dict[str, ModelConfig], optimizer: OptimizerConfig, data: DataConfig, training: TrainingConfig,
    zero_shot: tuple[TestSet, ...], published: bool,
) -> Comparison:  # fmt: skip
    def trained(label: str, recipe: str, optimizer: OptimizerConfig, data: DataConfig) -> Method:
        config = Config(model=models[label], loss=LOSSES[label], optimizer=optimizer, data=data, training=training)
        return Method(label, recipe, config)

    plain = {label: dataclasses.replace(data, colour=COLOUR.get(label, 0.0), noise=0.0) for label in PUBLISHED}
    return Comparison(
        name=name,
        methods=(
            *(trained(label, "equal budget", optimizer, data) for label in models),
            *(trained(label, "published recipe", PUBLISHED[label], plain[label]) for label in PUBLISHED if published),
            *(Method(label, "no training", weights=label) for label in ("classical", "sml", "rdf", "rfvr_like")),
        ),
        seeds=(0, 1),
        test=TestSet(name="procedural test set", dataset=data.dataset),
        zero_shot=zero_shot,
        ratio=("physical", "paper", "DFV-Diff"),
    )


def _zero_shot(frames: tuple[int, ...], worlds: int | None, scenes: int | None) -> tuple[TestSet, ...]:
    """Procedural worlds with other numbers of frames, and, if they have been prepared, photographs:

    dff-jax prepare rgbd/scenes_5 --source DIR --focus-range 10 60 --frames 5         # and rgbd/scenes_15
    dff-jax prepare hci/lightfields --source DIR
    """
    world = WorldConfig()
    return (
        *(
            TestSet(name=f"procedural, {z} frames", world=dataclasses.replace(world, num_frames=z), limit=worlds)
            for z in frames
        ),
        *(_rgbd(z, scenes) for z in (5, 15)),
        TestSet(name="light field", dataset="hci/lightfields", split="train"),
    )


def _rgbd(frames: int, scenes: int | None) -> TestSet:
    return TestSet(
        name=f"RGB-D scenes, {frames} frames", dataset=f"rgbd/scenes_{frames}", split="train", limit=scenes
    )


def small() -> dict[str, ModelConfig]:
    """All at a quarter of the width; physical with a decoder and heads as wide as the paper's."""
    quarter = {"width": 0.25, "head_width": 0.25}
    return {
        "paper": dataclasses.replace(paper(), **quarter),
        "physical": dataclasses.replace(physical(), **quarter, decoder_width=1.0),
        "tiny": tiny(),
        "DFV-FV": dataclasses.replace(dfv_fv(), width=0.25),
        "DFV-Diff": dataclasses.replace(dfv_diff(), width=0.25),
        "AiFDNet": AiFDNet(width=0.25),
        "DWild": DWild(width=0.25),
    }


OPTIMIZER = OptimizerConfig(peak_learning_rate=2e-3)
DATA = DataConfig(dataset="procedural/five_frames", batch_size=4, crop=(128, 128))
TRAINING = TrainingConfig(
    num_steps=320, log_every=20, eval_every=80, save_every=80, statistics=24, tensorboard=False
)  # fmt: skip


def config() -> Comparison:
    """Five frames, which `paper` then needs in the test, too, as its planes are its frames."""
    zero_shot = _zero_shot((10, 30), 8, 3)  # each size of picture is compiled for
    return _comparison("compare_procedural", small(), OPTIMIZER, DATA, TRAINING, zero_shot, published=False)


def full() -> Comparison:
    """As published, on procedural/standard: as many stacks as FlyingThings3D's."""
    models = {
        "paper": paper(), "physical": physical(), "DFV-FV": dfv_fv(), "DFV-Diff": dfv_diff(), "AiFDNet": AiFDNet(),
        "DWild": DWild(),
    }  # fmt: skip
    return _comparison(
        "compare_procedural_full", models, OptimizerConfig(peak_learning_rate=5e-4),
        DataConfig(dataset="procedural/standard", batch_size=4, crop=(256, 256)),
        TrainingConfig(num_steps=20000, log_every=100, eval_every=2000, save_every=2000),
        _zero_shot((5, 10, 30), None, None), published=True,
    )  # fmt: skip


RUNGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("unit coordinate, focus planes", {"planes": "focus", "coordinate": "unit", "num_planes": 15}),
    ("residual prox", {"prox_output": "residual"}),
    ("softplus weights", {"weight_norm": "softplus"}),
    ("guide", {"guide": "all_in_focus"}),
    ("measure prior", {"measure_prior": "log_sml"}),
    ("sequence loss", {}),
)


def ladder() -> Comparison:
    """What each departure from the paper is worth: every row has the switches of the rows above it, too.

    The last row is `physical`: three levels and the lookup in the prox, a bounded step, leaky ReLU, flax's BatchNorm.
    """
    models, losses, now = {"paper": small()["paper"]}, {"paper": LOSSES["paper"]}, small()["paper"]
    for label, change in RUNGS:
        now = dataclasses.replace(now, **change)
        losses[label] = LOSSES["physical"] if label == "sequence loss" else losses[[*losses][-1]]
        models[label] = now
    models["physical"], losses["physical"] = small()["physical"], LOSSES["physical"]
    return _alone("ladder", models, losses, (_rgbd(5, 3),))


def iterations() -> Comparison:
    """Whether iterations help `paper` when it is trained with them."""
    models = {f"paper, K = {k}": dataclasses.replace(small()["paper"], num_iterations=k) for k in (1, 3, 5)}
    return _alone("iterations", models, dict.fromkeys(models, LOSSES["paper"]), ())


def long() -> Comparison:
    """`paper` with four times the steps: the run of Table 1 and Figures 3 and 4."""
    training = dataclasses.replace(TRAINING, num_steps=1280, eval_every=160, save_every=160)
    return _alone("long", {"paper": small()["paper"]}, LOSSES, (), training)


def _alone(
    name: str, models: dict[str, ModelConfig], losses: dict[str, LossConfig], zero_shot: tuple[TestSet, ...],
    training: TrainingConfig = TRAINING,
) -> Comparison:
    """One seed, and nothing else to compare with."""
    methods = tuple(
        Method(label, "", Config(model=model, loss=losses[label], optimizer=OPTIMIZER, data=DATA, training=training))
        for label, model in models.items()
    )
    test = TestSet(name="procedural test set", dataset=DATA.dataset)
    return Comparison(name=name, methods=methods, seeds=(0,), test=test, zero_shot=zero_shot)
