"""The unroll against closed forms and identities (method.md section 7, tests 1, 2, 3, 5, 7)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unroll_cases import conv_params, convolve, make_problem

from dff_jax.unroll import (
    Problem,
    constant_step,
    disagreement,
    energy,
    gradient,
    identity,
    initial_depth,
    learned_step,
    proximal_gradient,
    resize_stack,
    solve,
    stack_init,
)


def test_data_term_matches_its_definition_and_gradient(key):
    problem = make_problem(key)
    depth = jax.random.normal(key, (2, 5, 6))
    expected = 0.5 * sum(
        (problem.weights[..., i] * (depth - problem.candidates[..., i]) ** 2).sum((1, 2)) for i in range(3)
    )
    np.testing.assert_allclose(energy(problem, depth), expected, rtol=1e-5)
    auto = jax.grad(lambda d: energy(problem, d).sum())(depth)
    np.testing.assert_allclose(gradient(problem, depth), auto, atol=1e-5)


def test_disagreement_is_the_energy_left_at_the_minimum(key):
    problem = make_problem(key)
    np.testing.assert_allclose(disagreement(problem).sum((1, 2)), energy(problem, initial_depth(problem)), rtol=1e-5)
    S, b = problem.S, problem.b
    by_definition = 0.5 * ((problem.weights * problem.candidates**2).sum(-1) - b**2 / S)
    np.testing.assert_allclose(disagreement(problem), by_definition, atol=1e-5)
    assert disagreement(problem).min() >= 0


def test_no_iterations_return_d0_bit_for_bit(key):
    problem = make_problem(key)
    d0 = initial_depth(problem)
    depth, history = solve(proximal_gradient(identity), problem, d0, num_iterations=0, return_history=True)
    np.testing.assert_array_equal(depth, d0)
    assert history.shape == (0, *d0.shape)


def test_one_candidate_and_one_hot_weights(key):
    single = make_problem(key, n=1)
    np.testing.assert_allclose(initial_depth(single), single.candidates[..., 0], rtol=1e-5)
    problem = make_problem(key)
    chosen = problem._replace(weights=jax.nn.one_hot(jnp.full((2, 5, 6), 1), 3))
    np.testing.assert_array_equal(initial_depth(chosen), problem.candidates[..., 1])


def test_softmax_weights_make_the_first_step_do_nothing(key):
    problem = make_problem(key, weights="softmax")
    d0 = initial_depth(problem)
    np.testing.assert_allclose(problem.S, 1.0, atol=1e-6)
    step = lambda p: p - 0.5 * gradient(problem, p)  # noqa: E731
    np.testing.assert_allclose(step(d0), d0, atol=1e-6)
    # with softplus weights S is not 1; D(0) is still the data term's minimiser, but S and b are not S = 1, b = D(0)
    soft = make_problem(key, weights="softplus")
    assert jnp.abs(soft.S - 1).max() > 0.3
    assert jnp.abs(soft.b - initial_depth(soft)).max() > 0.3


@pytest.mark.parametrize("eta", [0.05, 0.2])
def test_identity_prox_reaches_b_over_s_at_the_predicted_rate(key, eta):
    problem = make_problem(key)
    target, start = problem.b / problem.S, jnp.zeros((2, 5, 6))
    _, history = solve(
        proximal_gradient(identity), problem, start, step_size=eta, num_iterations=30, return_history=True
    )
    error = jnp.abs(history - target[None]).max((1, 2, 3))
    rate = jnp.abs(1 - eta * problem.S)
    # pixel by pixel the error shrinks by exactly |1 - eta S| a step
    expected = jnp.abs(start - target)[None] * rate[None] ** jnp.arange(1, 31.0).reshape(30, 1, 1, 1)
    np.testing.assert_allclose(jnp.abs(history - target[None]), expected, atol=1e-5)
    assert error[-1] < error[0]


def test_steps_beyond_the_bound_diverge_and_learned_steps_do_not(key):
    problem = make_problem(key)
    bound = 2 / float(problem.S.max())
    start = initial_depth(problem) + 1.0
    target = problem.b / problem.S
    error = lambda depth: float(jnp.abs(depth - target).max())  # noqa: E731
    run = partial(solve, proximal_gradient(identity), problem, start, num_iterations=200)
    far, _ = run(step_size=constant_step(1.05 * bound))
    near, _ = run(step_size=constant_step(0.95 * bound))
    assert error(far) > 100 and error(near) < 1e-2
    huge = {"step_size": jnp.full((200,), 50.0)}
    kept, _ = run(step_size=learned_step, per_iteration=huge)
    assert error(kept) < 1e-3


def test_untied_layers_differ_at_initialisation_and_resize_keeps_a_prefix(key):
    stacked = stack_init(conv_params, key, 3)
    kernel = stacked["kernel"]
    assert jnp.abs(kernel[0] - kernel[1]).max() > 1e-3
    longer = resize_stack(stacked, 5)["kernel"]
    np.testing.assert_array_equal(longer[:3], kernel)
    np.testing.assert_array_equal(longer[4], kernel[2])
    np.testing.assert_array_equal(resize_stack(stacked, 2)["kernel"], kernel[:2])


def test_learned_steps_of_three_iterations_are_a_prefix_of_five(key):
    problem, params = make_problem(key), conv_params(key)
    run = lambda K: solve(  # noqa: E731
        proximal_gradient(convolve), problem, initial_depth(problem), step_size=learned_step, shared={"prox": params},
        per_iteration=resize_stack({"step_size": jnp.array([0.1, -0.4, 0.3])}, K), num_iterations=K,
        return_history=True,
    )  # fmt: skip
    (depth, history), five = run(3), run(5)[1]
    np.testing.assert_allclose(history, five[:3], atol=1e-6)
    np.testing.assert_array_equal(depth, history[-1])


def test_gradients_equal_finite_differences_in_float64():
    with jax.enable_x64(True):
        key = jax.random.key(1)
        problem, params = make_problem(key, shape=(1, 4, 4)), conv_params(key)
        problem, params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (problem, params))

        def loss(candidates, weights, step, kernel):
            p = problem._replace(candidates=candidates, weights=weights)
            shared = {"prox": {**params, "kernel": kernel}}
            depth, _ = solve(
                proximal_gradient(convolve), p, initial_depth(p), step_size=learned_step, shared=shared,
                per_iteration={"step_size": step}, num_iterations=3,
            )  # fmt: skip
            return (depth**2).sum()

        point = (problem.candidates, problem.weights, jnp.array([0.1, -0.5, -0.2]), params["kernel"])
        gradients, value = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*point), jax.jit(loss)
        for i, gradient_i in enumerate(gradients):
            direction = jax.random.normal(jax.random.fold_in(key, i), point[i].shape, jnp.float64)
            moved = lambda s, i=i, d=direction: value(*[x + s * d if j == i else x for j, x in enumerate(point)])  # noqa: E731
            numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5
            np.testing.assert_allclose((gradient_i * direction).sum(), numeric, rtol=1e-5)


def test_solve_works_under_jit_and_vmap(key):
    problem = make_problem(key)
    run = lambda c, w: solve(proximal_gradient(identity), Problem(c, w), jnp.zeros(c.shape[:-1]), num_iterations=5)[0]  # noqa: E731
    plain = run(problem.candidates, problem.weights)
    np.testing.assert_allclose(jax.jit(run)(problem.candidates, problem.weights), plain, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(run)(problem.candidates, problem.weights), plain, atol=1e-6)


def test_wrong_arguments_are_named(key):
    problem = make_problem(key)
    with pytest.raises(ValueError, match="resize_stack"):
        solve(
            proximal_gradient(identity), problem, initial_depth(problem), step_size=learned_step,
            per_iteration={"step_size": jnp.zeros(2)}, num_iterations=3,
        )  # fmt: skip
    with pytest.raises(ValueError, match="num_iterations"):
        solve(proximal_gradient(identity), problem, initial_depth(problem), num_iterations=-1)

    def run(problem, d0=None, k=2):
        d0 = jnp.zeros(problem.candidates.shape[:-1]) if d0 is None else d0
        return solve(proximal_gradient(identity), problem, d0, num_iterations=k)[0]

    w = problem.weights
    for fields, words in (
        ({"weights": w[..., :1]}, r"problem.weights: \(2, 5, 6, 1\); must have the candidates' shape \(2, 5, 6, 3\)"),
        ({"weights": w.at[0, 1, 2, 0].set(-1)}, "problem.weights: has negative values"),
        ({"weights": w.at[0, 1, 2, 0].set(jnp.nan)}, "problem.weights: has values that are not finite"),
        ({"candidates": w.at[0, 1, 2, 0].set(jnp.nan)}, "problem.candidates: has values that are not finite"),
        ({"regularization": -0.1}, "problem.regularization: has negative values"),
        ({"regularization": jnp.ones((2, 4, 6))}, r"problem.regularization: \(2, 4, 6\); must be a number or a map"),
    ):
        with pytest.raises(ValueError, match=words):
            run(problem._replace(**fields))
    with pytest.raises(ValueError, match=r"d0: \(5, 6\)"):
        run(problem, jnp.zeros((5, 6)))
    with pytest.raises(ValueError, match="num_iterations: must be known when `jit` traces"):
        jax.jit(run)(problem, None, 2)
    assert jnp.isfinite(jax.jit(lambda d0: run(problem, d0))(jnp.zeros((2, 5, 6)))).all()  # a constant inside `jit`


def heavy_ball(prox):
    """A user's own scheme: proximal gradient with momentum 0.5."""
    base = proximal_gradient(prox)

    def update(params, state, problem, eta):
        now, velocity = state
        new = base.update(params, now._replace(depth=now.depth + 0.5 * velocity), problem, eta)
        return new, new.depth - now.depth

    return base._replace(
        init=lambda d0, p: (base.init(d0, p), jnp.zeros_like(d0)), update=update, depth=lambda s: s[0].depth
    )


def test_a_users_scheme_goes_through_the_same_door(key):
    problem = make_problem(key)
    depth, history = solve(heavy_ball(identity), problem, jnp.zeros((2, 5, 6)), step_size=0.1, num_iterations=80,
                           return_history=True)  # fmt: skip
    np.testing.assert_allclose(depth, problem.b / problem.S, atol=1e-3)
    assert history.shape == (80, 2, 5, 6)
