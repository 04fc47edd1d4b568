"""Explanations of a budget that a search has used up, or of which it took more than it allows."""

from collections.abc import Iterator

from evosearch.durations import duration
from evosearch.search.sampling import BACKWARD
from evosearch.search.space.dimensions import Evaluation
from evosearch.search.state import SearchState
from evosearch.setup.prepare import Prepared

SLACK_S = 1.0  # a search that ends within a second of its budget has kept it


def used_up(prepared: Prepared, state: SearchState) -> tuple[str, ...]:
    """Return why a resumed search proposes nothing more: the limits that its record has exceeded, a sentence each."""
    return tuple(f"{text}: no more candidates are proposed" for text in _exceeded(prepared, state))


def overrun(prepared: Prepared, state: SearchState) -> str | None:
    """Return why a search took longer than `budget.hours`; None if it did not."""
    hours = prepared.spec.config.budget.hours
    if hours is None or state.seconds_before <= 3600.0 * hours + SLACK_S:
        return None
    took = f"the search took {duration(state.seconds_before)}, and budget.hours is {duration(3600.0 * hours)}"
    return f"{took}: it ends the proposals; pending candidates, finalists, test and export come after it"


def items_taken(prepared: Prepared, state: SearchState) -> int:
    """Return the item evaluations of all candidates on record, as a budget counts them (see `Budget.items`)."""
    return sum(count * _cost(prepared, evaluation) for evaluation, count in state.distinct.items())


def _cost(prepared: Prepared, evaluation: Evaluation) -> int:
    parts, index = prepared.minibatches, evaluation.minibatch
    batch = prepared.ranked["search"] if index is None or parts is None else parts.batches[index]
    return len(batch) * (1 + BACKWARD if evaluation.gradient else 1)


def _exceeded(prepared: Prepared, state: SearchState) -> Iterator[str]:
    budget = prepared.spec.config.budget
    if budget.candidates is not None and state.proposed > budget.candidates:
        yield f"{state.proposed:,} candidates are recorded, more than budget.candidates, which is {budget.candidates:,}"
    if budget.items is not None and (taken := items_taken(prepared, state)) > budget.items:
        yield f"{taken:,} item evaluations are recorded, more than budget.items, which is {budget.items:,}"
    if budget.hours is not None and state.seconds_before > 3600.0 * budget.hours:
        spent, limit = duration(state.seconds_before), duration(3600.0 * budget.hours)
        yield f"{spent} are recorded, more than budget.hours, which is {limit}"
