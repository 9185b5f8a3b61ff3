"""Gradients through the unroll: finite differences, remat, truncation, implicit differentiation (method.md section 7,
tests 6 and 7), and the transformations of JAX around `solve`."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import diags
from scipy.sparse.linalg import spsolve
from unroll_cases import SCHEMES, conv_params, convolve, laplacian, make_problem

from dff_jax.unroll import (
    Problem,
    box,
    contraction,
    identity,
    initial_depth,
    learned_step,
    proximal_gradient,
    solve,
    tikhonov,
    tv,
)

SHAPE = (1, 5, 6)


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def point(name, key):
    """A problem, parameters and a loss over everything that is learned, for a scheme."""
    problem = make_problem(key, shape=SHAPE, dtype=jnp.float64)
    scheme = SCHEMES[name](convolve)
    target = jax.random.normal(jax.random.fold_in(key, 7), SHAPE, jnp.float64)
    learned = {
        "candidates": problem.candidates,
        "weights": problem.weights,
        "step_size": jnp.float64(-1.0),
        "regularization": jnp.float64(-1.5),
        "prox": conv_params(key, jnp.float64),
    }

    def loss(learned, K=3, **options):
        p = problem._replace(candidates=learned["candidates"], weights=learned["weights"])
        shared = {name: learned[name] for name in ("prox", "step_size", "regularization")}
        depth, _ = solve(
            scheme, p, initial_depth(p) + 0.5, step_size=learned_step, shared=shared, num_iterations=K, **options
        )
        return ((depth - target) ** 2).sum()

    return learned, loss


@pytest.mark.parametrize("name", SCHEMES)
def test_gradients_equal_finite_differences(name, key):
    learned, loss = point(name, key)
    gradients = jax.jit(jax.grad(loss))(learned)
    value = jax.jit(loss)
    for part in learned:
        leaves, structure = jax.tree.flatten(learned[part])
        direction = jax.tree.unflatten(
            structure, [jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype) for i, x in enumerate(leaves)]
        )
        moved = [
            {**learned, part: jax.tree.map(lambda x, d, s=s: x + s * d, learned[part], direction)}
            for s in (1e-5, -1e-5)
        ]
        numeric = (value(moved[0]) - value(moved[1])) / 2e-5
        exact = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradients[part], direction)))
        if name == "chambolle_pock" and part == "prox":
            assert exact == numeric == 0  # it uses the dual form of Tikhonov's instead
            continue
        assert abs(numeric) > 1e-6, part
        np.testing.assert_allclose(exact, numeric, rtol=1e-5, err_msg=part)


@pytest.mark.parametrize("name", SCHEMES)
def test_modes_that_must_agree_do(name, key):
    learned, loss = point(name, key)
    grad = lambda **options: jax.jit(jax.grad(lambda x: loss(x, K=4, **options)))(learned)  # noqa: E731
    reference = grad(gradient="backprop", unroll=1)
    spelled = name == "proximal_gradient"  # the other spellings of a mode do not depend on the scheme
    for mode in ("remat", "auto", "truncated(4)", *(["truncated(9)"] if spelled else [])):
        chex.assert_trees_all_close(grad(gradient=mode), reference, rtol=1e-9, atol=1e-12)
    one, two = grad(gradient="truncated(1)"), grad(gradient="truncated(2)")
    if spelled:
        chex.assert_trees_all_close(grad(gradient="jacobian_free"), one, rtol=1e-12, atol=1e-14)
    # each step further back changes something
    if name != "chambolle_pock":
        difference = lambda a, b: float(jnp.abs(a["prox"]["kernel"] - b["prox"]["kernel"]).max())  # noqa: E731
        assert difference(one, two) > 1e-6 and difference(two, reference) > 1e-6


@pytest.mark.parametrize("n", [1, 2])
def test_truncated_stops_the_gradient_where_it_says(n, key):
    """By hand: K - n steps without gradient, then n with."""
    problem, params = make_problem(key, shape=SHAPE, dtype=jnp.float64), conv_params(key, jnp.float64)
    scheme = proximal_gradient(convolve)

    def by_hand(params, candidates):
        p = problem._replace(candidates=candidates)
        state = scheme.init(initial_depth(p), p)
        for k in range(4):
            if k == 4 - n:
                state = jax.lax.stop_gradient(state)
            state = scheme.update({"prox": params}, state, p._replace(previous=scheme.depth(state)), 0.3)
        return (scheme.depth(state) ** 2).sum()

    def solved(params, candidates):
        p = problem._replace(candidates=candidates)
        return (solve(scheme, p, initial_depth(p), step_size=0.3, shared={"prox": params}, num_iterations=4,
                      gradient=f"truncated({n})")[0] ** 2).sum()  # fmt: skip

    found, expected = (jax.jit(jax.grad(f, (0, 1)))(params, problem.candidates) for f in (solved, by_hand))
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "hqs"])  # whose map changes with k
def test_implicit_gradient_equals_a_long_unroll(name, key):
    learned, loss = point(name, key)
    steps = 2000 if name == "chambolle_pock" else 200  # it is slow where the step is small
    long = jax.jit(jax.grad(lambda x: loss(x, K=steps, gradient="backprop", unroll=1)))(learned)
    for options in ({"K": steps}, {"K": 2 * steps, "tolerance": 1e-12}):
        implicit = jax.jit(jax.grad(lambda x, o=options: loss(x, gradient="implicit", **o)))(learned)
        for part in learned:
            for a, b in zip(jax.tree.leaves(implicit[part]), jax.tree.leaves(long[part]), strict=True):
                assert jnp.abs(a - b).max() <= 1e-4 * jnp.abs(b).max() + 1e-9, part


def test_implicit_gradient_equals_a_direct_solve(key):
    """For Tikhonov D* = (S + lambda L)^-1 b, so that d (g . D*) / d b is the same solve of g."""
    problem = make_problem(key, n=1, shape=SHAPE, dtype=jnp.float64, regularization=0.4)
    g = jax.random.normal(jax.random.fold_in(key, 1), SHAPE, jnp.float64)
    scheme = proximal_gradient(tikhonov())

    def value(candidates, weight):
        p = problem._replace(candidates=candidates, regularization=weight)
        depth, _ = solve(scheme, p, jnp.zeros(SHAPE), step_size=0.2, num_iterations=400, gradient="implicit")
        return (g * depth).sum()

    d_candidates, d_weight = jax.jit(jax.grad(value, (0, 1)))(problem.candidates, 0.4)
    S = np.asarray(problem.S).ravel()
    L = laplacian(5, 6)
    A = (diags(S) + 0.4 * L).tocsc()
    v = spsolve(A, np.asarray(g).ravel())
    best = spsolve(A, np.asarray(problem.b).ravel())
    np.testing.assert_allclose(np.ravel(d_candidates), S * v, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(d_weight, -v @ (L @ best), rtol=1e-5)


def test_implicit_gradient_of_total_variation_and_its_dual(key):
    """The dual variable is part of the fixed point."""
    problem = make_problem(key, shape=SHAPE, dtype=jnp.float64, regularization=0.05)
    scheme = proximal_gradient(tv(iterations=5))

    def value(weight, **options):
        p = problem._replace(regularization=weight)
        depth, _ = solve(scheme, p, initial_depth(p), step_size=0.2, num_iterations=600, unroll=1, **options)
        return (depth**2).sum()

    plain, slope = jax.jit(value), jax.jit(jax.grad(partial(value, gradient="implicit")))
    numeric = (plain(0.05 + 1e-5) - plain(0.05 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope(0.05), numeric, rtol=1e-3)


def test_implicit_reaches_parameters_that_a_prox_closes_over(key):
    problem = make_problem(key, shape=SHAPE, dtype=jnp.float64)
    params = conv_params(key, jnp.float64)

    def loss(params, closed):
        prox = (lambda _, z, p, eta: convolve(params, z, p, eta)) if closed else convolve
        shared = None if closed else {"prox": params}
        depth, _ = solve(proximal_gradient(prox), problem, initial_depth(problem), step_size=0.3, shared=shared,
                         num_iterations=100, gradient="implicit")  # fmt: skip
        return (depth**2).sum()

    slope = jax.jit(jax.grad(loss), static_argnums=1)
    chex.assert_trees_all_close(slope(params, True), slope(params, False), rtol=1e-9)


def test_without_a_contraction_implicit_falls_back_to_the_last_step(key):
    problem = make_problem(key, shape=SHAPE, dtype=jnp.float64)
    expand = lambda params, z, problem, eta: params * z  # noqa: E731
    run = partial(solve, proximal_gradient(expand), problem, initial_depth(problem), step_size=0.01, num_iterations=3)

    def loss(factor, gradient):
        return (run(shared={"prox": factor}, gradient=gradient)[0] ** 2).sum()

    # gradient at D(3) itself, where the last step would start
    _, trace = run(shared={"prox": 3.0}, gradient="implicit", return_history="trace")
    assert trace.contraction > 2
    slope = jax.grad(loss)(3.0, "implicit")
    D = trace.depth[-1]
    step = lambda factor: factor * (D - 0.01 * (problem.S * D - problem.b))  # noqa: E731
    np.testing.assert_allclose(slope, jax.grad(lambda f: (2 * D * step(f)).sum())(3.0), rtol=1e-9)


def test_contraction_is_the_spectral_radius(key):
    problem = make_problem(key, shape=SHAPE, dtype=jnp.float64)
    eta = 0.5 / float(problem.S.max())
    _, trace = solve(proximal_gradient(identity), problem, jnp.zeros(SHAPE), step_size=eta, num_iterations=5,
                     gradient="implicit", return_history="trace")  # fmt: skip
    expected = jnp.abs(1 - eta * problem.S).max()
    assert 0.95 * expected < trace.contraction <= expected  # power iteration comes from below
    matrix = jnp.array([[0.5, 0.3], [0.0, 0.8]], jnp.float64)
    np.testing.assert_allclose(contraction(lambda x, m: m @ x, jnp.ones(2, jnp.float64), matrix), 0.8, rtol=1e-3)


def test_history_and_answer_carry_the_same_gradient(key):
    """A loss may look at the last iterate through the history."""
    problem, params = make_problem(key, shape=SHAPE, dtype=jnp.float64), conv_params(key, jnp.float64)
    for gradient in ("backprop", "truncated(1)", "implicit"):

        def loss(params, last, gradient=gradient):
            depth, history = solve(proximal_gradient(convolve), problem, initial_depth(problem), step_size=0.3,
                                   shared={"prox": params}, num_iterations=5, gradient=gradient,
                                   return_history=True)  # fmt: skip
            return ((history[-1] if last else depth) ** 2).sum()

        slope = jax.jit(jax.grad(loss), static_argnums=1)
        chex.assert_trees_all_close(slope(params, True), slope(params, False), rtol=1e-9)


def test_impossible_requests_are_named(key):
    problem = make_problem(key, shape=SHAPE, dtype=jnp.float64)
    run = lambda **options: solve(proximal_gradient(identity), problem, initial_depth(problem), num_iterations=3, **options)  # noqa: E731, E501
    with pytest.raises(ValueError, match=r"'truncated' is unknown; choose one of .*truncated\(n\)"):
        run(gradient="truncated")
    with pytest.raises(ValueError, match="with a tolerance use implicit"):
        run(gradient="remat", tolerance=1e-3)
    with pytest.raises(ValueError, match="jacobian_free or implicit"):
        run(gradient="truncated(2)", tolerance=1e-3)
    run(gradient="jacobian_free", tolerance=1e-3)


# A notebook's worth -----------------------------------------------------------------------------------------------


def test_jit_vmap_and_grad_around_solve(key):
    keys = jax.random.split(key, 4)
    candidates = jax.random.normal(keys[0], (4, 8, 9, 3), jnp.float64)
    weights = jax.nn.softplus(jax.random.normal(keys[1], (4, 8, 9, 3), jnp.float64))

    run = partial(solve, proximal_gradient(tv(iterations=10)), step_size=0.2)

    def fuse(candidates, weights, strength, K=20):
        """One map, no batch axis."""
        problem = Problem(candidates, weights, regularization=strength)
        return run(problem, initial_depth(problem), num_iterations=K)[0]

    one = fuse(candidates[0], weights[0], 0.1)
    many = jax.jit(jax.vmap(fuse, in_axes=(0, 0, None)))(candidates, weights, 0.1)
    np.testing.assert_allclose(many[0], one, atol=1e-9)
    whole = Problem(candidates, weights, 0.1)
    batched = run(whole, initial_depth(whole), num_iterations=20)[0]
    np.testing.assert_allclose(many, batched, atol=1e-9)
    strengths = jnp.array([0.0, 0.1, 1.0])
    by_strength = jax.vmap(fuse, in_axes=(None, None, 0))(candidates[0], weights[0], strengths)
    roughness = jnp.abs(jnp.diff(by_strength, axis=1)).sum((1, 2))
    assert roughness[0] > roughness[1] > roughness[2]
    loss = jax.jit(lambda s: (fuse(candidates[0], weights[0], s) ** 2).sum())
    numeric = (loss(0.1 + 1e-6) - loss(0.1 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.1), numeric, rtol=1e-4)
    first = Problem(candidates[0], weights[0])
    np.testing.assert_array_equal(fuse(*first[:2], 0.1, K=0), initial_depth(first))
    inside = solve(proximal_gradient(box(-0.1, 0.1)), whole, jnp.zeros((4, 8, 9)), step_size=0.2, num_iterations=3)[0]
    assert jnp.abs(inside).max() <= 0.1


def compiled_memory(name, K, gradient):
    problem = make_problem(jax.random.key(0), shape=(1, 32, 32))

    def loss(params):
        depth, _ = solve(SCHEMES[name](wide), problem, initial_depth(problem), step_size=0.3,
                         shared={"prox": params}, num_iterations=K, gradient=gradient, unroll=1)  # fmt: skip
        return (depth**2).sum()

    def wide(params, z, problem, eta):
        x = z[..., None]
        for kernel in params:
            x = jnp.tanh(jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))  # fmt: skip
        return z + x[..., 0]

    shapes = ((1, 48), (48, 48), (48, 1))  # wide enough to outweigh the K states, which remat does keep
    kernels = [0.1 * jax.random.normal(jax.random.key(i), (3, 3, *s), jnp.float32) for i, s in enumerate(shapes)]
    return jax.jit(jax.grad(loss)).lower(kernels).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["proximal_gradient", "fista", "admm"])
def test_memory_is_flat_in_k_but_for_backprop(name):
    """16 iterations against 2 with remat, and truncated and implicit modes at any K."""
    assert compiled_memory(name, 16, "remat") < 1.3 * compiled_memory(name, 2, "remat")
    assert compiled_memory(name, 16, "implicit") < 1.3 * compiled_memory(name, 2, "implicit")
    assert compiled_memory(name, 16, "truncated(2)") < 1.3 * compiled_memory(name, 3, "truncated(2)")
    assert compiled_memory(name, 16, "backprop") > 4 * compiled_memory(name, 2, "backprop")
