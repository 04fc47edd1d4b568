"""The quickstart as a user runs it, on Ray, MLflow and the tiny zoo: two stages, to a promoted winner to check."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
LONG_S = 2700.0  # for a complete search on a busy machine
STEP_S = 1200.0
Run = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def quickstart(zoo_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The runs folder of one complete quickstart, run as a program, and its report."""
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "evosearch.cli.main", "run", str(ROOT / "recipes" / "quickstart.yaml"), "--json"]
    environment = os.environ | {"EVOSEARCH_RUNS": str(runs)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return runs, json.loads(done.stdout)


@pytest.fixture
def command(
    quickstart: Run, evosearch: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """`command("leaderboard", "quickstart")` → the JSON that the command prints, run in this process."""
    monkeypatch.setenv("EVOSEARCH_RUNS", str(quickstart[0]))
    for name in ("RAY_AUTH_TOKEN_PATH", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):  # set by a run: put back afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def call(*arguments: object) -> Any:
        code, out, err = evosearch(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


def test_the_winner_is_certified_and_far_above_the_best_parent(quickstart: Run) -> None:
    _, report = quickstart
    assert report["candidates"]["scored"] >= 60
    assert report["gate"]["promoted"] == report["gate"]["winner"] == report["winner"]["candidate"]
    rows = {row["candidate"]: row for row in report["test"]}
    winner = rows[report["gate"]["winner"]]["mean"]
    best_parent = max(row["mean"] for name, row in rows.items() if name.startswith("parent:"))
    assert winner >= best_parent + 10.0
    beaten = {row["comparator"] for row in report["gate"]["comparisons"] if row["beats"]}
    assert {"base", "parent:0", "parent:1", "parent:2", "parent:3", "stage:groups"} <= beaten
    assert {"uniform"} <= set(rows)
    assert any(name.startswith("scale:") for name in rows)
    assert report["tracking"] == "up to date"


def test_the_winner_is_of_the_stage_with_gradients_and_far_above_the_best_scale(quickstart: Run) -> None:
    _, report = quickstart
    assert report["name"] == "quickstart.tensors"
    groups, tensors = report["stages"]
    assert (groups["name"], groups["candidates"]["scored"]) == ("groups", 36)
    assert (tensors["name"], tensors["candidates"]["scored"]) == ("tensors", 160)  # 14,400 / (3 · 30 documents)
    assert tensors["winner"]["candidate"] == report["gate"]["promoted"]
    rows = {row["candidate"]: row for row in report["test"]}
    assert rows[report["gate"]["promoted"]]["lead"] is None
    assert [entry["numbers"] for entry in genome_of(report).values()] == [57] * 4
    scales = [row["lead"]["lower"] for name, row in rows.items() if name.startswith("scale:")]
    assert len(scales) == 1
    assert scales[0] > 10.0  # points of score, on 1,600 documents


def genome_of(report: dict[str, Any]) -> dict[str, Any]:
    """The numbers of the promoted candidate, folded: how many there are for each expert, their mean and range."""
    (row,) = [row for row in report["leaderboard"] if row["state"] == "promoted"]
    assert row["candidate"] == report["gate"]["promoted"]
    genome: dict[str, Any] = row["genome"]
    return genome


@pytest.mark.parametrize(("stage", "end"), [("groups", "winner"), ("tensors", "promoted")])
def test_leaderboard_lists_every_candidate_with_its_run(
    quickstart: Run, command: Callable[..., Any], stage: str, end: str
) -> None:
    """Candidates and answers; steps of a gradient are in the ledger alone."""
    _, report = quickstart
    board = command("leaderboard", f"quickstart.{stage}")
    rows = board["rows"]
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    candidates = [row for row in rows if row["kind"] == "candidate"]
    (counts,) = [row["candidates"] for row in report["stages"] if row["name"] == stage]
    answers = 1 if stage == "groups" else 3
    assert len(candidates) == (counts["proposed"] if stage == "groups" else 0) + answers
    assert all(row["run_id"] for row in rows)
    assert len({row["run_id"] for row in rows}) == len(rows)
    assert [row["state"] for row in rows].count(end) == 1
    assert command("leaderboard", "quickstart") == command("leaderboard", "quickstart.tensors")
    assert board["rank_correlation"]["value"] > 0.3  # below, a run warns


def test_mlflow_mirrors_the_ledger_and_has_the_champion(quickstart: Run) -> None:
    _runs, report = quickstart
    from evosearch.tracking.mlflow import connect

    client = connect(report["tracking_uri"])
    version = client.get_model_version_by_alias("quickstart", "champion")
    assert version.tags["candidate_id"] == report["gate"]["promoted"]
    run = client.get_run(version.run_id)
    with Ledger.open(report["ledger"], read_only=True) as ledger:
        state = SearchState.from_events(ledger.events(report["search_id"]))
    card = state.cards[report["gate"]["promoted"], "search"]
    assert run.data.metrics["score/search"] == round(card.score, 2)
    recipe = client.list_artifacts(version.run_id)
    assert "recipe.yaml" in {artifact.path for artifact in recipe}


def test_lm_eval_as_a_program_agrees_on_the_exported_checkpoint(quickstart: Run, tmp_path: Path) -> None:
    """`lm_eval` on the exported checkpoint, on the documents the ledger names, reports the recorded metrics."""
    _, report = quickstart
    winner = report["gate"]["winner"]
    with Ledger.open(report["ledger"], read_only=True) as ledger:
        state = SearchState.from_events(ledger.events(report["search_id"]))
        card = state.cards[winner, "test"]
        sets = {task: ledger.item_set(digest) for task, digest in card.sets.items()}
    samples = {items.lm_eval_task: sorted(items.doc_ids) for items in sets.values()}
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf"]
    command += ["--model_args", f"pretrained={report['exported']['checkpoint']},dtype=float32"]
    command += ["--tasks", ",".join(samples), "--include_path", str(ROOT / "evals" / "tiny")]
    command += ["--samples", json.dumps(samples), "--device", "cpu", "--batch_size", "64"]
    command += ["--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=STEP_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    for task, items in sets.items():
        measured = results[items.lm_eval_task]
        metric = card.tasks[task].metric
        (value,) = [number for key, number in measured.items() if key.split(",")[0] == metric]
        assert value == pytest.approx(card.tasks[task].value, abs=1e-9), task


def test_the_exported_mergekit_file_gives_the_exported_weights(quickstart: Run, tmp_path: Path) -> None:
    _, report = quickstart
    from safetensors.torch import load_file

    config = yaml.safe_load(Path(report["exported"]["mergekit"]).read_text())
    program = "from mergekit.scripts.run_yaml import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", program, report["exported"]["mergekit"], str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert config["merge_method"] == "task_arithmetic"
    theirs: dict[str, Any] = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        theirs |= load_file(file)
    ours = load_file(Path(report["exported"]["checkpoint"]) / "model.safetensors")
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).abs().max() <= 2e-6, name


def test_the_exported_recipe_rebuilds_the_exported_weights(
    quickstart: Run, command: Callable[..., Any], tmp_path: Path
) -> None:
    _, report = quickstart
    merged = command("merge", report["exported"]["recipe"], tmp_path / "again")
    promoted = report["gate"]["promoted"]
    rows = {row["candidate"]: row for row in command("leaderboard", "quickstart")["rows"]}
    assert merged["recipe_id"] == rows[promoted]["recipe_id"]
    one, other = tmp_path / "again" / "model.safetensors", Path(report["exported"]["checkpoint"]) / "model.safetensors"
    assert one.read_bytes() == other.read_bytes()
    scored = command("score", report["exported"]["recipe"], ROOT / "evals" / "quickstart.yaml", "--split", "search")
    assert scored["score"] == pytest.approx(rows[promoted]["score"], abs=1e-6)


def test_the_same_command_again_only_reads(quickstart: Run, command: Callable[..., Any]) -> None:
    _, report = quickstart
    again = command("run", ROOT / "recipes" / "quickstart.yaml")
    assert again["candidates"] == report["candidates"] | {"resumed": report["candidates"]["proposed"]}
    assert [row["winner"] for row in again["stages"]] == [row["winner"] for row in report["stages"]]
    assert again["gate"] == report["gate"]
    assert again["test_openings"] == report["test_openings"]
