"""Schemes: how one iterate follows from the last. After optax's GradientTransformation, a tuple of pure functions.

Symbols: f(D) = 1/2 sum_i W_i^2 (D - D_i)^2 with grad f = S D - b; R the regularizer; eta the step size, which is
1/rho for the schemes with a penalty rho. eta may be a number or a map [B,H,W] (a diagonal metric, which the proxes
follow). `solve` hands each iteration its parameters, lambda and eta. Each factory takes the prox, which is any function
or a `Prox`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dff_jax.types import Array
from dff_jax.unroll.hyperparameters import StepSize, as_step_size, at_most
from dff_jax.unroll.problem import Problem, data_prox, gradient
from dff_jax.unroll.prox import Memory, PlainProx, Prox, as_prox

Depth = Array  # [B,H,W]
Params = dict[str, Any]
Eta = Array  # a scalar or [B,H,W]


class Scheme(NamedTuple):
    """An iteration. The state is any pytree. A scheme of one's own needs the first two fields, or the first four.

    init(d0 [B,H,W], problem) -> state
    update(params, state, problem, eta) -> state     params: shared ones and this iteration's own, merged;
                                                     problem: with this iteration's lambda, and previous = depth(state)
    depth(state) -> [B,H,W]
    parameters(key, K) -> (shared, per_iteration)    the scheme's own learned parameters, merged with the others
    step_rule(step size given to `solve`) -> StepSize, where a scheme limits or schedules it
    regularizer(depth, problem) -> [B,H,W]           R of the prox, for the energy in the trace; None: there is none
    """

    init: Callable[[Depth, Problem], Any]
    update: Callable[[Params, Any, Problem, Eta], Any]
    depth: Callable[[Any], Depth] = lambda state: state
    parameters: Callable[[Array, int], tuple[Params, Params]] = lambda key, num_iterations: ({}, {})
    step_rule: Callable[[StepSize | float], StepSize] = as_step_size
    regularizer: Callable[[Depth, Problem], Array] | None = None


class State(NamedTuple):
    """What proximal gradient, exact-prox and learned-gradient iterations carry."""

    depth: Depth
    memory: Memory  # of the prox


def _read_depth(state: Any) -> Depth:
    return state.depth


def _start(prox: Prox) -> Callable[[Depth, Problem], State]:
    return lambda d0, problem: State(d0, prox.init(d0, problem))


def proximal_gradient(prox: Prox | PlainProx) -> Scheme:
    """Proximal gradient descent (9, 12):

        z = D(k-1) - eta_k (S D(k-1) - b)
        D(k) = prox_{eta_k lambda R}(z)

    min f + lambda R for a convex R: converges for 0 < eta < 2 / max S, and the energy never rises for
    eta <= 1 / max S (Parikh and Boyd, Proximal Algorithms, 2014, section 4.2).

    A number for the step size is lowered to 1.9 / max S where it is above; a function is taken as it is.

    Args:
      prox: gets params["prox"], and problem.previous = D(k-1).
    """
    prox = as_prox(prox)

    def update(params, state, problem, eta):
        z = state.depth - eta * gradient(problem, state.depth)
        return State(*prox.apply(params.get("prox"), z, problem, eta, state.memory))

    return Scheme(_start(prox), update, _read_depth, step_rule=at_most(1.9), regularizer=prox.regularizer)


class FistaState(NamedTuple):
    """Iterate, extrapolated point and momentum counter."""

    depth: Depth
    ahead: Depth
    t: Array  # [B,1,1]
    memory: Memory


def fista(prox: Prox | PlainProx, restart: bool = False) -> Scheme:
    """FISTA, accelerated proximal gradient (Beck and Teboulle 2009, eqs. 4.1-4.3):

        D(k) = prox_{eta lambda R}(Y(k) - eta (S Y(k) - b)),   Y(1) = D(0)
        t(k+1) = (1 + sqrt(1 + 4 t(k)^2)) / 2,   t(1) = 1
        Y(k+1) = D(k) + (t(k) - 1) / t(k+1) (D(k) - D(k-1))

    min f + lambda R for a convex R and 0 < eta <= 1 / max S: E(D(k)) - E* = O(1/k^2), not monotone. `restart` sets
    t = 1 where momentum points uphill, (Y(k) - D(k)) . (D(k) - D(k-1)) > 0, for each stack on its own (O'Donoghue and
    Candes 2015, gradient scheme): linear convergence where E is strongly convex.

    A number for the step size is lowered to 1 / max S where it is above; a function is taken as it is.
    """
    prox = as_prox(prox)

    def init(d0, problem):
        return FistaState(d0, d0, jnp.ones_like(d0[..., :1, :1]), prox.init(d0, problem))

    def update(params, state, problem, eta):
        z = state.ahead - eta * gradient(problem, state.ahead)
        depth, memory = prox.apply(params.get("prox"), z, problem, eta, state.memory)
        moved = depth - state.depth
        t = (1 + jnp.sqrt(1 + 4 * state.t**2)) / 2
        momentum = (state.t - 1) / t
        if restart:
            uphill = ((state.ahead - depth) * moved).sum((-2, -1), keepdims=True) > 0
            t, momentum = jnp.where(uphill, 1.0, t), jnp.where(uphill, 0.0, momentum)
        return FistaState(depth, depth + momentum * moved, t, memory)

    return Scheme(init, update, _read_depth, step_rule=at_most(1.0), regularizer=prox.regularizer)


def exact_prox(prox: Prox | PlainProx) -> Scheme:
    """Alternating proximal maps, the data term by its closed form:

        z = (D(k-1) + eta_k b) / (1 + eta_k S)
        D(k) = prox_{eta_k lambda R}(z)

    Stable for every eta > 0, whatever S. For constant eta and convex R it converges to the minimiser of R plus the
    Moreau envelope of f, f(D) smoothed by eta, which is E's own only as eta -> 0: the price of not splitting into
    gradient and prox (Combettes and Pesquet 2011, section 10.6). With eta falling over k it is `hqs`.
    """
    prox = as_prox(prox)

    def update(params, state, problem, eta):
        z = data_prox(problem, state.depth, eta)
        return State(*prox.apply(params.get("prox"), z, problem, eta, state.memory))

    return Scheme(_start(prox), update, _read_depth, regularizer=prox.regularizer)


def hqs(prox: Prox | PlainProx, growth: float | Callable[[Array], Array] = 1.2) -> Scheme:
    """Half-quadratic splitting (Geman and Yang 1995): min f(Z) + lambda R(D) + mu/2 |D - Z|^2, mu growing:

        mu_k = growth^k / eta
        Z = (b + mu_k D(k-1)) / (S + mu_k)
        D(k) = prox_{(lambda / mu_k) R}(Z)

    This is `exact_prox` with a schedule for eta. For convex R the iterates reach the minimiser of E when mu_k grows to
    infinity while sum_k 1/mu_k diverges (`growth=lambda k: 1 + a k`); a geometric growth, as in plug-and-play practice,
    stops a little short of it.

    Args:
      growth: a factor per iteration, or mu_k / mu_0 as a function of k = 0, 1, ...
    """
    schedule = growth if callable(growth) else lambda k: jnp.float32(growth) ** k

    def falling(step_size: StepSize | float) -> StepSize:
        step = as_step_size(step_size)
        return lambda params, problem, k: step(params, problem, k) / schedule(k)

    return exact_prox(prox)._replace(step_rule=falling)


class AdmmState(NamedTuple):
    """Split variable (the depth), and the scaled multiplier."""

    depth: Depth
    multiplier: Depth
    memory: Memory


def admm(prox: Prox | PlainProx) -> Scheme:
    """ADMM in scaled form (Boyd et al. 2011, section 3.1.1), rho = 1 / eta:

        X = (b + rho (D(k-1) - U)) / (S + rho)
        D(k) = prox_{(lambda / rho) R}(X + U)
        U <- U + X - D(k)

    min f + lambda R for a convex R: converges for every constant rho > 0. A learned prox makes it plug-and-play ADMM.
    """
    prox = as_prox(prox)

    def init(d0, problem):
        return AdmmState(d0, jnp.zeros_like(d0), prox.init(d0, problem))

    def update(params, state, problem, eta):
        z = data_prox(problem, state.depth - state.multiplier, eta) + state.multiplier
        depth, memory = prox.apply(params.get("prox"), z, problem, eta, state.memory)
        return AdmmState(depth, z - depth, memory)

    return Scheme(init, update, _read_depth, regularizer=prox.regularizer)


class PrimalDualState(NamedTuple):
    """Iterate, extrapolated point, dual variable."""

    depth: Depth
    ahead: Depth
    dual: Any  # p, any pytree


def chambolle_pock(prox: Prox | PlainProx) -> Scheme:
    """The primal-dual algorithm of Chambolle and Pock (2011, algorithm 1), for lambda R(D) = max_p <p, A D> - G*(p):

        p <- prox_{sigma G*}(p + sigma A Y(k))
        D(k) = (D(k-1) - eta A^T p + eta b) / (1 + eta S)
        Y(k+1) = 2 D(k) - D(k-1),   Y(1) = D(0)

    sigma = 1 / (|A|^2 max eta), so that eta sigma |A|^2 <= 1: converges for every constant eta > 0 and convex R,
    without solving for the prox of R at all.

    Args:
      prox: one that knows its dual form (`tv`, `tikhonov`).

    Raises:
      ValueError: the prox has no dual form.
    """
    if not isinstance(prox, Prox) or prox.dual is None:
        raise ValueError("chambolle_pock: this prox has no dual form; use tv or tikhonov, or another scheme")
    dual = prox.dual

    def init(d0, problem):
        return PrimalDualState(d0, d0, jax.tree.map(jnp.zeros_like, dual.operator(d0)))

    def update(params, state, problem, eta):
        sigma = 1 / (dual.norm_squared * jnp.max(eta))
        ascent = jax.tree.map(lambda p, slope: p + sigma * slope, state.dual, dual.operator(state.ahead))
        p = dual.prox(ascent, sigma, problem)
        depth = data_prox(problem, state.depth - eta * dual.adjoint(p), eta)
        return PrimalDualState(depth, 2 * depth - state.depth, p)

    return Scheme(init, update, _read_depth, regularizer=prox.regularizer)


def learned_gradient(direction: Prox | PlainProx) -> Scheme:
    """Gradient descent whose direction is learned (as RAFT's updates, Teed and Deng 2020; no prox):

        D(k) = D(k-1) - eta_k u_k,   u_k, h_k = direction(S D(k-1) - b, h_{k-1})

    The memory h is the direction's own (`Prox.init`): a recurrent network carries its hidden state there. The identity
    makes it plain gradient descent on f, stable for 0 < eta < 2 / max S; with a learned direction nothing is promised.

    Args:
      direction: called like a prox, with the gradient in the place of z.
    """
    direction = as_prox(direction)

    def update(params, state, problem, eta):
        slope = gradient(problem, state.depth)
        u, memory = direction.apply(params.get("prox"), slope, problem, eta, state.memory)
        return State(state.depth - eta * u, memory)

    return Scheme(_start(direction), update, _read_depth)


SCHEMES: dict[str, Callable[[Prox | PlainProx], Scheme]] = {
    "proximal_gradient": proximal_gradient,
    "fista": fista,
    "hqs": hqs,
    "admm": admm,
    "chambolle_pock": chambolle_pock,
    "exact_prox": exact_prox,
    "learned_gradient": learned_gradient,
}
"""The schemes by name, for configurations: each is called as factory(prox)."""
