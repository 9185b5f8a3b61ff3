import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax import focus_axis as fa
from dff_jax.errors import InputError


def test_frames_are_sorted_by_value_not_by_text():
    focus = [100.0, 16.4, 9.5]  # as text "100.0" < "16.4" < "9.5"
    assert fa.sort_order(focus, "disparity").tolist() == [2, 1, 0]


def test_metres_ascend_in_diopters_far_to_near():
    order = fa.sort_order([0.35, 2.21, 0.9], "metre")
    assert order.tolist() == [1, 2, 0]


@pytest.mark.parametrize("unit", fa.UNITS)
def test_q_and_back(unit):
    values = np.array([0.1, 0.5, 7.0])
    np.testing.assert_allclose(fa.from_q(fa.to_q(values, unit), unit), values, rtol=1e-12)
    np.testing.assert_allclose(fa.from_q(fa.to_q(jnp.asarray(values), unit), unit), values, rtol=1e-6)


def test_infinity_is_a_focus_setting_and_never_enters_a_mean():
    assert fa.to_q(np.array([np.inf, 2.0]), "metre").tolist() == [0.0, 0.5]
    assert fa.sort_order([2.0, np.inf, 7e6], "metre").tolist() == [1, 2, 0]
    assert np.isinf(fa.from_q(np.array([0.0, -1.0, 1e-9]), "metre")).all()
    focus = jnp.array([[0.0, 0.1, 2.0]])
    q = fa.short_of_infinity(jnp.array([[[0.0, -3.0, 1.0]]]), focus, "metre")
    np.testing.assert_allclose(q, [[[0.025, 0.025, 1.0]]])
    np.testing.assert_array_equal(fa.short_of_infinity(q - 5, focus, "diopter"), q - 5)


def test_positions_are_linear_and_have_a_direction():
    assert fa.sort_order([-1.0, 0.0, 2.0], "mm").tolist() == [0, 1, 2]
    assert fa.sort_order([-1.0, 0.0, 2.0], "-mm").tolist() == [2, 1, 0]
    np.testing.assert_array_equal(fa.from_q(fa.to_q(np.array([-1.0, 2.0]), "-micron"), "-micron"), [-1.0, 2.0])
    assert fa.larger_is_nearer("mm") is True and fa.larger_is_nearer("-mm") is False
    assert fa.sort_order([1e9 + 0.25, 1e9], "micron").tolist() == [1, 0]  # float32 could not tell them apart


@pytest.mark.parametrize("batched", [False, True])
def test_unit_coordinate_is_zero_to_one_and_inverts(batched):
    focus = jnp.array([[10.0, 12.0, 60.0], [0.0, 0.1, 0.5]]) if batched else jnp.array([10.0, 12.0, 60.0])
    t = fa.to_unit_coordinate(focus, focus)
    np.testing.assert_allclose(t[..., 0], 0.0)
    np.testing.assert_allclose(t[..., -1], 1.0)
    maps = jnp.linspace(-0.2, 1.3, 24).reshape(2, 3, 4)
    if not batched:
        maps = maps[0]
    np.testing.assert_allclose(fa.to_unit_coordinate(fa.from_unit_coordinate(maps, focus), focus), maps, atol=1e-5)


@pytest.mark.parametrize(
    "focus, unit, match",
    [
        ([1.0], "disparity", "at least 2"),
        ([1.0, 2.0, 1.0], "disparity", "b.png|c.png|a.png"),
        ([1.0, np.nan], "disparity", "b.png.*not a finite"),
        ([1.0, -2.0], "metre", "b.png.*not positive"),
        ([1.0, 2.0], "inch", "unit.*disparity, diopter, metre, index, mm, micron"),
    ],
)
def test_bad_axes_are_named(focus, unit, match):
    with pytest.raises(InputError, match=match):
        fa.sort_order(focus, unit, ["a.png", "b.png", "c.png"][: len(focus)])
