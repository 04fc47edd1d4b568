"""Loading of recorded searches from their ledgers."""

from evosearch.errors import LedgerError
from evosearch.evaluation.statistics.intervals import Interval, interval
from evosearch.evaluation.statistics.units import Groups
from evosearch.evaluation.types import Column
from evosearch.search.ledger.database_errors import damaged
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState
from evosearch.spec.run_dir import RunDir
from evosearch.spec.spec import SearchSpec, Winner


def read_search(ledger: Ledger, run_dir: RunDir) -> tuple[str, SearchState]:
    """Id and state of the search of a run directory.

    Raises:
        LedgerError: The ledger has no search of this name, or is damaged.
    """
    info = ledger.search_by_name(run_dir.name)
    if info is None:
        found = ledger.searches()
        damages = [entry.damage for entry in found if entry.damage and not entry.name]
        if damages:
            raise damaged(ledger.url, run_dir.name, damages[0])
        known = ", ".join(entry.name for entry in found) or "none"
        raise LedgerError(run_dir.name, "no such search in its ledger", f"Searches there: {known}", "Run it first")
    return info.search_id, SearchState.from_events(ledger.events(info.search_id))


def recorded_winner(stage: SearchSpec) -> Winner:
    """The winner of a stage that has ended, from its ledger."""
    run_dir = stage.run_dir
    with Ledger.open(run_dir.ledger, f"{stage.file}: ledger", read_only=True) as ledger:
        _, state = read_search(ledger, run_dir)
    assert state.winner is not None
    return Winner(state.winner.recipe, state.winner.recipe_id, state.recipes)


def metric_columns(ledger: Ledger, search_id: str, state: SearchState, candidate: str, split: str) -> dict[str, Column]:
    """Task → the suite's metric of each item, of a candidate scored on a full split."""
    card = state.cards[candidate, split]
    stored = ledger.columns(search_id, candidate, split, card.sets)
    return {task: stored[task][entry.metric] for task, entry in card.tasks.items()}


def groups_of(ledger: Ledger, state: SearchState, candidate: str, split: str) -> Groups:
    """Task → group of each item of `metric_columns`, for tasks with groups."""
    card = state.cards[candidate, split]
    found = {task: ledger.item_set(card.sets[task]).groups for task in card.tasks}
    return {task: names for task, names in found.items() if names}


def score_interval(ledger: Ledger, search_id: str, state: SearchState, candidate: str, split: str) -> Interval:
    """A candidate's score on a full split, with its two-sided 95% interval."""
    measure = state.spec["suite"]
    columns = metric_columns(ledger, search_id, state, candidate, split)
    groups = groups_of(ledger, state, candidate, split)
    return interval(columns, measure["weights"], measure["chances"], groups)


def contamination_acknowledged(state: SearchState) -> bool:
    """Whether the suite acknowledges that its search documents are from a public benchmark's test set."""
    return bool(state.circumstances.suite.get("acknowledge_contamination"))
