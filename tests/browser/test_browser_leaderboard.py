"""The leaderboard, the charts, the comparisons and the registry as a browser shows them."""

from functools import partial
from typing import Any

import pytest

from benchmarks._browser import Browser
from evosearch.tracking.client import find_runs
from evosearch.tracking.report_file import REPORT_FILE
from evosearch.tracking.view import CHARTS, run_path

pytestmark = pytest.mark.slow
Filled = Any  # conftest.Filled
COLUMNS = (
    "score/search",
    "score/validation",
    "score/test",
    "task/choice/acc/search",
    "seconds/total",
    "role",
    "state",
    "method",
)


def rows_of(page: Browser) -> list[dict[str, str]]:
    """The rows of the table that have a name."""
    return [row for row in page.rows() if row.get("Run Name")]


@pytest.fixture(scope="module")
def table(filled: Filled, page: Browser) -> list[dict[str, str]]:
    """The leaderboard's rows, from the top."""
    count = len(filled.report.leaderboard)
    page.open(filled.leaderboard, lambda: len(rows_of(page)) >= count)
    return rows_of(page)


def test_the_address_opens_runs_and_not_traces(filled: Filled, page: Browser, table: list[dict[str, str]]) -> None:
    assert "Search for the best" in page.text() or "search for the best" in page.text(), "the experiment's description"
    assert filled.report.winner.title in page.text()
    assert "beats the parent expert1" in page.text(), "titles, as everywhere"
    assert not any("Trace" in heading for heading in table[0])


def test_it_is_flat_and_best_first(filled: Filled, table: list[dict[str, str]]) -> None:
    shown = [row["score/search"] for row in table]
    scores = [float(text) for text in shown if text not in ("", "-")]
    assert scores == sorted(scores, reverse=True)
    assert shown[: len(scores)] == [text for text in shown if text not in ("", "-")], "rows without a score come last"
    assert len(scores) >= 16
    assert not any(row["Run Name"] == "night" for row in table), "the search's own run is no candidate"


def test_the_columns_are_there_and_filled(table: list[dict[str, str]]) -> None:
    assert set(COLUMNS) <= table[0].keys()
    for column in COLUMNS:
        assert any(row[column] not in ("", "-") for row in table), column
    assert {"candidate", "baseline", "champion"} <= {row["role"] for row in table}
    assert all(row["state"] for row in table)


def test_scores_come_first(page: Browser, table: list[dict[str, str]]) -> None:
    shown = page.headings()
    assert shown[shown.index("Duration") + 1 :][:5] == [
        "score/search",
        "score/test",
        "score/validation",
        "seconds/total",
        "task/choice/acc/search",
    ]


def test_names_are_those_of_the_report(filled: Filled, table: list[dict[str, str]]) -> None:
    shown = {row["Run Name"] for row in table}
    assert {"night · base", "night · parent expert1", "night · uniform average", "night · scale 0.5"} <= shown
    assert any(name.startswith("night · #0 · gen 0") for name in shown)
    (champion,) = [row for row in table if row["role"] == "champion"]
    assert filled.report.winner.title in champion["Run Name"]
    assert champion["state"] == "promoted"


def test_the_search_has_charts(filled: Filled, page: Browser) -> None:
    experiment = filled.client.get_experiment_by_name("night").experiment_id
    (own,) = find_runs(filled.client, [experiment], "tags.kind = 'search'")
    address = f"{filled.server.uri}/{run_path(experiment, own.info.run_id, CHARTS)}"
    wanted = ("generation", "progress", "cost")
    page.open(address, lambda: all(name in page.text() for name in wanted))
    page.wait(lambda: page.count(".js-plotly-plot") >= 3, "charts")


def test_the_report_is_shown(filled: Filled, page: Browser) -> None:
    experiment = filled.client.get_experiment_by_name("night").experiment_id
    (own,) = find_runs(filled.client, [experiment], "tags.kind = 'search'")
    path = run_path(experiment, own.info.run_id, f"artifacts/{REPORT_FILE}")
    page.open(f"{filled.server.uri}/{path}", lambda: bool(page.frames()))
    with page.frame(0):
        page.wait(lambda: "How to reproduce" in page.text(), "the report")
        assert f"Promoted: {filled.report.winner.title} with" in page.text()
        page.wait(lambda: page.count(".js-plotly-plot .main-svg") >= 5, "figures")


def test_documents_are_shown(filled: Filled, page: Browser) -> None:
    experiment = filled.client.get_experiment_by_name("night").experiment_id
    run = find_runs(filled.client, [experiment], "tags.kind = 'comparison'")[0]
    address = f"{filled.server.uri}/#/experiments/{experiment}/runs/{run.info.run_id}/artifacts/documents.json"
    page.open(address, lambda: "winner's answer" in page.text())
    assert "outcome" in page.text()
    assert any(outcome in page.text() for outcome in ("won", "both right"))


def test_the_champion_is_in_the_registry(filled: Filled, page: Browser) -> None:
    page.open(f"{filled.server.uri}/#/models/night/versions/1", partial(_says, page, "champion"))
    text = page.text()
    assert f"{filled.report.winner.title} of the search night" in text
    assert "score on test" in text


def _says(page: Browser, text: str) -> bool:
    return text in page.text()
