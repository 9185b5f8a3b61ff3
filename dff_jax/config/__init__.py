"""Configuration: frozen nested dataclasses, checked when made, JSON out and in.

Wherever the paper leaves a choice open, it is one typed field, and the paper's own reading is one of its values
(named first). Each method has a class of its own. The functions of `presets` return models, those of `configs/*.py`
whole experiments.
"""

from dff_jax.config.comparison import Comparison, Method, TestSet
from dff_jax.config.data import CameraConfig, DataConfig, DataSpec, LensConfig, PartConfig, WorldConfig
from dff_jax.config.load import from_dict, from_json, to_dict, to_json
from dff_jax.config.methods import (
    DFV,
    DTYPES,
    METHODS,
    RDF,
    SML,
    UNTRAINED,
    AiFDNet,
    Classical,
    DWild,
    ModelConfig,
    Proximal,
    RfvrLike,
)
from dff_jax.config.own_code import trust
from dff_jax.config.presets import MODEL_PRESETS, dfv_diff, dfv_fv, model_preset, paper, physical, tiny
from dff_jax.config.training import Config, LossConfig, OptimizerConfig, TrainingConfig

__all__ = [
    "DFV", "DTYPES", "METHODS", "MODEL_PRESETS", "RDF", "SML", "UNTRAINED", "AiFDNet", "CameraConfig",
    "Classical", "Comparison", "Config", "DWild", "DataConfig", "DataSpec", "LensConfig", "LossConfig", "Method",
    "ModelConfig", "OptimizerConfig", "PartConfig", "Proximal", "RfvrLike", "TestSet", "TrainingConfig", "WorldConfig",
    "dfv_diff", "dfv_fv", "from_dict", "from_json", "model_preset", "paper", "physical", "tiny", "to_dict", "to_json",
    "trust",
]  # fmt: skip
