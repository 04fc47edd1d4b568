"""The paired bootstrap compared with manual resampling, Student's interval, and the truth in simulations."""

import tracemalloc

import numpy as np
import pytest

from evosearch.errors import SuiteError
from evosearch.evaluation.statistics import bootstrap
from evosearch.evaluation.statistics.bootstrap import bootstrap_difference
from evosearch.evaluation.statistics.intervals import paired_difference

ONE, NONE = {"t": 1.0}, {"t": 0.0}
WEIGHTS, CHANCES = {"x": 0.6, "y": 0.4}, {"x": 0.25, "y": 0.0}


def two_tasks(seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, list[str]]]:
    """Right-or-wrong items in groups of different sizes, and partial credit."""
    rng = np.random.default_rng(seed)
    names = [str(name) for name in np.sort(rng.integers(0, 40, 200))]
    luck = {name: rng.standard_normal(2) for name in names}
    a, b = ({"x": np.array([(luck[n][at] + rng.standard_normal() > 0) * 1.0 for n in names])} for at in (0, 1))
    return a | {"y": rng.random(80)}, b | {"y": 0.8 * rng.random(80)}, {"x": names}


def by_hand(a: dict[str, np.ndarray], b: dict[str, np.ndarray], groups: dict[str, list[str]]) -> np.ndarray:
    """Groups drawn with replacement, task by task, one resample at a time, plus one win and one loss."""
    rng = np.random.default_rng(77)
    drawn = np.zeros(3_000)
    typical = []
    for task, weight in WEIGHTS.items():
        difference, scale = a[task] - b[task], 100 * weight / (1 - CHANCES[task])
        names = np.array(groups.get(task) or [str(index) for index in range(difference.size)])
        members = [np.flatnonzero(names == name) for name in np.unique(names)]
        sums = np.array([difference[own].sum() for own in members])
        typical.append(scale * np.sqrt(np.mean(sums[sums != 0] ** 2)) / difference.size)
        for index in range(drawn.size):
            chosen = np.concatenate([members[at] for at in rng.integers(0, len(members), len(members))])
            drawn[index] += scale * difference[chosen].mean()
    return drawn + max(typical) * (rng.poisson(1.0, drawn.size) - rng.poisson(1.0, drawn.size))


def test_whole_groups_are_drawn_and_tasks_are_strata() -> None:
    a, b, groups = two_tasks(0)
    drawn = by_hand(a, b, groups)
    found = bootstrap_difference(a, b, WEIGHTS, CHANCES, groups)
    assert found.value == pytest.approx(paired_difference(a, b, WEIGHTS, CHANCES, groups).value)
    assert found.stderr == pytest.approx(drawn.std(), rel=0.05)
    low, high = np.quantile(drawn, [0.025, 0.975])
    width = high - low
    assert low - 0.08 * width < found.lower < low + 0.03 * width, "wider than the plain percentiles, by Student's tails"
    assert high - 0.03 * width < found.upper < high + 0.08 * width
    apart = bootstrap_difference(a, b, WEIGHTS, CHANCES)
    assert found.upper - found.lower > 1.2 * (apart.upper - apart.lower)


def test_kinds_of_units_are_drawn_as_units_are(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, groups = two_tasks(1)
    together = bootstrap_difference(a, b, WEIGHTS, CHANCES, groups)
    monkeypatch.setattr(bootstrap, "FEW", 0)
    monkeypatch.setattr(bootstrap, "CHUNK", 1_000)
    one_by_one = bootstrap_difference(a, b, WEIGHTS, CHANCES, groups)
    width = together.upper - together.lower
    assert one_by_one.lower == pytest.approx(together.lower, abs=0.05 * width)
    assert one_by_one.upper == pytest.approx(together.upper, abs=0.05 * width)


def test_it_repeats_by_its_seed_and_leaves_numpys_own_generator_alone() -> None:
    a, b, groups = two_tasks(2)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    found = bootstrap_difference(a, b, WEIGHTS, CHANCES, groups)
    assert found == bootstrap_difference(a, b, WEIGHTS, CHANCES, groups)
    assert found != bootstrap_difference(a, b, WEIGHTS, CHANCES, groups, seed=1)
    assert (np.random.get_state()[1] == before).all()


def test_many_items_give_students_interval() -> None:
    rng = np.random.default_rng(3)
    a, b = {"t": (rng.random(3_000) < 0.62) * 1.0}, {"t": (rng.random(3_000) < 0.6) * 1.0}
    found, plain = bootstrap_difference(a, b, ONE, NONE), paired_difference(a, b, ONE, NONE)
    assert found.lower == pytest.approx(plain.lower, abs=0.1)
    assert found.upper == pytest.approx(plain.upper, abs=0.1)
    wider = bootstrap_difference(a, b, ONE, NONE, level=0.99)
    assert wider.lower < found.lower < found.upper < wider.upper


@pytest.mark.parametrize(("wins", "certain"), [(2, False), (4, False), (12, True)])
def test_a_handful_of_wins_is_not_certain(wins: int, certain: bool) -> None:
    """The plain bootstrap never draws a zero or loss from wins alone, and calls two out of two certain."""
    a, b = {"t": np.r_[np.ones(wins), np.ones(288)]}, {"t": np.r_[np.zeros(wins), np.ones(288)]}
    found = bootstrap_difference(a, b, ONE, NONE)
    assert (found.lower > 0.0) is certain
    assert found.upper > found.value


def test_no_difference_and_one_unit() -> None:
    same = bootstrap_difference({"t": np.ones(5)}, {"t": np.ones(5)}, ONE, NONE)
    assert (same.value, same.lower, same.upper) == (0.0, 0.0, 0.0)
    single = bootstrap_difference({"t": np.ones(4)}, {"t": np.zeros(4)}, ONE, NONE, {"t": ["a"] * 4})
    assert -100.0 <= single.lower < 0.0
    assert single.upper == 100.0


def test_its_two_sides_miss_as_often_as_they_say() -> None:
    """20 groups of different sizes: plain percentiles miss nearly 10% here, these at most 5% in total."""
    rng = np.random.default_rng(6)
    sizes = rng.geometric(1 / 12, 20)
    codes = np.repeat(np.arange(20), sizes)
    groups = {"t": [str(code) for code in codes]}
    draws, missed = 600, 0
    for _ in range(draws):
        luck = rng.standard_normal((2, 20))[:, codes] * 0.7
        a, b = ((own + rng.standard_normal(codes.size) > 0) * 1.0 for own in luck)
        found = bootstrap_difference({"t": a}, {"t": b}, ONE, NONE, groups, resamples=1_000)
        missed += not found.lower <= 0.0 <= found.upper
    assert 0.01 < missed / draws < 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5


def test_mismatched_items_are_refused() -> None:
    with pytest.raises(SuiteError, match="task 't': the two candidates have 3 and 2 items"):
        bootstrap_difference({"t": np.ones(3)}, {"t": np.ones(2)}, ONE, NONE)


def test_memory_is_bounded_where_many_units_are_of_many_kinds() -> None:
    grades = np.random.default_rng(5).integers(0, 80, 20_000) / 80.0
    a, b = {"t": grades}, {"t": np.zeros(20_000)}
    tracemalloc.start()
    found = bootstrap_difference(a, b, ONE, NONE, resamples=600)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * bootstrap.CHUNK, "bytes: a few arrays of CHUNK numbers, not resamples times units"
    assert found.stderr == pytest.approx(100 * float(grades.std()) / 20_000**0.5, rel=0.1)
