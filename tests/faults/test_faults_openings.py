"""All reports state how often the test set was opened, and whether contamination was acknowledged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.promotion.disclosure import CONTAMINATED, opened

World = Callable[..., Path]
Evosearch = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _own_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOSEARCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def acknowledging(_planted: Path, tmp_path: Path) -> Path:
    """The planted suite, with the same documents, acknowledging contamination."""
    suite = yaml.safe_load((_planted / "suite.yaml").read_text())
    suite |= {"include": [str(_planted / "tasks")], "acknowledge_contamination": True}
    path = tmp_path / "acknowledging.yaml"
    path.write_text(yaml.safe_dump(suite))
    return path


def words(text: str) -> str:
    """Remove the line breaks of a narrow console."""
    return " ".join(text.split())


def test_every_report_states_test_openings_and_contamination(
    planted: World, acknowledging: Path, evosearch: Evosearch, server: Any, tmp_path: Path
) -> None:
    def result(*arguments: object) -> Any:
        code, out, err = evosearch(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    uri = server.another_store(tmp_path / "store")
    promotion = {"finalists": 1, "register_as": "night"}
    first = planted("first", suite=str(acknowledging), tracking={"uri": uri}, promotion=promotion)
    report = result("run", first)
    assert (report["test_openings"], report["contamination_acknowledged"]) == (1, True)
    header = Path(report["exported"]["recipe"]).read_text()
    assert f"# {opened(1)}\n# {CONTAMINATED}\n" in header
    assert f"# {opened(1)}\n" in Path(report["exported"]["mergekit"]).read_text()

    # Another search opens the same test set: both searches now report two openings.
    second = planted("second")
    code, out, _ = evosearch("run", second)
    assert code == 0
    assert opened(2) in words(out)
    assert CONTAMINATED not in words(out)
    assert result("run", first)["test_openings"] == 2
    _, out, _ = evosearch("run", first)
    assert opened(2) in words(out)
    assert CONTAMINATED in words(out)

    rows = result("leaderboard", "first")["rows"]
    tested = [row["splits"]["test"] for row in rows if "test" in row["splits"]]
    assert len(tested) >= 4
    assert {(on["openings"], on["contamination_acknowledged"]) for on in tested} == {(2, True)}
    _, out, _ = evosearch("leaderboard", "first")
    assert opened(2) in words(out)
    assert CONTAMINATED in words(out)

    listed = {row["name"]: row for row in result("status")}
    assert {name: row["test_openings"] for name, row in listed.items()} == {"first": 2, "second": 2}
    assert [listed[name]["contamination_acknowledged"] for name in ("first", "second")] == [True, False]
    _, out, _ = evosearch("status")
    assert "2x *" in out
    assert CONTAMINATED in words(out)

    path = tmp_path / "again.yaml"
    done = result("export", "first", "-o", path)
    assert (done["test_openings"], done["contamination_acknowledged"]) == (2, True)
    assert f"# {opened(2)}\n# {CONTAMINATED}\n" in path.read_text()
    _, out, _ = evosearch("export", "second", "-o", tmp_path / "other.yaml")
    assert opened(2) in words(out)
    assert CONTAMINATED not in words(out)

    found = result("score", path, acknowledging, "--split", "test")
    assert (found["test_openings"], found["contamination_acknowledged"]) == (2, True), "a reread does not count"
    assert result("score", path, acknowledging, "--split", "search")["test_openings"] is None
    _, out, _ = evosearch("score", path, acknowledging, "--split", "test")
    assert opened(2) in words(out)
    assert CONTAMINATED in words(out)

    from evosearch.tracking.mlflow import connect

    client = connect(uri)
    version = client.get_model_version_by_alias("night", "champion")
    assert version.tags["test_openings"] == "1"
    assert version.tags["contamination_acknowledged"] == "true"
    tags = client.get_run(version.run_id).data.tags
    assert (tags["test_openings"], tags["contamination_acknowledged"]) == ("1", "true")
    (experiment,) = client.search_experiments(filter_string="name = 'first'")
    runs = [run.data.tags for run in client.search_runs([experiment.experiment_id])]
    assert sum("test_openings" in tags for tags in runs) == len(tested) + 1, "all tested models and the search itself"


def test_a_search_that_opened_nothing_reports_openings_by_others(planted: World, evosearch: Evosearch) -> None:
    assert evosearch("run", planted("first"))[0] == 0
    code, _, err = evosearch("run", planted("second", budget={"candidates": 6, "hours": 1e-9}))
    assert code != 0, err
    _, out, _ = evosearch("status", "--json")
    listed = {row["name"]: row["test_openings"] for row in json.loads(out)}
    assert listed == {"first": 1, "second": 1}
