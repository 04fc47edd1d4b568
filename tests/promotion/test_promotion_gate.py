"""The gate on constructed scores, and its rate of false promotions by simulation."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t

from evosearch.errors import SuiteError
from evosearch.evaluation.statistics.bootstrap import bootstrap_difference
from evosearch.evaluation.statistics.sign_test import paired_sign_test
from evosearch.promotion.gate import Contender, GateDecision, Measure, Role, decide

N = 200
MEASURE = Measure({"copy": 0.5, "sort": 0.5}, {"copy": 0.25, "sort": 0.0})


def contender(name: str, role: Role, right: int, recipe_id: str = "") -> Contender:
    """Right on the first `right` of 200 items of both tasks."""
    column = (np.arange(N) < right) * 1.0
    return Contender(name, role, {"copy": column, "sort": column}, recipe_id or f"id-{name}")


def field(base: int = 60, parents: tuple[int, ...] = (90, 100), baseline: int | None = 120) -> list[Contender]:
    out = [contender("base", "base", base)]
    out += [contender(f"parent:{index}", "parent", right) for index, right in enumerate(parents)]
    return out + ([contender("scale:0.40", "baseline", baseline)] if baseline is not None else [])


def test_a_finalist_that_beats_all_is_promoted() -> None:
    decision = decide(contender("17", "finalist", 150), field(), MEASURE)
    assert decision.promoted == decision.winner == "17"
    assert [c.role for c in decision.comparisons] == ["base", "parent", "parent", "baseline"]
    assert all(c.beats and c.lower > 0 and c.challenger == "17" for c in decision.comparisons)
    baseline = decision.comparisons[-1]
    assert baseline.difference == pytest.approx(100 * (0.5 * 0.15 / 0.75 + 0.5 * 0.15))
    assert baseline.raw == pytest.approx(15.0)
    assert 0 < baseline.raw_lower < 15.0 < baseline.raw_upper
    assert baseline.n == 2 * N
    assert decision.reasons[-1] == "17 beats every comparator."


def test_the_baseline_takes_the_place_of_a_finalist_no_better() -> None:
    decision = decide(contender("17", "finalist", 121), field(), MEASURE)
    assert decision.promoted == decision.winner == "scale:0.40"
    assert [(c.challenger, c.role) for c in decision.comparisons[4:]] == [
        ("scale:0.40", "base"),
        ("scale:0.40", "parent"),
        ("scale:0.40", "parent"),
    ]
    assert any("17 does not beat the baseline scale:0.40" in reason for reason in decision.reasons)
    assert "scale:0.40, the simpler recipe, replaces 17." in decision.reasons


def test_the_baseline_must_beat_the_others_too() -> None:
    decision = decide(contender("17", "finalist", 121), field(parents=(90, 119)), MEASURE)
    assert decision.promoted is None
    assert decision.winner == "scale:0.40"
    assert "does not beat every comparator" in decision.reasons[-1]


def test_one_parent_that_is_not_beaten_blocks() -> None:
    decision = decide(contender("17", "finalist", 150), field(parents=(90, 149)), MEASURE)
    assert decision.promoted is None
    assert decision.winner == "17"
    assert [c.comparator for c in decision.comparisons if not c.beats] == ["parent:1"]


def test_the_champion_blocks_both() -> None:
    champion = contender("4", "champion", 150)
    blocked = decide(contender("17", "finalist", 150), [*field(), champion], MEASURE)
    assert blocked.promoted is None
    assert blocked.comparisons[-1].role == "champion"
    instead = decide(contender("17", "finalist", 121), [*field(), champion], MEASURE)
    assert (instead.promoted, instead.winner) == (None, "scale:0.40")


def test_the_champion_need_not_beat_itself() -> None:
    champion = contender("champion", "champion", 150, recipe_id="id-17")
    decision = decide(contender("17", "finalist", 150), [*field(), champion], MEASURE)
    assert decision.promoted == "17"
    assert "17 is the current champion and need not beat itself." in decision.reasons


def test_a_finalist_that_is_the_best_baseline_meets_the_others() -> None:
    finalist = contender("scale:0.40", "finalist", 120)
    decision = decide(finalist, field(), MEASURE)
    assert decision.promoted == "scale:0.40"
    assert {c.role for c in decision.comparisons} == {"base", "parent"}


def test_a_finalist_that_is_a_parent_is_not_promoted() -> None:
    decision = decide(contender("17", "finalist", 100, recipe_id="id-parent:1"), field(baseline=50), MEASURE)
    assert decision.promoted is None
    tie = next(c for c in decision.comparisons if c.comparator == "parent:1")
    assert (tie.difference, tie.stderr, tie.lower, tie.beats) == (0.0, 0.0, 0.0, False)


def test_what_does_not_apply_is_said() -> None:
    others = [entry for entry in field(baseline=None) if entry.role == "parent"]
    decision = decide(contender("17", "finalist", 150), others, MEASURE)
    assert decision.promoted == "17"
    assert decision.reasons[:2] == ("There is no base to beat.", "There is no baseline to beat.")


def test_contenders_must_have_been_scored_on_the_same_items() -> None:
    finalist = contender("17", "finalist", 150)
    short = Contender("base", "base", {"copy": np.ones(N), "sort": np.ones(N - 1)})
    with pytest.raises(SuiteError, match="task 'sort': the two candidates have 200 and 199 items"):
        decide(finalist, [short], MEASURE)
    one = replace(finalist, set_digests={"copy": "aa"})
    other = replace(field()[0], set_digests={"copy": "bb"})
    with pytest.raises(SuiteError, match="17 and base were scored on different items"):
        decide(one, [other], MEASURE)
    with pytest.raises(SuiteError, match="no comparators"):
        decide(finalist, [], MEASURE)
    with pytest.raises(SuiteError, match="more than one base"):
        decide(finalist, [field()[0], field()[0]], MEASURE)


def test_a_decision_survives_the_ledger() -> None:
    decision = decide(contender("17", "finalist", 121), field(), MEASURE)
    decision = replace(decision, notes=("The champion was skipped.",))
    stored = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
    assert GateDecision.from_dict(stored) == decision


def test_comparisons_include_the_sign_test_and_a_bootstrap_interval() -> None:
    challenger, others = contender("17", "finalist", 150), field()
    decision = decide(challenger, others, MEASURE)
    for comparison, other in zip(decision.comparisons, others, strict=True):
        both = (challenger.columns, other.columns, MEASURE.weights, MEASURE.chances)
        test, within = paired_sign_test(*both), bootstrap_difference(*both)
        assert (comparison.p_value, comparison.p_exact) == (test.p_value, True)
        assert (comparison.interval_lower, comparison.interval_upper) == (within.lower, within.upper)
        assert within.lower < comparison.difference < within.upper
    assert "at 97.5% confidence, exact p below 0.0001, 400 items)" in decision.reasons[0]
    tied = decide(contender("17", "finalist", 121), field(), MEASURE).comparisons[3]
    assert tied.p_value == pytest.approx(0.25), "one item more in each of two tasks: both signs"


def test_the_bound_alone_decides() -> None:
    bare = replace(MEASURE, cross_checks=False)
    for right in (100, 121, 150):
        full = decide(contender("17", "finalist", right), field(), MEASURE)
        found = decide(contender("17", "finalist", right), field(), bare)
        assert (found.promoted, found.winner) == (full.promoted, full.winner)
        assert [c.beats for c in found.comparisons] == [c.beats for c in full.comparisons]
        assert {(c.p_value, c.interval_lower) for c in found.comparisons} == {(None, None)}
        assert found.reasons[0] == re.sub(r", (exact )?p [^,]+", "", full.reasons[0])


def test_the_bound_of_a_small_example_worked_by_hand() -> None:
    """6 wins and 1 loss on 20 items: enough at 95% one-sided confidence, not at the gate's 97.5%.

    Mean difference 5/20 = 0.25. Variance of the mean: (7 - 20 · 0.25²) / 19 / 20 = 0.0151316 observed, plus one unseen
    win and loss, 2 / 20² = 0.005; each with 19 degrees of freedom. Welch-Satterthwaite: 30.3205 degrees of freedom.
    """
    column = np.zeros((2, 20))
    column[0, :6] = column[1, 6] = 1.0
    parent = Contender("parent:0", "parent", {"copy": column[1]})
    decision = decide(Contender("17", "finalist", {"copy": column[0]}), [parent], Measure({"copy": 1.0}, {"copy": 0.0}))
    (found,) = decision.comparisons
    observed, unseen = 0.3026315789 / 20, 0.005
    variance = observed + unseen
    df = variance**2 / ((observed**2 + unseen**2) / 19)
    lower_975, lower_95 = (100 * (0.25 - float(t.ppf(level, df)) * variance**0.5) for level in (0.975, 0.95))
    assert (lower_975, lower_95) == pytest.approx((-3.9641, 0.9264), abs=5e-5)
    assert found.lower == pytest.approx(-3.9641, abs=5e-5)
    assert (found.difference, found.beats, decision.promoted) == (25.0, False, None)


def test_equal_models_are_hardly_ever_promoted() -> None:
    """No model is better than the parent. Either path errs in 2.5%, so at most 5% of decisions promote."""
    rng = np.random.default_rng(5)
    measure = Measure({"copy": 1.0}, {"copy": 0.25}, cross_checks=False)
    trials, wrong = 1500, 0
    for _ in range(trials):
        hard = rng.random(100)
        drawn = {
            name: (0.6 * hard + 0.4 * rng.random(100) < 0.6) * 1.0 for name in ("17", "base", "parent:0", "uniform")
        }
        roles: dict[str, Role] = {"base": "base", "parent:0": "parent", "uniform": "baseline"}
        others = [Contender(name, role, {"copy": drawn[name]}) for name, role in roles.items()]
        # The base is clearly worse, so only the parent prevents a wrong promotion.
        others[0] = replace(others[0], columns={"copy": np.zeros(100)})
        wrong += decide(Contender("17", "finalist", {"copy": drawn["17"]}), others, measure).promoted is not None
    assert wrong / trials <= 0.05
