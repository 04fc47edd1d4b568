"""The gate with a placebo and a fine-tuned model, and the item evaluations that training may use."""

import json

import numpy as np
import pytest

from evosearch.errors import SuiteError
from evosearch.evaluation.types import Estimate, TaskScore
from evosearch.promotion.gate import Contender, GateDecision, Measure, Role, decide
from evosearch.promotion.honest import items_used, trained_record
from evosearch.search.ledger.events import Event
from evosearch.search.records import BaselineRecord, CandidateRecord, CardSummary, GradientSummary
from evosearch.search.state import SearchState

N = 200
MEASURE = Measure({"copy": 0.5, "sort": 0.5}, {"copy": 0.25, "sort": 0.0})


def contender(name: str, role: Role, right: int) -> Contender:
    """Right on the first `right` of 200 items of both tasks."""
    column = (np.arange(N) < right) * 1.0
    return Contender(name, role, {"copy": column, "sort": column}, f"id-{name}")


def others(*more: Contender) -> list[Contender]:
    return [contender("base", "base", 60), contender("scale:0.40", "baseline", 120), *more]


@pytest.mark.parametrize(("right", "promoted"), [(130, "17"), (149, None), (170, None)])
def test_a_winner_must_beat_its_placebo(right: int, promoted: str | None) -> None:
    decision = decide(contender("17", "finalist", 150), others(contender("placebo:3", "placebo", right)), MEASURE)
    assert decision.promoted == promoted
    against = next(c for c in decision.comparisons if c.role == "placebo")
    assert (against.challenger, against.comparator, against.beats) == ("17", "placebo:3", promoted is not None)
    verb = "beats" if promoted else "does not beat"
    assert any(reason.startswith(f"17 {verb} the placebo:3: ") for reason in decision.reasons)


def test_a_baseline_that_replaces_the_finalist_must_beat_the_placebo_too() -> None:
    finalist = contender("17", "finalist", 121)
    decision = decide(finalist, others(contender("placebo:3", "placebo", 119)), MEASURE)
    assert (decision.winner, decision.promoted) == ("scale:0.40", None)
    decision = decide(finalist, others(contender("placebo:3", "placebo", 80)), MEASURE)
    assert (decision.winner, decision.promoted) == ("scale:0.40", "scale:0.40")
    assert [c.challenger for c in decision.comparisons if c.role == "placebo"] == ["17", "scale:0.40"]


def test_one_placebo_at_most() -> None:
    two = [contender(f"placebo:{index}", "placebo", 80) for index in range(2)]
    with pytest.raises(SuiteError, match="more than one placebo"):
        decide(contender("17", "finalist", 150), others(*two), MEASURE)


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        (190, "have been better"),
        (150, "not have been clearly different"),
        (151, "not have been clearly different"),
        (90, "have been worse"),
    ],
)
def test_a_fine_tuned_model_is_compared_and_never_decides(right: int, verdict: str) -> None:
    trained = contender("trained:5760", "trained", right)
    decision = decide(contender("17", "finalist", 150), others(), MEASURE, trained=trained)
    assert decision.promoted == "17"
    assert all(c.role != "trained" for c in decision.comparisons)
    assert decision.trained is not None
    assert decision.trained.challenger == "17"
    names = ("the fine-tuned model", "17") if right == 190 else ("17", "the fine-tuned model")
    start = f"Fine-tuning with the budget of the search would {verdict}: {names[0]} leads {names[1]} by "
    assert decision.reasons[-1].startswith(start)
    assert GateDecision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision


def card(name: str, split: str, score: float, items: int, minibatch: int | None = None) -> CardSummary:
    tasks = {"sort": TaskScore("acc", score / 100, 0.0, items)}
    return CardSummary(
        candidate=name, split=split, minibatch=minibatch, score=score, fitness=Estimate(score, 0.0, items), tasks=tasks
    )


def test_training_starts_from_the_best_scale_on_validation() -> None:
    state = SearchState()
    for name, score in (("scale:0.30", 60.0), ("scale:0.60", 70.0), ("uniform", 80.0), ("scale:0.90", 65.0)):
        state.baselines[name] = BaselineRecord(name, name.partition(":")[0], {"merge_method": name}, f"id-{name}")
        state.recipe_ids[name] = f"id-{name}"
        state.cards[name, "validation"] = card(name, "validation", score, 10)
    found = trained_record(state, 288, 3)
    assert (found.candidate, found.kind, found.recipe) == ("trained:288", "trained", {"merge_method": "scale:0.60"})
    assert found.recipe_id not in state.recipe_ids.values()
    assert found.recipe_id != trained_record(state, 289, 3).recipe_id
    assert found.recipe_id != trained_record(state, 288, 4).recipe_id
    assert trained_record(SearchState(), 288, 3).skipped == "no single scale could be scored on validation"


def test_items_are_those_of_the_candidates_gradients_three_times() -> None:
    state = SearchState()
    given = [
        CandidateRecord(candidate="0", group=0, recipe_id="a"),
        CandidateRecord(candidate="1", group=0, recipe_id="a", duplicate_of="0"),
        CandidateRecord(candidate="2", group=1, recipe_id="b", minibatch=1),
        CandidateRecord(candidate="3", group=2, recipe_id="c", minibatch=0, gradient=True),
        CandidateRecord(candidate="5", group=4, recipe_id="e"),
    ]
    for number, one in enumerate(given):
        state.apply(Event(number, 0.0, "asked", one.to_payload()))
    answer = CandidateRecord(candidate="4", group=3, recipe_id="d").to_payload()
    state.apply(Event(len(given), 0.0, "answered", answer))
    state.cards["0", "search"] = card("0", "search", 50.0, 40)
    state.cards["2", "search"] = card("2", "search", 50.0, 40)  # rescored
    state.cards["4", "search"] = card("4", "search", 50.0, 40)
    state.samples["2", 1] = card("2", "search", 50.0, 10, 1)
    state.gradients["3", 0] = GradientSummary(candidate="3", split="search", minibatch=0, fitness=Estimate(1.0, 0.0, 7))
    assert items_used(state) == 40 + 10 + 3 * 7
