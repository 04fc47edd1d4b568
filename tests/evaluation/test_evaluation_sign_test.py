"""The sign-flip test compared with enumeration of all signs, the binomial test, and its null distribution."""

from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest
from scipy import stats

from evosearch.errors import SuiteError
from evosearch.evaluation.statistics import sign_test
from evosearch.evaluation.statistics.sign_test import paired_sign_test

ONE, NONE = {"t": 1.0}, {"t": 0.0}
Columns = dict[str, np.ndarray]


def listed(
    a: Columns,
    b: Columns,
    weights: Mapping[str, float],
    chances: Mapping[str, float],
    groups: Mapping[str, list[str]] | None = None,
) -> float:
    """P(T at least as observed) by enumeration of all signs."""
    parts = []
    for task, weight in weights.items():
        names = (groups or {}).get(task) or [str(index) for index in range(a[task].size)]
        difference = (a[task] - b[task]) * 100 * weight / (1 - chances[task]) / a[task].size
        parts += [difference[[name == group for name in names]].sum() for group in dict.fromkeys(names)]
    units = np.array([part for part in parts if abs(part) > 1e-12])
    signs = np.array(list(product((-1.0, 1.0), repeat=units.size)))
    return float((signs @ np.abs(units) >= units.sum() - 1e-9).mean())


def right(rng: np.random.Generator, n: int) -> Columns:
    return {"t": rng.integers(0, 2, n).astype(float)}


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (6, 0), (8, 1), (3, 9), (40, 25), (400, 371)])
def test_one_task_of_right_or_wrong_items_is_the_sign_test(wins: int, losses: int) -> None:
    a = {"t": np.r_[np.ones(wins), np.zeros(losses), np.ones(50)]}
    b = {"t": np.r_[np.zeros(wins), np.ones(losses), np.ones(50)]}
    found = paired_sign_test(a, b, ONE, NONE)
    known = stats.binomtest(wins, wins + losses, alternative="greater").pvalue if wins + losses else 1.0
    assert found.p_value == pytest.approx(known, rel=1e-9)
    assert (found.exact, found.units) == (True, wins + losses)


@pytest.mark.parametrize("seed", range(6))
def test_all_signs_of_several_weighted_tasks_and_of_groups_are_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, chances = {"x": 0.5, "y": 0.3, "z": 0.2}, {"x": 0.25, "y": 0.5, "z": 0.0}
    sizes = {"x": 9, "y": 14, "z": 6}
    a, b = ({task: right(rng, n)["t"] for task, n in sizes.items()} for _ in range(2))
    a["z"] = rng.choice([0.0, 0.1, 0.3, 0.5], 6)  # partial credit
    groups = {"y": [str(name) for name in rng.integers(0, 6, 14)]}
    found = paired_sign_test(a, b, weights, chances, groups)
    assert found.exact
    assert found.p_value == pytest.approx(listed(a, b, weights, chances, groups), abs=1e-12)


def test_ties_of_sums_that_differ_by_rounding_are_counted() -> None:
    """0.3 - 0.2 and 0.2 - 0.1 differ in floating point, but count as equal."""
    a, b = {"t": np.array([0.3, 0.2, 0.1, 0.9])}, {"t": np.array([0.2, 0.1, 0.2, 0.9])}
    assert paired_sign_test(a, b, ONE, NONE).p_value == pytest.approx(0.5)  # + + - : C(3, 2) + C(3, 3) of 8


def test_groups_whose_items_cancel_do_not_differ() -> None:
    a, b = {"t": np.array([0.3, 0.0, 0.0])}, {"t": np.array([0.0, 0.2, 0.1])}
    found = paired_sign_test(a, b, ONE, NONE, {"t": ["one"] * 3})
    assert (found.p_value, found.units) == (1.0, 0)


def test_groups_make_one_unit_of_many_items() -> None:
    a, b = {"t": np.repeat([1.0, 1.0, 0.0, 1.0], 10)}, {"t": np.zeros(40)}
    names = [str(index // 10) for index in range(40)]
    assert paired_sign_test(a, b, ONE, NONE).p_value < 1e-8
    assert paired_sign_test(a, b, ONE, NONE, {"t": names}).p_value == pytest.approx(1 / 8)


def test_where_there_are_too_many_sums_signs_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    a, b = {"t": rng.random(25)}, {"t": rng.random(25) - 0.12}
    whole = paired_sign_test(a, b, ONE, NONE)
    assert whole.exact
    monkeypatch.setattr(sign_test, "SUPPORT", 64)
    drawn = paired_sign_test(a, b, ONE, NONE)
    assert not drawn.exact
    assert drawn.p_value == pytest.approx(whole.p_value, abs=4 * (whole.p_value / sign_test.DRAWS) ** 0.5)
    assert drawn == paired_sign_test(a, b, ONE, NONE), "the same scores, the same p"
    assert drawn != paired_sign_test(a, b, ONE, NONE, seed=1)


def test_a_drawn_p_is_never_zero() -> None:
    rng = np.random.default_rng(4)
    found = paired_sign_test({"t": 0.5 + rng.random(2_000) / 2}, {"t": rng.random(2_000) / 2}, ONE, NONE, draws=999)
    assert not found.exact
    assert found.p_value == 1 / 1000


def test_it_errs_as_often_as_it_says() -> None:
    """Equal candidates in groups, two tasks: p is at most 5% in at most 5% of draws, but sometimes."""
    rng = np.random.default_rng(5)
    draws, weights = 1_500, {"x": 0.7, "y": 0.3}
    groups = {"x": [str(index // 3) for index in range(60)]}
    hits = 0
    for _ in range(draws):
        luck = [np.repeat(rng.standard_normal(20), 3) for _ in range(2)]
        one, other = (
            {"x": (own + rng.standard_normal(60) > 0) * 1.0, "y": rng.integers(0, 2, 40) * 1.0} for own in luck
        )
        hits += paired_sign_test(one, other, weights, {"x": 0.25, "y": 0.0}, groups).p_value <= 0.05
    assert 0.03 < hits / draws <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5


def test_mismatched_items_are_refused() -> None:
    with pytest.raises(SuiteError, match="task 't': the two candidates have 3 and 2 items"):
        paired_sign_test({"t": np.ones(3)}, {"t": np.ones(2)}, ONE, NONE)
