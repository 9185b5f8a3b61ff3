"""Every method of depth from focus behind one door: `build(config)` gives an `Estimator(init, apply)`."""

from __future__ import annotations

import dataclasses
import importlib

from dff_jax.config import DFV, RDF, SML, AiFDNet, Classical, DWild, ModelConfig, Proximal, RfvrLike
from dff_jax.types import Estimator

BUILDERS: dict[type[ModelConfig], str] = {
    Proximal: "proximal:proximal",
    DFV: "dfv:dfv",
    AiFDNet: "aifdnet:aifdnet",
    DWild: "dwild:dwild",
    Classical: "classical:classical",
    SML: "peaks:sml",
    RDF: "peaks:rdf",
    RfvrLike: "rfvr_like:rfvr_like",
}
"""The file of this room and the function in it that builds the estimator of a class, imported when it is used."""


def build(config: ModelConfig) -> Estimator:
    """The estimator that `config` describes.

    Args:
      config: its class chooses the method. A network's builder takes it whole, any other builder its fields.

    Raises:
      ConfigError: a scheme that does not exist.
    """
    module, _, function = BUILDERS[type(config)].partition(":")
    builder = getattr(importlib.import_module(f"dff_jax.estimators.{module}"), function)
    return builder(config) if config.trained else builder(**dataclasses.asdict(config))
