"""Every method of depth from focus behind one door: `build(config)` gives an `Estimator(init, apply)`."""

from __future__ import annotations

from dff_jax.config import ModelConfig
from dff_jax.types import Estimator


def build(config: ModelConfig) -> Estimator:
    """The estimator that `config` describes.

    Args:
      config: which method and how; `config.method` chooses the file of this room.

    Raises:
      ConfigError: a scheme that does not exist.
    """
    if config.method == "dfv":
        from dff_jax.estimators.dfv import dfv

        return _in_order(dfv(config), config)
    if config.method == "aifdnet":
        from dff_jax.estimators.aifdnet import aifdnet

        return _in_order(aifdnet(config), config)
    if config.method == "dwild":
        from dff_jax.estimators.dwild import dwild

        return _in_order(dwild(config), config)
    if config.method == "rdf":
        from dff_jax.estimators.rdf import rdf

        return rdf()
    if config.method == "rfvr_like":
        from dff_jax.estimators.rfvr_like import rfvr_like

        return rfvr_like()
    if config.method == "classical":
        from dff_jax.estimators.classical import classical

        return classical(config.num_iterations)
    if config.method == "sml":
        from dff_jax.estimators.sml import sml

        return sml()
    from dff_jax.estimators.proximal import proximal

    return proximal(config)


def _in_order(estimator: Estimator, config: ModelConfig) -> Estimator:
    from dff_jax.estimators.soft_depth import in_order

    return in_order(estimator, config.frame_order)
