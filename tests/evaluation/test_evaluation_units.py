"""Sampling units in the standard errors of tasks, score cards and fitness."""

import numpy as np
import pytest

from evosearch.evaluation.statistics.intervals import Interval, independent_difference, paired_difference
from evosearch.evaluation.statistics.scores import make_card
from evosearch.evaluation.statistics.units import units
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import EXPECTED, ItemBatch, ItemSet, Tokens


def test_where_every_item_is_a_unit_the_variance_is_students() -> None:
    values = np.random.default_rng(0).random(30)
    assert units(values, None).variance == pytest.approx(values.var(ddof=1) / 30)
    assert units(values, ()).mean == pytest.approx(values.mean())
    assert units(values[:1], None).variance == 0.0


def test_with_groups_it_is_what_leaving_out_each_of_them_gives() -> None:
    rng = np.random.default_rng(1)
    names = np.array(["a"] * 9 + ["b"] * 2 + ["c"] * 5 + ["d"] * 4)
    values = rng.random(20)
    without = np.array([values[names != name].mean() for name in "abcd"])
    found = units(values, list(names)).variance
    assert found == pytest.approx(3 / 4 * np.sum((without - values.mean()) ** 2))
    shuffled = rng.permutation(20)
    assert units(values[shuffled], list(names[shuffled])).variance == pytest.approx(found)


def test_a_bound_holds_where_one_group_is_most_of_the_items() -> None:
    """The usual sandwich underestimates the influence of the large group, and errs twice as often as claimed."""
    rng = np.random.default_rng(2)
    codes = np.repeat(np.arange(51), [200, *[10] * 50])
    groups = {"t": [str(code) for code in codes]}
    draws, above = 1_500, 0
    for _ in range(draws):
        luck = 0.7 * rng.standard_normal((2, 51))[:, codes]
        a, b = ((own + rng.standard_normal(codes.size) > 0) * 1.0 for own in luck)
        above += paired_difference({"t": a}, {"t": b}, {"t": 1.0}, {"t": 0.0}, groups).lower > 0.0
    assert above / draws < 0.025 + 3 * (0.025 * 0.975 / draws) ** 0.5


def test_score_cards_count_groups() -> None:
    """Twenty items in five groups, each right or wrong as a whole, have the standard error of five items."""
    hashes = tuple(f"{index:064x}" for index in range(20))
    names = tuple(str(index // 4) for index in range(20))
    suite = Suite.model_validate(
        {
            "name": "s",
            "tasks": [{"task": "t", "metric": "acc", "chance": 0.0}],
            "documents": {"search": 20, "validation": 1, "test": 1},
        }
    )
    right = np.repeat([1.0, 0.0, 1.0, 1.0, 0.0], 4)
    columns = {"t": {"acc": right, EXPECTED: right}}

    def card(groups: tuple[str, ...]):
        batch = ItemBatch("search", (ItemSet("t", "t", tuple(range(20)), hashes, groups),))
        return make_card(suite, batch, columns, Tokens(), {})

    alone, grouped = card(()), card(names)
    assert grouped.tasks["t"].value == alone.tasks["t"].value
    assert alone.tasks["t"].stderr == pytest.approx(right.std(ddof=1) / 20**0.5)
    assert grouped.tasks["t"].stderr == pytest.approx(right[::4].std(ddof=1) / 5**0.5)
    assert grouped.fitness.stderr == pytest.approx(100 * grouped.tasks["t"].stderr)
    assert grouped.fitness.value == alone.fitness.value


def test_the_difference_of_two_estimates_from_different_items() -> None:
    one, other = Interval(80.0, 2.0, 75.0, 83.0, 100), Interval(70.0, 1.0, 68.0, 72.0, 400)
    found = independent_difference(one, other)
    assert found.value == 10.0
    assert found.lower == pytest.approx(10 - (5**2 + 2**2) ** 0.5)
    assert found.upper == pytest.approx(10 + (3**2 + 2**2) ** 0.5)
    assert (found.stderr, found.n) == (pytest.approx(5**0.5), 500)
