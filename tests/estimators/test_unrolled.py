"""Every switch of the unroll, first on a problem of a few pixels, then in the whole estimator."""

import dataclasses
import itertools
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import on_host, random_like

from dff_jax import config as cfg
from dff_jax import estimators
from dff_jax.errors import ConfigError
from dff_jax.estimators.unrolled import build_unroll
from dff_jax.estimators.weights import load_weights, save_weights
from dff_jax.network.layers import Conv
from dff_jax.network.prox import NETWORKS, Context, ContextHeads, PixelContext, has_context
from dff_jax.unroll import PROXES, SCHEMES, Problem, initial_depth

TINY = dataclasses.replace(cfg.tiny(), width=0.13, head_width=0.13, num_iterations=2, prox_levels=1)

USER_SCHEME = """
    import jax
    import jax.numpy as jnp
    from dff_jax.unroll import Scheme, gradient

    def heavy_ball(prox):
        "Proximal gradient with a learned momentum for each iteration, and a learned scale for all."

        def update(params, state, problem, eta):
            depth, before = state
            z = depth - eta * gradient(problem, depth) + params["momentum"] * (depth - before)
            return params["scale"]["all"] * prox(params.get("prox"), z, problem, eta), depth

        def parameters(key, num_iterations):
            momentum = 0.1 * jax.random.normal(key, (num_iterations,))
            return {"scale": {"all": 1.0}}, {"momentum": momentum}

        return Scheme(lambda d0, problem: (d0, d0), update, lambda state: state[0], parameters)

    def shrink(params, z, problem, eta):
        return z / (1 + eta * problem.regularization)

    def short(prox):
        return heavy_ball(prox)._replace(parameters=lambda key, K: ({}, {"momentum": jnp.zeros(1)}))

    def plain(prox):
        return lambda depth: depth

    number = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module of the user's own, outside the package."""
    (tmp_path / "my_variants.py").write_text(textwrap.dedent(USER_SCHEME))
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_variants"
    monkeypatch.delitem(sys.modules, "my_variants", raising=False)


def small_problem(config, trained=True, size=12):
    """The unroll of a config, its parameters (random, or as initialised), and params -> a problem."""
    n, rng = config.num_candidates, np.random.default_rng(0)
    candidates = jnp.asarray(rng.uniform(size=(2, size, size, n)), jnp.float32)
    weights = jnp.asarray(rng.uniform(0.1, 0.5, (2, size, size, n)), jnp.float32)
    features = jnp.asarray(rng.normal(size=(2, size, size, 5)), jnp.float32)
    guide = jnp.asarray(rng.uniform(size=(2, size, size, 3)), jnp.float32)

    def problem_of(params, unroll):
        pixel = PixelContext()
        if has_context(config):
            pixel = ContextHeads(config).apply({"params": params["context"]}, features)
        raw = pixel.regularization
        weight = unroll.regularization(params) if raw is None else jax.nn.softplus(raw)
        context = Context(features, features[..., :2], None, pixel.step_size, pixel.hidden)
        return Problem(candidates, weights, weight, context, guide)

    unroll = build_unroll(config)

    def init(key):
        params = {}
        if has_context(config):
            params["context"] = ContextHeads(config).init(key, features)["params"]
        start = {**params, "unroll": {"shared": {}, "per_iteration": {}}}
        return params | unroll.init(key, problem_of(start, unroll))

    key = jax.random.key(0)
    return unroll, random_like(jax.eval_shape(init, key)) if trained else quick(init)(key), problem_of


def quick(function):
    """Compiled without optimisation: in a third of the time, and small arrays run as fast."""
    return on_host(function, compiler_options={"xla_backend_optimization_level": 0})


def dead(gradients):
    """Names of the parameters without a gradient; all gradients have to be finite."""
    gradients = jax.tree.leaves_with_path(jax.device_get(gradients))
    assert gradients and all(np.isfinite(g).all() for _, g in gradients)
    return [jax.tree_util.keystr(path) for path, g in gradients if not np.abs(g).max() > 0]


def solved(unroll, params, problem_of, num_iterations, history=False):
    problem = problem_of(params, unroll)
    return unroll.solve(params, problem, initial_depth(problem), num_iterations, history)


def run(unroll, params, problem_of, num_iterations, history=False):
    return quick(lambda params: solved(unroll, params, problem_of, num_iterations, history))(params)


def names_of(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)}


def variants():
    """Each scheme with two networks, each prox with proximal gradient; settings take turns."""
    step_sizes = itertools.cycle(["learned_per_iteration", "per_pixel", "learned_shared", "constant"])
    weights = itertools.cycle(["per_pixel", "learned", "learned_per_iteration", "constant", "learned_per_iteration"])
    outputs, tied = itertools.cycle(["residual", "residual", "direct"]), itertools.cycle([True, True, False])
    pairs = [(s, p) for s in SCHEMES if s != "chambolle_pock" for p in ("gru", "residual_cnn")]
    pairs += [("proximal_gradient", p) for p in [*NETWORKS, *PROXES] if p not in ("gru", "residual_cnn")]
    pairs += [("chambolle_pock", p) for p in ("tikhonov", "tv")]
    for scheme, prox in pairs:
        yield {"scheme": scheme, "prox": prox, "step_size": next(step_sizes), "regularization": next(weights),
               "prox_output": next(outputs), "tied": next(tied)}  # fmt: skip


@pytest.mark.parametrize("change", variants(), ids=lambda change: "-".join(map(str, change.values())))
def test_every_variant_has_gradients(change):
    """Finite for every parameter, and zero for none that can matter."""
    config = dataclasses.replace(TINY, **change)
    unroll, params, problem_of = small_problem(config)

    def loss(params):
        depth, _ = solved(unroll, params, problem_of, 2)
        return ((depth - 2.0) ** 2).mean()

    found = dead(quick(jax.grad(loss))(params))
    assert not found or config.prox == "identity"  # D(0) is its fixed point, whatever eta and lambda are
    want = {"constant": 0, "learned": 1, "learned_shared": 1, "learned_per_iteration": 2, "per_pixel": 0}
    found = sum(jnp.size(x) for x in jax.tree.leaves(params["unroll"]))
    assert found == want[config.step_size] + want[config.regularization]
    assert ("prox" in params) == (config.prox in NETWORKS)


@pytest.mark.parametrize("prox", list(NETWORKS))
def test_untrained_residual_networks_stay_at_d0(prox):
    """Zero-initialised last layers (method.md 3.8): with every scheme, whatever K."""
    config = dataclasses.replace(TINY, prox=prox, step_size="per_pixel")
    _, params, _ = small_problem(config, trained=False)
    for scheme in ("proximal_gradient", "admm", "learned_gradient"):
        unroll, like, problem_of = small_problem(dataclasses.replace(config, scheme=scheme))
        assert jax.tree.map(jnp.shape, like) == jax.tree.map(jnp.shape, params)
        depth, _ = run(unroll, params, problem_of, 3)
        np.testing.assert_allclose(depth, initial_depth(problem_of(params, unroll)), atol=1e-6)


def test_untied_layers_differ():
    _, params, _ = small_problem(dataclasses.replace(TINY, tied=False), trained=False)
    for kernel in (params["prox"]["static"]["Conv_0"]["kernel"], params["prox"]["phi1"]["Conv_0"]["Conv_0"]["kernel"]):
        assert kernel.shape[0] == 2 and jnp.abs(kernel[0] - kernel[1]).max() > 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_iterations_at_call_time(tied):
    """K = 0 is D(0) bit for bit; 1 and 2 are prefixes of 5; beyond the trained K the last slice repeats."""
    config = dataclasses.replace(TINY, prox="gru", tied=tied, regularization="learned_per_iteration")
    unroll, params, problem_of = small_problem(config)
    zero, _ = solved(unroll, params, problem_of, 0)
    np.testing.assert_array_equal(zero, initial_depth(problem_of(params, unroll)))
    one, _ = run(unroll, params, problem_of, 1)
    five, history = run(unroll, params, problem_of, 5, True)
    np.testing.assert_allclose(one, history[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(five, history[4])
    assert np.abs(history[1:] - history[:-1]).max() > 1e-2
    stacked = params["unroll"]["per_iteration"]
    extend = lambda x: np.concatenate([x, x[-1:], x[-1:], x[-1:]])  # noqa: E731
    longer = jax.tree.map(extend, stacked)
    by_hand = {**params, "unroll": {"shared": {}, "per_iteration": longer}}
    if not tied:
        by_hand["prox"] = jax.tree.map(extend, params["prox"])
    again, _ = run(unroll, by_hand, problem_of, 5)
    np.testing.assert_allclose(again, five, rtol=1e-5, atol=1e-5)


def test_the_recurrent_prox_remembers_and_starts_from_the_context():
    config = dataclasses.replace(TINY, prox="gru", step_size="constant")
    unroll, params, problem_of = small_problem(config)
    problem = problem_of(params, unroll)
    solve = lambda p, K: unroll.solve(params, p, initial_depth(p), K, True)[1]  # noqa: E731
    two = solve(problem, 2)
    forgetful = problem._replace(context=problem.context._replace(hidden=jnp.zeros_like(problem.context.hidden)))
    assert jnp.abs(solve(forgetful, 1)[0] - two[0]).max() > 1e-3
    assert jnp.abs(problem.context.hidden).max() < 1
    net = NETWORKS["gru"](config)

    def prox(z, previous, hidden):
        shape = (*z.shape, 1)
        eta, weight = jnp.full(shape, config.step_size_init), jnp.full(shape, config.regularization_init)
        c = problem.context
        x = jnp.concatenate([z[..., None], eta, weight, previous[..., None]], -1)
        static = Conv(hidden.shape[-1], use_bias=False).apply(
            {"params": params["prox"]["static"]}, jnp.concatenate([c.features, c.confidence], -1)
        )
        answer, hidden = net.apply({"params": params["prox"]}, x, static, hidden)
        return z + answer, hidden

    d, hidden = initial_depth(problem), problem.context.hidden
    for k in range(2):
        z = d - config.step_size_init * (problem.S * d - problem.b)
        d, hidden = prox(z, d, hidden)
        np.testing.assert_allclose(d, two[k], rtol=1e-4, atol=1e-4)


def test_learned_step_sizes_are_kept_stable():
    """eta = u / (1 + u S): the configured value where S = 1, and eta S < 1 everywhere."""
    for kind in ("learned_shared", "learned_per_iteration", "per_pixel"):
        config = dataclasses.replace(TINY, prox="identity", step_size=kind, step_size_init=0.95)
        unroll, params, problem_of = small_problem(config, trained=False)
        S, u = problem_of(params, unroll).S, 0.95 / (1 - 0.95)
        _, trace = run(unroll, params, problem_of, 2, "trace")
        eta = jnp.broadcast_to((u / (1 + u * S)).mean((1, 2)), (2, 2))
        np.testing.assert_allclose(trace.step_size, eta, rtol=1e-4)
        np.testing.assert_allclose(
            trace.data_share, jnp.broadcast_to((u * S / (1 + u * S)).mean((1, 2)), (2, 2)), rtol=1e-4
        )
        assert trace.data_share.max() < 1


def test_a_learned_step_without_bound_is_the_softplus():
    """eta = softplus(raw), as the paper has it, whatever S: the configured value everywhere, which may exceed 1."""
    for kind in ("learned_shared", "learned_per_iteration", "per_pixel"):
        config = dataclasses.replace(
            TINY, prox="identity", step_size=kind, step_size_init=1.5, bounded_step=False
        )
        unroll, params, problem_of = small_problem(config, trained=False)
        _, trace = run(unroll, params, problem_of, 2, "trace")
        np.testing.assert_allclose(trace.step_size, 1.5, rtol=1e-5)
    with pytest.raises(ConfigError, match="step_size_init"):
        dataclasses.replace(config, bounded_step=True)


def test_a_constant_step_size_may_exceed_one():
    """In a scheme that is stable for any step size; proximal gradient lowers it where it would diverge."""
    config = dataclasses.replace(
        TINY, prox="identity", scheme="exact_prox", step_size="constant", step_size_init=1.5
    )
    unroll, params, problem_of = small_problem(config, trained=False)
    _, trace = run(unroll, params, problem_of, 1, "trace")
    np.testing.assert_allclose(trace.step_size, 1.5)
    features = jnp.zeros((1, 8, 8, 5))
    only_weight = dataclasses.replace(config, regularization="per_pixel")
    net = ContextHeads(only_weight)
    maps = net.apply(quick(net.init)(jax.random.key(0), features), features)
    assert maps.step_size is None
    np.testing.assert_allclose(jax.nn.softplus(maps.regularization), config.regularization_init, rtol=1e-5)


def test_gradient_mode_reaches_the_solver():
    """The same answer; a truncated or implicit gradient sees the last iteration's own parameters only."""
    found = {}
    for mode in ("backprop", "truncated(1)", "implicit"):
        config = dataclasses.replace(TINY, prox="residual_cnn", gradient=mode)
        unroll, params, problem_of = small_problem(config)

        def loss(params, unroll=unroll, problem_of=problem_of):
            return (solved(unroll, params, problem_of, 2)[0] ** 2).mean()

        value, gradients = quick(jax.value_and_grad(loss))(params)
        found[mode] = value, gradients["unroll"]["per_iteration"]["step_size"]
        np.testing.assert_allclose(value, found["backprop"][0], rtol=1e-5)
    assert found["backprop"][1].all()
    for mode in ("truncated(1)", "implicit"):
        assert found[mode][1][0] == 0 and found[mode][1][1] != 0


@pytest.mark.parametrize(
    "change, words",
    [
        ({"scheme": "newton"}, r"model\.scheme: 'newton' is unknown; choose one of proximal_gradient"),
        ({"scheme": "no_such_module:scheme"}, r"model\.scheme: cannot load 'no_such_module:scheme'"),
        ({"scheme": "my_variants:plain"}, r"model\.scheme: 'my_variants:plain' should return a .*Scheme"),
        ({"scheme": "chambolle_pock"}, r"model\.scheme: 'chambolle_pock' with model\.prox 'gated_unet': .*dual"),
        ({"prox": "unet"}, r"model\.prox: 'unet' is unknown; choose one of gated_unet, residual_cnn, gru, identity"),
        ({"prox": "my_variants:absent"}, r"model\.prox: cannot load 'my_variants:absent'"),
        ({"prox": "my_variants:number"}, r"model\.prox: 'my_variants:number' should be a function"),
    ],
)
def test_names_that_lead_nowhere_end_in_one_line(change, words, user_module):
    with pytest.raises(ConfigError, match=words) as caught:
        estimators.build(dataclasses.replace(TINY, **change))
    assert "\n" not in str(caught.value)


def test_parameters_of_a_scheme_are_checked(user_module):
    with pytest.raises(ConfigError, match=r"model\.scheme: .*shape \(1,\); its first axis should be K = 2"):
        small_problem(dataclasses.replace(TINY, scheme="my_variants:short"))


def test_a_users_prox_by_name(user_module):
    config = dataclasses.replace(TINY, prox="my_variants:shrink", step_size="constant", regularization="learned")
    unroll, params, problem_of = small_problem(config, trained=False)
    depth, _ = run(unroll, params, problem_of, 1)
    eta, weight = config.step_size_init, config.regularization_init
    np.testing.assert_allclose(depth, initial_depth(problem_of(params, unroll)) / (1 + eta * weight), rtol=1e-5)
    assert "prox" not in params and names_of(params) == {"unroll/shared/regularization"}


# The whole estimator -----------------------------------------------------------------------------------------------


def stack(z=5, size=64):
    frames = jax.random.uniform(jax.random.key(2), (1, z, size, size, 3))
    return frames, jnp.linspace(10.0, 100.0, z)[None]


def variables_of(estimator, frames, focus):
    return random_like(jax.eval_shape(estimator.init, jax.random.key(1), frames, focus))


def travelled(path, config, variables):
    """Out to a weights file and back: the same tree, number for number."""
    save_weights(path, config, variables, {"num_frames": 5})
    loaded = load_weights(path)
    assert loaded.model == config and jax.tree.structure(loaded.variables) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    return loaded.variables


def predict(estimator, variables, frames, focus, K):
    return quick(lambda variables: estimator.apply(variables, frames, focus, num_iterations=K)[0])(variables)


@pytest.mark.slow
def test_a_whole_estimator_trains():
    """Per-scale candidates, learned directions with a memory, everything predicted pixel by pixel."""
    config = dataclasses.replace(
        TINY, candidate_source="per_scale", num_candidates=4, prox="gru", scheme="learned_gradient",
        step_size="per_pixel", regularization="per_pixel", weight_norm="sigmoid", num_iterations=1, refiner_steps=0,
    )  # fmt: skip
    estimator = estimators.build(config)
    frames, focus = stack()
    variables = variables_of(estimator, frames, focus)
    names = names_of(variables["params"])
    assert not any("residual" in name for name in names)
    heads = {name.split("/")[1] for name in names if name.startswith("context/")}
    assert heads == {"hidden", "step_size", "regularization"}

    def loss(params):
        prediction, _ = estimator.apply({**variables, "params": params}, frames, focus, train=True)
        assert prediction.history.trace is None  # nothing looks at energies while training
        return ((prediction.depth - 40) ** 2).mean() + ((prediction.history.candidates - 40) ** 2).mean()

    assert not dead(quick(jax.grad(loss))(variables["params"]))


@pytest.mark.slow
def test_a_users_scheme_with_parameters_in_a_whole_estimator(user_module, tmp_path):
    """By dotted name; its parameters lie with the others, travel in a weights file, and serve another K."""
    config = dataclasses.replace(
        TINY, scheme="my_variants:heavy_ball", prox="residual_cnn", step_size="learned_shared", tied=False,
        regularization="learned_per_iteration", candidate_source="per_scale",
    )  # fmt: skip
    estimator = estimators.build(config)
    frames, focus = stack()
    variables = variables_of(estimator, frames, focus)
    assert {name for name in names_of(variables["params"]) if name.startswith("unroll/")} == {
        "unroll/shared/scale/all", "unroll/shared/step_size",
        "unroll/per_iteration/momentum", "unroll/per_iteration/regularization",
    }  # fmt: skip
    loaded = travelled(tmp_path / "w.safetensors", config, variables)
    prediction = predict(estimator, loaded, frames, focus, 3)
    trace, history = prediction.history.trace, prediction.history
    assert trace.depth.shape == (4, 1, 64, 64) and trace.residual.shape == (3, 1)
    q = lambda t: 10 + 90 * t  # noqa: E731
    np.testing.assert_allclose(q(np.moveaxis(trace.depth, 0, 1)), history.iterates, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(90**2 * trace.disagreement, prediction.disagreement, rtol=1e-3, atol=1e-3)
    # candidates of a scale are averages over the focus settings
    assert history.candidates.shape[-1] == 3 and jnp.ptp(history.candidates) > 1
    assert history.candidates.min() >= 10 - 1e-3 and history.candidates.max() <= 100 + 1e-3


def test_a_users_scheme_has_gradients_for_its_parameters(user_module):
    config = dataclasses.replace(TINY, scheme="my_variants:heavy_ball", prox="residual_cnn")
    unroll, params, problem_of = small_problem(config)
    loss = lambda p: (solved(unroll, p, problem_of, 3)[0] ** 2).mean()  # noqa: E731
    assert not dead(quick(jax.grad(loss))(params))


