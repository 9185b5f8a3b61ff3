"""One change at a time: `procedural_tiny` trained shorter, and its variants.

    dff-jax train configs/ablations.py --output runs/ablations/baseline   # config(): what the others change
    dff-jax train configs/ablations.py:softmax --output runs/ablations/softmax
    scripts/ablations                                                     # the main ones, and the comparison

Data: procedural/quickstart. 300 steps of 2 x 96 x 96 each, about 4 minutes on two idle CPU cores. So short a training
shows which switch does something, not how well it does in the end; for that, add --training.num-steps 4000.
Compared by: dff-jax ablate runs/ablations/* --dataset procedural/quickstart --output runs/compared
"""

import dataclasses

from dff_jax.config import Config, DataConfig, LossConfig, OptimizerConfig, TrainingConfig, tiny


def config() -> Config:
    """Softplus weights, focus planes, a residual prox tied over 3 iterations, sequence loss, guide, N = 3."""
    return Config(
        name="ablations/baseline",
        model=tiny(),
        loss=LossConfig(kind="sequence", gamma=0.3),
        optimizer=OptimizerConfig(peak_learning_rate=2e-3),
        data=DataConfig(dataset="procedural/quickstart", batch_size=2, crop=(96, 96)),
        training=TrainingConfig(num_steps=300, log_every=20, eval_every=300, save_every=150, tensorboard=False),
    )


def _variant(name: str, **model) -> Config:
    base = config()
    return dataclasses.replace(base, name=f"ablations/{name}", model=dataclasses.replace(base.model, **model))


def softmax() -> Config:
    """The paper's weights (14): S = 1, so that the first data step does nothing."""
    return _variant("softmax", weight_norm="softmax")


def sigmoid() -> Config:
    return _variant("sigmoid", weight_norm="sigmoid")


def index_planes() -> Config:
    """The paper's planes 1..C, answering in dataset units; the loss is then in these units too."""
    return _variant("index_planes", planes="index", coordinate="raw", prox_inputs="with_confidence")


def direct_prox() -> Config:
    """The paper's D(k) = P(z): forgets z until it has learned to copy it."""
    return _variant("direct_prox", prox_output="direct")


def untied() -> Config:
    """A proximal network of its own for each iteration."""
    return _variant("untied", tied=False)


def final_loss() -> Config:
    """The paper's loss (26): the mean square error of the answer alone."""
    return dataclasses.replace(config(), name="ablations/final_loss", loss=LossConfig(kind="mse_final"))


def no_guide() -> Config:
    """F alone, as in the paper, without the all-in-focus image."""
    return _variant("no_guide", guide="none")


def one_candidate() -> Config:
    """N = 1: nothing to fuse; D(0) is the candidate."""
    return _variant("one_candidate", num_candidates=1)


def five_candidates() -> Config:
    return _variant("five_candidates", num_candidates=5)


def per_scale() -> Config:
    """The soft-argmax of three levels as candidates, instead of residual heads."""
    return _variant("per_scale", candidate_source="per_scale")


def no_prox() -> Config:
    """The data term alone: D(k) = D(0) for all k, and the refiner has to do the rest."""
    return _variant("no_prox", prox="identity")


def no_refiner() -> Config:
    return _variant("no_refiner", refiner_steps=0)


def tv_prox() -> Config:
    """Total variation with a learned lambda in the place of the network; it starts from 0.002 (t in [0, 1])."""
    return _variant("tv_prox", prox="tv", regularization="learned", regularization_init=0.002)


def residual_cnn() -> Config:
    """Four plain convolutions as the proximal network."""
    return _variant("residual_cnn", prox="residual_cnn")


def narrow_prox() -> Config:
    """One pooling in the proximal network, as in the paper, instead of three: a narrower view."""
    return _variant("narrow_prox", prox_levels=1)


def no_lookup() -> Config:
    """The proximal network sees F as a whole, as in the paper, and does not look it up around D(k-1)."""
    return _variant("no_lookup", prox_inputs="with_confidence")


def gru() -> Config:
    """A recurrent network that learns the step itself, after RAFT."""
    return _variant("gru", scheme="learned_gradient", prox="gru")


def fista() -> Config:
    return _variant("fista", scheme="fista")


def short_steps() -> Config:
    """A small constant step: what the prox did adds up over k, instead of being drawn back towards D(0) each time."""
    return _variant("short_steps", step_size="constant", step_size_init=0.05)


def per_pixel_step() -> Config:
    return _variant("per_pixel_step", step_size="per_pixel")
