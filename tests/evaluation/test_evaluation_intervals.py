"""Intervals and paired bounds: worked cases, exact tests as an oracle, and coverage by simulation."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import ndtri, xlogy

from evosearch.errors import SuiteError
from evosearch.evaluation.statistics.intervals import interval, mean_interval, paired_difference, proportion_difference

ONE = {"t": 1.0}
NONE = {"t": 0.0}


def outcomes(wins: int, losses: int, ties: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    a = np.r_[np.ones(wins), np.zeros(losses), np.ones(ties)]
    b = np.r_[np.zeros(wins), np.ones(losses), np.ones(ties)]
    return {"t": a}, {"t": b}


def test_the_difference_is_that_of_the_scores() -> None:
    rng = np.random.default_rng(0)
    weights, chances = {"x": 0.75, "y": 0.25}, {"x": 0.25, "y": 0.0}
    a = {"x": rng.random(30), "y": rng.random(50)}
    b = {"x": rng.random(30), "y": rng.random(50)}

    def score(columns: dict[str, np.ndarray]) -> float:
        return sum(100 * weights[t] * (columns[t].mean() - chances[t]) / (1 - chances[t]) for t in weights)

    found = paired_difference(a, b, weights, chances)
    assert found.value == pytest.approx(score(a) - score(b))
    assert found.n == 80
    assert found.lower < found.value < found.upper
    assert interval(a, weights, chances).value == pytest.approx(score(a))
    assert interval(a, weights).value == pytest.approx(100 * (0.75 * a["x"].mean() + 0.25 * a["y"].mean()))


def test_one_task_is_students_t_but_for_the_two_unseen_items() -> None:
    d = np.random.default_rng(1).normal(0.01, 0.1, 400)
    found = paired_difference({"t": d}, {"t": np.zeros(400)}, ONE, NONE)
    plain = stats.ttest_1samp(d, 0.0).confidence_interval(0.95)
    assert found.lower == pytest.approx(100 * plain.low, abs=0.05)
    assert found.upper == pytest.approx(100 * plain.high, abs=0.05)
    assert found.stderr >= 100 * d.std(ddof=1) / 20.0


def test_two_tasks_have_welch_satterthwaite_degrees_of_freedom() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.uniform(-0.4, 0.4, 40), rng.uniform(-0.1, 0.1, 200)
    nothing = {"x": np.zeros(40), "y": np.zeros(200)}
    found = paired_difference({"x": x, "y": y}, nothing, {"x": 0.5, "y": 0.5}, {"x": 0.0, "y": 0.0})
    welch = stats.ttest_ind(x, -y, equal_var=False).confidence_interval(0.95)
    margin = 100 * 0.5 * (welch.high - welch.low) / 2
    assert margin < found.value - found.lower < 1.08 * margin


@pytest.mark.parametrize(("wins", "losses"), [(4, 0), (5, 0), (6, 0), (7, 1), (8, 1), (9, 1), (9, 2), (10, 2), (12, 3)])
def test_few_differing_items_are_judged_as_by_the_exact_sign_test(wins: int, losses: int) -> None:
    a, b = outcomes(wins, losses, 100 - wins - losses)
    exact = stats.binomtest(wins, wins + losses, alternative="greater").pvalue < 0.025
    assert paired_difference(a, b, ONE, NONE).beats == exact


def test_no_difference_is_no_victory() -> None:
    same = {"t": np.array([1.0, 0.0, 1.0])}
    found = paired_difference(same, same, ONE, NONE)
    assert (found.value, found.stderr, found.lower, found.upper) == (0.0, 0.0, 0.0, 0.0)
    assert not found.beats


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_handful_of_items_certifies_nothing(n: int) -> None:
    a, b = outcomes(n, 0, 0)
    found = paired_difference(a, b, ONE, NONE)
    assert found.value == 100.0
    assert not found.beats
    assert np.isfinite([found.stderr, found.lower, found.upper]).all()
    assert found.upper <= 100.0


def test_groups_widen_the_bound_as_if_each_were_one_item() -> None:
    rng = np.random.default_rng(3)
    per_group = rng.choice([0.0, 1.0], 50)
    a, zeros = np.repeat(per_group, 4), np.zeros(200)
    names = [f"g{index // 4}" for index in range(200)]
    grouped = paired_difference({"t": a}, {"t": zeros}, ONE, NONE, {"t": names})
    single = paired_difference({"t": per_group}, {"t": zeros[:50]}, ONE, NONE)
    assert grouped.stderr == pytest.approx(single.stderr)
    assert grouped.lower == pytest.approx(single.lower)
    assert grouped.stderr > 1.8 * paired_difference({"t": a}, {"t": zeros}, ONE, NONE).stderr
    own = {"t": [str(index) for index in range(200)]}
    assert paired_difference({"t": a}, {"t": zeros}, ONE, NONE, own) == paired_difference(
        {"t": a}, {"t": zeros}, ONE, NONE
    )


def test_mismatched_items_are_refused() -> None:
    with pytest.raises(SuiteError, match="task 't': the two candidates have 3 and 2 items"):
        paired_difference({"t": np.ones(3)}, {"t": np.ones(2)}, ONE, NONE)
    with pytest.raises(SuiteError, match="task 't': has no scores"):
        paired_difference({"t": np.ones(3)}, {}, ONE, NONE)
    with pytest.raises(SuiteError, match="finite"):
        interval({"t": np.array([1.0, np.nan])}, ONE)
    with pytest.raises(SuiteError, match="3 items with 2 groups"):
        interval({"t": np.ones(3)}, ONE, groups={"t": ["a", "b"]})


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (10, 10), (61, 80)])
def test_right_or_wrong_items_have_wilsons_interval(right: int, n: int) -> None:
    values = np.r_[np.ones(right), np.zeros(n - right)]
    wilson = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    found = mean_interval(values)
    assert (found.lower, found.upper) == (pytest.approx(wilson.low, abs=1e-12), pytest.approx(wilson.high, abs=1e-12))
    score = interval({"t": values}, ONE, {"t": 0.5})
    assert score.lower == pytest.approx(100 * (wilson.low - 0.5) / 0.5)
    assert score.upper == pytest.approx(100 * (wilson.high - 0.5) / 0.5)


def test_partial_credit_has_students_interval_within_the_possible() -> None:
    values = np.array([0.2, 0.4, 0.5, 0.7])
    plain = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    found = mean_interval(values)
    assert (found.lower, found.upper) == (pytest.approx(plain.low), pytest.approx(plain.high))
    assert mean_interval([0.3]).lower == 0.0
    assert mean_interval([0.3]).upper == 1.0
    assert mean_interval([0.9, 1.0, 0.95]).upper == 1.0


def test_grouped_right_or_wrong_items_count_as_fewer() -> None:
    values = np.repeat([1.0, 0.0, 1.0, 1.0], 10)
    names = [str(index // 10) for index in range(40)]
    grouped, single = mean_interval(values, names), mean_interval(values)
    assert grouped.upper - grouped.lower > 2 * (single.upper - single.lower)
    sure = mean_interval(np.ones(40), names)
    assert sure.lower == pytest.approx(mean_interval(np.ones(4)).lower)


def test_one_sided_bounds_hold_as_often_as_they_say() -> None:
    """Two tasks, correlated candidates: the bound is above the truth in at most 2.5% of draws, but sometimes."""
    rng = np.random.default_rng(4)
    weights, chances = {"x": 0.5, "y": 0.5}, {"x": 0.25, "y": 0.0}
    truth = 100 * (0.5 * (0.7 - 0.6) / 0.75 + 0.5 * (0.8 - 0.8))
    draws, above, below, covered = 2000, 0, 0, 0
    for _ in range(draws):
        x, y, own = rng.random(120), rng.random(60), rng.random(60)
        a = {"x": (x < 0.7) * 1.0, "y": (y < 0.8) * 1.0}
        b = {"x": (np.where(rng.random(120) < 0.5, x, rng.random(120)) < 0.6) * 1.0, "y": (own < 0.8) * 1.0}
        found = paired_difference(a, b, weights, chances)
        above += found.lower > truth
        below += found.upper < truth
        single = interval(a, weights, chances)
        covered += single.lower <= 100 * (0.5 * 0.45 / 0.75 + 0.5 * 0.8) <= single.upper
    slack = 3 * (0.025 * 0.975 / draws) ** 0.5
    assert 0.01 < above / draws < 0.025 + slack
    assert 0.01 < below / draws < 0.025 + slack
    assert 0.93 < covered / draws < 0.98


def test_tangos_interval_is_the_published_one() -> None:
    """Fagerland, Lydersen & Laake 2014 (Statist. Med. 33), airway hyper-responsiveness: 1 and 7 of 21 changed."""
    assert proportion_difference(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize(("gained", "lost", "n"), [(3, 9, 40), (0, 5, 60), (7, 0, 30), (12, 12, 24), (1, 2, 200)])
def test_tangos_bounds_are_where_the_score_test_stops_rejecting(gained: int, lost: int, n: int) -> None:
    """The restricted likelihood, maximized numerically here and in closed form there."""
    quantile = float(ndtri(0.975))
    lower, upper = proportion_difference(gained, lost, n)
    for delta, sign in ((lower, 1), (upper, -1)):

        def unlikely(q: float, delta: float = delta) -> float:
            return -float(xlogy(gained, q + delta) + xlogy(lost, q) + xlogy(n - gained - lost, 1 - 2 * q - delta))

        within = (max(0.0, -delta), (1 - delta) / 2)
        q = minimize_scalar(unlikely, bounds=within, method="bounded", options={"xatol": 1e-12}).x
        z = (gained - lost - n * delta) / (n * (2 * q + delta * (1 - delta))) ** 0.5
        assert z == pytest.approx(sign * quantile, abs=1e-4)


@pytest.mark.parametrize(("gained", "lost", "n"), [(0, 0, 1), (1, 0, 1), (5, 5, 10), (0, 40, 40), (40, 0, 40)])
def test_tangos_bounds_enclose_the_difference_within_one(gained: int, lost: int, n: int) -> None:
    lower, upper = proportion_difference(gained, lost, n)
    assert -1 <= lower <= (gained - lost) / n <= upper <= 1
    assert proportion_difference(lost, gained, n) == (-upper, -lower)
    if gained == lost == 0:
        assert lower == pytest.approx(-(1.959964**2) / (n + 1.959964**2))
