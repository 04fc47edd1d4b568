"""Calibration of the gate: error rates computed exactly, and wrong promotions and power on simulated searches.

The simulations are a short form of `benchmarks.gate`.
"""

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks._gate_worlds.searches import Setting, simulate
from benchmarks._gate_worlds.settings import FAR, NEAR, clustered, null_settings, one, power_settings, three
from benchmarks._gate_worlds.world import Task, answers, uneven
from evosearch.promotion.gate import Contender, Measure, compare

SEARCHES = 1_000
MOST = 0.05 + 3 * (0.05 * 0.95 / SEARCHES) ** 0.5  # two paths err by 2.5% each, plus 3 standard errors
BOUND = Measure({"task": 1.0}, {"task": 0.0}, cross_checks=False)
LAX = Measure({"task": 1.0}, {"task": 0.0}, confidence=0.95, cross_checks=False)


def beats(measure: Measure, items: int, wins: int, losses: int) -> bool:
    """Whether a challenger with these wins and losses against a parent beats it."""
    challenger, parent = np.zeros(items), np.zeros(items)
    challenger[:wins] = parent[wins : wins + losses] = 1.0
    return compare(
        Contender("17", "finalist", {"task": challenger}), Contender("parent:0", "parent", {"task": parent}), measure
    ).beats


def error_rate(measure: Measure, items: int, differ: float) -> float:
    """Exact probability that an equally good challenger beats a parent from which it differs on a share of the items.

    D ~ Binomial(items, differ) items are answered differently and W ~ Binomial(D, 1/2) of them are wins.
    """
    wrong = 0.0
    for count in range(int(binom.ppf(1e-6, items, differ)), int(binom.isf(1e-6, items, differ)) + 1):
        low, high = count // 2, count + 1  # the fewest wins that beat the parent lie above `low`, up to `high`
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if beats(measure, items, middle, count - middle) else (middle, high)
        wrong += float(binom.pmf(count, items, differ) * binom.sf(high - 1, count, 0.5))
    return wrong


@pytest.mark.parametrize(("items", "differ"), [(300, FAR), (300, NEAR), (1_000, FAR)])
def test_one_comparison_errs_in_at_most_one_of_forty(items: int, differ: float) -> None:
    """2.5% nominal; a one-sided bound at 95% confidence errs almost twice as often and is found out."""
    assert 0.015 < error_rate(BOUND, items, differ) <= 0.025
    assert error_rate(LAX, items, differ) > 0.03


def promoted(setting: Setting, searches: int = SEARCHES) -> float:
    """Share of searches that promote a model, or that promote the finalist if candidates are truly better."""
    found = [(ended.decision.promoted, ended.finalist.candidate) for ended in simulate(setting, searches, seed=1)]
    return float(np.mean([name == finalist if setting.gain else name is not None for name, finalist in found]))


@pytest.mark.parametrize(
    "setting",
    [
        Setting("far", one(300, FAR)),
        Setting("few differ", one(300, NEAR)),
        Setting("three tasks", three(300)),
        Setting("uneven groups", clustered(uneven(60, 300))),
    ],
    ids=lambda setting: setting.name,
)
def test_what_is_no_better_than_the_best_parent_is_hardly_ever_promoted(setting: Setting) -> None:
    assert promoted(setting) <= MOST


def test_a_gate_without_a_bound_would_be_found_out() -> None:
    """The same searches, if any lead over the best parent were enough."""
    leads = [
        next(c for c in ended.decision.comparisons if c.role == "parent").difference > 0
        for ended in simulate(Setting("far", one(300, FAR)), 200, seed=1)
    ]
    assert np.mean(leads) > MOST


def test_true_gains_are_seen_the_more_items_there_are() -> None:
    few, many = (promoted(Setting("gain", one(items, NEAR), gain=3.0), 100) for items in (300, 1_000))
    assert few > 0.2
    assert many > 0.85
    assert promoted(Setting("gain", one(300, NEAR), gain=5.0), 100) > 0.85


@pytest.mark.parametrize("differ", [0.01, NEAR, FAR])
def test_simulated_models_have_the_stated_accuracy_and_similarity(differ: float) -> None:
    task = Task(1.0, 0.0, 0.7, differ, 4_000)
    drawn = answers(task, np.array([0.7, 0.7, 0.5]), 40, task.items, np.random.default_rng(0), grouped=True)
    assert drawn.mean(axis=(0, 2)) == pytest.approx([0.7, 0.7, 0.5], abs=0.006)
    assert (drawn[:, 0] != drawn[:, 1]).mean() == pytest.approx(differ, rel=0.08)


def test_luck_is_shared_within_a_group() -> None:
    grouped, alone = clustered((10,) * 60)[0], one(600, FAR)[0]
    spread = []
    for task in (grouped, alone):
        drawn = answers(task, np.array([0.6, 0.6]), 200, 600, np.random.default_rng(0), grouped=True)
        sums = (drawn[:, 0] - drawn[:, 1]).reshape(200, 60, 10).sum(axis=2)
        spread.append(sums.var())
    assert spread[0] > 1.8 * spread[1]


def test_the_benchmark_covers_every_size_and_gain() -> None:
    assert {setting.items for setting in null_settings()} >= {300, 1_000, 3_000}
    assert {(setting.gain, setting.items) for setting in power_settings()} == {
        (gain, items) for gain in (1.0, 3.0, 5.0) for items in (300, 1_000, 3_000)
    }
    assert all(sum(task.groups) in (0, task.items) for setting in null_settings() for task in setting.tasks)
    assert all(setting.gain == 0.0 for setting in null_settings())
