"""Every scheme against minimisers known otherwise, its own equations written out in numpy, and the identities of
method.md section 7 (tests 1, 3, 4, 5, 8)."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import spsolve
from unroll_cases import SCHEMES, conv_params, convolve, laplacian, make_problem

from dff_jax import unroll
from dff_jax.unroll import (
    Prox,
    admm,
    chambolle_pock,
    data_energy,
    energies,
    energy,
    exact_prox,
    fista,
    hqs,
    identity,
    initial_depth,
    learned_gradient,
    learned_step,
    proximal_gradient,
    raw_step,
    repeat_shared,
    solve,
    step_from,
    tikhonov,
    tv,
)

LAMBDA = 0.4
SHAPE = (1, 9, 11)


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def smooth_problem():
    return make_problem(jax.random.key(3), shape=SHAPE, dtype=jnp.float64, regularization=LAMBDA)


def tikhonov_minimiser(problem, S=None):
    """(S + lambda L) D = b by a sparse direct solve."""
    height, width = problem.S.shape[-2:]
    S_own = np.asarray(problem.S).ravel()
    S = S_own if S is None else S
    target = S * np.asarray(problem.b).ravel() / S_own
    return spsolve((sp.diags(S) + LAMBDA * laplacian(height, width)).tocsc(), target).reshape(1, height, width)


def tv_minimiser(problem, steps=20000):
    """Chambolle and Pock's algorithm once more, in numpy and with sparse matrices."""
    height, width = problem.S.shape[-2:]
    S, b = (np.asarray(x).ravel() for x in (problem.S, problem.b))

    def line(n):
        return sp.diags([np.r_[-np.ones(n - 1), 0.0], np.ones(n - 1)], [0, 1])

    down, right = sp.kron(line(height), sp.eye(width)).tocsr(), sp.kron(sp.eye(height), line(width)).tocsr()
    grad = sp.vstack([down, right]).tocsr()
    div = grad.T.tocsr()
    x, ahead, p = b / S, b / S, np.zeros(2 * S.size)
    tau, sigma = 0.3, 1 / (8 * 0.3)
    for _ in range(steps):
        p = p + sigma * (grad @ ahead)
        size = np.maximum(1.0, np.hypot(p[: S.size], p[S.size :]) / LAMBDA)
        p = p / np.r_[size, size]
        new = (x - tau * (div @ p) + tau * b) / (1 + tau * S)
        ahead, x = 2 * new - x, new
    return x.reshape(1, height, width)


@pytest.fixture(scope="module")
def minimisers():
    with jax.enable_x64(True):
        problem = smooth_problem()
        return {"tikhonov": tikhonov_minimiser(problem), "tv": tv_minimiser(problem)}


PROXES = {"tikhonov": tikhonov, "tv": lambda: tv(iterations=60)}
CONVERGENT = {
    "proximal_gradient": (proximal_gradient, 300),
    "fista": (fista, 800),
    "fista_restart": (SCHEMES["fista_restart"], 200),
    "admm": (admm, 300),
    "chambolle_pock": (chambolle_pock, 1500),
    "hqs": (lambda prox: hqs(prox, growth=lambda k: 1 + 0.1 * k), 40000),
}


@pytest.mark.parametrize("regularizer", PROXES)
@pytest.mark.parametrize("name", CONVERGENT)
def test_convergent_schemes_reach_one_minimiser(name, regularizer, minimisers):
    problem, best = smooth_problem(), minimisers[regularizer]
    make, steps = CONVERGENT[name]
    prox = PROXES[regularizer]() if regularizer == "tikhonov" or name != "hqs" else tv(iterations=8)
    eta = 1 / float(problem.S.max())
    run = jax.jit(lambda d0: solve(make(prox), problem, d0, step_size=eta, num_iterations=steps, unroll=1)[0])
    depth = run(jnp.zeros(SHAPE))
    assert np.abs(depth - best).max() < 1e-4 * np.abs(best).max()
    # and it is a minimiser: the energy rises in every direction tried
    E = float(energy(problem, jnp.asarray(best), prox.regularizer)[0])
    for i in range(3):
        moved = best + 0.05 * np.random.default_rng(i).normal(size=best.shape)
        assert float(energy(problem, jnp.asarray(moved), prox.regularizer)[0]) > E


@pytest.mark.parametrize("regularizer", PROXES)
def test_energy_never_rises_and_keeps_the_known_rates(regularizer, minimisers):
    problem, best = smooth_problem(), jnp.asarray(minimisers[regularizer])
    L = float(problem.S.max())
    prox = PROXES[regularizer]()
    least = energy(problem, best, prox.regularizer)[0]
    start = jnp.full(SHAPE, 3.0)
    distance = jnp.sum((start - best) ** 2)
    k = jnp.arange(1, 61)
    run = lambda factory: solve(  # noqa: E731
        factory(prox), problem, start, step_size=1 / L, num_iterations=60, unroll=1, return_history="trace"
    )[1]
    trace = run(proximal_gradient)
    E = energies(trace)[:, 0]
    assert jnp.diff(E).max() <= 1e-9
    assert (E[1:] - least <= L * distance / (2 * k) + 1e-9).all()
    assert (energies(run(fista))[1:, 0] - least <= 2 * L * distance / (k + 1) ** 2 + 1e-9).all()


@pytest.mark.parametrize("eta", [0.3, 50.0])
def test_exact_prox_minimises_the_moreau_envelope(eta):
    """Its data term is S / (1 + eta S), by hand; stable however large eta is."""
    problem = smooth_problem()
    S = np.asarray(problem.S).ravel()
    best = tikhonov_minimiser(problem, S / (1 + eta * S))
    depth, _ = solve(exact_prox(tikhonov()), problem, jnp.zeros(SHAPE), step_size=eta, num_iterations=4000, unroll=1)
    np.testing.assert_allclose(depth, best, rtol=1e-6, atol=1e-6)
    once, _ = solve(exact_prox(identity), problem, jnp.ones(SHAPE), step_size=eta, num_iterations=1)
    np.testing.assert_allclose(once, (1 + eta * problem.b) / (1 + eta * problem.S), rtol=1e-12)


def test_softmax_weights_need_one_exact_prox_only():
    """method.md 3.4: with S = 1 the prox of lambda R at D(0) is the answer, and proximal gradient with eta = 1."""
    problem = make_problem(jax.random.key(1), weights="softmax", shape=SHAPE, dtype=jnp.float64, regularization=LAMBDA)
    once = tikhonov()(None, initial_depth(problem), problem, 1.0)
    np.testing.assert_allclose(once, tikhonov_minimiser(problem), atol=1e-9)
    depth, _ = solve(proximal_gradient(tikhonov()), problem, jnp.zeros(SHAPE), step_size=1.0, num_iterations=1)
    np.testing.assert_allclose(depth, once, atol=1e-12)


# The schemes' own equations, once more in numpy; the prox of Tikhonov by a sparse solve ---------------------------


def by_hand(name, problem, eta, steps):
    """D(1)..D(steps) from D(0) = 0."""
    S, b = np.asarray(problem.S).ravel(), np.asarray(problem.b).ravel()
    L = laplacian(*problem.S.shape[-2:])

    def prox(z, t):
        return spsolve((sp.eye(S.size) + t * LAMBDA * L).tocsc(), z)

    d = np.zeros(S.size)
    y, t, u, out = d, 1.0, np.zeros(S.size), []
    for k in range(steps):
        old = d
        if name == "proximal_gradient":
            d = prox(d - eta * (S * d - b), eta)
        elif name == "learned_gradient":
            d = d - eta * prox(S * d - b, eta)
        elif name == "fista":
            d = prox(y - eta * (S * y - b), eta)
            new = (1 + np.sqrt(1 + 4 * t**2)) / 2
            y, t = d + (t - 1) / new * (d - old), new
        elif name == "hqs":
            mu = 1.2**k / eta
            d = prox((b + mu * d) / (S + mu), 1 / mu)
        elif name == "admm":
            rho = 1 / eta
            x = (b + rho * (d - u)) / (S + rho)
            d = prox(x + u, 1 / rho)
            u = u + x - d
        elif name == "exact_prox":
            d = prox((d + eta * b) / (1 + eta * S), eta)
        out.append(d)
    return np.array(out).reshape(steps, *problem.S.shape)


@pytest.mark.parametrize("name", ["proximal_gradient", "fista", "hqs", "admm", "exact_prox", "learned_gradient"])
def test_iterates_equal_the_equations_by_hand(name):
    problem = smooth_problem()
    scheme = unroll.SCHEMES[name](tikhonov())
    _, history = solve(scheme, problem, jnp.zeros(SHAPE), step_size=0.2, num_iterations=5, return_history=True)
    np.testing.assert_allclose(history, by_hand(name, problem, 0.2, 5), atol=1e-8)


def test_chambolle_pock_equals_its_equations_by_hand():
    problem, eta = smooth_problem(), 0.3
    S, b = np.asarray(problem.S[0]), np.asarray(problem.b[0])
    sigma = 1 / (8 * eta)
    d = np.zeros_like(S)
    ahead, p = d, np.zeros((2, *S.shape))
    expected = []
    for _ in range(6):
        slope = np.zeros_like(p)
        slope[0, :-1], slope[1, :, :-1] = np.diff(ahead, axis=0), np.diff(ahead, axis=1)
        p = p + sigma * slope
        p = p / np.maximum(1, np.sqrt((p**2).sum(0)) / LAMBDA)
        back = np.zeros_like(S)
        back[:-1] -= p[0, :-1]
        back[1:] += p[0, :-1]
        back[:, :-1] -= p[1, :, :-1]
        back[:, 1:] += p[1, :, :-1]
        new = (d - eta * back + eta * b) / (1 + eta * S)
        ahead, d = 2 * new - d, new
        expected.append(d)
    _, history = solve(
        chambolle_pock(tv()), problem, jnp.zeros(SHAPE), step_size=eta, num_iterations=6, return_history=True
    )
    np.testing.assert_allclose(history[:, 0], expected, atol=1e-10)


def test_restart_forgets_momentum_where_it_points_uphill():
    problem = make_problem(jax.random.key(3), shape=(2, 9, 11), dtype=jnp.float64, regularization=LAMBDA)
    eta, start = 0.1 / float(problem.S.max()), jnp.full((2, 9, 11), 3.0)
    run = lambda **options: energies(  # noqa: E731
        solve(fista(tikhonov(), **options), problem, start, step_size=eta, num_iterations=150, unroll=1,
              return_history="trace")[1]
    )  # fmt: skip
    plain, restarted = run(), run(restart=True)
    assert jnp.diff(plain, axis=0).max() > 1e-6  # momentum overshoots
    least = jnp.minimum(plain.min(0), restarted.min(0))
    assert ((restarted[-1] - least) < 0.1 * (plain[-1] - least) + 1e-12).all()
    # each stack restarts on its own: alone it gives the same
    alone = jax.tree.map(lambda x: x[1:] if jnp.ndim(x) else x, problem)
    _, trace = solve(fista(tikhonov(), restart=True), alone, start[1:], step_size=eta, num_iterations=150, unroll=1,
                     return_history="trace")  # fmt: skip
    np.testing.assert_allclose(energies(trace)[:, 0], restarted[:, 1], rtol=1e-10)


def test_hqs_grows_its_penalty_and_tells_so():
    problem = smooth_problem()
    _, trace = solve(hqs(identity, growth=2.0), problem, jnp.zeros(SHAPE), step_size=0.5, num_iterations=4,
                     return_history="trace")  # fmt: skip
    np.testing.assert_allclose(trace.step_size[:, 0], [0.5, 0.25, 0.125, 0.0625])


def test_chambolle_pock_wants_a_dual_form():
    for prox in (identity, convolve):
        with pytest.raises(ValueError, match="dual form; use tv or tikhonov"):
            chambolle_pock(prox)


def test_learned_gradient_carries_its_memory_and_is_gradient_descent_without():
    problem = smooth_problem()
    depth, _ = solve(learned_gradient(identity), problem, jnp.zeros(SHAPE), step_size=0.2, num_iterations=7)
    other, _ = solve(proximal_gradient(identity), problem, jnp.zeros(SHAPE), step_size=0.2, num_iterations=7)
    np.testing.assert_allclose(depth, other, atol=1e-12)
    counting = Prox(
        lambda params, g, problem, eta, n: (jnp.full_like(g, -1.0) * n, n + 1), init=lambda d0, problem: 1.0
    )
    depth, _ = solve(learned_gradient(counting), problem, jnp.zeros(SHAPE), step_size=1.0, num_iterations=4)
    np.testing.assert_allclose(depth, 1 + 2 + 3 + 4)


def test_memory_of_a_prox_is_carried_from_step_to_step():
    """Two dual iterations a step are far from the prox of TV; carried on, they get there all the same."""
    problem = smooth_problem()
    best = tv_minimiser(problem)
    error = {}
    for warm in (True, False):
        scheme, eta = proximal_gradient(tv(iterations=2, warm_start=warm)), 1 / float(problem.S.max())
        depth, _ = solve(scheme, problem, jnp.zeros(SHAPE), step_size=eta, num_iterations=400, unroll=1)
        error[warm] = np.abs(depth - best).max()
    assert error[True] < 1e-3 < 0.03 < error[False]


# What holds for every scheme --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
def test_identities_of_every_scheme(name, key):
    problem, params = make_problem(key, dtype=jnp.float64), conv_params(key, jnp.float64)
    scheme, d0 = SCHEMES[name](convolve), initial_depth(problem)
    shared = {"prox": params}
    run = lambda K, problem=problem, **kwargs: solve(  # noqa: E731
        scheme, problem, d0, step_size=0.3, num_iterations=K, return_history=True, **({"shared": shared} | kwargs)
    )
    # K = 0 is D(0), bit for bit
    np.testing.assert_array_equal(run(0)[0], d0)
    # the scan is a Python loop, rolled or not
    state, iterates = scheme.init(d0, problem), []
    for k in range(4):
        eta = scheme.step_rule(0.3)(shared, problem, jnp.int32(k))
        state = scheme.update(shared, state, problem._replace(previous=scheme.depth(state)), eta)
        iterates.append(scheme.depth(state))
    for options in ({"unroll": 1}, {"unroll": True}, {"gradient": "remat"}):
        np.testing.assert_allclose(run(4, **options)[1], jnp.stack(iterates), atol=1e-12)
    # three iterations are a prefix of five
    np.testing.assert_allclose(run(3)[1], run(5)[1][:3], atol=1e-12)
    # untied with copied weights is tied
    untied = run(4, shared=None, per_iteration={"prox": repeat_shared(params, 4)})
    np.testing.assert_allclose(untied[1], jnp.stack(iterates), atol=1e-12)
    # the order of the candidates does not matter
    turned = problem._replace(candidates=problem.candidates[..., ::-1], weights=problem.weights[..., ::-1])
    np.testing.assert_allclose(run(4, problem=turned)[1], jnp.stack(iterates), atol=1e-12)
    # without a prox the data term's minimum is a fixed point
    if name not in ("chambolle_pock",):
        still, _ = solve(SCHEMES[name](identity), problem, d0, step_size=0.3, num_iterations=3)
        np.testing.assert_allclose(still, d0, atol=1e-12)


class UpdateTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_two_updates_by_hand_are_two_iterations_of_solve(self):
        """`update` is a pure function, compiled or not; `solve` gives it params, lambda, D(k-1) and eta."""
        problem = make_problem(jax.random.key(0), dtype=jnp.float64)
        params = {"prox": conv_params(jax.random.key(1), jnp.float64)}
        d0 = jnp.zeros((2, 5, 6))
        for name, factory in SCHEMES.items():
            scheme = factory(convolve)
            update, state, iterates = self.variant(scheme.update), scheme.init(d0, problem), []
            for k, raw in enumerate((-1.0, -2.0)):
                eta = scheme.step_rule(0.2)(params, problem, jnp.int32(k))
                given = problem._replace(regularization=jax.nn.softplus(raw), previous=scheme.depth(state))
                state = update(params, state, given, eta)
                iterates.append(scheme.depth(state))
            own = {"regularization": jnp.array([-1.0, -2.0])}
            _, history = solve(scheme, problem, d0, step_size=0.2, shared=params, per_iteration=own, num_iterations=2,
                               return_history=True)  # fmt: skip
            chex.assert_trees_all_close(history, jnp.stack(iterates), atol=1e-12, custom_message=name)


@pytest.mark.parametrize("name", ["proximal_gradient", "fista", "admm", "exact_prox", "learned_gradient"])
def test_identity_prox_reaches_the_data_terms_minimum(name, key):
    problem = make_problem(key, dtype=jnp.float64)
    scheme, eta = SCHEMES[name](identity), 1 / float(problem.S.max())
    depth, _ = solve(scheme, problem, jnp.zeros((2, 5, 6)), step_size=eta, num_iterations=600, unroll=1)
    np.testing.assert_allclose(depth, problem.b / problem.S, atol=1e-6)


# Hyper-parameters -------------------------------------------------------------------------------------------------


def test_learned_hyperparameters_are_used_where_they_lie(key):
    problem = make_problem(key, dtype=jnp.float64)
    d0 = jnp.zeros((2, 5, 6))
    raw = jnp.array([-2.0, -1.0, 0.0])
    run = partial(solve, proximal_gradient(tikhonov()), problem, d0, step_size=learned_step, num_iterations=3)
    own = {"step_size": raw, "regularization": raw - 1}
    # eta is a map as soon as it is learned (kept below 1/S), so Tikhonov's prox is solved in that metric
    _, trace = run(per_iteration=own, return_history="trace")
    eta = [jax.nn.softplus(r) / (1 + jax.nn.softplus(r) * problem.S) for r in raw]
    np.testing.assert_allclose(trace.step_size, jnp.stack([e.mean((1, 2)) for e in eta]), rtol=1e-9)
    np.testing.assert_allclose(trace.data_share, jnp.stack([(e * problem.S).mean((1, 2)) for e in eta]), rtol=1e-9)
    expected = d0
    for e, r in zip(eta, raw, strict=True):
        weighted = problem._replace(regularization=jax.nn.softplus(r - 1))
        expected = tikhonov()(None, expected - e * (problem.S * expected - problem.b), weighted, e)
    np.testing.assert_allclose(trace.depth[-1], expected, atol=1e-8)
    np.testing.assert_allclose(
        trace.prior_energy[-1], jax.nn.softplus(raw[-1] - 1) * tikhonov().regularizer(expected, problem).sum((1, 2)),
        rtol=1e-6,
    )  # fmt: skip
    # learned once: the same numbers as three equal ones
    once, _ = run(shared={"step_size": raw[0]})
    thrice, _ = run(per_iteration={"step_size": jnp.full(3, raw[0])})
    np.testing.assert_allclose(once, thrice, atol=1e-12)


def test_steps_predicted_pixel_by_pixel_are_kept_stable(key):
    problem = make_problem(key, dtype=jnp.float64)
    raw = 4 * jax.random.normal(key, (2, 5, 6), jnp.float64)
    problem = problem._replace(context={"step": raw})
    run = partial(solve, proximal_gradient(identity), d0=jnp.zeros((2, 5, 6)), num_iterations=1)
    depth, _ = run(problem, step_size=step_from(lambda problem: problem.context["step"]))
    u = jax.nn.softplus(raw)
    assert (u > 2 / problem.S).any()
    # from 0, the exact prox of u times the data term
    np.testing.assert_allclose(depth, u * problem.b / (1 + u * problem.S), atol=1e-12)
    assert raw_step(0.25) == pytest.approx(np.log(np.expm1(1 / 3)))
    equal = problem._replace(weights=problem.weights * 0 + 1 / 3)
    learned, _ = run(equal, step_size=learned_step, shared={"step_size": raw_step(0.25)})
    np.testing.assert_allclose(learned, 0.25 * problem.candidates.mean(-1), atol=1e-9)


# Trace, tolerance and warm starts ---------------------------------------------------------------------------------


def test_trace_tells_energies_residuals_and_disagreement():
    problem = smooth_problem()
    depth, trace = solve(proximal_gradient(tikhonov()), problem, jnp.ones(SHAPE), step_size=0.1, num_iterations=6,
                         return_history="trace")  # fmt: skip
    assert trace.depth.shape == (7, *SHAPE) and trace.num_steps == 6 and trace.contraction is None
    np.testing.assert_array_equal(trace.depth[0], jnp.ones(SHAPE))
    np.testing.assert_array_equal(trace.depth[-1], depth)
    for k in range(7):
        np.testing.assert_allclose(trace.data_energy[k], data_energy(problem, trace.depth[k]))
        np.testing.assert_allclose(energies(trace)[k], energy(problem, trace.depth[k], tikhonov().regularizer))
    moves = trace.depth[1:] - trace.depth[:-1]
    np.testing.assert_allclose(trace.residual, jnp.sqrt((moves**2).mean((2, 3))))
    np.testing.assert_allclose(trace.step_size, 0.1)
    np.testing.assert_allclose(trace.disagreement, unroll.disagreement(problem))
    _, trace = solve(proximal_gradient(convolve), problem, jnp.ones(SHAPE), num_iterations=0,
                     shared={"prox": conv_params(jax.random.key(0), jnp.float64)}, return_history="trace")  # fmt: skip
    assert trace.prior_energy is None and trace.residual.shape == (0, 1) and trace.step_size.shape == (0, 1)


@pytest.mark.parametrize("name", ["proximal_gradient", "fista_restart", "admm", "chambolle_pock"])
def test_a_tolerance_stops_early_and_reports_the_steps(name):
    problem = smooth_problem()
    run = partial(solve, SCHEMES[name](tikhonov()), problem, step_size=0.2)
    stop = partial(run, tolerance=1e-6, return_history="trace")
    depth, trace = jax.jit(lambda: stop(jnp.zeros(SHAPE), num_iterations=500))()
    n = int(trace.num_steps)
    assert 5 < n < 500
    fixed, history = run(jnp.zeros(SHAPE), num_iterations=n, unroll=1, return_history=True)
    np.testing.assert_allclose(depth, fixed, atol=1e-12)
    np.testing.assert_allclose(trace.depth[1 : n + 1], history, atol=1e-12)
    np.testing.assert_array_equal(trace.depth[n:], jnp.broadcast_to(depth, (501 - n, *SHAPE)))
    moves = jnp.abs(history[1:] - history[:-1]).max((1, 2, 3))
    assert moves[-1] <= 1e-6 < moves[-2]
    np.testing.assert_allclose(depth, tikhonov_minimiser(problem), atol=1e-4)
    # started where the last run ended, there is nothing left to do
    if name == "proximal_gradient":
        _, again = stop(depth, num_iterations=500)
        assert again.num_steps == 1
    # and never more than K
    _, short = stop(jnp.zeros(SHAPE), num_iterations=3)
    assert short.num_steps == 3


@pytest.mark.parametrize("factory, limit", [(proximal_gradient, 1.9), (fista, 1.0)])
def test_a_number_for_the_step_size_is_lowered_where_it_would_diverge(factory, limit, key):
    """S = 9 in one stack, 1 in the other: eta = 1 is kept in the second alone, and both converge to D(0)."""
    weights = jnp.stack([jnp.full((4, 5, 3), 3.0), jnp.full((4, 5, 3), 1 / 3)])
    problem = unroll.Problem(jax.random.uniform(key, (2, 4, 5, 3)), weights, 0.1)
    want = initial_depth(problem)
    depth, trace = solve(factory(identity), problem, want + 1, step_size=1.0, num_iterations=200,
                         return_history="trace")  # fmt: skip
    np.testing.assert_allclose(trace.step_size[0], [limit / 9, 1.0], rtol=1e-5)
    np.testing.assert_allclose(depth, want, atol=1e-5)
