"""Configuration: frozen nested dataclasses, validated when made, JSON out and in.

Every ruling on an open point of the paper is one named, typed field; the paper's own reading is always one of its
values (named first). Presets of the estimators are the functions of `presets`; whole experiments those of
`configs/*.py`.
"""

from dff_jax.config.comparison import Comparison, Entrant, TestSet
from dff_jax.config.data import UNITS, CameraConfig, DataConfig, LensConfig, PartConfig, WorldConfig
from dff_jax.config.experiment import Config
from dff_jax.config.json import from_dict, from_json, to_dict, to_json
from dff_jax.config.methods import DTYPES, UNTRAINED, ModelConfig
from dff_jax.config.presets import (
    MODEL_PRESETS,
    aifdnet,
    classical,
    dfv_diff,
    dfv_fv,
    dwild,
    model_preset,
    paper,
    physical,
    rdf,
    rfvr_like,
    sml,
    tiny,
)
from dff_jax.config.training import LossConfig, OptimizerConfig, TrainingConfig

__all__ = [
    "DTYPES", "MODEL_PRESETS", "UNITS", "UNTRAINED", "CameraConfig", "Comparison", "Config", "DataConfig", "Entrant",
    "LensConfig", "LossConfig", "ModelConfig", "OptimizerConfig", "PartConfig", "TestSet", "TrainingConfig",
    "WorldConfig", "aifdnet", "classical", "dfv_diff", "dfv_fv", "dwild", "from_dict", "from_json",
    "model_preset", "paper", "physical",
    "rdf", "rfvr_like", "sml", "tiny", "to_dict", "to_json",
]  # fmt: skip
