"""How the weights in the package were made: a small physical model for photographs that it has never seen.

    scripts/pretrained                                         # all stages, measured and packed for the package
    dff-jax train configs/pretrained.py:first --output runs/pretrained/first
    dff-jax train configs/pretrained.py:second --output runs/pretrained/second
    dff-jax train configs/pretrained.py:third --output runs/pretrained/third
    dff-jax train configs/pretrained.py:fourth --output runs/pretrained/fourth
    dff-jax train configs/pretrained.py --output runs/pretrained/last

Fresh worlds in every step, with the lenses and faults of real photographs: 4 to 40 frames, focus settings of any
spacing, blur from half a pixel to twenty, apertures of many shapes, frames that do not quite lie on each other,
vignetting, changing exposure, noise, JPEG. No photograph was used.

`first` learns to see sharpness, from hard worlds. `second` takes its weights over and adds what makes answers precise:
the measured candidates of `classical`, wider networks at full resolution, fewer faults and a penalty that pixels
without any clue do not dominate. `third` goes on with large faces that show
nothing but print, with more stacks of few frames and with larger crops of those, and its refiner sees where between the
settings a depth lies. `fourth` has both kinds of textures and smaller steps. `config` goes on for longer. (The first
three stages of the weights in the package saw measured candidates of an earlier version, with other peaks of the focus
curve, and the first worlds without the points of light fields; the last one had a candidate beyond the ends of the
settings as well, which turned out to change nothing and was taken out of the network and its weights.)
"""

import dataclasses

from dff_jax.config import (
    CameraConfig,
    Config,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    PartConfig,
    TrainingConfig,
    WorldConfig,
    tiny,
)

WEIGHTS = "runs/pretrained/{}/weights_last.safetensors"  # of a stage

WORLD = WorldConfig(
    height=96, width=96, num_frames=15, num_layers=14, noise=(0.0, 0.0), blur_radius=(2.0, 9.0), max_blur_radius=11,
    textures="natural", apertures="varied", settings="varied",
)  # fmt: skip
CAMERA = CameraConfig(share=0.3, shift=0.8, breathing=0.005, vignetting=0.3, exposure=0.06, softness=0.7, jpeg=(60, 98))


def _part(
    weight: float, side: int, frames: int, blur: tuple[float, float], layers: int, textures: str = "natural"
) -> PartConfig:
    world = dataclasses.replace(
        WORLD, num_frames=frames, blur_radius=blur, max_blur_radius=int(1.2 * blur[1] + 0.5), num_layers=layers,
        textures=textures,
    )  # fmt: skip
    return PartConfig(source="procedural_live", weight=weight, crop=(side, side), world=world)


def config() -> Config:
    before = fourth()
    return dataclasses.replace(
        before,
        name="pretrained",
        optimizer=OptimizerConfig(peak_learning_rate=8e-4, warmup_share=0.06),
        training=dataclasses.replace(
            before.training, num_steps=2400, eval_every=800, initial_weights=WEIGHTS.format("fourth")
        ),
    )


def fourth() -> Config:
    before = third()
    parts = (
        _part(0.20, 96, 15, (2.0, 9.0), 14),
        _part(0.16, 96, 15, (2.0, 9.0), 14, "printed"),
        _part(0.20, 112, 8, (2.0, 9.0), 14),
        _part(0.08, 96, 15, (6.0, 20.0), 24),
        _part(0.08, 64, 40, (2.0, 12.0), 16),
        _part(0.16, 160, 5, (1.5, 9.0), 14),
        _part(0.12, 160, 5, (1.5, 9.0), 14, "printed"),
    )
    return dataclasses.replace(
        before,
        name="pretrained_fourth",
        optimizer=OptimizerConfig(peak_learning_rate=6e-4, warmup_share=0.06),
        data=dataclasses.replace(before.data, mixture=parts),
        training=dataclasses.replace(
            before.training, num_steps=1000, eval_every=500, average=0.998, initial_weights=WEIGHTS.format("third")
        ),
    )


def third() -> Config:
    before = second()
    printed = "printed"
    parts = (
        _part(0.36, 96, 15, (2.0, 9.0), 14, printed),
        _part(0.20, 112, 8, (2.0, 9.0), 14, printed),
        _part(0.12, 96, 15, (6.0, 20.0), 24, printed),
        _part(0.08, 64, 40, (2.0, 12.0), 16, printed),
        _part(0.24, 160, 5, (1.5, 9.0), 14, printed),
    )
    return dataclasses.replace(
        before,
        name="pretrained_third",
        model=dataclasses.replace(before.model, refiner_inputs="with_settings", sharpen="weighted_median"),
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, warmup_share=0.06),
        data=dataclasses.replace(
            before.data, world=dataclasses.replace(WORLD, textures=printed), mixture=parts
        ),
        training=dataclasses.replace(
            before.training, num_steps=1600, eval_every=400, initial_weights=WEIGHTS.format("second")
        ),
    )


def second() -> Config:
    return Config(
        name="pretrained_second",
        model=dataclasses.replace(
            tiny(), width=0.375, head_width=0.5, measured_candidates=True, uncertainty="learned",
            refiner_inputs="depth_volume_candidates",
        ),
        loss=LossConfig(kind="sequence", gamma=0.3, penalty="log_l1", uncertainty=0.02),
        optimizer=OptimizerConfig(peak_learning_rate=1.5e-3, warmup_share=0.06),
        data=DataConfig(
            source="procedural_live", batch_size=2, crop=(96, 96), world=WORLD, camera=CAMERA, colour=0.25, noise=0.012,
            reverse=True, focus_jitter=0.03,
            mixture=(
                _part(0.42, 96, 15, (2.0, 9.0), 14),
                _part(0.24, 112, 8, (2.0, 9.0), 14),
                _part(0.12, 96, 15, (6.0, 20.0), 24),
                _part(0.10, 64, 40, (2.0, 12.0), 16),
                _part(0.12, 128, 4, (1.5, 8.0), 12),
            ),
        ),
        training=TrainingConfig(
            num_steps=3600, log_every=50, eval_every=600, save_every=250, average=0.999,
            initial_weights=WEIGHTS.format("first"),
        ),
    )  # fmt: skip


def first() -> Config:
    stage = second()
    return dataclasses.replace(
        stage,
        name="pretrained_first",
        model=dataclasses.replace(tiny(), width=0.375, uncertainty="learned"),
        loss=LossConfig(kind="sequence", gamma=0.3, uncertainty=0.02),
        optimizer=OptimizerConfig(peak_learning_rate=2e-3, warmup_share=0.1),
        data=dataclasses.replace(
            stage.data,
            focus_jitter=0.1,
            camera=dataclasses.replace(CAMERA, share=0.5, shift=1.0, breathing=0.006),
            world=dataclasses.replace(WORLD, blur_radius=(1.5, 9.0)),
            mixture=(
                _part(0.42, 96, 15, (1.5, 9.0), 14),
                _part(0.24, 112, 8, (1.0, 9.0), 14),
                _part(0.12, 96, 15, (6.0, 20.0), 24),
                _part(0.12, 64, 40, (2.0, 12.0), 16),
                _part(0.10, 128, 4, (0.5, 6.0), 10),
            ),
        ),
        training=dataclasses.replace(stage.training, num_steps=5000, eval_every=1000, initial_weights=None),
    )
