"""The passes over the data that an ablation needs: the same parameters at many K, and through several schemes."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from dff_jax import estimators
from dff_jax.config import Proximal
from dff_jax.errors import ConfigError, InputError
from dff_jax.estimators.weights import LoadedEstimator
from dff_jax.evaluation.evaluate import evaluated
from dff_jax.evaluation.rows import Evaluation, Measured, gather
from dff_jax.focus_axis import span
from dff_jax.runtime.progress import ProgressBar
from dff_jax.types import Array, Estimator, LoadedBatch, Prediction, Variables
from dff_jax.unroll import PROXES, SCHEMES, Problem, resize_stack, stable

COMPARED = ("proximal_gradient", "fista", "hqs", "admm", "exact_prox")
DATA_TERM = "proximal_gradient+identity"


class Variant(NamedTuple):
    """One way to use a run's parameters."""

    name: str  # "fista", or "fista+tv" with another prox than the trained one
    model: Proximal
    estimator: Estimator


class Pass(NamedTuple):
    """What one pass over the data found."""

    evaluation: Evaluation  # with rows refined(K) for the refined depth at each K
    course: dict[str, Any]  # means over the stacks, see `_watch`
    mean_weights: np.ndarray | None  # [H,W,N] W_i^2, mean over the stacks of the most frequent size


# Ways to use the parameters -------------------------------------------------------------------------------


def variants(loaded: LoadedEstimator, schemes: Sequence[str] | None) -> tuple[Variant, ...]:
    """The run as trained, then through other schemes, each "scheme" or "scheme+prox" (None: those that make sense).

    A scheme that needs a prox's dual form has no place for a network; one of another kind than COMPARED
    (`learned_gradient`, a user's own) trained its network for another part. Such a run gets DATA_TERM only by default.

    Raises:
      InputError: no such scheme or prox, or one that these weights cannot run.
    """
    # rolled, because K is large and nothing is differentiated: the same numbers, compiled in a third of the time
    own = replace(loaded.model, gradient="remat")
    found = {own: Variant(own.scheme, own, estimators.build(own))}
    if schemes is None:
        schemes = (*COMPARED, DATA_TERM) if own.scheme in COMPARED else (DATA_TERM,)
    for text in schemes:
        scheme, _, prox = text.partition("+")
        model = replace(own, scheme=scheme, prox=prox or own.prox)
        if model in found:
            continue
        try:
            estimator = estimators.build(model)
        except ConfigError as error:
            raise InputError(f"--schemes {text}: {error}") from None
        if scheme not in SCHEMES or model.prox not in (own.prox, *PROXES):
            _check_fits(text, estimator, loaded)
        found[model] = Variant(text, model, estimator)
    return tuple(found.values())


def _check_fits(text: str, estimator: Estimator, loaded: LoadedEstimator) -> None:
    """Raises InputError if `estimator` wants parameters that the run does not have."""
    frames = loaded.info.get("num_frames") or loaded.model.num_planes or 15
    shapes = (jax.ShapeDtypeStruct((1, frames, 64, 64, 3), jnp.float32), jax.ShapeDtypeStruct((1, frames), jnp.float32))
    wanted = flatten_dict(jax.eval_shape(estimator.init, jax.random.key(0), *shapes), sep="/")
    given = flatten_dict(loaded.variables, sep="/")
    missing = [key for key, x in wanted.items() if key not in given or given[key].shape != x.shape]
    if missing:
        raise InputError(
            f"--schemes {text}: needs parameters that {loaded.label} does not have ({', '.join(missing[:3])}); "
            "train it with model.scheme and model.prox of that name"
        )


def sweep(estimator: Estimator, iterations: tuple[int, ...]) -> Estimator:
    """`estimator` run to the last of the K in `iterations` (ascending), its refined stages those after each K.

    One program for all K: the compiler keeps one of the encoders, which are equal.
    """

    def apply(
        variables: Variables, frames: Array, focus: Array, *, train: bool = False, num_iterations: int | None = None
    ) -> tuple[Prediction, Any]:
        last, stats = estimator.apply(variables, frames, focus, num_iterations=iterations[-1])
        if not last.history.refined.shape[1]:
            return last, stats
        before = [estimator.apply(variables, frames, focus, num_iterations=K)[0] for K in iterations[:-1]]
        refined = jnp.concatenate([one.history.refined[:, -1:] for one in (*before, last)], 1)
        return last._replace(history=last.history._replace(refined=refined)), stats

    return Estimator(estimator.init, apply)


# One pass ---------------------------------------------------------------------------------------------


def run_pass(
    variant: Variant,
    estimator: Estimator,
    variables: Variables,
    batches: Iterable[LoadedBatch],
    *,
    unit: str,
    iterations: tuple[int, ...],
    baselines: bool,
    bar: ProgressBar,
) -> Pass:
    """Evaluates `estimator` (a `sweep` of the variant's over `iterations`) on all batches.

    Args:
      bar: counts the stacks.
    """
    parts: list[dict[str, np.ndarray]] = []
    sums: dict[tuple[int, ...], np.ndarray] = {}
    counts: dict[tuple[int, ...], int] = {}

    measured: list[Measured] = []
    settings = variables["params"].get("unroll", {})
    for one, loaded, prediction in evaluated(estimator, variables, batches, unit=unit, baselines=baselines):
        measured.append(one)
        keep = np.array([bool(name) for name in loaded.names]) & np.asarray(loaded.batch.mask).any((1, 2))
        seen = jax.device_get(_watch(variant.model, settings, prediction, loaded.batch.focus))
        parts.append({name: np.asarray(value, np.float64)[keep] for name, value in seen.items()})
        maps = np.asarray(prediction.history.weights, np.float64)[keep]
        if len(maps):
            shape = maps.shape[1:]
            sums[shape] = sums.get(shape, 0.0) + maps.sum(0)
            counts[shape] = counts.get(shape, 0) + len(maps)
        bar.advance(one.count)
    found = gather(measured, unit)
    course = {name: np.concatenate([part[name] for part in parts]).mean(0).tolist() for name in parts[0]}
    commonest = max(counts, key=counts.__getitem__) if counts else None
    mean = None if commonest is None else (sums[commonest] / counts[commonest]).astype(np.float32)
    found = _renamed(found, iterations)
    course["MAE"] = [found.rows[f"D({k})"]["MAE"] for k in range(iterations[-1] + 1)]
    course["change"] = [found.dynamics["step"][f"D({k})"] for k in range(1, iterations[-1] + 1)]
    return Pass(found, course, mean)


@functools.partial(jax.jit, static_argnames="model")
def _watch(model: Proximal, settings: dict, prediction: Prediction, focus: Array) -> dict[str, Array]:
    """How each stack of the batch went, [B] or [B,K] (residual and steps) or [B,K+1] (energy), over all pixels.

    Depths count in shares of the focus range. `data_energy` is the data term's excess over its minimum D(0),
    1/2 S (D(k) - D(0))^2; `residual` the root mean square of D(k) - D(k-1); `data_step` and `prox_step` the mean
    |z - D(k-1)| and |D(k) - z| with z = D(k-1) - eta S (D(k-1) - D(0)), for proximal gradient; S_std is over pixels.
    """
    h = prediction.history
    depth = h.iterates / span(focus)[:, None, None, None]
    S = h.weights.sum(-1)
    away, moved = depth - depth[:, :1], jnp.diff(depth, axis=1)

    def mean(x: Array) -> Array:
        return x.mean((-2, -1))

    found = {
        "S_mean": mean(S), "S_std": S.std((-2, -1)), "weights": h.weights.mean((1, 2)),
        "data_energy": mean(0.5 * S[:, None] * away**2), "residual": jnp.sqrt(mean(moved**2)),
    }  # fmt: skip
    eta = _step_sizes(model, settings, Problem(h.candidates, h.weights), moved.shape[1])
    if eta is not None:
        heard = jnp.broadcast_to(eta * S[:, None], moved.shape)
        pull = heard * away[:, :-1]
        found |= {"step_size": mean(jnp.broadcast_to(eta, moved.shape)), "eta_S": mean(heard)}
        found |= {"data_step": mean(jnp.abs(pull)), "prox_step": mean(jnp.abs(moved + pull))}
    return found


def _step_sizes(model: Proximal, settings: dict, problem: Problem, num_iterations: int) -> Array | None:
    """eta of each iteration, broadcastable to [B,K,H,W]; None for what is not proximal gradient, or predicted."""
    if model.scheme != "proximal_gradient" or model.step_size == "per_pixel" or not num_iterations:
        return None
    if model.step_size == "constant":
        return jnp.minimum(model.step_size_init, 1.9 / problem.S.max((-2, -1), keepdims=True))[:, None]
    own, shared = settings.get("per_iteration", {}), settings.get("shared", {})
    if "step_size" not in own and "step_size" not in shared:
        return None
    raw = resize_stack(own["step_size"], num_iterations) if "step_size" in own else shared["step_size"][None]
    eta = [stable(jax.nn.softplus(one), problem) for one in raw]
    return jnp.stack(jnp.broadcast_arrays(*eta), 1)


def _renamed(found: Evaluation, iterations: tuple[int, ...]) -> Evaluation:
    """The sweep's refined stages called refined(K); its "final", which is the last of them, left out."""
    stages = [name for name in found.rows if re.fullmatch(r"refined(_\d+)?", name)]
    names = dict(zip(stages, (f"refined({k})" for k in iterations), strict=True)) if stages else {}
    notes = [re.sub(r"\brefined(_\d+)?\b", lambda m: names.get(m[0], m[0]), note) for note in found.notes]
    rows = {names.get(name, name): row for name, row in found.rows.items() if name != "final"}
    per_stack = [one | {"row": names.get(one["row"], one["row"])} for one in found.per_stack if one["row"] != "final"]
    return found._replace(
        rows=rows,
        per_stack=tuple(per_stack),
        notes=tuple(note for note in notes if not re.match("(WARNING: )?final[: ]", note)),
    )
