"""The method: focus volume -> candidates -> unrolled fusion -> refiner. Presets `paper`, `physical`, `tiny`.

The working coordinate is t in [0,1] (coordinate="unit") or the dataset's own q ("raw"); answers are always in q.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dff_jax.config import ModelConfig
from dff_jax.focus_axis import from_unit_coordinate, span, to_unit_coordinate
from dff_jax.network.candidates import Candidates
from dff_jax.network.focus_volume import FocusVolume, resample_planes
from dff_jax.network.proximal import GatedProximalNetwork
from dff_jax.network.refiner import Refiner
from dff_jax.types import Array, Estimator, History, Prediction, Variables
from dff_jax.unroll import (
    Problem,
    constant_step,
    disagreement,
    initial_depth,
    learned_step,
    resize_stack,
    resolve_scheme,
    solve,
    stack_init,
)
from dff_jax.unroll.problem import EPS

# Scales that bring the inputs of the full-resolution networks to about one, in the unit coordinate
VOLUME_SCALE = 0.1
DISAGREEMENT_SCALE = 10.0
# Depth uncertainty, as a share of the focus range, at which confidence falls to 1/e
CONFIDENCE_SCALE = 0.1


class Context(NamedTuple):
    """What the learned prox looks at beside the depth."""

    features: Array  # [B,H,W,c] F (and the guide)
    confidence: Array | None  # [B,H,W,2] S and the candidates' disagreement at unit scale


def proximal(config: ModelConfig, axis_name: str | None = None) -> Estimator:
    """The estimator of `config`; see `estimators.build`."""
    volume_net = FocusVolume(config, axis_name)
    candidate_net, prox_net, refiner_net = Candidates(config), GatedProximalNetwork(config), Refiner(config)
    unit = config.coordinate == "unit"

    def prox(params: Any, z: Array, problem: Problem, eta: Array) -> Array:
        """P(cat(Dtilde, F, eta, lambda, D(k-1))) (12, 17), a direct answer or a correction to Dtilde."""
        flat = lambda value: jnp.broadcast_to(value, z.shape)[..., None]  # noqa: E731
        eta = eta if jnp.ndim(eta) == z.ndim else jnp.reshape(eta, (1,) * z.ndim)
        weight = jnp.reshape(problem.regularization, (1,) * z.ndim)
        inputs = [flat(z), problem.context.features, flat(eta), flat(weight), flat(problem.previous)]
        if problem.context.confidence is not None:
            inputs.append(problem.context.confidence)
        answer = prox_net.apply({"params": params}, jnp.concatenate(inputs, -1))
        return z + answer if config.prox_output == "residual" else answer

    step = learned_step if config.step_size == "learned_per_iteration" else constant_step(config.step_size_init)
    scheme = resolve_scheme(config.scheme)(prox, step)

    def regularization(params: dict) -> Array:
        if config.regularization == "learned":
            return jax.nn.softplus(params["regularization"])
        return jnp.asarray(config.regularization_init, jnp.float32)

    def look(params: dict, batch_stats: dict, frames: Array, focus: Array, train: bool):
        """Frames -> F, guide, Dbar and the plane distribution's spread (1-5)."""
        variables = {"params": params["volume"], "batch_stats": batch_stats}
        volume, changed = volume_net.apply(variables, frames, train, mutable=["batch_stats"])
        stats = changed.get("batch_stats", {}) if train else batch_stats
        t = to_unit_coordinate(focus, focus)
        probability = jax.nn.softmax(volume, axis=1)  # [B,Z,H,W]
        if config.planes == "index":
            planes = jnp.broadcast_to(jnp.arange(1.0, focus.shape[1] + 1), focus.shape)
        else:
            planes = t if unit else focus
        expected = jnp.einsum("bzhw,bz->bhw", probability, planes)
        in_t = jnp.einsum("bzhw,bz->bhw", probability, t)
        spread = jnp.einsum("bzhw,bzhw->bhw", probability, (t[..., None, None] - in_t[:, None]) ** 2)
        sharp = jnp.einsum("bzhw,bzhwc->bhwc", probability, frames)
        if config.num_planes is None:
            features = jnp.moveaxis(volume, 1, -1)
        else:
            features = VOLUME_SCALE * resample_planes(volume, t, config.num_planes)
        if config.guide == "all_in_focus":
            features = jnp.concatenate([features, 2 * sharp - 1], -1)
        return stats, features, expected, spread, sharp

    def fuse(params: dict, features: Array, expected: Array) -> Problem:
        """Candidates and weights as a problem for the solver (6-14)."""
        candidates, weights = candidate_net.apply({"params": params["candidates"]}, features, expected)
        problem = Problem(candidates, weights, regularization(params["unroll"]))
        confidence = None
        if config.prox_inputs == "with_confidence":
            S = problem.S
            apart = jnp.sqrt(2 * disagreement(problem) / jnp.maximum(S, EPS) + 1e-8)
            confidence = jnp.stack([S / (1 + S), jnp.tanh(DISAGREEMENT_SCALE * apart)], -1)
        return problem._replace(context=Context(features, confidence))

    def iterate(params: dict, problem: Problem, num_iterations: int) -> tuple[Array, Array]:
        """D(0) [B,H,W] -> D(K), and D(0)..D(K) stacked [B,K+1,H,W] (12, 13)."""
        d0 = initial_depth(problem)
        unrolled = params["unroll"]
        own = {}
        if "step_size" in unrolled:
            own["step_size"] = unrolled["step_size"]
        shared = {"prox": params["prox"]}
        if not config.tied:
            own["prox"], shared = params["prox"], None
        own = resize_stack(own, num_iterations) if own and num_iterations else None
        depth, history = solve(
            scheme, problem, d0, shared=shared, per_iteration=own, num_iterations=num_iterations,
            gradient=config.gradient, return_history=True,
        )  # fmt: skip
        return depth, jnp.concatenate([d0[:, None], jnp.moveaxis(history, 0, 1)], 1)

    def refine(params: dict, depth: Array, problem: Problem) -> Array:
        """Dhat(1)..Dhat(T), [B,T,H,W] (15, 16)."""
        features, refined = problem.context.features, []
        if config.refiner_inputs == "depth_volume_candidates":
            features = jnp.concatenate([features, problem.candidates], -1)
        for _ in range(config.refiner_steps):
            depth = depth + refiner_net.apply({"params": params["refiner"]}, depth, features)
            refined.append(depth)
        shape = (depth.shape[0], 0, *depth.shape[1:])
        return jnp.stack(refined, 1) if refined else jnp.zeros(shape, depth.dtype)

    def make_variables(key: Array, num_frames: int) -> Variables:
        k_volume, k_candidates, k_prox, k_refiner = jax.random.split(key, 4)
        small = jnp.zeros((1, num_frames, 64, 64, 3), jnp.float32)
        focus = jnp.linspace(0.0, 1.0, num_frames)[None]
        volume = volume_net.init(k_volume, small, False)
        K = max(1, config.num_iterations)
        raw = lambda value: jnp.log(jnp.expm1(jnp.float32(value)))  # noqa: E731  inverse softplus
        params = {"volume": volume["params"], "unroll": {}}
        if config.step_size == "learned_per_iteration":
            params["unroll"]["step_size"] = jnp.full((K,), raw(config.step_size_init))
        if config.regularization == "learned":
            params["unroll"]["regularization"] = raw(config.regularization_init)
        stats = volume.get("batch_stats", {})
        _, features, expected, _, _ = look(params, stats, small, focus, False)
        params["candidates"] = candidate_net.init(k_candidates, features, expected)["params"]
        problem = fuse(params, features, expected)
        extra = 0 if problem.context.confidence is None else 2
        z = jnp.zeros((*expected.shape, features.shape[-1] + 4 + extra))
        make_prox = lambda key: prox_net.init(key, z)["params"]  # noqa: E731
        params["prox"] = make_prox(k_prox) if config.tied else stack_init(make_prox, k_prox, K)
        if config.refiner_steps:
            seen = config.num_candidates if config.refiner_inputs == "depth_volume_candidates" else 0
            features = jnp.zeros((*expected.shape, features.shape[-1] + seen))
            params["refiner"] = refiner_net.init(k_refiner, expected, features)["params"]
        return {"params": params, "batch_stats": stats}

    def init(key: Array, frames: Array, focus: Array) -> Variables:
        if isinstance(key, jax.core.Tracer):
            return make_variables(key, frames.shape[1])
        # a hundred random tensors take a minute to optimise and no time to run
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(make_variables, static_argnums=1, compiler_options=options)(key, frames.shape[1])

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, Any]:
        height, width = frames.shape[2:4]
        K = config.num_iterations if num_iterations is None else num_iterations
        params = variables["params"]
        padded = pad_to_multiple(frames)
        stats, features, expected, spread, sharp = look(params, variables["batch_stats"], padded, focus, train)
        problem = fuse(params, features, expected)
        depth, iterates = iterate(params, problem, K)
        refined = refine(params, depth, problem)
        answer = refined[:, -1] if config.refiner_steps else depth

        crop = lambda x: x[..., :height, :width]  # noqa: E731
        to_q = (lambda x: from_unit_coordinate(x, focus)) if unit else (lambda x: x)
        q_squared = span(focus)[:, None, None] ** 2 if unit else 1.0
        V = disagreement(problem)
        apart = 2 * V / jnp.maximum(problem.S, EPS) * q_squared / span(focus)[:, None, None] ** 2
        confidence = jnp.exp(-jnp.sqrt(spread + apart + 1e-12) / CONFIDENCE_SCALE)
        return Prediction(
            depth=crop(to_q(answer)),
            confidence=crop(confidence),
            disagreement=crop(V * q_squared),
            all_in_focus=sharp[:, :height, :width],
            history=History(
                expected=crop(to_q(expected)),
                candidates=to_q(problem.candidates)[:, :height, :width],
                weights=problem.weights[:, :height, :width],
                iterates=crop(to_q(iterates)),
                refined=crop(to_q(refined)),
            ),
        ), stats

    return Estimator(init, apply)


def pad_to_multiple(frames: Array, multiple: int = 32, least: int = 64) -> Array:
    """Frames [B,Z,H,W,3] padded at the bottom and right by their edge, so that all levels of the encoder fit."""
    pads = [max(least, -(-size // multiple) * multiple) - size for size in frames.shape[2:4]]
    if not any(pads):
        return frames
    return jnp.pad(frames, ((0, 0), (0, 0), (0, pads[0]), (0, pads[1]), (0, 0)), mode="edge")
