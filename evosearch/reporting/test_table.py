"""Test results of the winner and of the models it was compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evosearch.evaluation.statistics.bootstrap import bootstrap_difference
from evosearch.evaluation.statistics.intervals import Interval, interval
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import ItemBatch, TaskScore
from evosearch.promotion.gate import Measure
from evosearch.reporting.columns import Column, number, task_heading, with_interval
from evosearch.search.recorder import Recorder
from evosearch.search.state import SearchState
from evosearch.setup.loading import metric_columns

TEST_TITLE = "Test split: metrics in %; mean, and the winner's lead in points of score, with 95% intervals"


@dataclass(frozen=True)
class TestRow:
    """One contender on the test split, with two-sided 95% intervals."""

    candidate: str
    label: str
    tasks: Mapping[str, TaskScore]
    score: float
    mean: float  # weighted mean of the raw metrics, in points of 0 to 100
    mean_low: float
    mean_high: float
    lead: Interval | None = None  # of the winner over this contender, in points of score
    raw_lead: Interval | None = None  # the same without chance levels


def measure_of(suite: Suite, batch: ItemBatch) -> Measure:
    """Return the suite's score definition for the gate, with the groups of linked documents."""
    groups = {items.task: items.groups for items in batch.sets if items.groups}
    return Measure(suite.weights(), {task.name: task.chance for task in suite.scoring}, groups or None)


def test_rows(recorder: Recorder, suite: Suite, batch: ItemBatch) -> tuple[TestRow, ...]:
    """List the contenders of the last test opening, winner first; empty before the gate's decision."""
    state = recorder.state
    if state.gated is None or not state.test_openings:
        return ()
    measure, winner = measure_of(suite, batch), state.gated.winner
    promoted = state.promoted is not None or state.gated.promoted is not None
    names = [name for name in state.test_openings[-1].candidates if (name, "test") in state.cards]
    columns = {name: metric_columns(recorder.ledger, recorder.search_id, state, name, "test") for name in names}
    rows = []
    for name in sorted(names, key=lambda entry: entry != winner):
        mean = interval(columns[name], measure.weights, None, measure.groups)
        lead = raw_lead = None
        if name != winner:
            both = (columns[winner], columns[name], measure.weights)
            lead = bootstrap_difference(*both, measure.chances, measure.groups)
            raw_lead = bootstrap_difference(*both, dict.fromkeys(measure.weights, 0.0), measure.groups)
        card, shown = state.cards[name, "test"], label(state, name, winner, promoted)
        assert card.score is not None, "a test split has right answers"
        rows.append(TestRow(name, shown, card.tasks, card.score, mean.value, mean.lower, mean.upper, lead, raw_lead))
    return tuple(rows)


def test_columns(rows: Sequence[TestRow]) -> list[Column[TestRow]]:
    """Return the columns of the test table: each task's metric, their mean, the score and the winner's lead."""
    tasks = rows[0].tasks if rows else {}
    return [
        Column("model", lambda row: row.label, left=True),
        *(_task_column(task, task_heading(task, score)) for task, score in tasks.items()),
        Column("mean", lambda row: with_interval(row.mean, row.mean_low, row.mean_high)),
        Column("score", lambda row: f"{row.score:.1f}"),
        Column("winner leads by", _lead),
    ]


def _task_column(task: str, heading: str) -> Column[TestRow]:
    return Column(heading, lambda row: number(100 * row.tasks[task].value, 1))


def _lead(row: TestRow) -> str:
    return with_interval(row.lead.value, row.lead.lower, row.lead.upper, sign="+") if row.lead else ""


def label(state: SearchState, name: str, winner: str = "", promoted: bool = False) -> str:
    """Format a contender: `parent sort`, `uniform average`, `scale 0.5`, `#41 (promoted)`."""
    return (
        f"{state.title(name)} ({'promoted' if promoted else 'not promoted'})" if name == winner else state.title(name)
    )
