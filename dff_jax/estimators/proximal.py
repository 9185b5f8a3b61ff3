"""The method: focus volume -> candidates -> unrolled fusion -> refiner. Presets `paper`, `physical`, `tiny`.

The working coordinate is t in [0,1] (coordinate="unit") or the dataset's own q ("raw"); answers are always in q.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.core import Tracer

from dff_jax.classical import nearest_composite, weighted_median
from dff_jax.config import Proximal
from dff_jax.estimators.padding import pad_to_multiple
from dff_jax.estimators.unrolled import build_unroll
from dff_jax.focus_axis import from_unit_coordinate, span, to_unit_coordinate
from dff_jax.network.candidates import Candidates, measured_candidates, propose
from dff_jax.network.confidence import ExpectedError, confidence, error_features
from dff_jax.network.focus_volume import FocusVolume, focus_volume
from dff_jax.network.layers import apply as apply_module
from dff_jax.network.planes import VolumeFeatures, read_planes
from dff_jax.network.prox import ContextHeads, PixelContext, has_context, prox_context
from dff_jax.network.refiner import Refiner, refine, refiner_features
from dff_jax.types import Array, Estimator, History, Prediction, Variables
from dff_jax.unroll import Problem, Trace, disagreement, initial_depth

LEAST_CONFIDENCE = 1e-3  # with which a depth still has a say in the median around it


def proximal(config: Proximal) -> Estimator:
    """The estimator of `config`; see `estimators.build`."""
    unroll = build_unroll(config)

    def pose(params: dict, seen: VolumeFeatures, candidates: Array, weights: Array) -> Problem:
        """The problem to be solved (8, 10, 11), with lambda and all that a prox may look at."""
        pixel = PixelContext()
        if has_context(config):
            pixel = apply_module(ContextHeads(config), params["context"], seen.features)
        raw = pixel.regularization
        weight = unroll.regularization(params) if raw is None else jax.nn.softplus(raw)
        problem = Problem(candidates, weights, weight, guide=seen.all_in_focus)
        return problem._replace(context=prox_context(config, seen, pixel, problem))

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, Any]:
        chex.assert_shape(frames, (None, None, None, None, 3))
        chex.assert_shape(focus, frames.shape[:2])
        K = config.num_iterations if num_iterations is None else num_iterations
        params, padded = variables["params"], pad_to_multiple(frames)

        scores, stats = focus_volume(config, params["volume"], variables["batch_stats"], padded, train)  # (1-3)
        seen = read_planes(config, scores, padded, focus)  # (4, 5)
        candidates, weights = propose(config, params["candidates"], seen, padded, focus)  # (6, 7, 14)
        problem = pose(params, seen, candidates, weights)  # (8, 10, 11)
        keep = True if train else "trace"  # nothing looks at energies in training
        depth, way = unroll.solve(params, problem, initial_depth(problem), K, keep)  # (9, 12, 13, 17-25)
        refined = refine(config, params, depth, problem, focus)  # (15, 16)

        answer = refined[:, -1] if config.refiner_steps else depth
        width = 1.0 if config.coordinate == "unit" else span(focus)[:, None, None]
        certain = confidence(config, params, seen, problem, answer, width)
        assert way is not None
        trace = way if isinstance(way, Trace) else None
        iterates = way.depth if isinstance(way, Trace) else jnp.concatenate([initial_depth(problem)[None], way])
        history = History(seen.expected, candidates, weights, jnp.moveaxis(iterates, 0, 1), refined, trace)
        found = Prediction(answer, certain, disagreement(problem), seen.all_in_focus, history)
        found = _crop(found, *frames.shape[2:4])
        if config.sharpen == "weighted_median" and not train:
            planes = to_unit_coordinate(focus, focus) if config.coordinate == "unit" else focus
            found = _sharpen(found, frames, planes)
        return (_to_q(found, focus) if config.coordinate == "unit" else found), stats

    def make_variables(key: Array, num_frames: int) -> Variables:
        k_volume, k_candidates, k_unroll, k_refiner = jax.random.split(key, 4)
        frames, focus = jnp.zeros((1, num_frames, 64, 64, 3), jnp.float32), jnp.linspace(0.0, 1.0, num_frames)[None]
        scores, volume = FocusVolume(config).init_with_output(k_volume, frames, False)
        params: dict[str, Any] = {"volume": volume["params"]}
        stats: Any = volume.get("batch_stats", {})
        seen = read_planes(config, scores, frames, focus)
        measured = measured_candidates(config, frames, focus)
        params["candidates"] = Candidates(config).init(k_candidates, seen, measured)["params"]
        if has_context(config):
            params["context"] = ContextHeads(config).init(jax.random.fold_in(key, 4), seen.features)["params"]
        candidates = propose(config, params["candidates"], seen, frames, focus)
        problem = pose(params | {"unroll": {"shared": {}, "per_iteration": {}}}, seen, *candidates)
        params |= unroll.init(k_unroll, problem)
        if config.refiner_steps:
            features = refiner_features(config, seen.expected, problem, focus)
            params["refiner"] = Refiner(config).init(k_refiner, seen.expected, features)["params"]
        if config.uncertainty == "learned":
            features = error_features(seen, problem, seen.expected)
            params["expected_error"] = ExpectedError(config).init(jax.random.fold_in(key, 5), *features)["params"]
        return {"params": params, "batch_stats": stats}

    def init(key: Array, frames: Array, focus: Array) -> Variables:
        if isinstance(key, Tracer):
            return make_variables(key, frames.shape[1])
        # a hundred random tensors take a minute to optimise and no time to run
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(make_variables, static_argnums=1, compiler_options=options)(key, frames.shape[1])

    return Estimator(init, apply)


def _crop(found: Prediction, height: int, width: int) -> Prediction:
    """Without the padding. Only the sums in the trace, unlike its maps, still include it."""

    def maps(x: Array) -> Array:
        return x[..., :height, :width]

    def channels_last(x: Array) -> Array:
        return x[:, :height, :width]

    h = found.history
    assert h is not None
    trace = h.trace
    if isinstance(trace, Trace):
        trace = trace._replace(depth=maps(trace.depth), disagreement=maps(trace.disagreement))
    candidates, weights = channels_last(h.candidates), channels_last(h.weights)
    history = History(maps(h.expected), candidates, weights, maps(h.iterates), maps(h.refined), trace)
    return Prediction(
        maps(found.depth), maps(found.confidence), maps(found.disagreement), channels_last(found.all_in_focus), history
    )


def _sharpen(found: Prediction, frames: Array, planes: Array) -> Prediction:
    """The answer after a median that is weighted by confidence and by likeness in the image that is sharp there.

    Its gradient is that of the answer before the median, which itself passes none.
    """
    guide = nearest_composite(frames, found.depth, planes)
    trust = jnp.maximum(found.confidence, LEAST_CONFIDENCE)
    return found._replace(depth=_straight_through(found.depth, weighted_median(found.depth, guide, trust)))


@jax.custom_jvp
def _straight_through(before: Array, after: Array) -> Array:
    """`after`, with the derivative of `before`."""
    return after


@_straight_through.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[1], tangents[0]


def _to_q(found: Prediction, focus: Array) -> Prediction:
    """From the unit coordinate; the trace stays in it."""
    h = found.history
    assert h is not None
    q = lambda x: from_unit_coordinate(x, focus)  # noqa: E731
    history = h._replace(
        expected=q(h.expected), candidates=q(h.candidates), iterates=q(h.iterates), refined=q(h.refined)
    )
    in_q = found.disagreement * span(focus)[:, None, None] ** 2
    return found._replace(depth=q(found.depth), disagreement=in_q, history=history)
