"""Dual numbers: floats that know their derivative."""

import copy
import json
import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evosearch.recipe.dual import Dual
from evosearch.recipe.parameters import evaluate

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
FACTORS = st.one_of(NUMBERS, st.integers(-9, 9))


@given(NUMBERS, FACTORS.filter(bool))
def test_values_are_those_of_floats_to_the_last_bit(value: float, other: float) -> None:
    x = Dual(value, {3: 1.0})
    operations: list[Callable[[float], float]] = [
        *(lambda v: v + other, lambda v: other + v, lambda v: v - other, lambda v: other - v),
        *(lambda v: v * other, lambda v: other * v, lambda v: v / other, lambda v: -v, lambda v: +v),
    ]
    for operation in operations:
        assert operation(x).hex() == operation(value).hex()
        assert isinstance(operation(x), Dual)


@given(st.lists(NUMBERS, min_size=2, max_size=6), st.floats(0.0, 1.0))
def test_interpolation_over_depth_is_that_of_floats_with_its_derivative(values: list[float], position: float) -> None:
    duals = [Dual(value, {index: 1.0}) for index, value in enumerate(values)]
    found = evaluate(duals, "model.layers.0.mlp.up_proj.weight", position)
    assert isinstance(found, Dual)
    assert found.hex() == float(evaluate(values, "", position) or 0.0).hex()
    assert sum(found.terms.values()) == pytest.approx(1.0)
    for index, term in found.terms.items():
        assert term == pytest.approx(max(0.0, 1.0 - abs(position * (len(values) - 1) - index)), abs=1e-12)


def test_derivatives_of_sums_and_multiples() -> None:
    x, y = Dual(2.0, {0: 1.0}), Dual(5.0, {0: 0.5, 1: 1.0})
    found = {
        x + y: {0: 1.5, 1: 1.0},
        x - y: {0: 0.5, 1: -1.0},
        3 - y: {0: -0.5, 1: -1.0},
        y / 4: {0: 0.125, 1: 0.25},
        -2 * y: {0: -1.0, 1: -2.0},
        sum([x, x, y]): {0: 2.5, 1: 1.0},
    }
    for number, terms in found.items():
        assert isinstance(number, Dual)
        assert number.terms == terms


def test_zeros_are_dropped() -> None:
    x = Dual(2.0, {0: 1.0, 1: 0.0})
    assert x.terms == {0: 1.0}
    assert isinstance(x - x, Dual)
    assert (x - x).terms == (0 * x).terms == {}


def test_all_other_arithmetic_gives_plain_floats() -> None:
    x = Dual(2.0, {0: 1.0})
    for number in (x * x, x / x, 1 / x, x**2, abs(x), x // 1, x % 2, float(x), round(x, 1), max(0.0, float(x))):
        assert type(number) is float
    assert type(int(x)) is int
    with pytest.raises(TypeError, match="unsupported operand"):
        x + "a"  # type: ignore[operator]


def test_it_is_a_float_in_every_other_respect() -> None:
    x = Dual(0.1, {0: 1.0})
    assert (x, hash(x), str(x), f"{x:.3f}", json.dumps([x])) == (0.1, hash(0.1), "0.1", "0.100", "[0.1]")
    assert sorted([Dual(3.0, {}), 2.0, x]) == [0.1, 2.0, 3.0]
    with pytest.raises(TypeError):
        x.terms[5] = 1.0  # type: ignore[index]


def test_copies_keep_the_derivative() -> None:
    x = Dual(0.1, {4: 0.25})
    for other in (copy.copy(x), copy.deepcopy(x), copy.deepcopy({"a": [x]})["a"][0], pickle.loads(pickle.dumps(x))):
        assert isinstance(other, Dual)
        assert (other, other.terms) == (x, x.terms)
