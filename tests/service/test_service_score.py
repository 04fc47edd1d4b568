"""A suite is loaded once per command; the items and languages in the output of `score`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from evosearch.cli.console import console
from evosearch.cli.score_table import show_score
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import Suite
from evosearch.preflight.check import check
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.service.score import ScoreReport, score

World = Callable[..., Path]
GROUPS = Path(__file__).parents[2] / "recipes" / "groups.yaml"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The suites that were loaded, in order."""
    names: list[str] = []
    load = Harness.__init__

    def counted(self: Harness, suite: Suite) -> None:
        names.append(suite.name)
        load(self, suite)

    monkeypatch.setattr(Harness, "__init__", counted)
    return names


@pytest.mark.usefixtures("zoo_cache")
def test_check_with_a_dry_run_loads_the_suite_once(
    loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path / "runs"))
    found = check(GROUPS, dry_run=True, watcher=Silent())
    assert found.problems == ()
    assert found.forecast["seconds_per_candidate"] > 0
    assert loaded == ["quickstart"]


def test_score_and_a_local_run_load_the_suite_once(world: World, loaded: list[str]) -> None:
    spec = world(budget={"candidates": 6})
    for split in ("search", "test"):
        score(str(spec.parent / "base"), spec.parent / "suite.yaml", split, None, Silent())
        assert loaded == ["world"]
        loaded.clear()
    run(spec, Silent())
    assert loaded == ["world"]


def test_a_suite_that_cannot_be_loaded_is_one_problem_of_a_check(world: World) -> None:
    suite = yaml.safe_load((world().parent / "suite.yaml").read_text())
    spec = world(suite="broken.yaml")
    (spec.parent / "broken.yaml").write_text(
        yaml.safe_dump(suite | {"documents": {"search": 60, "validation": 1, "test": 1}})
    )
    found = check(spec, dry_run=True, watcher=Silent())
    assert [problem.where for problem in found.problems] == [
        f"{spec.parent / 'broken.yaml'}: tasks[0].documents.search"
    ]


def test_items_omit_the_documents_that_lm_eval_evaluates(world: World, tmp_path: Path) -> None:
    folder = world().parent
    score(str(folder / "base"), folder / "suite.yaml", "search", tmp_path / "items.jsonl", Silent())
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert len(items) == 16
    assert not any("documents" in item for item in items)


def test_the_table_shows_the_share_of_answers_in_the_language(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder = world().parent
    suite = yaml.safe_load((folder / "suite.yaml").read_text())
    choice, generate = suite["tasks"]
    again = {**generate, "name": "again", "report_only": True, "metrics": ["exact_match"], "language": "en"}
    path = folder / "language.yaml"
    path.write_text(
        yaml.safe_dump(suite | {"tasks": [choice, generate | {"language": "en"}, again], "fitness": "score"})
    )
    shown = printed(score(str(folder / "base"), path, "search", None, Silent()), capsys)
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert lines["task"] == ["task", "metric", "value", "stderr", "items", "in", "language"]
    assert lines["generate"][-2:] == ["8", "1.0000"]  # three characters are too few to tell
    assert lines["choice"][-2:] == ["8", "-"]
    assert not any("generate also:" in line for line in shown.splitlines())
    assert any(line.startswith("again also: ") and "in_language 1" in line for line in shown.splitlines())
    plain = printed(score(str(folder / "base"), folder / "suite.yaml", "search", None, Silent()), capsys)
    assert "language" not in plain


def printed(report: ScoreReport, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    show_score(console, report)
    return capsys.readouterr().out
