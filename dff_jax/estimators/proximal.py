"""The method: focus volume -> candidates -> unrolled fusion -> refiner. Presets `paper`, `physical`, `tiny`.

The working coordinate is t in [0,1] (coordinate="unit") or the dataset's own q ("raw"); answers are always in q.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dff_jax.classical import nearest_composite, weighted_median
from dff_jax.config import Proximal
from dff_jax.estimators.padding import pad_to_multiple
from dff_jax.estimators.unrolled import Context, build_unroll
from dff_jax.focus_axis import from_unit_coordinate, span, to_unit_coordinate
from dff_jax.network.candidates import Candidates
from dff_jax.network.confidence import ExpectedError
from dff_jax.network.context import ContextHeads, PixelContext, has_context
from dff_jax.network.focus_volume import FocusVolume, resample_planes
from dff_jax.network.measured import Measured, measure
from dff_jax.network.refiner import Refiner, between_settings
from dff_jax.types import Array, Estimator, History, Prediction, Variables, confidence_of_error
from dff_jax.unroll import Problem, disagreement, initial_depth
from dff_jax.unroll.problem import EPS

# Scales that bring the inputs of the full-resolution networks to about one, in the unit coordinate
VOLUME_SCALE = 0.1
DISAGREEMENT_SCALE = 10.0
EVIDENCE_SCALE, LEAST_LOG_P = 0.2, -20.0
LEAST_CONFIDENCE = 1e-3  # with which a depth still has a say in the median around it


class Seen(NamedTuple):
    """What the focus volume shows (1-5), in the working coordinate."""

    features: Array  # [B,H,W,c] F over its planes (and the guide)
    expected: Array  # [B,H,W] Dbar
    per_scale: Array | None  # [B,H,W,N] soft-argmax of each of the N finest score maps
    spread: Array  # [B,H,W] variance of the distribution over planes, in t^2
    sharp: Array  # [B,H,W,3] soft all-in-focus image
    measured: Measured | None  # candidates that need no learning


def apart(problem: Problem) -> Array:
    """How far the candidates lie apart, their weighted standard deviation sqrt(2 V / S), [B,H,W]."""
    return jnp.sqrt(2 * disagreement(problem) / jnp.maximum(problem.S, EPS) + 1e-8)


def proximal(config: Proximal) -> Estimator:
    """The estimator of `config`; see `estimators.build`."""
    volume_net, candidate_net = FocusVolume(config), Candidates(config)
    context_net, refiner_net, error_net = ContextHeads(config), Refiner(config), ExpectedError(config)
    unroll = build_unroll(config)
    unit = config.coordinate == "unit"

    def look(params: dict, batch_stats: dict, frames: Array, focus: Array, train: bool) -> tuple[dict, Seen]:
        """Frames -> batch statistics, F, guide, Dbar and the plane distribution's spread (1-5)."""
        variables = {"params": params["volume"], "batch_stats": batch_stats}
        (volume, scores), changed = volume_net.apply(variables, frames, train, mutable=["batch_stats"])
        stats = changed.get("batch_stats", {}) if train else batch_stats
        t = to_unit_coordinate(focus, focus)
        probability = jax.nn.softmax(volume, axis=1)  # [B,Z,H,W]
        if config.planes == "index":
            planes = jnp.broadcast_to(jnp.arange(1.0, focus.shape[1] + 1), focus.shape)
        else:
            planes = t if unit else focus
        mean = lambda share, values: jnp.einsum("bzhw,bz->bhw", share, values)  # noqa: E731
        in_t = mean(probability, t)
        spread = jnp.einsum("bzhw,bzhw->bhw", probability, (t[..., None, None] - in_t[:, None]) ** 2)
        sharp = (probability[..., None] * frames).sum(1)  # a product of matrices is slower
        per_scale = None
        if config.candidate_source == "per_scale":
            finest = scores[: config.num_candidates]
            per_scale = jnp.stack([mean(jax.nn.softmax(score, axis=1), planes) for score in finest], -1)
        if config.num_planes is None:
            features = jnp.moveaxis(volume, 1, -1)
        else:
            features = VOLUME_SCALE * resample_planes(volume, t, config.num_planes)
        if config.guide == "all_in_focus":
            features = jnp.concatenate([features, 2 * sharp - 1], -1)
        measured = measure(frames, t) if config.measured_candidates else None
        return stats, Seen(features, mean(probability, planes), per_scale, spread, sharp, measured)

    def fuse(params: dict, seen: Seen) -> Problem:
        """Candidates and weights as a problem for the solver (6-14)."""
        variables = {"params": params["candidates"]}
        inputs = seen.features, seen.expected, seen.per_scale, seen.measured
        candidates, weights = candidate_net.apply(variables, *inputs)
        pixel = PixelContext(None, None, None)
        if has_context(config):
            pixel = context_net.apply({"params": params["context"]}, seen.features)
        if pixel.regularization is None:
            weight = unroll.regularization(params)
        else:
            weight = jax.nn.softplus(pixel.regularization)
        problem = Problem(candidates, weights, weight)
        confidence = evidence = None
        if config.prox_inputs != "equation_17":
            S = problem.S
            confidence = jnp.stack([S / (1 + S), jnp.tanh(DISAGREEMENT_SCALE * apart(problem))], -1)
        if config.prox_inputs == "with_lookup":
            logits = seen.features[..., : config.num_planes] / VOLUME_SCALE
            evidence = EVIDENCE_SCALE * jnp.maximum(jax.nn.log_softmax(logits, -1), LEAST_LOG_P)
        context = Context(seen.features, confidence, evidence, pixel.step_size, pixel.hidden)
        return problem._replace(context=context, guide=seen.sharp)

    def iterate(params: dict, problem: Problem, num_iterations: int, train: bool) -> tuple[Array, Array, Any]:
        """D(0) -> D(K) [B,H,W], D(0)..D(K) [B,K+1,H,W] and, unless training, the trace (12, 13)."""
        depth, history = unroll.solve(params, problem, num_iterations, True if train else "trace")
        if train:  # nothing looks at energies there
            iterates, trace = jnp.concatenate([initial_depth(problem)[None], history]), None
        else:
            iterates, trace = history.depth, history
        return depth, jnp.moveaxis(iterates, 0, 1), trace

    def refiner_features(depth: Array, problem: Problem, focus: Array) -> Array:
        seen = [problem.context.features]
        if config.refiner_inputs != "depth_volume":
            seen.append(problem.candidates)
        if config.refiner_inputs == "with_settings":
            seen.append(between_settings(depth, to_unit_coordinate(focus, focus)))
        return jnp.concatenate(seen, -1)

    def refine(params: dict, depth: Array, problem: Problem, focus: Array) -> Array:
        """Dhat(1)..Dhat(T), [B,T,H,W] (15, 16)."""
        refined = []
        for _ in range(config.refiner_steps):
            features = refiner_features(depth, problem, focus)
            depth = depth + refiner_net.apply({"params": params["refiner"]}, depth, features)
            refined.append(depth)
        shape = (depth.shape[0], 0, *depth.shape[1:])
        return jnp.stack(refined, 1) if refined else jnp.zeros(shape, depth.dtype)

    def look_back(seen: Seen, problem: Problem, answer: Array) -> tuple[Array, Array]:
        """What the error to expect is read from: features, and how much the method disagrees with itself."""
        S = problem.S
        doubts = [jnp.sqrt(seen.spread + 1e-8), apart(problem), jnp.abs(answer - seen.expected)]
        doubts = [jnp.tanh(DISAGREEMENT_SCALE * doubt) for doubt in doubts] + [S / (1 + S), answer]
        return jax.lax.stop_gradient((seen.features, jnp.stack(doubts, -1)))

    def make_variables(key: Array, num_frames: int) -> Variables:
        k_volume, k_candidates, k_unroll, k_refiner = jax.random.split(key, 4)
        small = jnp.zeros((1, num_frames, 64, 64, 3), jnp.float32)
        focus = jnp.linspace(0.0, 1.0, num_frames)[None]
        volume = volume_net.init(k_volume, small, False)
        params, stats = {"volume": volume["params"]}, volume.get("batch_stats", {})
        _, seen = look(params, stats, small, focus, False)
        inputs = seen.features, seen.expected, seen.per_scale, seen.measured
        params["candidates"] = candidate_net.init(k_candidates, *inputs)["params"]
        if has_context(config):
            k_context = jax.random.fold_in(key, 4)
            params["context"] = context_net.init(k_context, seen.features)["params"]
        start = {**params, "unroll": {"shared": {}, "per_iteration": {}}}
        problem = fuse(start, seen)
        params |= unroll.init(k_unroll, problem)
        if config.refiner_steps:
            features = jnp.zeros_like(refiner_features(seen.expected, problem, focus))
            params["refiner"] = refiner_net.init(k_refiner, seen.expected, features)["params"]
        if config.uncertainty == "learned":
            k_error = jax.random.fold_in(key, 5)
            inputs = jnp.zeros_like(seen.features), jnp.zeros((*seen.expected.shape, 5))
            params["expected_error"] = error_net.init(k_error, *inputs)["params"]
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
        whole = pad_to_multiple(frames)
        stats, seen = look(params, variables["batch_stats"], whole, focus, train)
        problem = fuse(params, seen)
        depth, iterates, trace = iterate(params, problem, K, train)
        refined = refine(params, depth, problem, focus)
        answer = refined[:, -1] if config.refiner_steps else depth
        if config.uncertainty == "learned":
            given = look_back(seen, problem, answer)
            certain = confidence_of_error(error_net.apply({"params": params["expected_error"]}, *given))

        crop = lambda x: x[..., :height, :width]  # noqa: E731
        if trace is not None:  # its sums, unlike its maps, include the padding
            trace = trace._replace(depth=crop(trace.depth), disagreement=crop(trace.disagreement))
        to_q = (lambda x: from_unit_coordinate(x, focus)) if unit else (lambda x: x)
        q_squared = span(focus)[:, None, None] ** 2 if unit else 1.0
        V = disagreement(problem)
        variance = 2 * V / jnp.maximum(problem.S, EPS) * q_squared / span(focus)[:, None, None] ** 2
        if config.uncertainty == "spread":
            certain = confidence_of_error(jnp.sqrt(seen.spread + variance + 1e-12))
        answer, certain, sharp = crop(answer), crop(certain), seen.sharp[:, :height, :width]
        if config.sharpen == "weighted_median" and not train:
            clean, t = whole[:, :, :height, :width], to_unit_coordinate(focus, focus) if unit else focus
            guide = nearest_composite(clean, answer, t)
            answer = weighted_median(answer, guide, jnp.maximum(certain, LEAST_CONFIDENCE))
        return Prediction(
            depth=to_q(answer),
            confidence=certain,
            disagreement=crop(V * q_squared),
            all_in_focus=sharp,
            history=History(
                expected=crop(to_q(seen.expected)),
                candidates=to_q(problem.candidates)[:, :height, :width],
                weights=problem.weights[:, :height, :width],
                iterates=crop(to_q(iterates)),
                refined=crop(to_q(refined)),
                trace=trace,
            ),
        ), stats

    return Estimator(init, apply)
