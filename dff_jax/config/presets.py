"""Presets of the estimators."""

from __future__ import annotations

from collections.abc import Callable

from dff_jax.config.methods import DFV, METHODS, ModelConfig, Proximal
from dff_jax.errors import ConfigError


def paper() -> Proximal:
    """The paper to the letter: index planes in dataset units, softmax weights, direct prox, no guide, C = Z."""
    return Proximal(
        measure_prior="none", planes="index", coordinate="raw", num_planes=None, weight_norm="softmax", guide="none",
        prox_output="direct", prox_inputs="equation_17", prox_levels=1, activation="relu",
        norm="torch_batch", bounded_step=False,
    )  # fmt: skip


def physical() -> Proximal:
    """The library's default: focus planes in the unit coordinate, softplus weights, residual prox, any Z.

    Decoder and full-resolution networks have half the paper's channels, so that inference, the unroll included, takes
    about as long as DFV-Diff's.
    """
    return Proximal(head_width=0.5, decoder_width=0.5)


def tiny() -> Proximal:
    """`physical` at a quarter of the paper's width; trains on a laptop, on crops too small for pyramid pooling.

    So small a network learns faster from measured sharpness than from pixels: its decoder sees the measures too.
    """
    return Proximal(encoder="tiny", width=0.25, head_width=0.25, pooling="none", measure_prior="log_sml_features")


def dfv_fv() -> DFV:
    """DFV-FV (Yang, Huang and Zhou, CVPR 2022)."""
    return DFV(volume="fv")


def dfv_diff() -> DFV:
    """DFV-Diff: DFV on differences of neighbouring frames' features."""
    return DFV(volume="diff")


MODEL_PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "paper": paper, "physical": physical, "tiny": tiny, "dfv_fv": dfv_fv, "dfv_diff": dfv_diff,
} | {name: cls for name, cls in METHODS.items() if cls not in (Proximal, DFV)}  # fmt: skip
"""Presets by name: the functions of this file, and each other method with its defaults."""


def model_preset(name: str) -> ModelConfig:
    """The preset of that name; raises ConfigError listing the choices."""
    if name not in MODEL_PRESETS:
        raise ConfigError(f"model preset: {name!r} is unknown; choose one of {', '.join(MODEL_PRESETS)}")
    return MODEL_PRESETS[name]()
