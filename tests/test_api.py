"""The public Python API, on one small search: lazy imports, functions, results in notebooks and data frames."""

import doctest
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import evosearch
from evosearch.api import models, searches
from evosearch.errors import LedgerError, RecipeError, SuiteError
from evosearch.search.progress import Progress, Silent

World = Callable[..., Path]
HEAVY = ("torch", "transformers", "numpy", "pandas", "pydantic", "ray", "mlflow", "lm_eval", "datasets", "rich", "yaml")
SCRIPT, ESCAPED = "<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return {}


@pytest.fixture
def report(world: World, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> evosearch.RunReport:
    """The report of one search; its folder, with a recipe of two models, is the working directory."""
    if not kept:
        kept["folder"] = folder = world("night", budget={"candidates": 6}).parent
        recipe = {
            "merge_method": "linear",
            "models": [{"model": f"./expert{i}", "parameters": {"weight": 0.5}} for i in (1, 2)],
        }
        (folder / "mean.yaml").write_text(yaml.safe_dump(recipe))
        kept["report"] = evosearch.run(folder / "night.yaml")
    monkeypatch.chdir(kept["folder"])
    monkeypatch.setenv("EVOSEARCH_RUNS", str(kept["folder"].parent / "runs"))
    found: evosearch.RunReport = kept["report"]
    return found


# --- imports ---


def fresh(code: str) -> str:
    """Run code in a new process; return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout.strip()


def test_importing_evosearch_loads_no_dependency() -> None:
    loaded = f"[name for name in {HEAVY} if name in sys.modules]"
    assert fresh(f"import sys, evosearch; evosearch.check; evosearch.InputError; print({loaded})") == "[]"
    assert fresh("import sys, evosearch; print([n for n in sys.modules if n.startswith('evosearch.')])") == "[]"


def test_every_public_name_can_be_imported_and_is_documented() -> None:
    for name in evosearch.__all__:
        found = getattr(evosearch, name)
        assert not isinstance(found, ModuleType)
        assert found.__doc__, name
        assert name in dir(evosearch)
    page = (Path(__file__).parents[1] / "docs" / "reference" / "api.md").read_text()
    documented = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
    assert set(evosearch.__all__) <= documented


def test_other_names_are_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'evosearch' has no attribute 'serach'"):
        evosearch.serach  # noqa: B018


def test_the_decorators_are_those_of_the_registries() -> None:
    from evosearch.merging.registry import merge_method
    from evosearch.search.optimizers.registry import optimizer

    assert evosearch.merge_method is merge_method
    assert evosearch.optimizer is optimizer


def test_the_examples_in_docstrings_run(report: evosearch.RunReport) -> None:
    found = [doctest.testmod(module) for module in (models, searches)]
    assert [result.failed for result in found] == [0, 0]
    assert sum(result.attempted for result in found) > 28


# --- functions ---


def test_check_lists_problems_and_needs_no_weights_for_an_estimate(report: evosearch.RunReport) -> None:
    found = evosearch.check("night.yaml", weights=False)
    assert found.ok
    assert found.forecast["cost"]["parameters"] > 0
    wrong = Path("wrong.yaml")
    wrong.write_text(Path("night.yaml").read_text().replace("night", "wrong").replace("sigma:", "sigam:"))
    (problem,) = evosearch.check(wrong, dry_run=False).problems
    assert isinstance(problem, evosearch.InputError)
    assert (problem.where, problem.next) == ("wrong.yaml: optimizer.sigam", "Did you mean 'sigma'?")
    counted = evosearch.check("suite.yaml", model="./base").forecast["tokens"]
    assert counted["search"]["requested"] > 0


def test_run_is_silent_unless_watched_and_resumes(
    report: evosearch.RunReport, capfd: pytest.CaptureFixture[str]
) -> None:
    class Listener(Silent):
        def __init__(self) -> None:
            self.stages: list[str] = []

        def update(self, progress: Progress) -> None:
            self.stages.append(progress.stage)

    assert report.candidates.scored == 6
    capfd.readouterr()
    again = evosearch.run("night.yaml")
    assert (again.candidates.resumed, again.search_id) == (6, report.search_id)
    assert capfd.readouterr() == ("", "")
    listener = Listener()
    other = Path("other.yaml")
    other.write_text(Path("night.yaml").read_text().replace("name: night", "name: other"))
    evosearch.run(other, watcher=listener)
    assert {"baselines", "search", "validation", "test"} <= set(listener.stages)


def test_score_takes_a_model_a_recipe_or_a_path(report: evosearch.RunReport, tmp_path: Path) -> None:
    by_name = evosearch.score("./expert1", "suite.yaml")
    by_path = evosearch.score(Path("expert1"), Path("suite.yaml"), items=tmp_path / "items.jsonl")
    assert by_path.tasks == by_name.tasks
    assert len((tmp_path / "items.jsonl").read_text().splitlines()) == 16
    assert by_name.test_openings is None
    mean = evosearch.score("mean.yaml", "suite.yaml")
    assert mean.recipe_id != by_name.recipe_id
    with pytest.raises(SuiteError, match="--split"):
        evosearch.score("./expert1", "suite.yaml", split="train")


def test_merge_and_export_write_the_same_weights(report: evosearch.RunReport, tmp_path: Path) -> None:
    written = evosearch.export("night", tmp_path / "best.yaml", candidate="2")
    assert isinstance(written, evosearch.ExportResult)
    merged = evosearch.merge(tmp_path / "best.yaml", tmp_path / "merged")
    assert merged.recipe_id == written.recipe_id
    evosearch.export("night.yaml", tmp_path / "again", format="checkpoint", candidate="2")
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "merged" / name).read_bytes()
    with pytest.raises(evosearch.InputError, match="--format: got 'gguf'"):
        evosearch.export("night", tmp_path / "best.gguf", format="gguf")  # type: ignore[arg-type]


def test_leaderboard_takes_a_name_a_folder_or_a_spec(report: evosearch.RunReport) -> None:
    boards = [evosearch.leaderboard(search) for search in ("night", Path("../runs/night").resolve(), "night.yaml")]
    ranked = [(row.candidate, row.score) for row in report.leaderboard]
    assert [[(row.candidate, row.score) for row in board.rows] for board in boards] == [ranked] * 3
    with pytest.raises(LedgerError, match="no such search"):
        evosearch.leaderboard("day")


def test_specs_and_recipes_are_loaded_and_validated(report: evosearch.RunReport) -> None:
    from evosearch.recipe.schema import Recipe
    from evosearch.spec.spec import SearchSpec

    spec = evosearch.load_spec("night.yaml")
    assert isinstance(spec, SearchSpec)
    assert spec.run_dir.ledger == report.ledger
    assert isinstance(evosearch.load_recipe("mean.yaml"), Recipe)
    with pytest.raises(RecipeError, match="no recipe named 'median'"):
        evosearch.load_recipe("mean.yaml", name="median")


# --- results ---


def test_a_frame_has_a_row_for_every_candidate_and_baseline(report: evosearch.RunReport) -> None:
    board = evosearch.leaderboard("night")
    frame = board.to_frame()
    assert frame["rank"].tolist() == list(range(1, len(board.rows) + 1))
    assert frame["candidate"].tolist() == [row.candidate for row in board.rows]
    assert frame["score"].tolist() == [row.score for row in board.rows]
    kinds = frame.groupby("kind").size().to_dict()
    assert kinds == {"candidate": 7, "base": 1, "parent": 2, "uniform": 1, "scale": 2}  # six, and the answer

    genomes = [f"genome.models[{model}].weight[group {group}]" for model in (0, 1) for group in (0, 1)]
    assert frame.columns.tolist()[-4:] == genomes
    of_candidates = frame["kind"] == "candidate"
    assert frame.loc[of_candidates, genomes].stack().between(0.0, 1.5).sum() == 7 * 4
    assert frame.loc[~of_candidates, genomes].isna().all(axis=None)

    base = frame.set_index("candidate").loc["base"]
    (row,) = [row for row in board.rows if row.candidate == "base"]
    assert base["score.test"] == row.splits["test"].score
    assert base["task.choice.search"] == row.splits["search"].tasks["choice"].value
    missing = frame["score.test"].isna().sum()
    assert 0 < missing == sum("test" not in row.splits for row in board.rows)


def test_notebooks_show_what_the_command_line_prints(report: evosearch.RunReport) -> None:
    shown = evosearch.leaderboard("night")._repr_html_()
    assert shown.count("<tr>") == 1 + len(report.leaderboard)
    for heading in ("rank", "candidate", "choice", "generate", "valid.", "state"):
        assert f">{heading}</th>" in shown
    assert "This test set has been opened " in shown
    page = report._repr_html_()
    for title in ("Leaderboard", "Finalists", "Test split", "stopped by: candidates"):
        assert title in page
    assert "<th" in evosearch.score("./base", "suite.yaml")._repr_html_()
    assert "No problems found" in evosearch.check("suite.yaml")._repr_html_()


def test_notebooks_show_names_as_text(report: evosearch.RunReport) -> None:
    board = evosearch.leaderboard("night")
    rows = (replace(board.rows[0], title=SCRIPT), *board.rows[1:])
    scored = evosearch.score("./base", "suite.yaml")
    checked = evosearch.check("suite.yaml")
    for result in (
        replace(board, rows=rows),
        replace(report, leaderboard=rows, name=SCRIPT),
        replace(scored, model=SCRIPT, suite=SCRIPT, tasks={SCRIPT: scored.tasks["choice"]}),
        replace(checked, problems=(evosearch.InputError(SCRIPT, "wrong"),), notes=(SCRIPT,)),
    ):
        shown = result._repr_html_()
        assert ESCAPED in shown
        assert "<script" not in shown


def test_a_long_leaderboard_is_cut_in_a_notebook(report: evosearch.RunReport) -> None:
    board = evosearch.leaderboard("night")
    long = replace(board, rows=board.rows * 10)
    assert long._repr_html_().count("<tr>") == 1 + 50
    assert f"{len(long.rows) - 50} more rows" in long._repr_html_()
    assert len(long.to_frame()) == len(long.rows)
