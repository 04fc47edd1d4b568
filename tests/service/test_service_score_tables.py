"""Score tables of a real search in MLflow: cards, items, and the winner against each model document by document."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evosearch.reporting.report import RunReport
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.tracking.client import connect, find_runs
from evosearch.tracking.evaluation_runs import CARDS, COMPARED, CONTENT, ITEMS, TABLE
from tests.faults.conftest import _planted, planted  # noqa: F401 (fixtures)

World = Callable[..., Path]


class Store:
    """What a search has written to its MLflow store."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.client, self.folder = connect(uri), folder
        self.experiment = next(one for one in self.client.search_experiments() if one.name != "Default").experiment_id

    def own(self) -> Any:
        (found,) = find_runs(self.client, [self.experiment], "tags.kind = 'search'")
        return found

    def comparisons(self) -> dict[str, Any]:
        runs = find_runs(self.client, [self.experiment], "tags.kind = 'comparison'")
        return {run.data.tags["against"]: run for run in runs}

    def table(self, run: Any, path: str) -> pd.DataFrame:
        text = Path(self.client.download_artifacts(run.info.run_id, path, str(self.folder))).read_text("utf-8")
        found = json.loads(text)
        assert {"path": path, "type": "table"} in json.loads(run.data.tags["mlflow.loggedArtifacts"])
        return pd.DataFrame(found["data"], columns=found["columns"])


@pytest.fixture
def searched(planted: World, tmp_path: Path) -> tuple[Path, RunReport, Store]:  # noqa: F811
    """The spec of a search, its report and its store."""
    uri = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    spec = planted("first", tracking={"uri": uri})
    report = run(spec, Silent())
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    return spec, report, Store(uri, downloads)


def test_documents_say_who_was_right(searched: tuple[Path, RunReport, Store]) -> None:
    spec, report, store = searched
    assert report.winner is not None
    scores = {row.candidate: row for row in report.test}
    compared = store.comparisons()
    assert set(compared) == set(scores) - {report.winner.candidate}
    own = store.own()
    for name, found in compared.items():
        table = store.table(found, TABLE)
        assert len(table) == 100
        assert list(table["outcome"]) == sorted(
            table["outcome"], key=["lost", "won", "same", "both wrong", "both right"].index
        )
        won, lost = (int((table["outcome"] == outcome).sum()) for outcome in ("won", "lost"))
        metrics = found.data.metrics
        assert (metrics["documents/won"], metrics["documents/lost"]) == (won, lost)
        right = (table["winner"].mean(), table["other"].mean())
        tasks = (scores[report.winner.candidate].tasks, scores[name].tasks)
        assert right == pytest.approx([own["choice"].value for own in tasks])
        # What a model answered is right exactly where the metric says so
        assert ((table["winner's answer"] == table["right answer"]) == (table["winner"] == 1.0)).all()
        assert ((table["other's answer"] == table["right answer"]) == (table["other"] == 1.0)).all()
        assert set(table["choices"]) == {"a | b | c | d"}
        assert table["question"].str.fullmatch("[a-j]{5}\\?").all()
        assert metrics["lead/points"] == pytest.approx(100 * (right[0] - right[1]) / 0.75, abs=0.006)
        assert metrics["lead/lower"] <= metrics["lead/points"] <= metrics["lead/upper"]
        assert found.data.tags["mlflow.parentRunId"] == own.info.run_id
        assert "search_id" not in found.data.tags, "the leaderboard does not list it"
        (dataset,) = found.inputs.dataset_inputs
        assert dataset.dataset.name == "planted/test"
    base = compared["base"]
    assert base.info.run_name == f"first · {report.winner.title} against base"
    before = {run.info.run_id for run in compared.values()}
    run(spec, Silent())  # the same tables: nothing is written again
    assert {found.info.run_id for found in store.comparisons().values()} == before

    # An interrupted run leaves a comparison without its digest, which the next one replaces
    store.client.delete_tag(base.info.run_id, CONTENT)
    run(spec, Silent())
    again = store.comparisons()
    assert set(again) == set(compared)
    assert again["base"].info.run_id != base.info.run_id


def test_cards_and_items_are_tables_of_the_search(searched: tuple[Path, RunReport, Store]) -> None:
    _, report, store = searched
    assert report.winner is not None
    own = store.own()
    cards = store.table(own, CARDS)
    names = {"base", "parent:0", "parent:1", "uniform", "scale:0.50", report.winner.candidate}
    assert names <= set(cards["model"])
    winner = cards[(cards["model"] == report.winner.candidate) & (cards["split"] == "test")].iloc[0]
    assert (winner["title"], winner["task"], winner["metric"]) == (report.winner.title, "choice", "acc")
    items = pd.read_parquet(store.client.download_artifacts(own.info.run_id, ITEMS, str(store.folder)))
    assert set(items["model"]) == set(cards["model"])
    means = items.groupby(["model", "split"])["acc"].mean()
    for _, card in cards.iterrows():
        assert means[card["model"], card["split"]] == pytest.approx(card["value"])
    assert items["sha256"].str.fullmatch("[0-9a-f]{64}").all()
    assert {len(one) for one in items["loglikelihoods"]} == {4}
    assert {"expected"} <= set(items.columns)


def test_documents_stay_private_on_request(planted: World, tmp_path: Path) -> None:  # noqa: F811
    uri = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    run(planted("first", tracking={"uri": uri, "documents": False}), Silent())
    store = Store(uri, tmp_path)
    tables = [store.table(found, TABLE) for found in store.comparisons().values()]
    assert tables
    for table in tables:
        assert list(table.columns) == ["outcome", "task", "document", "winner", "other"]
    assert COMPARED in next(iter(store.comparisons().values())).data.tags


def test_without_a_decision_there_are_no_tables(planted: World, tmp_path: Path) -> None:  # noqa: F811
    """A file of JSON lines has no place for them."""
    report = run(planted("first"), Silent())
    assert report.gate is not None
    assert not list(tmp_path.rglob("*.parquet"))
