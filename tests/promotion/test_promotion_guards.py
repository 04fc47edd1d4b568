"""Guards at the gate: unless the bound excludes a drop, nothing is promoted."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from evosearch.errors import SuiteError
from evosearch.evaluation.statistics.intervals import paired_difference, proportion_difference
from evosearch.promotion.finalists import Standing, best, choose
from evosearch.promotion.gate import Contender, GateDecision, Measure, decide
from evosearch.promotion.non_inferiority import GuardedTask, check_guard, sentence

N = 400
MEASURE = Measure({"copy": 1.0}, {"copy": 0.0}, cross_checks=False)


def right(count: int) -> np.ndarray:
    return (np.arange(N) < count) * 1.0


def contender(name: str, role: str, copy: int, kept: int) -> Contender:
    return Contender(name, role, {"copy": right(copy), "kept": right(kept)}, f"id-{name}")  # type: ignore[arg-type]


def field(baseline: int = 150) -> list[Contender]:
    own = [("base", "base", 100, 200), ("parent:0", "parent", 120, 300), ("scale:0.40", "baseline", baseline, 200)]
    return [contender(*entry) for entry in own]


def guarded(max_drop: float, reference: int = 200, chance: float = 0.0) -> GuardedTask:
    return GuardedTask("kept", max_drop, chance, "base", right(reference))


def test_a_winner_that_keeps_what_is_guarded_is_promoted() -> None:
    decision = decide(contender("17", "finalist", 250, 200), field(), MEASURE, [guarded(5.0)])
    assert decision.promoted == "17"
    assert [(check.task, check.holds, check.reference) for check in decision.guards] == [("kept", True, "base")]
    assert decision.reasons[-1] == "17 beats every comparator and passes every guard."


def test_a_drop_within_the_limit_that_is_not_shown_to_be_blocks() -> None:
    """4 points lost of 5 allowed: the bound exceeds the limit."""
    decision = decide(contender("17", "finalist", 250, 184), field(), MEASURE, [guarded(5.0)])
    (check,) = decision.guards
    assert check.difference == pytest.approx(-4.0)
    assert check.lower < -5.0
    assert (decision.promoted, decision.winner) == (None, "17")
    assert all(comparison.beats for comparison in decision.comparisons)
    said = "17 does not pass the guard on kept: -4.00 points against base "
    said += f"(lower bound {check.lower:+.2f} at 97.5% confidence"
    assert any(reason.startswith(said) for reason in decision.reasons)
    last = "17 beats every comparator but does not pass every guard: nothing is promoted."
    assert decision.reasons[-1] == last
    assert decide(contender("17", "finalist", 250, 184), field(), MEASURE, [guarded(8.0)]).promoted == "17"


def test_the_baseline_in_the_finalists_place_must_keep_it_too() -> None:
    finalist = contender("17", "finalist", 150, 200)
    assert decide(finalist, field(), MEASURE, [guarded(5.0)]).promoted == "scale:0.40"
    decision = decide(finalist, field(), MEASURE, [guarded(5.0, reference=260)])
    assert (decision.promoted, decision.winner) == (None, "scale:0.40")
    assert [check.challenger for check in decision.guards] == ["scale:0.40"]


def test_points_are_counted_above_chance() -> None:
    check = check_guard("17", right(180), guarded(30.0, chance=0.5), None)
    assert check.difference == pytest.approx(100 * (180 - 200) / N / 0.5)
    lower, upper = proportion_difference(0, 20, N)
    assert (check.lower, check.upper) == pytest.approx((200 * lower, 200 * upper))


def test_a_loss_that_was_not_met_is_excluded_only_where_it_would_have_been() -> None:
    """None of 400 answers changed: losses of one in a hundred would have shown, rarer ones would not."""
    assert check_guard("17", right(200), guarded(1.0), None).holds
    assert not check_guard("17", right(200), guarded(0.9), None).holds
    assert not check_guard("17", right(200), guarded(0.0), None).holds
    assert check_guard("17", right(206), guarded(0.0), None).holds  # six gained, none lost: a gain is shown
    assert sentence(check_guard("17", right(206), guarded(0.0), None), "#17").endswith("0 allowed, 400 items).")


def test_the_bound_of_a_guard_worked_by_hand() -> None:
    """No change on 400 items: Tango's bound is -z² / (n + z²) with z = 1.959964 at 97.5% one-sided confidence."""
    check = check_guard("17", right(200), guarded(1.0), None)
    assert check.lower == pytest.approx(-100 * 3.841459 / 403.841459, abs=5e-5)
    assert check.lower == pytest.approx(-0.9512, abs=5e-5)


def test_graded_items_and_groups_have_the_bound_of_the_gate() -> None:
    graded = 0.5 * right(190)
    found = paired_difference({"kept": graded}, {"kept": right(200)}, {"kept": 1.0}, {"kept": 0.0})
    assert check_guard("17", graded, guarded(5.0), None).lower == found.lower
    groups = {"kept": [str(index // 4) for index in range(N)]}
    found = paired_difference({"kept": right(190)}, {"kept": right(200)}, {"kept": 1.0}, {"kept": 0.0}, groups)
    assert check_guard("17", right(190), guarded(5.0), groups).lower == found.lower
    assert check_guard("17", right(190), guarded(5.0), {"other": ["a"]}).lower != found.lower


def test_reasons_say_which_comparators_break_a_guard_themselves() -> None:
    """They must still be beaten."""
    reasons = decide(contender("17", "finalist", 250, 300), field(), MEASURE, [guarded(5.0, reference=240)]).reasons
    said = [reason.split(":")[0] if "parent:0" not in reason else reason for reason in reasons[:3]]
    assert said[0] == "17 beats the base (breaks the guard on kept)"
    assert said[1].startswith("17 beats the parent:0: +32.50 points")
    assert reasons[2].startswith("17 beats the baseline scale:0.40 (breaks the guard on kept): +25.00 points")
    exactly = decide(contender("17", "finalist", 250, 300), field(), MEASURE, [guarded(5.0, reference=220)]).reasons
    assert not any("breaks" in reason for reason in exactly)  # a drop of exactly the limit


def test_other_items_are_refused() -> None:
    with pytest.raises(SuiteError, match="task 'kept': the two candidates have 399 and 400 items"):
        check_guard("17", right(200)[1:], guarded(5.0), None)


def test_a_decision_with_guards_survives_the_ledger() -> None:
    decision = decide(contender("17", "finalist", 250, 184), field(), MEASURE, [guarded(5.0)])
    stored = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
    assert GateDecision.from_dict(stored) == decision
    plain = decide(contender("17", "finalist", 250, 184), field(), MEASURE)
    assert GateDecision.from_dict(plain.to_dict()).guards == ()


@pytest.mark.parametrize(("drop", "gained"), [(0.1, 0.06), (0.1, 0.0), (0.02, 0.01), (0.05, 0.1)])
def test_how_often_a_drop_at_the_limit_is_wrongly_excluded(drop: float, gained: float) -> None:
    """A true drop of exactly the limit, on 200 items that change both ways or only for the worse: 2.5% nominal."""
    trials = 20_000
    drawn = np.random.default_rng(3).multinomial(200, [gained, drop + gained, 1 - drop - 2 * gained], trials)
    counts, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    wrong = 0
    for (better, worse), often in zip(counts.tolist(), times.tolist(), strict=True):
        base = (np.arange(200) >= better) * 1.0
        own = (np.arange(200) < 200 - worse) * 1.0
        wrong += often * check_guard("17", own, GuardedTask("kept", 100 * drop, 0.0, "base", base), None).holds
    assert 0 < wrong / trials <= 0.027  # the error of 20,000 draws is 0.11%


def standing(name: str, kind: str, score: float, broken: float) -> Standing:
    return Standing(name, f"id-{name}", kind, {"search": score}, {"search": score}, {"search": broken})


def names(entries: Sequence[Standing]) -> list[str]:
    return [entry.candidate for entry in entries]


def test_finalists_that_break_no_guard_come_first_then_by_how_much() -> None:
    entries = [
        standing("0", "candidate", 90.0, 7.0),
        standing("1", "candidate", 50.0, 0.0),
        standing("2", "candidate", 80.0, 2.0),
        standing("3", "candidate", 60.0, 0.0),
        standing("uniform", "uniform", 70.0, 1.0),
        standing("scale:0.30", "scale", 40.0, 0.0),
    ]
    assert names(choose(entries, 3)) == ["3", "1", "2", "scale:0.30"]
    assert names(choose(entries, 4)) == ["3", "1", "2", "0", "scale:0.30"]
    found = best(entries, "search")
    assert found is not None
    assert found.candidate == "3"
