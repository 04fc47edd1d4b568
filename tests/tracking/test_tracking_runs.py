"""Writers of runs: a database gets many runs in one transaction, a server several requests at a time."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event

from evosearch.tracking.changes import Point
from evosearch.tracking.client import connect, find_runs
from evosearch.tracking.mlflow import MlflowStore
from evosearch.tracking.runs import CONNECTIONS, Requests, Runs, Transactions, runs_of

NewStore = Callable[[str], str]
Story = Any  # conftest.Story
LONG_S = 120.0


@pytest.fixture
def uri(new_store: NewStore) -> str:
    return new_store("store")


def write(runs: Runs, experiment: str, name: str, count: int = 1) -> None:
    run_id = runs.create(experiment, 1000, {"candidate_id": name}, name)
    points = [Point(f"m{index}", float(index), 0, 2000) for index in range(count)]
    runs.log(run_id, points, {f"p{index}": "1" for index in range(count)}, {f"t{index}": "1" for index in range(count)})
    runs.set_status(run_id, "FINISHED", 3000)


def test_the_store_decides_the_writer(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(uri)
    client.search_experiments()
    assert isinstance(runs_of(uri, client), Transactions)
    assert isinstance(runs_of("http://localhost:1", client), Requests)
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    assert isinstance(runs_of(uri, client), Requests)
    monkeypatch.delenv("MLFLOW_ENABLE_WORKSPACES")
    from mlflow.store.tracking import sqlalchemy_store

    class Other:  # a later version, whose sessions have another name
        def __init__(self, *_: str) -> None:
            self.engine = None

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", Other)
    assert isinstance(runs_of(uri, client), Requests)


@pytest.mark.parametrize("make", [Requests, Transactions])
def test_runs_are_written_completely_and_again_without_effect(uri: str, make: Any) -> None:
    client = connect(uri)
    experiment = client.create_experiment("nights")
    runs = Requests(client) if make is Requests else Transactions(uri)
    runs.together([partial(write, runs, experiment, str(index), 230) for index in range(3)])
    found = find_runs(client, [experiment], "")
    assert {run.info.run_name for run in found} == {"0", "1", "2"}
    assert {(run.info.status, run.info.start_time, run.info.end_time) for run in found} == {("FINISHED", 1000, 3000)}
    for run in found:
        assert run.data.metrics == {f"m{index}": float(index) for index in range(230)}
        assert run.data.params == {f"p{index}": "1" for index in range(230)}
        assert {f"t{index}" for index in range(230)} <= run.data.tags.keys()
    again = found[0].info.run_id
    points, params = [Point("m1", 1.0, 0, 2000), Point("m1", 5.0, 1, 2001)], {"p1": "1"}
    runs.together([partial(runs.log, again, points, params, {"t1": "2"})])
    run = client.get_run(again)
    assert [point.value for point in client.get_metric_history(again, "m1")] == [1.0, 5.0]
    assert (run.data.metrics["m1"], run.data.params["p1"], run.data.tags["t1"]) == (5.0, "1", "2")


def test_a_chunk_of_a_database_is_two_transactions(uri: str, story: Story) -> None:
    story.begin()
    for index in range(20):
        story.asked(index)
        story.scored(str(index), float(index))
    store = MlflowStore(uri, "nights", story.search_id, "night")
    store.open()
    events = story.ledger.events(story.search_id)
    store.write(events[:4])
    assert isinstance(store._runs, Transactions)
    commits: list[object] = []
    event.listen(store._runs._store.engine, "commit", commits.append)
    store.write(events[4:])
    assert len(commits) == 2, "the candidates, then the search and its cursor"
    assert len(store.runs) == 22


def test_a_transaction_that_fails_leaves_nothing(uri: str) -> None:
    client = connect(uri)
    experiment = client.create_experiment("nights")
    runs = Transactions(uri)

    def fail() -> None:
        raise ConnectionError("reset")

    with pytest.raises(ConnectionError, match="reset"):
        runs.together([partial(write, runs, experiment, "0"), fail, partial(write, runs, experiment, "1")])
    assert find_runs(client, [experiment], "") == []
    runs.together([partial(write, runs, experiment, "2")])
    write(runs, experiment, "3")  # by itself
    assert {run.info.run_name for run in find_runs(client, [experiment], "")} == {"2", "3"}


@pytest.mark.slow
def test_a_postgresql_database_gets_transactions_too(postgres_url: str) -> None:
    uri = postgres_url.replace("postgresql://", "postgresql+psycopg://")
    client = connect(uri)  # creates the tables
    experiment = client.create_experiment("nights", artifact_location="file:///nowhere")
    runs = runs_of(uri, client)
    assert isinstance(runs, Transactions)
    runs.together([partial(write, runs, experiment, str(index), 3) for index in range(3)])
    (again, *_) = find_runs(client, [experiment], "tags.candidate_id = '1'")
    commits: list[object] = []
    event.listen(runs._store.engine, "commit", commits.append)
    same = partial(runs.log, again.info.run_id, [Point("m1", 1.0, 0, 2000), Point("m1", 5.0, 1, 2001)], {"p1": "1"})
    runs.together([same, partial(write, runs, experiment, "3")])
    assert len(commits) == 1
    assert {run.info.run_name for run in find_runs(client, [experiment], "")} == {"0", "1", "2", "3"}
    assert [point.value for point in client.get_metric_history(again.info.run_id, "m1")] == [1.0, 5.0]


def test_a_server_gets_several_requests_at_a_time() -> None:
    together = threading.Barrier(CONNECTIONS)
    done: list[int] = []

    def task(index: int) -> None:
        together.wait(LONG_S)  # breaks unless so many tasks run at once
        done.append(index)

    Requests(None).together([partial(task, index) for index in range(2 * CONNECTIONS)])
    assert sorted(done) == list(range(2 * CONNECTIONS))
    Requests(None).together([])


def test_after_the_first_error_no_request_begins() -> None:
    begun: list[int] = []

    def task(index: int) -> None:
        begun.append(index)
        raise ConnectionError("reset")

    with pytest.raises(ConnectionError, match="reset"):
        Requests(None).together([partial(task, index) for index in range(50)])
    assert len(begun) <= CONNECTIONS
