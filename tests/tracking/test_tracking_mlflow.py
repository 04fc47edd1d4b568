"""The mirror with a real MLflow on SQLite: MLflow shows what the ledger says, whatever failures occurred."""

import os
import subprocess
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.devcluster.processes import free_port
from evosearch.errors import TrackingError
from evosearch.tracking import mirror as mirror_room
from evosearch.tracking import mlflow as mlflow_room
from evosearch.tracking.client import connect, find_runs, run_ids
from evosearch.tracking.mlflow import MlflowMirror, MlflowStore, Registry, ui_command, ui_environment
from evosearch.tracking.runs import Requests, Transactions

NewStore = Callable[[str], str]
Story = Any  # conftest.Story
LONG_S = 400.0  # MLflow is slow to import, and the machine is shared


def mirror(uri: str, story: Story) -> MlflowMirror:
    made = MlflowMirror(uri, "nights", story.url, story.search_id, "night")
    made.close(LONG_S)
    return made


def shown(uri: str) -> dict[str, dict[str, Any]]:
    """All MLflow data of the search by candidate ("" is the search itself), without run ids and the cursor.

    Asserts that the runs of candidates and baselines are nested under the search's run.
    """
    client = connect(uri)
    experiment = client.get_experiment_by_name("nights").experiment_id
    runs = find_runs(client, [experiment], "")
    parent = next(run.info.run_id for run in runs if run.data.tags["kind"] == "search")
    out: dict[str, dict[str, Any]] = {}
    for run in runs:
        run_id, tags = run.info.run_id, dict(run.data.tags)
        assert tags.pop("mlflow.parentRunId", None) == (None if run_id == parent else parent)
        tags.pop("evosearch.mirrored_seq", None)
        key = tags.get("candidate_id", "")
        assert key not in out, f"{key!r} has two runs"
        history = {name: client.get_metric_history(run_id, name) for name in run.data.metrics}
        out[key] = {
            "tags": tags,
            "params": dict(run.data.params),
            "status": (run.info.status, run.info.start_time, run.info.end_time),
            "metrics": {name: [(p.step, p.value, p.timestamp) for p in points] for name, points in history.items()},
            "files": {f.path: _text(run, f.path) for f in client.list_artifacts(run_id) if not f.is_dir},
        }
    return out


def _text(run: Any, path: str) -> str:
    return (Path(run.info.artifact_uri.removeprefix("file://")) / path).read_text()


def values(points: list[tuple[int, float, int]]) -> list[tuple[int, float]]:
    return [(step, value) for step, value, _ in points]


def test_the_mirror_equals_the_ledger(story: Story, new_store: NewStore) -> None:
    story.all()
    uri = new_store("store")
    made = mirror(uri, story)
    assert made.state == "up to date"
    runs = shown(uri)
    assert set(runs) == {"", "base", "0", "1", "2", "3", "4", "champion"}
    assert made.run_ids() == run_ids(uri, story.search_id)
    assert set(made.run_ids()) == set(runs) - {""}

    for event in story.ledger.events(story.search_id, types=["scored"]):
        candidate, split = event.payload["candidate"], event.payload["split"]
        metrics, at = runs[candidate]["metrics"], round(event.time * 1000)
        step = ("search", "validation", "test").index(split)
        assert metrics[f"score/{split}"] == [(step, event.payload["score"], at)]
        assert metrics[f"fitness/{split}"] == [(step, event.payload["fitness"]["value"], at)]
        assert metrics[f"task/copy/acc/{split}"] == [(step, 0.5, at)]
        assert (step, 0.2, at) in metrics["seconds/score"]
        assert (step, 30.0, at) in metrics["tokens/forwarded"]
    for event in story.ledger.events(story.search_id, types=["asked"]):
        run = runs[event.payload["candidate"]]
        assert yaml.safe_load(run["tags"]["recipe"]) == event.payload["recipe"]
        assert run["tags"]["recipe_id"] == event.payload["recipe_id"]
        assert run["tags"]["search_id"] == story.search_id
        assert run["tags"]["kind"] == "candidate"
        assert run["params"] == {"models 0_ weight": f"{event.payload['genome']['models[0], weight']:.4g}"}


def test_only_baselines_and_finalists_have_an_artifact_folder(story: Story, new_store: NewStore) -> None:
    story.all()
    uri = new_store("store")
    made = mirror(uri, story)
    runs = shown(uri)
    client = connect(uri)
    for candidate, run_id in made.run_ids().items():
        folder = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
        files = {"base": ["recipe.yaml"], "2": ["recipe.yaml"], "1": ["traceback.txt"]}.get(candidate, [])
        assert folder.parent.exists() == bool(files), candidate
        assert sorted(runs[candidate]["files"]) == files
    for candidate in ("base", "2"):  # 2 was proposed in an earlier chunk than it became a finalist
        assert runs[candidate]["files"]["recipe.yaml"] == runs[candidate]["tags"]["recipe"]


def test_failures_duplicates_and_the_search_itself(story: Story, new_store: NewStore) -> None:
    story.all()
    uri = new_store("store")
    mirror(uri, story)
    runs = shown(uri)
    failed = runs["1"]
    assert failed["status"][0] == "FAILED"
    assert failed["tags"]["failure"] == "materialize: not finite"
    assert failed["tags"]["retries"] == "1"
    assert failed["metrics"] == {}
    assert runs["3"]["tags"]["duplicate_of"] == "2"
    assert runs["3"]["metrics"] == {}
    assert runs["2"]["tags"]["finalist_rank"] == "1"
    assert runs["2"]["tags"]["registered_version"] == "1"
    assert runs["base"]["tags"]["kind"] == "base"

    search = runs[""]
    # Candidate 2 finished first, but the series is in ask order, and 1 and 3 have no fitness of their own.
    assert values(search["metrics"]["best_fitness"]) == [(0, 2.0), (1, 2.0), (2, 4.0), (3, 4.0), (4, 4.0)]
    assert search["status"][0] == "FINISHED"
    assert search["tags"]["skipped/uniform"] == "there is only one parent"
    assert search["tags"]["champion"] == "2"
    assert yaml.safe_load(search["files"]["spec.yaml"])["recipe"] == story.recipe(1.0)
    assert "gate.json" in search["files"]


def test_mirroring_again_changes_nothing(story: Story, new_store: NewStore) -> None:
    story.all()
    uri = new_store("store")
    mirror(uri, story)
    before = shown(uri)
    client = connect(uri)
    experiment = client.get_experiment_by_name("nights").experiment_id
    parent = find_runs(client, [experiment], "tags.kind = 'search'")[0].info.run_id
    client.set_tag(parent, "evosearch.mirrored_seq", "0")  # as if nothing was mirrored
    mirror(uri, story)
    assert shown(uri) == before


LOCK = threading.Lock()


class KilledError(Exception):
    """Stands for the death of the process."""


class Dying:
    """A writer of runs, or MLflow's client, that dies at its n-th writing call, before it or after it.

    After it, the response is lost.
    """

    WRITES = ("create", "log", "set_status", "log_text", "create_experiment", "set_experiment_tag", "log_inputs")

    def __init__(self, written: Any, lives: list[int], after: bool) -> None:
        self._written, self._lives, self._after = written, lives, after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._written, name)
        return self._counted(method) if name in self.WRITES else method

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with LOCK:
                self._lives[0] -= 1
                left = self._lives[0]
            if left < 0 or (left == 0 and not self._after):
                raise KilledError
            result = method(*args, **kwargs)
            if left == 0:
                raise KilledError
            return result

        return call


@pytest.mark.parametrize("writer", [Requests, Transactions])
@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_killed_at_any_moment_the_result_is_the_same(
    story: Story, new_store: NewStore, monkeypatch: pytest.MonkeyPatch, after: bool, writer: Any
) -> None:
    story.begin()
    story.first_group()
    undisturbed = new_store("undisturbed")
    mirror(undisturbed, story)
    uri = new_store("killed")
    deaths = 0
    for lives in (1, 2, 3, 4, 5, 7, 9, 11, 14, 17, 200):  # each attempt continues the partial work of the one before
        left_lives = [lives]
        monkeypatch.setattr(mlflow_room, "connect", lambda uri, n=left_lives: Dying(connect(uri), n, after))
        made = Requests(connect(uri)) if writer is Requests else Transactions(uri)
        monkeypatch.setattr(mlflow_room, "runs_of", lambda *_, n=left_lives, made=made: Dying(made, n, after))
        store = MlflowStore(uri, "nights", story.search_id, "night")
        try:
            cursor = store.open()
            store.recall([event for event in story.ledger.events(story.search_id) if event.seq <= cursor])
            left = story.ledger.events(story.search_id, after=cursor)
            for start in range(0, len(left), 5):
                store.write(left[start : start + 5])
        except KilledError:
            deaths += 1
    assert deaths >= 8
    assert shown(uri) == shown(undisturbed)


def test_a_second_mirror_continues_where_the_first_stopped(story: Story, new_store: NewStore) -> None:
    uri = new_store("store")
    story.begin()
    first = mirror(uri, story)
    ids = first.run_ids()
    story.first_group()
    story.second_group()
    story.finish()
    second = mirror(uri, story)
    assert second.run_ids().items() > ids.items()
    undisturbed = new_store("undisturbed")
    mirror(undisturbed, story)
    assert shown(uri) == shown(undisturbed)


def test_a_candidate_can_be_written_ahead_of_its_turn(story: Story, new_store: NewStore, tmp_path: Path) -> None:
    story.all()
    uri = new_store("store")
    events = story.ledger.events(story.search_id)
    store = MlflowStore(uri, "nights", story.search_id, "night")
    assert store.open() == 0
    store.advance("2", iter(events))
    assert set(shown(uri)) == {"", "2"}
    (tmp_path / "artifacts").mkdir()
    ours = {"search_id": story.search_id, "candidate": "2", "recipe_id": "id2", "artifact_dir": tmp_path / "artifacts"}
    assert Registry(uri).register("night", **ours) == "1"
    mirror(uri, story)  # of another process, which knows nothing of it
    undisturbed = new_store("undisturbed")
    mirror(undisturbed, story)
    ahead, in_turn = shown(uri), shown(undisturbed)
    del ahead["2"]["files"], in_turn["2"]["files"]  # the registered folder is listed too
    assert ahead == in_turn


def test_twin_runs_are_reconciled_to_one(story: Story, new_store: NewStore) -> None:
    uri = new_store("store")
    story.begin()
    kept = mirror(uri, story).run_ids()["base"]
    client = connect(uri)
    experiment = client.get_experiment_by_name("nights").experiment_id
    client.create_run(experiment, tags={"search_id": story.search_id, "candidate_id": "base", "kind": "base"})
    story.asked(0)
    assert mirror(uri, story).run_ids()["base"] == kept
    assert set(shown(uri)) == {"", "base", "0"}


def test_the_registry_moves_the_alias(story: Story, new_store: NewStore, tmp_path: Path) -> None:
    uri = new_store("store")
    story.all()
    mirror(uri, story)
    folder = tmp_path / "artifacts"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "recipe.yaml").write_text("merge_method: linear\n")
    registry = Registry(uri)
    assert registry.champion("night") is None

    def register(candidate: str) -> str:
        return registry.register(
            "night",
            search_id=story.search_id,
            candidate=candidate,
            recipe_id=f"id{candidate}",
            artifact_dir=folder,
            tags={"score": "30"},
        )

    assert register("2") == "1"
    assert register("4") == "2"
    champion = registry.champion("night")
    assert champion is not None
    assert (champion.version, champion.candidate, champion.recipe_id) == ("2", "4", "id4")
    assert champion.tags["score"] == "30"
    assert registry.recipe(champion) == "merge_method: linear\n"
    assert (Path(champion.source.removeprefix("file://")) / "model.safetensors").read_bytes() == b"weights"
    assert register("2") == "1"  # already registered: only the alias moves
    back = registry.champion("night")
    assert back is not None
    assert back.candidate == "2"
    assert len(connect(uri).search_model_versions("name = 'night'")) == 2
    with pytest.raises(TrackingError, match="candidate 9 has no run yet"):
        register("9")


def test_uris_that_mlflow_cannot_use_are_refused(tmp_path: Path) -> None:
    for uri in ("mlruns", "file:///mlruns", "sqlite://"):
        with pytest.raises(TrackingError, match=r"tracking\.uri"):
            connect(uri)
    assert run_ids(f"sqlite:///{tmp_path}/none.db", "5ea2c4") == {}
    assert not (tmp_path / "none.db").exists()


def test_a_deleted_experiment_is_named(story: Story, new_store: NewStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_room, "FIRST_PAUSE_S", 30.0)
    uri = new_store("store")
    story.begin()
    client = connect(uri)
    client.delete_experiment(client.create_experiment("nights"))
    made = MlflowMirror(uri, "nights", story.url, story.search_id, "night")
    made.notify()
    _until(lambda: "deleted" in made.state, LONG_S)
    assert made.state.startswith("behind: 4 events, TrackingError: tracking.experiment: 'nights' was deleted")
    made.close(0.1)


def test_the_ui_command_is_local_and_hides_passwords() -> None:
    command = ui_command("sqlite:////data/mlflow.db", 5050)
    assert command[1:4] == ["-m", "mlflow", "server"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--workers") + 1] == "1"
    assert ui_environment()["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    secret = "postgresql://me:hunter2@db/mlflow"
    assert "hunter2" not in " ".join(ui_command(secret))
    assert {"--app-name", "basic-auth"} <= set(ui_command(secret, accounts=True))
    assert ui_environment(secret)["MLFLOW_BACKEND_STORE_URI"] == secret
    with pytest.raises(TrackingError, match="is already a server"):
        ui_command("http://mlflow:5000")


@pytest.mark.slow
def test_a_server_that_comes_up_late_catches_up(
    story: Story, new_store: NewStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_room, "FIRST_PAUSE_S", 0.2)
    monkeypatch.setattr(mirror_room, "LONGEST_PAUSE_S", 1.0)
    port = free_port()  # not a port that an outgoing connection may get before the server is up
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # it stores artifacts in a folder
    store = new_store("store")
    made = MlflowMirror(uri, "nights", story.url, story.search_id, "night")
    story.all()
    began = time.monotonic()
    made.notify()
    assert time.monotonic() - began < 10.0  # the failing server does not block the search
    _until(lambda: made.state.startswith("behind: ") and "refused" in made.state, LONG_S)
    assert f"{len(story.ledger.events(story.search_id))} events" in made.state

    environment = {**os.environ, **ui_environment(store)}
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(ui_command(store, port), env=environment, stdout=log, stderr=log)
    try:
        made.close(LONG_S)
        assert made.state == "up to date"
        (tmp_path / "artifacts").mkdir()
        (tmp_path / "artifacts" / "recipe.yaml").write_text("merge_method: linear\n")
        one = {
            "search_id": story.search_id,
            "candidate": "2",
            "recipe_id": "id2",
            "artifact_dir": tmp_path / "artifacts",
        }
        assert Registry(uri).register("night", **one) == "1"
        found = Registry(uri).champion("night")
        assert found is not None
        assert found.candidate == "2"
    finally:
        server.terminate()
        server.wait(LONG_S)
    undisturbed = new_store("undisturbed")
    mirror(undisturbed, story)
    assert shown(store) == shown(undisturbed)


def _until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    for _ in count():
        if condition():
            return
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)
