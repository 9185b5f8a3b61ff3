"""Closed-form proxes against direct solves, an independent solver, known answers and finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sparse
from jax.test_util import check_grads
from scipy.sparse.linalg import factorized, spsolve

from dff_jax.unroll.guided_filter import filter_guided, guided_filter
from dff_jax.unroll.prior import align_prior, pull_to_prior
from dff_jax.unroll.problem import Problem, energy, prior_energy
from dff_jax.unroll.schemes import chambolle_pock, proximal_gradient
from dff_jax.unroll.solve import solve
from dff_jax.unroll.tikhonov import tikhonov
from dff_jax.unroll.total_variation import edge_tv, tv

H, W = 9, 11
B = 2

call = jax.jit(lambda prox, z, problem, eta: prox(None, z, problem, eta), static_argnums=0)
filter_all = jax.jit(filter_guided, static_argnums=2)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def problem_of(shape, regularization, context=None, candidates=None, weights=None):
    """The context serves as the guide, too."""
    ones = jnp.ones((*shape, 1))
    return Problem(
        ones if candidates is None else candidates, ones if weights is None else weights, regularization, context,
        context,
    )  # fmt: skip


def steps(rng, shape=(B, H, W), noise=0.1):
    """Two levels and noise."""
    z = noise * rng.normal(size=shape)
    z[..., shape[-1] // 2 :] += 1
    return jnp.asarray(z)


def differences(height=H, width=W):
    """Forward differences down and right as sparse matrices over the flattened picture, written on their own."""

    def line(n):
        d = sparse.diags([-np.ones(n), np.ones(n - 1)], [0, 1]).tolil()
        d[n - 1] = 0
        return d

    return sparse.kron(line(height), sparse.eye(width)).tocsc(), sparse.kron(sparse.eye(height), line(width)).tocsc()


def settings(rng, kind):
    """(eta, lambda), as numbers, one per stack, or maps."""
    if kind == "numbers":
        return 0.7, 0.4
    if kind == "per stack":
        return jnp.asarray([0.5, 2.0]).reshape(B, 1, 1), 0.4
    if kind == "eta map":
        return jnp.asarray(rng.uniform(0.05, 3, (B, H, W))), 0.4
    return jnp.asarray(rng.uniform(0.05, 3, (B, H, W))), jnp.asarray(rng.uniform(0, 0.5, (B, H, W)))


KINDS = ["numbers", "per stack", "eta map", "both maps"]


@pytest.mark.parametrize("kind", KINDS)
def test_tikhonov_is_the_direct_solve(double, rng, kind):
    z, (eta, lam) = steps(rng), settings(rng, kind)
    depth = call(tikhonov(tolerance=1e-13), z, problem_of((B, H, W), lam), eta)
    down, right = differences()
    for i in range(B):
        eta_i, lam_i = (np.broadcast_to(x, z.shape)[i].ravel() for x in (eta, lam))
        weight = sparse.diags(lam_i)
        system = sparse.diags(1 / eta_i) + down.T @ weight @ down + right.T @ weight @ right
        direct = spsolve(system.tocsc(), np.ravel(z[i]) / eta_i)
        np.testing.assert_allclose(depth[i].ravel(), direct, atol=1e-10)


def test_tikhonov_in_single_precision(rng):
    z = steps(rng).astype(jnp.float32)
    maps = jnp.full(z.shape, 20.0)
    problem = problem_of(z.shape, 1.0)
    by_cosines = call(tikhonov(), z, problem, 20.0)
    np.testing.assert_allclose(call(tikhonov(), z, problem, maps), by_cosines, atol=2e-5)


def tv_reference(z, eta, lam, iterations=2000, rho=10.0):
    """min 1/2 sum (D - z)^2 / eta + sum lam |grad D| for one stack, by ADMM on y = grad D with a direct solver."""
    down, right = differences(*z.shape)
    A = sparse.vstack([down, right]).tocsc()
    eta, lam = (np.broadcast_to(x, z.shape).ravel() for x in (eta, lam))
    solve_d = factorized((sparse.diags(1 / eta) + rho * A.T @ A).tocsc())
    y = u = np.zeros(2 * z.size)
    for _ in range(iterations):
        d = solve_d(np.ravel(z) / eta + rho * A.T @ (y - u))
        v = (A @ d + u).reshape(2, -1)
        norm = np.maximum(np.hypot(*v), 1e-300)
        y = (v * np.maximum(1 - lam / rho / norm, 0)).ravel()
        u = v.ravel() - y
    return d.reshape(z.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_total_variation_is_the_minimum_another_solver_finds(double, rng, kind):
    z, (eta, lam) = steps(rng), settings(rng, kind)
    weight = jnp.asarray(rng.uniform(0.2, 1, (B, H, W)))
    problem = problem_of(z.shape, lam)
    prox = tv(10000, weight=lambda problem: weight)
    depth, p = jax.jit(lambda z: prox.apply(None, z, problem, eta, prox.init(z, problem)))(z)
    for i in range(B):
        eta_i, lam_i = (np.broadcast_to(x, z.shape)[i] for x in (eta, lam))
        np.testing.assert_allclose(depth[i], tv_reference(np.asarray(z[i]), eta_i, lam_i * weight[i]), atol=1e-6)
    # and its own certificate: the dual variable is feasible and leaves no gap
    assert (jnp.hypot(*p) <= lam * weight * (1 + 1e-12)).all()
    primal = 0.5 * ((depth - z) ** 2 / eta).sum() + prior_energy(problem, depth, prox.regularizer).sum()
    dual = 0.5 * (z**2 / eta).sum() - 0.5 * (depth**2 / eta).sum()
    assert 0 <= primal - dual < 1e-7 * primal


def test_total_variation_moves_a_step_by_the_known_amount(double):
    """Flat along the rows: a plateau of n columns beside one edge moves by eta lambda g / n, g of the edge's start."""
    z = jnp.zeros((1, 6, 12)).at[:, :, 4:].set(1.0)
    half = jnp.ones(z.shape).at[:, :, 3].set(0.5)
    for weight, g in [(None, 1.0), (lambda problem: half, 0.5)]:
        depth = call(tv(3000, weight=weight), z, problem_of(z.shape, 0.6), 0.5)
        np.testing.assert_allclose(depth[..., :4], 0.3 * g / 4, atol=1e-8)
        np.testing.assert_allclose(depth[..., 4:], 1 - 0.3 * g / 8, atol=1e-8)
    # large lambda: all becomes the mean
    np.testing.assert_allclose(call(tv(3000), z, problem_of(z.shape, 50.0), 1.0), z.mean(), atol=1e-8)


def test_the_regularizers_value():
    """A ramp of 3 down and 4 right has slope 5, but 4 in the last row, 3 in the last column, 0 in the corner."""
    ramp = 3.0 * jnp.arange(H)[:, None] + 4.0 * jnp.arange(W)[None, :]
    slope = np.full((H, W), 5.0)
    slope[-1], slope[:, -1], slope[-1, -1] = 4, 3, 0
    problem = problem_of((H, W), 0.1, jnp.zeros((H, W)))
    np.testing.assert_allclose(tv().regularizer(ramp, problem), slope, rtol=1e-6)
    np.testing.assert_allclose(edge_tv().regularizer(ramp, problem), slope, rtol=1e-6)
    np.testing.assert_allclose(tikhonov().regularizer(ramp, problem), slope**2 / 2, rtol=1e-6)
    slope_at_flat = jax.grad(lambda d: tv().regularizer(d, problem).sum())(jnp.ones((H, W)))
    np.testing.assert_array_equal(slope_at_flat, 0)


@pytest.mark.parametrize("colour", [False, True])
def test_edge_weights_stop_the_smoothing_at_the_guides_edge(double, colour):
    z = jnp.zeros((1, 6, 12)).at[:, :, 4:].set(1.0)
    guide = 0.2 * z
    if colour:  # the three channels' steps add up in squares
        guide = jnp.stack([guide / 3, 2 * guide / 3, -2 * guide / 3], -1)
    depth = call(edge_tv(sharpness=5.0, iterations=3000), z, problem_of(z.shape, 0.6, guide), 0.5)
    np.testing.assert_allclose(depth[..., :4], 0.3 * np.exp(-1) / 4, atol=1e-8)  # exp(-5 * 0.2)


def exact_proxes(rng, shape=(B, H, W)):
    guide = jnp.asarray(rng.uniform(size=(*shape, 3)))
    prior, trust = jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.uniform(size=shape))
    return {
        "tikhonov": (tikhonov(tolerance=1e-13), None),
        "tv": (tv(2000), None),
        "edge_tv": (edge_tv(sharpness=1.0, iterations=2000), guide),
        "pull": (pull_to_prior(lambda p: p.context[0], lambda p: p.context[1]), (prior, trust)),
        "aligned": (pull_to_prior(lambda p: p.context[0], align=True), (prior, trust)),
    }


EXACT = ["tikhonov", "tv", "edge_tv", "pull", "aligned"]


@pytest.mark.parametrize("name", EXACT)
def test_prox_minimises_the_energy_it_tells(double, rng, name):
    prox, context = exact_proxes(rng)[name]
    z, (eta, lam) = steps(rng), settings(rng, "both maps")
    problem = problem_of(z.shape, lam, context, candidates=jnp.asarray(rng.normal(size=(*z.shape, 1))))

    @jax.jit
    def objective(depth):
        return 0.5 * ((depth - z) ** 2 / eta).sum() + prior_energy(problem, depth, prox.regularizer).sum()

    depth = call(prox, z, problem, eta)
    least = objective(depth)
    # along the ways a wrong factor of eta, lambda or R would go, and some others
    for way in [z - depth, call(prox, z, problem, 2 * eta) - depth, depth, *rng.normal(size=(4, *z.shape))]:
        for size in (-1e-2, 1e-2):
            assert objective(depth + size * way) > least
    np.testing.assert_array_equal(call(prox, z, problem._replace(regularization=0 * lam), eta), z)
    tiny = call(prox, z, problem, 0 * eta)
    np.testing.assert_allclose(tiny, z, atol=1e-10)


@pytest.mark.parametrize("name", EXACT)
def test_prox_is_firmly_nonexpansive(double, rng, name):
    prox, context = exact_proxes(rng)[name]
    problem = problem_of((B, H, W), 0.3, context)
    for noise in (0.05, 1.0):
        one, other = steps(rng, noise=noise), steps(rng, noise=noise)
        change = call(prox, one, problem, 0.8) - call(prox, other, problem, 0.8)
        assert (change**2).sum() <= (change * (one - other)).sum() * (1 + 1e-9)
    constant = jnp.full((B, H, W), 0.3)
    if name not in ("pull", "aligned"):
        np.testing.assert_allclose(call(prox, constant, problem, 0.8), constant, atol=1e-12)


@pytest.mark.parametrize("name", ["tikhonov", "tv", "edge_tv"])
def test_the_dual_form_belongs_to_the_same_prox(double, rng, name):
    """G(A D) = lambda R(D); Moreau's identity; and the primal-dual scheme on 1/2 |D - z|^2 / eta finds the prox."""
    prox, context = exact_proxes(rng)[name]
    z, lam, eta = steps(rng), jnp.asarray(rng.uniform(0, 0.5, (B, H, W))), 0.7
    problem = problem_of(z.shape, lam, context, z[..., None], jnp.full((*z.shape, 1), 1 / eta))
    p, sigma = jnp.asarray(rng.normal(size=(2, B, H, W))), 0.4
    bound = lam if name != "edge_tv" else lam * jnp.exp(-edge_length(context))
    if name == "tikhonov":
        shrunk = (p / sigma) / (1 + bound[None] / sigma)
    else:
        length = jnp.hypot(*p)[None] / sigma
        shrunk = jnp.maximum(1 - bound[None] / sigma / length, 0) * p / sigma
    np.testing.assert_allclose(jnp.stack(prox.dual.prox(tuple(p), sigma, problem)) + sigma * shrunk, p, atol=1e-12)
    other = jnp.asarray(rng.normal(size=z.shape))
    inner = (jnp.stack(prox.dual.operator(other)) * p).sum(), (other * prox.dual.adjoint(tuple(p))).sum()
    np.testing.assert_allclose(*inner, rtol=1e-12)
    run = partial(solve, chambolle_pock(prox), problem, step_size=0.2, num_iterations=5000, unroll=1)
    found, _ = jax.jit(lambda z: run(z))(z)
    np.testing.assert_allclose(found, call(prox, z, problem, eta), atol=5e-4)


def edge_length(guide):
    """|grad guide| over directions and channels, in numpy."""
    down = np.diff(guide, axis=1, append=guide[:, -1:])
    right = np.diff(guide, axis=2, append=guide[:, :, -1:])
    return np.sqrt((down**2 + right**2).sum(-1))


def test_warm_start_reaches_the_same_limit_with_fewer_iterations(double, rng):
    z = steps(rng)
    problem = problem_of(z.shape, 0.3, None, z[..., None] + 0.1, jnp.full((*z.shape, 1), 0.8))

    @jax.jit
    def both(z):
        def outer(prox):
            return solve(proximal_gradient(prox), problem, z, step_size=1.0, num_iterations=60, unroll=1)[0]

        exact = outer(tv(2000))
        return [jnp.abs(outer(tv(20, warm)) - exact).max() for warm in (True, False)]

    warm, cold = both(z)
    assert warm < 3e-5 and cold > 1e-2
    assert tv(5, False).init(z, problem) == () and [x.shape for x in tv(5).init(z, problem)] == [(B, H, W)] * 2


@pytest.mark.parametrize("name", ["tikhonov", "tikhonov maps", "tv", "tv maps", "edge_tv", "guided_filter", "aligned"])
def test_gradients_match_finite_differences(double, rng, name):
    z = steps(rng)
    guide = jnp.asarray(rng.uniform(size=(B, H, W, 3)))
    maps = settings(rng, "both maps" if "maps" in name else "numbers")
    eta, lam = (jnp.asarray(x) for x in maps)
    prox = {
        "tikhonov": tikhonov(tolerance=1e-14), "tv": tv(12), "edge_tv": edge_tv(sharpness=1.0, iterations=12),
        "guided_filter": guided_filter(radius=2, epsilon=0.1),
        "aligned": pull_to_prior(lambda p: p.context[..., 0], align=True),
    }[name.split()[0]]  # fmt: skip
    target = jnp.asarray(rng.normal(size=z.shape))

    @jax.jit
    def loss(z, eta, lam, guide):
        return (target * prox(None, z, problem_of(z.shape, lam, guide, z[..., None]), eta)).sum()

    check_grads(loss, (z, eta, lam, guide), order=2, modes=["rev"], atol=1e-6, rtol=1e-6, eps=1e-5)


def test_gradients_of_flat_pictures_are_finite():
    z = jnp.zeros((B, H, W))
    for prox in (tv(5), edge_tv(iterations=5), guided_filter()):

        def loss(z, lam, eta, guide, prox=prox):
            return (prox(None, z, problem_of(z.shape, lam, guide), eta) ** 2).sum() + z.sum()

        def slopes(*at, loss=loss):
            return jax.grad(loss, (0, 1, 2, 3))(*at)

        def both(*at, slopes=slopes):  # first and second derivatives
            return slopes(*at), jax.grad(lambda *at: sum(x.sum() for x in slopes(*at)), (0, 1, 2, 3))(*at)

        both = jax.jit(both)
        for lam, eta in [(0.0, 0.5), (0.1, 0.5), (0.1, 0.0)]:
            for g in jax.tree.leaves(both(z, lam, eta, jnp.zeros((B, H, W, 3)))):
                assert jnp.isfinite(g).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_guided_filter_is_the_naive_one(double, rng, channels):
    z, guide, radius, epsilon = steps(rng) + 5, rng.uniform(size=(B, H, W, channels)), 2, 0.05
    a, offset = np.zeros((B, H, W, channels)), np.zeros((B, H, W))

    def windows():
        for i, y, x in np.ndindex(B, H, W):
            yield (i, y, x), (i, slice(max(y - radius, 0), y + radius + 1), slice(max(x - radius, 0), x + radius + 1))

    for pixel, window in windows():
        picture, values = guide[window].reshape(-1, channels), np.ravel(z[window])
        covariance = np.cov(picture.T, bias=True).reshape(channels, channels)
        with_z = ((picture - picture.mean(0)) * (values - values.mean())[:, None]).mean(0)
        a[pixel] = np.linalg.solve(covariance + epsilon * np.eye(channels), with_z)
        offset[pixel] = values.mean() - a[pixel] @ picture.mean(0)
    naive = np.zeros((B, H, W))
    for pixel, window in windows():
        naive[pixel] = a[window].reshape(-1, channels).mean(0) @ guide[pixel] + offset[window].mean()

    np.testing.assert_allclose(filter_all(z, jnp.asarray(guide), radius, epsilon), naive, atol=1e-10)
    problem = problem_of(z.shape, 0.5, jnp.asarray(guide))
    blended = call(guided_filter(radius=radius, epsilon=epsilon), z, problem, 4.0)
    np.testing.assert_allclose(blended, (z + 2 * naive) / 3, atol=1e-10)


def test_guided_filter_keeps_what_follows_the_guide(rng):
    """Single precision and depth far from 0: what is affine in the guide stays; a window may exceed the picture."""
    guide = jnp.asarray(rng.uniform(size=(B, H, W, 3)), jnp.float32)
    z = 80 + 3 * guide[..., 0] - 2 * guide[..., 2]
    np.testing.assert_allclose(filter_all(z, guide, 3, 1e-6), z, atol=1e-3)
    flat = filter_all(z, jnp.zeros((B, H, W, 1)), 20, 1e-3)
    np.testing.assert_allclose(flat, jnp.broadcast_to(z.mean((1, 2), keepdims=True), z.shape), rtol=1e-5)


def test_pull_and_alignment_in_closed_form(double, rng):
    z, prior = steps(rng), jnp.asarray(rng.normal(size=(B, H, W)))
    pull = pull_to_prior(lambda p: p.context, lambda p: jnp.full(z.shape, 3.0))
    depth = pull(None, z, problem_of(z.shape, 0.5, prior), 2.0)
    np.testing.assert_allclose(depth, (z + 3 * prior) / 4, rtol=1e-12)

    # an affine prior fits without rest; in general the fit is numpy's weighted least squares
    weights = jnp.asarray(rng.uniform(size=(B, H, W, 2)))
    same = jnp.broadcast_to((7 - 2 * prior)[..., None], weights.shape)
    exact = align_prior(prior, problem_of(z.shape, 0.1, None, same, weights))
    np.testing.assert_allclose(exact, 7 - 2 * prior, atol=1e-10)
    problem = problem_of(z.shape, 0.1, None, jnp.asarray(rng.normal(size=weights.shape)), weights)
    aligned = align_prior(prior, problem)
    for i in range(B):
        root = np.sqrt(np.ravel(problem.S[i]))
        columns = np.stack([np.ravel(prior[i]), np.ones(H * W)], -1)
        fit, *_ = np.linalg.lstsq(root[:, None] * columns, np.ravel(problem.b[i]) / root, rcond=None)
        np.testing.assert_allclose(aligned[i].ravel(), columns @ fit, atol=1e-10)

    flat = align_prior(jnp.full(z.shape, 4.0), problem)
    mean = problem.b.sum((1, 2), keepdims=True) / problem.S.sum((1, 2), keepdims=True)
    np.testing.assert_allclose(flat, jnp.broadcast_to(mean, z.shape), rtol=1e-10)
    nothing = problem._replace(weights=jnp.zeros_like(weights))
    np.testing.assert_array_equal(align_prior(prior, nothing), prior)


def every_prox():
    return [
        tikhonov(), tv(15), tv(15, warm_start=False), edge_tv(iterations=15), guided_filter(radius=2),
        pull_to_prior(lambda p: p.context[..., 0], align=True),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_jit_and_vmap_without_a_batch_axis(rng, kind):
    z, guide = steps(rng).astype(jnp.float32), jnp.asarray(rng.uniform(size=(B, H, W, 3)), jnp.float32)
    eta, lam = (jnp.asarray(x, jnp.float32) for x in settings(rng, kind))

    def run(z, eta, lam, guide):
        problem = problem_of(z.shape, lam, guide)
        depths = []
        for prox in every_prox():
            fresh = prox.init(z, problem)
            depth, memory = prox.apply(None, z, problem, eta, fresh)
            assert jax.tree.map(jnp.shape, memory) == jax.tree.map(jnp.shape, fresh)
            assert depth.shape == z.shape and depth.dtype == z.dtype
            depths.append(depth)
        return jnp.stack(depths)

    axes = (0, 0 if eta.ndim else None, 0 if lam.ndim else None, 0)
    batched, mapped = jax.jit(run)(z, eta, lam, guide), jax.jit(jax.vmap(run, axes, 1))(z, eta, lam, guide)
    np.testing.assert_allclose(mapped, batched, atol=2e-5)


def test_an_outer_scheme_lowers_the_energy_with_each_prox(rng):
    z = steps(rng).astype(jnp.float32)
    guide = jnp.asarray(rng.uniform(size=(B, H, W, 3)), jnp.float32)
    problem = problem_of(z.shape, 0.2, guide, z[..., None], jnp.full((*z.shape, 1), 0.7))
    for prox in (tikhonov(), tv(30), edge_tv(sharpness=1.0)):

        @jax.jit
        def energies_along(z, prox=prox):
            _, history = solve(
                proximal_gradient(prox), problem, z, step_size=1.0, num_iterations=6, unroll=1, return_history=True
            )
            return jax.vmap(lambda d: energy(problem, d, prox.regularizer))(jnp.concatenate([z[None], history]))

        energies = energies_along(z)
        assert (jnp.diff(energies, axis=0) < 1e-4 * energies[:1]).all()
        assert (energies[-1] < 0.9 * energies[0]).all()


def test_wrong_uses_are_told(rng):
    with pytest.raises(ValueError, match="tv: iterations must be at least 1, got 0"):
        tv(0)
    with pytest.raises(ValueError, match="guided_filter: radius must be at least 1"):
        guided_filter(radius=0)
    z = steps(rng)
    with pytest.raises(ValueError, match="problem.guide: this prox needs a guide image"):
        edge_tv()(None, z, problem_of(z.shape, 0.1), 1.0)
    with pytest.raises(ValueError, match="guide: has shape"):
        guided_filter()(None, z, problem_of(z.shape, 0.1, jnp.zeros((B, H, W + 1, 3))), 1.0)
