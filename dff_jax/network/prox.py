"""What stands in for the proximal map (17-25): its inputs, and three networks that one set of weights serves for all
iterations, so that they have no normalisation layers.

The 3x3 convolution that each network begins with is two modules, summed, as in RAFT-Stereo (Lipson, Teed and Deng, 3DV
2021): `static` sees what does not change between iterations, once before the first; the network sees the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dff_jax.config import Proximal
from dff_jax.network.candidates import Head
from dff_jax.network.confidence import disagreement_scaled
from dff_jax.network.inputs import LOOKUP_REACH, side_by_side
from dff_jax.network.layers import ACTIVATIONS, Conv, apply, channels, he_beside, he_fan_in, resize, torch_default
from dff_jax.network.planes import VOLUME_SCALE, VolumeFeatures
from dff_jax.types import Array
from dff_jax.unroll import Problem, Prox, initial_depth, inverse_softplus, raw_step

EVIDENCE_SCALE, LEAST_LOG_P = 0.2, -20.0  # the scale brings log P to about one


class Context(NamedTuple):
    """What a prox may look at beside the depth, as `problem.context`."""

    features: Array  # [B,H,W,c] F (and the guide)
    confidence: Array | None = None  # [B,H,W,2] S and the candidates' disagreement, scaled to about one
    evidence: Array | None = None  # [B,H,W,C] log P over planes uniform in t, scaled to about one, for `look_up`
    step_size: Array | None = None  # [B,H,W] predicted, before its softplus
    hidden: Array | None = None  # [B,H,W,n] with which a recurrent prox starts
    static: Array | None = None  # [B,H,W,n] the `static` convolution, where all iterations share it


# What goes in -----------------------------------------------------------------------------------------------------


class PixelContext(NamedTuple):
    """What is predicted for each pixel once before the first iteration; None: this config does not predict it."""

    step_size: Array | None = None  # [B,H,W], eta comes of its softplus
    regularization: Array | None = None  # [B,H,W], lambda is its softplus
    hidden: Array | None = None  # [B,H,W,n] in (-1,1), with which a recurrent prox starts


def has_context(config: Proximal) -> bool:
    """Whether `ContextHeads` has anything to predict; without, it has no parameters either."""
    return config.prox == "gru" or "per_pixel" in (config.step_size, config.regularization)


class ContextHeads(nn.Module):
    """Features [B,H,W,c] -> PixelContext. Step sizes and lambdas start at the config's values in every pixel."""

    config: Proximal

    @nn.compact
    def __call__(self, features: Array) -> PixelContext:
        c = self.config
        inner, features = channels(32, c.head_width), features.astype(c.dtype)

        def map_of(name: str, kind: str, raw_of: Callable[[float], float], value: float) -> Array | None:
            if kind != "per_pixel":
                return None
            head = Head(1, 1, inner, c.activation, nn.initializers.zeros, raw_of(value), name=name)
            return head(features)[..., 0].astype(jnp.float32)

        step_size = map_of("step_size", c.step_size, partial(raw_step, bounded=c.bounded_step), c.step_size_init)
        regularization = map_of("regularization", c.regularization, inverse_softplus, c.regularization_init)
        hidden = jnp.tanh(Conv(inner, name="hidden")(features).astype(jnp.float32)) if c.prox == "gru" else None
        return PixelContext(step_size, regularization, hidden)


def prox_context(config: Proximal, seen: VolumeFeatures, pixel: PixelContext, problem: Problem) -> Context:
    """What the prox may look at: F, and by `config.prox_inputs` S and V of the problem and log P of the volume."""
    confidence = evidence = None
    if config.prox_inputs != "equation_17":
        S = problem.S
        confidence = jnp.stack([S / (1 + S), disagreement_scaled(problem)], -1)
    if config.prox_inputs == "with_lookup":
        logits = seen.features[..., : config.num_planes] / VOLUME_SCALE
        evidence = EVIDENCE_SCALE * jnp.maximum(jax.nn.log_softmax(logits, -1), LEAST_LOG_P)
    return Context(seen.features, confidence, evidence, pixel.step_size, pixel.hidden)


def prox_inputs(z: Array, problem: Problem, eta: Array | float) -> Array:
    """The inputs of (17) that change: Dtilde = z, eta_k, lambda, D(k-1) and what the volume says there.

    Args:
      z: [B,H,W].
      problem: its context is a `Context`, `previous` is D(k-1); lambda is a scalar or [B,H,W].
      eta: scalar or [B,H,W].

    Returns:
      [B,H,W,4], or with evidence in the context [B,H,W,4 + 2 LOOKUP_REACH + 1].
    """

    def channel(value: Array | float) -> Array:
        value = jnp.asarray(value)
        value = value if value.ndim == z.ndim else value.reshape((1,) * z.ndim)
        return jnp.broadcast_to(value, z.shape)[..., None]

    assert problem.previous is not None
    evidence = problem.context.evidence
    return side_by_side(
        "prox", z=channel(z), eta=channel(eta), regularization=channel(problem.regularization),
        previous=channel(problem.previous), log_p=None if evidence is None else look_up(evidence, problem.previous),
    )  # fmt: skip


def static_inputs(context: Context) -> Array:
    """The inputs of (17) that do not change: F (and the guide), S and the candidates' disagreement, [B,H,W,c]."""
    return side_by_side("static", features=context.features, confidence=context.confidence)


def look_up(evidence: Array, t: Array) -> Array:
    """Evidence [B,H,W,C] over planes uniform in [0,1], read at t [B,H,W] and one and two planes to both sides.

    [B,H,W,2 LOOKUP_REACH + 1], by linear interpolation, the ends held. A network that sees F and D side by side would
    have to learn this product. RAFT (Teed and Deng, ECCV 2020) looks up its correlation volume in the same way.
    """
    last = evidence.shape[-1] - 1
    at = jnp.arange(last + 1.0).reshape((1,) * t.ndim + (-1,))

    def read(offset: int) -> Array:
        position = jnp.clip(t * last + offset, 0, last)
        return (evidence * jnp.maximum(0, 1 - jnp.abs(at - position[..., None]))).sum(-1)

    return jnp.stack([read(offset) for offset in range(-LOOKUP_REACH, LOOKUP_REACH + 1)], -1)


# The networks -----------------------------------------------------------------------------------------------------


class DoubleConv(nn.Module):
    """phi: two activated 3x3 convolutions of the parts side by side; `static` is added to the first one's output."""

    features: int
    activation: str
    num_static: int = 0

    @nn.compact
    def __call__(self, *parts: Array, static: Array | None = None) -> Array:
        act = ACTIVATIONS[self.activation]
        own = sum(x.shape[-1] for x in parts)
        x = Conv(self.features, kernel_init=he_beside(own, self.num_static))(*parts)
        x = act(x if static is None else x + static)
        return act(Conv(self.features, kernel_init=he_fan_in)(x))


class Gate(nn.Module):
    """gate(e, u) = sigmoid(conv1_1(act(conv1(e) + conv1(u)))) * e, inner width C_e / 2 (23).

    act is the paper's ReLU in preset `paper`, elsewhere one that cannot die.
    """

    activation: str = "relu"

    @nn.compact
    def __call__(self, e: Array, u: Array) -> Array:
        inner = max(1, e.shape[-1] // 2)
        mixed = ACTIVATIONS[self.activation](Conv(inner, 1, name="skip")(e) + Conv(inner, 1, name="up")(u))
        return jax.nn.sigmoid(Conv(1, 1, name="project")(mixed)) * e


def _last_init(config: Proximal) -> Callable:
    return nn.initializers.zeros if config.prox_output == "residual" else torch_default


class GatedProximalNetwork(nn.Module):
    """A U-Net with attention gates on its skips (18-25): x [B,H,W,c], static [B,H,W,n] -> depth or correction [B,H,W].

    With one level (the paper): e1, e2 at full resolution, e3 at half; d2 and d1 on the way up. Each further level
    of `prox_levels` adds a halving below, for a wider receptive field.
    """

    config: Proximal
    num_static: int = 0  # channels behind `static`; they count in the scale of the initial weights

    @nn.compact
    def __call__(self, x: Array, static: Array | None = None) -> Array:
        c = self.config
        block = lambda features, name: DoubleConv(channels(features, c.head_width), c.activation, name=name)  # noqa: E731
        e1 = DoubleConv(channels(32, c.head_width), c.activation, self.num_static, name="phi1")(x, static=static)
        skips = [block(32, "phi2")(e1)]
        for level in range(c.prox_levels):
            # an odd last row or column is pooled on its own
            pooled = nn.max_pool(skips[-1], (2, 2), (2, 2), padding="SAME")
            skips.append(block(64, f"phi{3 + level}")(pooled))
        x = skips.pop()
        for level, skip in enumerate(reversed(skips)):
            u = resize(x, *skip.shape[1:3])
            features = 32 if level == len(skips) - 1 else 64
            gated = Gate(c.activation, name=f"gate_e{len(skips) + 1 - level}")(skip, u)
            x = block(features, f"phi_d{len(skips) + 1 - level}")(u, gated)
        # e1 and e2 share a resolution, so u1 = d2
        x = block(32, "phi_d1")(x, Gate(c.activation, name="gate_e1")(e1, x))
        return Conv(1, 1, kernel_init=_last_init(c), name="output")(x)[..., 0]


class ResidualCnn(nn.Module):
    """The smallest network that can stand in: x [B,H,W,c], static [B,H,W,n] -> depth or correction [B,H,W].

    Three activated 3x3 convolutions of 32, then one of 1; it sees 9 x 9 pixels. As DnCNN (Zhang et al., TIP 2017) it
    predicts what to add (prox_output="residual"), but without norms.
    """

    config: Proximal
    num_static: int = 0

    @nn.compact
    def __call__(self, x: Array, static: Array | None = None) -> Array:
        c = self.config
        for i in range(3):
            init = he_beside(x.shape[-1], self.num_static) if i == 0 else he_fan_in
            x = Conv(channels(32, c.head_width), kernel_init=init)(x)
            x = ACTIVATIONS[c.activation](x if static is None or i else x + static)
        return Conv(1, kernel_init=_last_init(c), name="output")(x)[..., 0]


class RecurrentUpdate(nn.Module):
    """A prox with a memory: x [B,H,W,c], static and h [B,H,W,n] -> depth or correction [B,H,W], new h.

    A convolutional GRU, after RAFT (Teed and Deng, ECCV 2020, eqs. 4-7), with a 3x3 encoder before and a 3x3 head
    behind it:

        u, r = sigmoid(conv(h, x));  h' = tanh(conv(r h, x));  h <- (1 - u) h + u h'
    """

    config: Proximal
    num_static: int = 0

    @nn.compact
    def __call__(self, x: Array, static: Array | None, hidden: Array) -> tuple[Array, Array]:
        c, n = self.config, hidden.shape[-1]
        act = ACTIVATIONS[c.activation]
        x = Conv(n, kernel_init=he_beside(x.shape[-1], self.num_static), name="encode")(x)
        x = act(x if static is None else x + static)
        gates = jax.nn.sigmoid(Conv(2 * n, name="gates")(jnp.concatenate([hidden, x], -1)))
        update, reset = gates[..., :n], gates[..., n:]
        proposed = jnp.tanh(Conv(n, name="propose")(jnp.concatenate([reset * hidden, x], -1)))
        hidden = (1 - update) * hidden + update * proposed
        y = act(Conv(n, kernel_init=he_fan_in, name="head")(hidden))
        return Conv(1, kernel_init=_last_init(c), name="output")(y)[..., 0], hidden


NETWORKS = {"gated_unet": GatedProximalNetwork, "residual_cnn": ResidualCnn, "gru": RecurrentUpdate}


# As a prox --------------------------------------------------------------------------------------------------------


def static_convolution(config: Proximal, params: Any, context: Context) -> Array:
    """The part of the first convolution that is the same in each iteration, [B,H,W,n]."""
    conv = Conv(channels(32, config.head_width), use_bias=False)
    return apply(conv, params["static"], static_inputs(context).astype(config.dtype))


def learned_prox(config: Proximal) -> tuple[Prox, Callable[[Array, Problem], Any]]:
    """P(cat(z, F, eta, lambda, D(k-1))) (12, 17): a depth, or a correction to z; and (key, problem) -> its params."""
    make, recurrent = NETWORKS[config.prox], config.prox == "gru"
    net = make(config)

    def prox(params: Any, z: Array, problem: Problem, eta: Array | float, memory: Any) -> tuple[Array, Any]:
        static = problem.context.static
        if static is None:  # of an untied prox each iteration has its own
            static = static_convolution(config, params, problem.context)
        inputs = prox_inputs(z, problem, eta).astype(config.dtype)
        if recurrent:
            answer, memory = apply(net, params, inputs, static, memory.astype(config.dtype))
            memory = memory.astype(jnp.float32)
        else:
            answer = apply(net, params, inputs, static)
        answer = answer.astype(jnp.float32)
        return (z + answer if config.prox_output == "residual" else answer), memory

    def start(z: Array, problem: Problem) -> Any:
        return problem.context.hidden if recurrent else ()

    def init(key: Array, problem: Problem) -> Any:
        z = initial_depth(problem)
        inputs = prox_inputs(z, problem._replace(previous=z), jnp.zeros(()))
        static, features = static_inputs(problem.context), channels(32, config.head_width)
        num_inputs, num_static = inputs.shape[-1], static.shape[-1]
        conv = Conv(features, use_bias=False, kernel_init=he_beside(num_static, num_inputs))
        memory = [start(z, problem)] if recurrent else []
        params = make(config, num_static).init(key, inputs, None, *memory)["params"]
        return params | {"static": conv.init(jax.random.fold_in(key, 1), static)["params"]}

    return Prox(prox, start), init
