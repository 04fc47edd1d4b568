"""The decision on a search without right answers."""

from dataclasses import replace

import pytest

from evosearch.promotion.finalists import Standing
from evosearch.promotion.unverified import decide


def standing(name: str, kind: str, fitness: float, violation: float = 0.0) -> Standing:
    value = {"validation": fitness}
    return Standing(name, name, kind, value, value, {"validation": violation})


FOUND = standing("8", "candidate", -0.6)
PARENT = standing("parent:0", "parent", -0.1)


@pytest.mark.parametrize(("allowed", "promoted"), [(True, "8"), (False, None)])
def test_the_best_merge_is_promoted_if_that_is_asked_for(allowed: bool, promoted: str | None) -> None:
    decision = decide("8", FOUND, replace(PARENT, fitness={"validation": -0.7}), allowed)
    assert (decision.winner, decision.promoted, decision.unverified) == ("8", promoted, True)
    assert not any("parent:0" in reason for reason in decision.reasons)
    assert ("Run again with --unverified" in decision.reasons[-1]) == (not allowed)


def test_a_better_parent_is_named() -> None:
    decision = decide("8", FOUND, PARENT, allowed=True)
    assert "8 is the best merge on validation, with fitness -0.6000." in decision.reasons
    assert "parent:0 alone has a better fitness there: -0.1000." in decision.reasons
    assert decision.promoted == "8"


@pytest.mark.parametrize("allowed", [True, False])
def test_a_merge_that_breaks_a_guard_is_not_promoted(allowed: bool) -> None:
    decision = decide("5", standing("scale:0.40", "scale", -0.6, violation=10.0), None, allowed)
    assert decision.promoted is None
    assert decision.reasons[-2:] == (
        "The baseline scale:0.40 is better there than every candidate.",
        "scale:0.40 exceeds its guards there by 10.00 points: nothing is promoted.",
    )
