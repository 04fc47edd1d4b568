"""MLflow's pages of a small real search, in headless Chromium; skipped with a reason where it is not installed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks._browser import Browser, browser, missing
from benchmarks._light_workers.night import Server, serving
from evosearch.reporting.report import RunReport
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.tracking.client import connect
from tests.conftest import with_kernels
from tests.faults.conftest import _planted, planted_spec  # noqa: F401 (fixture)

WIDE, HIGH = 3200, 1400  # pixels, in which the table draws all of its columns


@dataclass(frozen=True)
class Filled:
    """A server with one mirrored search.

    Attributes:
        server: The server.
        report: Report of the search.
        client: MLflow's client of its store.
    """

    server: Server
    report: RunReport
    client: Any

    @property
    def leaderboard(self) -> str:
        """The address that the run printed, on this server."""
        assert self.report.mlflow is not None
        return f"{self.server.uri}/#/{self.report.mlflow.partition('/#/')[2]}"


@pytest.fixture(scope="session")
def filled(_planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:  # noqa: F811
    """A search of 16 candidates in generations, with a champion in the registry."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("browser")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    spec = planted_spec(
        _planted,
        "night",
        optimizer={"name": "cma_es", "population": 4, "sigma": 0.2, "seed": 1, "start": "init"},
        budget={"candidates": 16},
        tracking={"uri": store},
        promotion={"finalists": 2, "register_as": "night"},
    )
    path = folder / "night.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    with pytest.MonkeyPatch.context() as session:
        session.setenv("EVOSEARCH_RUNS", str(folder / "runs"))
        session.setenv("EVOSEARCH_CACHE", str(with_kernels(folder / "cache")))
        report = run(path, Silent())
    assert report.promoted
    with serving(store, folder / "server.log") as server:
        yield Filled(server, report, connect(store))


@pytest.fixture(scope="session")
def page(filled: Filled) -> Iterator[Browser]:
    """A wide window."""
    with browser(WIDE, HIGH) as made:
        yield made
