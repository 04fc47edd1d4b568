"""Mirror of a search in MLflow: one run for the search, with a nested run for every candidate and baseline.

MLflow assigns run ids, so runs are found by their tags. The mirror's cursor is a tag of the search's own run, written
after the events that it covers; after an interruption, events beyond the cursor are written again without effect.
"""

from collections.abc import Callable, Sequence
from typing import Any

from evosearch.errors import TrackingError
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger
from evosearch.tracking.changes import SEARCH, Changes, Plan, Translator
from evosearch.tracking.client import ARTIFACTS, connect, find_runs, load_mlflow, run_ids, sqlite_file
from evosearch.tracking.mirror import EventReader, Mirror
from evosearch.tracking.model_registry import Champion, Registry
from evosearch.tracking.ui import ui_command, ui_environment, ui_line

__all__ = ["Champion", "MlflowMirror", "MlflowStore", "Registry", "run_ids", "ui_command", "ui_environment", "ui_line"]

CURSOR = "evosearch.mirrored_seq"  # tag of the search's run: all events up to it are mirrored
SEARCH_TAG = "evosearch.search_id"  # tag of the search's run; candidates have `search_id`
PARENT_TAG = "mlflow.parentRunId"
TAG_CHARACTERS, BATCH_TAGS, BATCH_METRICS = 8000, 100, 900  # MLflow's limits for a value and for a request


class MlflowMirror(Mirror):
    """A `Tracker` that mirrors a search to MLflow, in its own thread.

    Args:
        uri: Tracking URI: `sqlite:///…/mlflow.db`, `http://host:5000`.
        experiment: Name of the experiment; created if it does not exist.
        ledger: URL of the ledger, or a function that opens it for reading in the mirror's thread.
        search_id: The search to mirror.
        name: Name of the search and of its run.
        notice: As for `Mirror`.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        ledger: str | Callable[[], EventReader],
        search_id: str,
        name: str,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        load_mlflow()  # here, since importing it in the mirror's thread can collide with this thread's imports
        self._store = MlflowStore(uri, experiment, search_id, name)
        opened = (lambda: Ledger.open(ledger, read_only=True)) if isinstance(ledger, str) else ledger
        super().__init__(self._store, opened, search_id, notice)

    def run_ids(self) -> dict[str, str]:
        """Return candidate → MLflow run id, as far as mirrored."""
        return {candidate: run_id for candidate, run_id in self._store.runs.copy().items() if candidate != SEARCH}


class MlflowStore:
    """Sink of `MlflowMirror`: the runs of one search in one experiment."""

    def __init__(self, uri: str, experiment: str, search_id: str, name: str) -> None:
        self._uri, self._experiment, self._search_id, self._name = uri, experiment, search_id, name
        self._translator = Translator(search_id, name)
        self._client: Any = None
        self._experiment_id = ""
        self.runs: dict[str, str] = {}  # candidate, or SEARCH → run id

    def open(self) -> int:
        """Find the runs of the search and return its cursor."""
        self._client = connect(self._uri)
        self._experiment_id = ensure_experiment(self._client, self._uri, self._experiment)
        self._translator = Translator(self._search_id, self._name)
        self.runs = {}
        found = find_runs(self._client, [self._experiment_id], f"tags.`{SEARCH_TAG}` = '{self._search_id}'")
        cursor = 0
        if found:
            parent = self._keep_one(found)
            self.runs[SEARCH] = parent.info.run_id
            cursor = int(parent.data.tags.get(CURSOR, 0))
        by_candidate: dict[str, list[Any]] = {}
        for run in find_runs(self._client, [self._experiment_id], f"tags.search_id = '{self._search_id}'"):
            by_candidate.setdefault(run.data.tags.get("candidate_id", ""), []).append(run)
        self.runs |= {name: self._keep_one(twins).info.run_id for name, twins in by_candidate.items() if name}
        return cursor

    def recall(self, events: Sequence[Event]) -> None:
        """Translate mirrored events, since the translation of later events depends on them."""
        already: Plan = {}
        for event in events:
            self._translator.translate(event, already)

    def write(self, events: Sequence[Event]) -> None:
        """Apply the changes of some events, then update the cursor."""
        plan: Plan = {}
        for event in events:
            self._translator.translate(event, plan)
        # The search's run comes first because the others are nested under it.
        self._apply(SEARCH, plan.pop(SEARCH, Changes(round(events[0].time * 1000))))
        for candidate, changes in plan.items():
            self._apply(candidate, changes)
        self._client.set_tag(self.runs[SEARCH], CURSOR, str(events[-1].seq))

    def _apply(self, key: str, changes: Changes) -> None:
        if key != SEARCH:
            changes.tags[PARENT_TAG] = self.runs[SEARCH]
        tags = {name: value[:TAG_CHARACTERS] for name, value in changes.tags.items()}
        if key not in self.runs:
            own = {SEARCH_TAG: self._search_id, "kind": "search"} if key == SEARCH else {}
            run = self._client.create_run(
                self._experiment_id, start_time=changes.started_ms, tags=tags | own, run_name=key or self._name
            )
            self.runs[key] = run.info.run_id
            tags = {}
        run_id = self.runs[key]
        for path, text in changes.files.items():
            self._client.log_text(run_id, text, path)
        self._log(run_id, changes, tags)
        if changes.status == "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        elif changes.status is not None:
            self._client.set_terminated(run_id, changes.status, changes.status_ms)

    def _log(self, run_id: str, changes: Changes, tags: dict[str, str]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(point.name, point.value, point.time_ms, point.step) for point in changes.points]
        params = [Param(name, value) for name, value in changes.params.items()]
        all_tags = [RunTag(name, value) for name, value in tags.items()]
        # A request accepts 100 parameters, 100 tags and 1000 entries in total.
        requests = [{"metrics": chunk} for chunk in _chunks(metrics, BATCH_METRICS)]
        for kind, entries in (("params", params), ("tags", all_tags)):
            for index, chunk in enumerate(_chunks(entries, BATCH_TAGS)):
                if index < len(requests) and len(requests[index].get("metrics", ())) + 2 * BATCH_TAGS <= 1000:
                    requests[index][kind] = chunk
                else:
                    requests.append({kind: chunk})
        for request in requests:
            self._client.log_batch(run_id, **request)

    def _keep_one(self, twins: list[Any]) -> Any:
        """Keep the most complete of a candidate's runs (concurrent mirrors can create several); delete the others."""
        kept, *others = sorted(twins, key=lambda run: (-len(run.data.metrics), run.info.start_time, run.info.run_id))
        for run in others:
            self._client.delete_run(run.info.run_id)
        return kept


def ensure_experiment(client: Any, uri: str, name: str) -> str:
    """Return the id of an experiment; create it if it does not exist.

    Raises:
        TrackingError: The experiment was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_file(uri)
        # Without a location MLflow would use ./mlruns in the working directory of the process.
        location = (database.parent / ARTIFACTS).as_uri() if database is not None else None
        return str(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage != "active":
        raise deleted(name, found.experiment_id)
    return str(found.experiment_id)


def deleted(name: str, experiment_id: str) -> TrackingError:
    """Return the error for a deleted experiment, whose name MLflow does not allow to reuse."""
    how = f"Restore it (mlflow experiments restore -x {experiment_id}) or choose another name"
    return TrackingError("tracking.experiment", f"'{name}' was deleted in MLflow", next=how)


def _chunks(entries: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [entries[start : start + size] for start in range(0, len(entries), size)]
