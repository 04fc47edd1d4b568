"""The short form of `scripts/bench/gate`: wrong promotions and power of the gate, on simulated searches."""

import numpy as np
import pytest

from benchmarks._gate_worlds.searches import Setting, simulate
from benchmarks._gate_worlds.settings import FAR, NEAR, clustered, null_settings, one, power_settings, three
from benchmarks._gate_worlds.world import Task, answers, uneven

SEARCHES = 400
# More than 5% + 3 standard errors of wrong promotions is no chance. A gate that needs no bound promotes half of them,
# one at 90% confidence about 15%.
MOST = 0.05 + 3 * (0.05 * 0.95 / SEARCHES) ** 0.5


def promoted(setting: Setting, searches: int = SEARCHES) -> float:
    """How often anybody is promoted; where there is a true gain, how often the finalist is."""
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


def test_a_laxer_bound_would_be_found_out() -> None:
    """The same searches, with the finalist held to no more than a lead over the best parent."""
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
def test_simulated_models_have_the_accuracy_and_the_likeness_that_they_are_said_to(differ: float) -> None:
    task = Task(1.0, 0.0, 0.7, differ, 4_000)
    drawn = answers(task, np.array([0.7, 0.7, 0.5]), 40, task.items, np.random.default_rng(0), grouped=True)
    assert drawn.mean(axis=(0, 2)) == pytest.approx([0.7, 0.7, 0.5], abs=0.006)
    assert (drawn[:, 0] != drawn[:, 1]).mean() == pytest.approx(differ, rel=0.08)


def test_a_model_is_lucky_or_unlucky_with_a_whole_group() -> None:
    grouped, alone = clustered((10,) * 60)[0], one(600, FAR)[0]
    spread = []
    for task in (grouped, alone):
        drawn = answers(task, np.array([0.6, 0.6]), 200, 600, np.random.default_rng(0), grouped=True)
        sums = (drawn[:, 0] - drawn[:, 1]).reshape(200, 60, 10).sum(axis=2)
        spread.append(sums.var())
    assert spread[0] > 1.8 * spread[1]


def test_the_whole_bench_has_every_size_and_gain() -> None:
    assert {setting.items for setting in null_settings()} >= {300, 1_000, 3_000}
    assert {(setting.gain, setting.items) for setting in power_settings()} == {
        (gain, items) for gain in (1.0, 3.0, 5.0) for items in (300, 1_000, 3_000)
    }
    assert all(sum(task.groups) in (0, task.items) for setting in null_settings() for task in setting.tasks)
    assert all(setting.gain == 0.0 for setting in null_settings())
