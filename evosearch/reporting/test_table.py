"""What the test split says of the winner and of what it was held against, as rows for tables and JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from evosearch.evaluation.statistics.bootstrap import bootstrap_difference
from evosearch.evaluation.statistics.intervals import interval
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import ItemBatch
from evosearch.promotion.finalists import kind_of
from evosearch.promotion.gate import Measure
from evosearch.search.baselines import Baseline
from evosearch.search.recorder import Recorder
from evosearch.setup.loading import metric_columns


def measure_of(suite: Suite, batch: ItemBatch) -> Measure:
    """The suite's score as the gate takes it; documents that belong together are counted together."""
    groups = {items.task: items.groups for items in batch.sets if items.groups}
    return Measure(suite.weights(), {task.name: task.chance for task in suite.scoring}, groups or None)


def test_rows(
    recorder: Recorder, suite: Suite, batch: ItemBatch, baselines: Sequence[Baseline]
) -> list[dict[str, Any]]:
    """One row a contender of the last opening of the test: metrics, mean, the winner's lead, with 95% intervals."""
    state = recorder.state
    if state.gated is None or not state.test_openings:
        return []
    measure = measure_of(suite, batch)
    winner = state.gated.winner
    names = [name for name in state.test_openings[-1].candidates if (name, "test") in state.cards]
    columns = {name: metric_columns(recorder.ledger, recorder.search_id, state, name, "test") for name in names}
    rows = []
    for name in sorted(names, key=lambda entry: entry != winner):
        mean = interval(columns[name], measure.weights, None, measure.groups)
        row: dict[str, Any] = {
            "candidate": name,
            "label": label(name, baselines, winner, state.promoted is not None or bool(state.gated.promoted)),
            "tasks": {task: asdict(one) for task, one in state.cards[name, "test"].tasks.items()},
            "score": state.cards[name, "test"].score,
            "mean": mean.value,
            "mean_low": mean.lower,
            "mean_high": mean.upper,
        }
        if name != winner:
            both = (columns[winner], columns[name], measure.weights)
            row["lead"] = asdict(bootstrap_difference(*both, measure.chances, measure.groups))
            row["raw_lead"] = asdict(bootstrap_difference(*both, dict.fromkeys(measure.weights, 0.0), measure.groups))
        rows.append(row)
    return rows


def label(name: str, baselines: Sequence[Baseline], winner: str = "", promoted: bool = False) -> str:
    """`parent zoo:tiny/sort`, `uniform average`, `best scale 0.50`, `candidate 41 (promoted)`."""
    kind, _, rest = name.partition(":")
    texts = {
        "stage": f"winner of stage {rest}",
        "uniform": "uniform average",
        "scale": f"best scale {rest}",
        "champion": "champion so far",
    }
    if kind in ("base", "parent"):
        text = f"{kind} {_short(_model(name, baselines))}"
    else:
        text = f"candidate {name}" if kind_of(name) == "candidate" else texts[kind]
    return f"{text} ({'promoted' if promoted else 'not promoted'})" if name == winner else text


def _model(name: str, baselines: Sequence[Baseline]) -> str:
    """The one model that a baseline is."""
    recipe = next(baseline.recipe for baseline in baselines if baseline.name == name)
    assert recipe is not None
    return recipe.models[0].model


def _short(reference: str) -> str:
    """A folder by its last part; other references as they are."""
    return reference.rsplit("/", 1)[-1] if reference.startswith("/") else reference
