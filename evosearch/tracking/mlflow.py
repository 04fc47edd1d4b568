"""Mirror of a search in MLflow: one run for the search, with a nested run for every candidate and baseline.

MLflow assigns run ids, so runs are found by their tags. The mirror's cursor is a tag of the search's own run, written
after the events that it covers; after an interruption, events beyond the cursor are written again without effect.
"""

import getpass
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from evosearch.errors import TrackingError
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger
from evosearch.tracking import table_statistics
from evosearch.tracking.changes import RUNNING, SEARCH, Changes, Plan
from evosearch.tracking.client import ARTIFACTS, SEARCH_TAG, connect, find_runs, load_mlflow, run_ids, sqlite_file
from evosearch.tracking.inputs import log_inputs
from evosearch.tracking.mirror import EventReader, Mirror
from evosearch.tracking.model_registry import Champion, Registry
from evosearch.tracking.recipe_tags import RECIPE_FILE, TAG_CHARACTERS, recipe_of, recipe_tags
from evosearch.tracking.roles import ROLE
from evosearch.tracking.runs import Runs, runs_of
from evosearch.tracking.translator import Translator
from evosearch.tracking.ui import ui_command, ui_environment
from evosearch.tracking.view import EXPERIMENT, RUN, leaderboard_path

__all__ = ["Champion", "MlflowMirror", "MlflowStore", "Registry", "run_ids", "ui_command", "ui_environment"]

CURSOR = "evosearch.mirrored_seq"  # tag of the search's run: all events up to it are mirrored
PARENT_TAG = "mlflow.parentRunId"
SOURCE = {"mlflow.source.name": "evosearch", "mlflow.source.type": "LOCAL"}


class MlflowMirror(Mirror):
    """A `Tracker` that mirrors a search to MLflow, in its own thread.

    Args:
        uri: Tracking URI: `sqlite:///…/mlflow.db`, `http://host:5000`.
        experiment: Name of the experiment; created if it does not exist.
        ledger: URL of the ledger, or a function that opens it for reading in the mirror's thread.
        search_id: The search to mirror.
        name: Name of the search and of its run.
        notice: As for `Mirror`.
        announce: Called once, in the mirror's thread, with the address of the leaderboard below that of the server.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        ledger: str | Callable[[], EventReader],
        search_id: str,
        name: str,
        notice: Callable[[str], None] = lambda text: None,
        announce: Callable[[str], None] = lambda path: None,
    ) -> None:
        load_mlflow()  # here, since importing it in the mirror's thread can collide with this thread's imports
        self._store = MlflowStore(uri, experiment, search_id, name, announce)
        opened = (lambda: Ledger.open(ledger, read_only=True)) if isinstance(ledger, str) else ledger
        super().__init__(self._store, opened, search_id, notice)

    @property
    def leaderboard(self) -> str:
        """See `Mirror`."""
        return self._store.leaderboard

    def run_ids(self) -> dict[str, str]:
        """Return candidate → MLflow run id, as far as mirrored."""
        return {candidate: run_id for candidate, run_id in self._store.runs.copy().items() if candidate != SEARCH}


class MlflowStore:
    """Sink of `MlflowMirror`: the runs of one search in one experiment."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        search_id: str,
        name: str,
        announce: Callable[[str], None] = lambda path: None,
    ) -> None:
        self._uri, self._experiment, self._search_id, self._name = uri, experiment, search_id, name
        self._translator = Translator(search_id, name)
        self._client: Any = None
        self._runs: Runs
        self._experiment_id = ""
        self.runs: dict[str, str] = {}  # candidate, or SEARCH → run id
        self.leaderboard = ""  # its address below that of the server; empty until the store is open
        self._announce = announce
        self._counted = table_statistics.LEAST // 2  # runs when statistics were refreshed last

    def open(self) -> int:
        """Find the runs of the search and return its cursor."""
        self._client = connect(self._uri)
        self._experiment_id = ensure_experiment(self._client, self._uri, self._experiment)
        self._runs = runs_of(self._uri, self._client)
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
        if not self.leaderboard:
            self.leaderboard = leaderboard_path(self._experiment_id, self._search_id)
            self._announce(self.leaderboard)
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
        search = plan.pop(SEARCH, Changes(round(events[0].time * 1000)))
        self._write_candidates(search, plan)
        self._write_files(SEARCH, search)
        self._describe(search)
        self._runs.together([partial(self._finish, search, events[-1].seq)])
        if len(self.runs) >= 2 * self._counted:
            table_statistics.refresh(self._uri)
            self._counted = len(self.runs)

    def advance(self, candidate: str, events: Iterable[Event]) -> None:
        """Write one candidate's run; the cursor stays, so that it is written again in its turn, without effect."""
        translator, plan = Translator(self._search_id, self._name), Plan()
        began = 0
        for event in events:
            translator.translate(event, plan)
            began = began or round(event.time * 1000)
            plan = {candidate: plan[candidate]} if candidate in plan else {}
        self._write_candidates(Changes(began), plan)

    def _describe(self, search: Changes) -> None:
        """Write the inputs of the search and the tags of the experiment, once what they link to exists."""
        if search.inputs:
            log_inputs(self._client, self.runs[SEARCH], search.inputs)
        for key, text in search.experiment.items():
            value = text.replace(EXPERIMENT, self._experiment_id).replace(RUN, self.runs[SEARCH])
            self._client.set_experiment_tag(self._experiment_id, key, value)

    def _finish(self, search: Changes, cursor: int) -> None:
        self._apply(SEARCH, search)
        self._runs.log(self.runs[SEARCH], tags={CURSOR: str(cursor)})

    def _write_candidates(self, search: Changes, plan: Plan) -> None:
        if SEARCH not in self.runs:  # first, because the others are nested under it
            self._create(SEARCH, search)
        self._runs.together([partial(self._apply, key, changes) for key, changes in plan.items()])
        for key, changes in plan.items():  # later: a client does not see runs of a transaction
            self._write_files(key, changes)

    def _create(self, key: str, changes: Changes) -> None:
        own = {SEARCH_TAG: self._search_id, "kind": "search", ROLE: "search"} if key == SEARCH else {}
        tags, name = self._tags(key, changes) | own | SOURCE | {"mlflow.user": user_name()}, changes.name or self._name
        self.runs[key] = self._runs.create(self._experiment_id, changes.started_ms, tags, name)

    def _apply(self, key: str, changes: Changes) -> None:
        created = key not in self.runs
        if created:
            self._create(key, changes)
        run_id = self.runs[key]
        self._runs.log(run_id, changes.points, changes.params, {} if created else self._tags(key, changes))
        if changes.status == RUNNING:
            self._runs.set_status(run_id, RUNNING, None)
        elif changes.status is not None:
            self._runs.set_status(run_id, changes.status, changes.status_ms)

    def _tags(self, key: str, changes: Changes) -> dict[str, str]:
        tags = {name: value[:TAG_CHARACTERS] for name, value in changes.tags.items()}
        if changes.recipe is not None:
            tags |= recipe_tags(changes.recipe())
        return tags if key == SEARCH else tags | {PARENT_TAG: self.runs[SEARCH]}

    def _write_files(self, key: str, changes: Changes) -> None:
        """Write the artifacts of a run; a recipe that is too long for tags is one in any case."""
        files, run_id = dict(changes.files), self.runs[key]
        text = changes.recipe() if changes.recipe is not None else None
        if text is not None and (changes.recipe_file or not recipe_tags(text)):
            files[RECIPE_FILE] = text
        elif text is None and changes.recipe_file:
            text = recipe_of(self._client.get_run(run_id).data.tags)
            files |= {RECIPE_FILE: text} if text is not None else {}
        for path, content in files.items():
            self._client.log_text(run_id, content, path)

    def _keep_one(self, twins: list[Any]) -> Any:
        """Keep the most complete of a candidate's runs (concurrent mirrors can create several); delete the others."""
        kept, *others = sorted(twins, key=lambda run: (-len(run.data.metrics), run.info.start_time, run.info.run_id))
        for run in others:
            self._client.delete_run(run.info.run_id)
        return kept


def user_name() -> str:
    """Return the name of the user who runs the mirror, as MLflow's own clients record it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return "unknown"


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
