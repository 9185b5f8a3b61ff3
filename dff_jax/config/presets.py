"""Presets of the estimators."""

from __future__ import annotations

from dff_jax.config.methods import ModelConfig
from dff_jax.errors import ConfigError


def paper() -> ModelConfig:
    """The paper to the letter: index planes in dataset units, softmax weights, direct prox, no guide, C = Z."""
    return ModelConfig(
        measure_prior="none", planes="index", coordinate="raw", num_planes=None, weight_norm="softmax", guide="none",
        prox_output="direct", prox_inputs="equation_17", prox_levels=1, activation="relu",
    )  # fmt: skip


def physical() -> ModelConfig:
    """The library's default: focus planes in the unit coordinate, softplus weights, residual prox, any Z.

    Decoder and full-resolution networks have half the paper's channels, so that inference, the unroll included, takes
    about as long as DFV-Diff's.
    """
    return ModelConfig(head_width=0.5, decoder_width=0.5)


def tiny() -> ModelConfig:
    """`physical` at a quarter of the paper's width; trains on a laptop, on crops too small for pyramid pooling.

    So small a network learns faster from measured sharpness than from pixels: its decoder sees the measures too.
    """
    return ModelConfig(
        encoder="tiny", width=0.25, head_width=0.25, pooling="none", measure_prior="log_sml_features"
    )


def classical() -> ModelConfig:
    """No training: several focus measures give the candidates, peak sharpness the weights, TV the prox."""
    return ModelConfig(method="classical")


def sml() -> ModelConfig:
    """No training: sum-modified-Laplacian, aggregation, Gaussian peak; the yardstick."""
    return ModelConfig(method="sml")


def dfv_fv() -> ModelConfig:
    """DFV-FV (Yang, Huang and Zhou, CVPR 2022)."""
    return ModelConfig(method="dfv", volume="fv", coordinate="raw")


def dfv_diff() -> ModelConfig:
    """DFV-Diff: DFV on differences of neighbouring frames' features."""
    return ModelConfig(method="dfv", volume="diff", coordinate="raw")


def aifdnet() -> ModelConfig:
    """AiFDNet (Wang et al., ICCV 2021), supervised by depth."""
    return ModelConfig(method="aifdnet", coordinate="raw")


def dwild() -> ModelConfig:
    """DWild, depth from focus in the wild (Won and Jeon, ECCV 2022)."""
    return ModelConfig(method="dwild")


def rdf() -> ModelConfig:
    """No training: ring difference filter, guided filter, Gaussian peak."""
    return ModelConfig(method="rdf")


def rfvr_like() -> ModelConfig:
    """No training: robust static/dynamic-guided regularisation of the focus volume; our own, after RFVR's abstract."""
    return ModelConfig(method="rfvr_like")


MODEL_PRESETS = {
    "paper": paper, "physical": physical, "tiny": tiny, "dfv_fv": dfv_fv, "dfv_diff": dfv_diff, "aifdnet": aifdnet,
    "dwild": dwild, "classical": classical, "sml": sml, "rdf": rdf, "rfvr_like": rfvr_like,
}  # fmt: skip


def model_preset(name: str) -> ModelConfig:
    """The preset of that name; raises ConfigError listing the choices."""
    if name not in MODEL_PRESETS:
        raise ConfigError(f"model preset: {name!r} is unknown; choose one of {', '.join(MODEL_PRESETS)}")
    return MODEL_PRESETS[name]()
