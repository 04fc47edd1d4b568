"""Score tables of a decided search, written to its tracking store: cards, items, and the winner against each model."""

from collections.abc import Mapping, Sequence

import pandas as pd

from evosearch.errors import SuiteError, TrackingError
from evosearch.evaluation.statistics.intervals import paired_difference
from evosearch.promotion.gate import Measure
from evosearch.reporting.comparison_table import BOTH, LOST, WON, Answers, comparison_rows, in_order
from evosearch.reporting.item_tables import compared_models, item_scores, score_cards
from evosearch.reporting.test_table import measure_of
from evosearch.search.recorder import Recorder
from evosearch.setup.loading import metric_columns
from evosearch.setup.prepare import Prepared
from evosearch.setup.trackers import JSON_LINES, shown
from evosearch.tracking.evaluation_runs import ComparisonRun, ScoreTables, log_score_tables
from evosearch.tracking.inputs import items_of
from evosearch.tracking.metrics import POINTS, readable

SPLIT = "test"  # the split that the gate compares on
DOCUMENTS = {WON: "won", LOST: "lost", BOTH[1.0]: "both_right", BOTH[0.0]: "both_wrong"}  # outcome → metric


def write_score_tables(prepared: Prepared, recorder: Recorder) -> None:
    """Write the tables of a search that the gate has decided; a failing store is a note, and the next run writes them.

    Args:
        prepared: The search.
        recorder: Its recorder, whose events are mirrored.
    """
    run_dir, state, watcher = prepared.spec.run_dir, recorder.state, recorder.watcher
    decided = state.gated is not None and (state.gated.winner, SPLIT) in state.cards
    if not decided or run_dir.tracking.startswith(JSON_LINES):
        return
    try:
        log_score_tables(run_dir.tracking, recorder.search_id, _tables(prepared, recorder))
    except (TrackingError, SuiteError) as exc:
        watcher.note(f"{shown(run_dir)}: the score tables are missing: {exc}. Run the same command again to write them")


def _tables(prepared: Prepared, recorder: Recorder) -> ScoreTables:
    ledger, search_id, state = recorder.ledger, recorder.search_id, recorder.state
    models = compared_models(state)
    card = state.cards[models[0], SPLIT]  # the winner's
    about = {"split": SPLIT, "batch": card.batch, "tasks": {}, "fitness": {"n": card.items}}
    return ScoreTables(
        cards=score_cards(state, models),
        items=item_scores(ledger, search_id, state, models),
        comparisons=_comparisons(prepared, recorder, models[0], models[1:]),
        input=items_of(prepared.suite.name, about),
    )


def _comparisons(prepared: Prepared, recorder: Recorder, winner: str, others: Sequence[str]) -> list[ComparisonRun]:
    """Return the winner against each model that was scored on the same items."""
    cards, title = recorder.state.cards, recorder.state.title
    own = _answers(recorder, winner)
    sets = [items for items in prepared.batches[SPLIT].sets if items.task in own]
    shown = prepared.spec.config.tracking.documents
    texts = {items.task: prepared.harness.texts(items) if shown else None for items in sets}
    measure, found = measure_of(prepared.suite, prepared.batches[SPLIT]), []
    for name in others:
        if (name, SPLIT) not in cards or cards[name, SPLIT].sets != cards[winner, SPLIT].sets:
            continue
        theirs = _answers(recorder, name)
        rows = [comparison_rows(items, own[items.task], theirs[items.task], texts[items.task]) for items in sets]
        table = in_order(rows)
        found.append(
            ComparisonRun(
                name=f"{prepared.spec.name} · {title(winner)} against {title(name)}",
                table=table,
                metrics=_counts(table) | _lead(own, theirs, measure),
                tags={"winner": winner, "against": name},
            )
        )
    return found


def _answers(recorder: Recorder, name: str) -> dict[str, Answers]:
    ledger, search_id, state = recorder.ledger, recorder.search_id, recorder.state
    stored = ledger.columns(search_id, name, SPLIT, state.cards[name, SPLIT].sets)
    values = metric_columns(ledger, search_id, state, name, SPLIT)
    return {task: Answers(column, stored[task]) for task, column in values.items()}


def _counts(table: pd.DataFrame) -> dict[str, float]:
    found = table["outcome"].value_counts()
    return {f"documents/{metric}": float(found.get(outcome, 0)) for outcome, metric in DOCUMENTS.items()}


def _lead(own: Mapping[str, Answers], theirs: Mapping[str, Answers], measure: Measure) -> dict[str, float]:
    """Return the winner's lead in points, with its two-sided 95% interval."""
    ours, others = ({task: model[task].values for task in measure.weights} for model in (own, theirs))
    lead = paired_difference(ours, others, measure.weights, measure.chances, measure.groups)
    values = {"lead/points": lead.value, "lead/lower": lead.lower, "lead/upper": lead.upper}
    return {name: readable(value, POINTS) for name, value in values.items()}
