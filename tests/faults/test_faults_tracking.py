"""An MLflow server that is down from the start, or fails during the search: no event is lost or doubled."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evosearch.reporting.report import CandidateCounts
from evosearch.search.ledger.events import Event
from evosearch.service import run as run_module
from evosearch.service.run import run
from evosearch.setup import trackers
from evosearch.tracking import mirror as mirror_module
from evosearch.tracking.client import connect, find_runs
from evosearch.tracking.mirror import UP_TO_DATE
from evosearch.tracking.mlflow import MlflowMirror
from tests.faults.saboteur import Saboteur

World = Callable[..., Path]
Events = Callable[[Path], list[Event]]
Evosearch = Callable[..., tuple[int, str, str]]
Server = Any  # conftest.MlflowServer


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "LONGEST_PAUSE_S", 1.0)
    for module in (run_module, trackers):
        monkeypatch.setattr(module, "PATIENCE_S", 2.0)


@pytest.fixture(scope="module", autouse=True)
def _killed_at_the_end(server: Server) -> Iterator[None]:
    yield
    server.kill()


def mirrored(uri: str, experiment: str) -> dict[str, dict[str, Any]]:
    """A search's MLflow data by candidate ("" is the search itself), except ids, cursor and comparisons."""
    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    out: dict[str, dict[str, Any]] = {}
    for one in find_runs(client, [found.experiment_id], "tags.kind != 'comparison'"):
        tags = {key: value for key, value in one.data.tags.items() if key != "mlflow.parentRunId"}
        tags.pop("evosearch.mirrored_seq", None)
        tags.pop("mlflow.loggedArtifacts", None)  # of the score tables, which the run writes and not the mirror
        key = tags.get("candidate_id", "")
        assert key not in out, f"{key!r} has two runs"
        histories = {name: client.get_metric_history(one.info.run_id, name) for name in one.data.metrics}
        out[key] = {
            "tags": tags,
            "params": dict(one.data.params),
            "status": (one.info.status, one.info.start_time, one.info.end_time),
            "points": {
                name: sorted((point.step, point.timestamp, point.value) for point in history)
                for name, history in histories.items()
            },
        }
    return out


def check_complete_and_once(server: Server, spec: Path, events: list[Event], tmp_path: Path) -> None:
    """Assert one run per candidate, one point per metric and score card, and equality to an undisturbed mirror."""
    shown = mirrored(server.store, spec.stem)
    candidates = {e.payload["candidate"] for e in events if e.type in ("asked", "baseline") and e.payload.get("recipe")}
    assert shown.keys() == candidates | {""}
    for event in events:
        if event.type == "scored":
            points = shown[event.payload["candidate"]]["points"]
            split = event.payload["split"]
            score, fitness = event.payload["score"], event.payload["fitness"]["value"]
            assert [value for _, _, value in points[f"score/{split}"]] == [pytest.approx(score, abs=5e-3)]
            assert [value for _, _, value in points[f"fitness/{split}"]] == [pytest.approx(fitness, abs=5e-5)]
    steps = [step for step, _, _ in shown[""]["points"]["best_fitness"]]
    assert steps == list(range(steps[0], steps[0] + len(steps)))
    uri = server.another_store(tmp_path / "undisturbed")
    ledger = f"sqlite:///{tmp_path}/runs/{spec.stem}/ledger.db"
    mirror = MlflowMirror(uri, spec.stem, ledger, shown["base"]["tags"]["search_id"], spec.stem)
    mirror.close(120.0)
    assert mirror.state == "up to date"
    assert shown == mirrored(uri, spec.stem)


def test_a_search_does_not_start_while_its_server_is_down(
    planted: World, server: Server, evosearch: Evosearch, tmp_path: Path
) -> None:
    server.kill()
    spec = planted("absent", tracking={"uri": server.uri}, promotion={"finalists": 1, "register_as": "absent"})
    code, out, err = evosearch("run", spec)
    assert code == 2, err
    assert f"{spec}: tracking.uri: {server.uri}: ConnectionRefusedError" in err
    assert not (tmp_path / "runs").exists()
    code, out, _ = evosearch("check", spec, "--json")
    (problem,) = json.loads(out)["problems"]
    assert (code, problem["where"]) == (2, f"{spec}: tracking.uri")


def test_after_an_outage_from_the_start_the_next_run_mirrors_everything(
    planted: World, server: Server, evosearch: Evosearch, events: Events, tmp_path: Path
) -> None:
    promotion = {"finalists": 1, "register_as": "absent"}
    spec = planted("absent", tracking={"uri": server.uri}, promotion=promotion)
    server.start()
    saboteur = Saboteur({0: server.kill}, stage="baselines")
    report = run(spec, saboteur)
    assert report.promoted
    store = f"MLflow at {server.uri}"
    (note,) = [note for note in saboteur.notes if note.startswith(f"{store}: ")]
    assert "The search continues; missing events are written once the store is back" in note
    assert any("not registered as 'absent'" in note for note in saboteur.notes)
    recorded = events(spec)
    assert report.tracking.startswith(f"{store} is behind: ")
    assert recorded[-1].type == "stopped"
    assert [event.payload["version"] for event in recorded if event.type == "promoted"] == [None]

    server.start()
    for _ in range(2):  # the second run has nothing to mirror
        code, out, err = evosearch("run", spec, "--json")
        assert code == 0, err
        assert json.loads(out)["tracking"] == "up to date"
    recorded = events(spec)
    assert [event.payload["version"] for event in recorded if event.type == "promoted"] == [None, "1"]
    assert len({(e.payload["candidate"], e.payload["split"]) for e in recorded if e.type == "scored"}) == sum(
        event.type == "scored" for event in recorded
    )
    check_complete_and_once(server, spec, recorded, tmp_path)
    client = connect(server.uri)
    assert len(client.search_model_versions("name = 'absent'")) == 1
    assert client.get_model_version_by_alias("absent", "champion").version == "1"


def test_after_an_outage_during_a_search_the_mirror_catches_up_before_its_end(
    planted: World, server: Server, events: Events, until: Callable[..., None], tmp_path: Path
) -> None:
    spec = planted("outage", tracking={"uri": server.uri}, budget={"candidates": 12})
    server.start()
    count: dict[str, int] = {}

    def mirrored_so_far() -> int:
        client = connect(server.store)
        found = client.get_experiment_by_name("outage")
        return len(find_runs(client, [found.experiment_id], "")) if found else 0

    def kill() -> None:
        until(lambda: mirrored_so_far() >= 3, 400.0)
        server.kill()

    def restart() -> None:
        until(lambda: any("The search continues" in note for note in saboteur.notes), 400.0)
        count["before"] = mirrored_so_far()
        server.start()

    def wait_for_the_mirror() -> None:
        until(lambda: any("is available again and up to date" in note for note in saboteur.notes), 400.0)
        count["after"] = mirrored_so_far()

    saboteur = Saboteur({3: kill, 6: restart, 9: wait_for_the_mirror})
    report = run(spec, saboteur)
    assert saboteur.acts == {}
    assert report.candidates == CandidateCounts(12, 12, 0, 0)
    assert report.tracking == UP_TO_DATE
    assert len([note for note in saboteur.notes if note.startswith("MLflow at ")]) == 2, "one outage, one recovery"
    assert count["before"] < count["after"]
    check_complete_and_once(server, spec, events(spec), tmp_path)
