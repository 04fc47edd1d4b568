"""Score tables of a search in MLflow, and one evaluation run for each model that its winner is compared with.

Tables have the format of MLflow's `log_table`, which shows them in the artifact viewer and in the view *Evaluation*.
Evaluation runs are nested under the search's run and tagged `evosearch.compared`; they have no `search_id`, so that
the leaderboard does not list them.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from evosearch.errors import TrackingError
from evosearch.redaction import hidden
from evosearch.tracking.changes import FINISHED
from evosearch.tracking.client import as_tracking_errors, connect, find_runs, search_runs
from evosearch.tracking.inputs import RunInput, log_inputs
from evosearch.tracking.metrics import MAX_NAME
from evosearch.tracking.mlflow import PARENT_TAG, SOURCE, user_name
from evosearch.tracking.roles import ROLE, STATE

TABLES = "mlflow.loggedArtifacts"  # tag of a run: which of its artifacts are tables
COMPARED = "evosearch.compared"  # tag of an evaluation run: the search
CONTENT = "evosearch.content"  # tag of an evaluation run: digest of its table
TABLE = "documents.json"  # artifact of an evaluation run
CARDS, ITEMS = "score_cards.json", "items.parquet"  # artifacts of the search's run
MOST_ROWS = 2000  # of an evaluation run, which a browser shows at once; the file of all items has the rest


@dataclass(frozen=True)
class ComparisonRun:
    """One evaluation run.

    Attributes:
        name: Its name: both models by their titles.
        table: One row for each document.
        metrics: Counts of documents, and the difference in points with its bounds.
        tags: Further tags.
    """

    name: str
    table: pd.DataFrame
    metrics: Mapping[str, float]
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreTables:
    """What is written about the scores of a search.

    Attributes:
        cards: Score cards, one row a task.
        items: Scores of every item.
        comparisons: The winner against each other model.
        input: Items of the comparisons, as MLflow knows them.
    """

    cards: pd.DataFrame
    items: pd.DataFrame
    comparisons: Sequence[ComparisonRun]
    input: RunInput


def log_score_tables(uri: str, search_id: str, tables: ScoreTables) -> None:
    """Write the tables of a search whose run is mirrored; what is there already is replaced, or left if it is equal.

    Args:
        uri: Tracking URI.
        search_id: The search.
        tables: Its tables.

    Raises:
        TrackingError: The store fails, or the search has no run.
    """
    with as_tracking_errors(uri):
        client = connect(uri)
        found = search_runs(client, search_id)
        if not found:
            raise TrackingError(hidden(uri), "the search has no run yet", next="Run the same command again")
        _log_table(client, found[0].info.run_id, CARDS, table_text(tables.cards))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            file = Path(folder) / ITEMS
            tables.items.to_parquet(file, index=False)
            client.log_artifact(found[0].info.run_id, str(file))
        _log_comparisons(client, found[0], search_id, tables)


def table_text(table: pd.DataFrame) -> str:
    """Return a table as MLflow's `log_table` stores it.

    Not by `log_table` itself, which appends to a table that is there already.
    """
    return str(table.to_json(orient="split", index=False, default_handler=str))


def _log_table(client: Any, run_id: str, path: str, text: str) -> None:
    client.log_text(run_id, text, path)
    client.set_tag(run_id, TABLES, json.dumps([{"path": path, "type": "table"}]))


def _log_comparisons(client: Any, search: Any, search_id: str, tables: ScoreTables) -> None:
    """Write the comparisons that are new or have changed; delete those that are incomplete or no longer made."""
    query = f"tags.`{COMPARED}` = '{search_id}'"
    there = {
        run.info.run_id: run.data.tags.get(CONTENT) for run in find_runs(client, [search.info.experiment_id], query)
    }
    wanted: dict[str, tuple[ComparisonRun, str]] = {}
    for comparison in tables.comparisons:
        text = table_text(comparison.table.head(MOST_ROWS))
        wanted[hashlib.sha256(f"{comparison.name}\n{text}".encode()).hexdigest()] = comparison, text
    for run_id, content in there.items():
        if wanted.pop(str(content), None) is None:
            client.delete_run(run_id)
    for content, (comparison, text) in wanted.items():
        run_id = _create(client, search, search_id, comparison)
        _log_table(client, run_id, TABLE, text)
        log_inputs(client, run_id, [tables.input])
        client.set_tag(run_id, CONTENT, content)  # last: without it, the next run writes the comparison again


def _create(client: Any, search: Any, search_id: str, comparison: ComparisonRun) -> str:
    """Create the run of a comparison, with its metrics; return its id."""
    from mlflow.entities import Metric

    rows, now = len(comparison.table), round(1000 * time.time())
    tags = {
        COMPARED: search_id,
        PARENT_TAG: search.info.run_id,
        ROLE: "comparison",
        STATE: "scored",
        "kind": "comparison",
        "rows": f"{min(rows, MOST_ROWS)} of {rows}",
        "mlflow.user": user_name(),
    }
    every = tags | SOURCE | dict(comparison.tags)
    made = client.create_run(search.info.experiment_id, now, every, comparison.name[:MAX_NAME])
    run_id = str(made.info.run_id)
    client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in comparison.metrics.items()])
    client.set_terminated(run_id, FINISHED, now)
    return run_id
