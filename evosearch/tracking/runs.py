"""Writers of MLflow's runs: many runs in one transaction of a database, several requests at a time to a server."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from evosearch.tracking.accounts import WEB
from evosearch.tracking.changes import Point

SERVED = (*WEB, "databricks")  # schemes of stores that are servers, not databases
CONNECTIONS = 4  # requests at a time; MLflow's server has four processes unless told otherwise
BATCH_TAGS, BATCH_METRICS = 100, 800  # of a request, which accepts 100 parameters, 100 tags and 1000 entries in total


class Runs(Protocol):
    """Writer of runs. Any method may raise; what a failed call wrote is unknown, so that calls must be repeatable."""

    def create(self, experiment_id: str, started_ms: int, tags: Mapping[str, str], name: str) -> str:
        """Create a run and return its id."""

    def log(
        self, run_id: str, points: Sequence[Point] = (), params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}
    ) -> None:
        """Add points and parameters, and set tags."""

    def set_status(self, run_id: str, status: str, ended_ms: int | None) -> None:
        """Set the status of a run, and when it ended."""

    def together(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Perform tasks that use this writer, of one run each, in any order and as efficiently as the store allows.

        Raises the first error, after which no further task begins.
        """


def runs_of(uri: str, client: Any) -> Runs:
    """Return the writer for a store.

    Args:
        uri: Tracking URI.
        client: MLflow's client of it, which must have been used: the tables and the default experiment exist.
    """
    from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES

    # Where workspaces are enabled, MLflow uses a subclass of its store, whose sessions we do not know.
    if not uri.startswith(SERVED) and not MLFLOW_ENABLE_WORKSPACES.get():
        with suppress(UnknownStoreError):
            return Transactions(uri)
    return Requests(client)


class Requests:
    """Runs of a server: the requests of one run follow each other, those of several runs overlap."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def create(self, experiment_id: str, started_ms: int, tags: Mapping[str, str], name: str) -> str:
        """See `Runs`."""
        run = self._client.create_run(experiment_id, start_time=started_ms, tags=dict(tags), run_name=name)
        return str(run.info.run_id)

    def log(
        self, run_id: str, points: Sequence[Point] = (), params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}
    ) -> None:
        """See `Runs`."""
        for batch in _batches(points, params, tags):
            self._client.log_batch(run_id, **batch)

    def set_status(self, run_id: str, status: str, ended_ms: int | None) -> None:
        """See `Runs`."""
        if ended_ms is None:
            self._client.update_run(run_id, status=status)
        else:
            self._client.set_terminated(run_id, status, ended_ms)

    def together(self, tasks: Sequence[Callable[[], None]]) -> None:
        """See `Runs`."""
        waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        for task in tasks:
            waiting.put(task)
        errors: list[BaseException] = []

        def work() -> None:
            while not errors:
                try:
                    task = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    task()
                except BaseException as exc:  # raised below, in the caller's thread
                    errors.append(exc)

        # Daemons, unlike those of a pool: a request that hangs must not keep the process from ending.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(CONNECTIONS, len(tasks)) - 1)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


class Transactions:
    """Runs of a database: tasks that are performed together are one transaction, through MLflow's own store.

    MLflow's store commits every call, several times. Here its sessions join an outer transaction, in which their
    commits are savepoints: either all tasks are in the database, or none.

    Raises:
        UnknownStoreError: This version of MLflow has no sessions that can be replaced.
    """

    def __init__(self, uri: str) -> None:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        # An object of our own, since MLflow's clients share theirs between threads. The folder is never used: runs are
        # created in experiments, which have one.
        self._store: Any = SqlAlchemyStore(uri, "mlartifacts")
        if "ManagedSessionMaker" not in vars(self._store) or not hasattr(self._store, "engine"):
            raise UnknownStoreError
        self._experiments: dict[str, Any] | None = None  # in a transaction: those read
        self._store.get_experiment = self._once_per_transaction(self._store.get_experiment)

    def create(self, experiment_id: str, started_ms: int, tags: Mapping[str, str], name: str) -> str:
        """See `Runs`."""
        from mlflow.entities import RunTag

        named = [RunTag(key, value) for key, value in tags.items()]
        return str(self._store.create_run(experiment_id, "unknown", started_ms, named, name).info.run_id)

    def log(
        self, run_id: str, points: Sequence[Point] = (), params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}
    ) -> None:
        """See `Runs`."""
        for batch in _batches(points, params, tags):
            self._store.log_batch(run_id, **batch)

    def set_status(self, run_id: str, status: str, ended_ms: int | None) -> None:
        """See `Runs`."""
        from mlflow.entities import RunStatus

        self._store.update_run_info(run_id, RunStatus.from_string(status), ended_ms, None)

    def together(self, tasks: Sequence[Callable[[], None]]) -> None:
        """See `Runs`."""
        if not tasks:
            return
        with self._transaction():
            for task in tasks:
                task()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        from sqlalchemy.orm import sessionmaker

        with self._store.engine.begin() as connection:  # begun, since sessions would commit a transaction of their own
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA foreign_keys = ON")  # as MLflow does; not possible later
                connection.exec_driver_sql("PRAGMA busy_timeout = 20000")
                # Otherwise the first savepoint would begin the transaction, and its release would commit it. With
                # `IMMEDIATE`, another writer is waited for here, and not refused in the middle.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            sessions = sessionmaker(connection, join_transaction_mode="create_savepoint", expire_on_commit=False)

            @contextmanager
            def joined(read_only: bool = True) -> Iterator[Any]:
                with sessions() as session:
                    yield session
                    session.commit()

            self._experiments = {}
            own, self._store.ManagedSessionMaker = self._store.ManagedSessionMaker, joined
            try:
                yield
            finally:
                self._store.ManagedSessionMaker = own
                self._experiments = None

    def _once_per_transaction(self, read: Callable[[str], Any]) -> Callable[[str], Any]:
        """Read an experiment once per transaction: the store reads it before it creates a run."""

        def get(experiment_id: str) -> Any:
            if self._experiments is None:
                return read(experiment_id)
            if experiment_id not in self._experiments:
                self._experiments[experiment_id] = read(experiment_id)
            return self._experiments[experiment_id]

        return get


class UnknownStoreError(Exception):
    """MLflow's store is not the one that `Transactions` knows."""


def _batches(
    points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]
) -> Iterator[dict[str, list[Any]]]:
    """Divide what is logged to a run into requests that MLflow accepts."""
    from mlflow.entities import Metric, Param, RunTag

    metrics = [Metric(point.name, point.value, point.time_ms, point.step) for point in points]
    named = [Param(name, value) for name, value in params.items()]
    tagged = [RunTag(name, value) for name, value in tags.items()]
    count = max(-(-len(metrics) // BATCH_METRICS), -(-len(named) // BATCH_TAGS), -(-len(tagged) // BATCH_TAGS))
    for index in range(count):
        yield {
            "metrics": metrics[index * BATCH_METRICS : (index + 1) * BATCH_METRICS],
            "params": named[index * BATCH_TAGS : (index + 1) * BATCH_TAGS],
            "tags": tagged[index * BATCH_TAGS : (index + 1) * BATCH_TAGS],
        }
