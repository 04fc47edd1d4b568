"""The quickstart as a user runs it: Ray, MLflow, the tiny zoo; to a promoted winner that others can check."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "evosearch.cli.main"]
LONG_S = 2700.0  # for a whole search: minutes, and many where everything else runs beside it
STEP_S = 1200.0  # for a part of one


def environment(runs: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "EVOSEARCH_RUNS": str(runs), **more}


def evosearch(runs: Path, *arguments: object) -> Any:
    """The JSON that a command prints."""
    command = [*PROGRAM, *map(str, arguments), "--json"]
    done = subprocess.run(command, env=environment(runs), capture_output=True, text=True, timeout=LONG_S, check=False)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def quickstart(zoo_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The runs folder of one whole quickstart, and its report."""
    runs = tmp_path_factory.mktemp("runs")
    os.environ["EVOSEARCH_DATA"] = str(tmp_path_factory.getbasetemp() / "data")
    return runs, evosearch(runs, "run", ROOT / "recipes" / "quickstart.yaml")


def test_the_winner_is_certified_and_far_above_the_best_parent(quickstart: tuple[Path, dict[str, Any]]) -> None:
    _, report = quickstart
    assert report["candidates"]["scored"] >= 60
    assert report["gate"]["promoted"] == report["gate"]["winner"]
    rows = {row["candidate"]: row for row in report["test"]}
    winner = rows[report["gate"]["winner"]]["mean"]
    best_parent = max(row["mean"] for name, row in rows.items() if name.startswith("parent:"))
    assert winner >= best_parent + 10.0
    beaten = {row["comparator"] for row in report["gate"]["comparisons"] if row["beats"]}
    assert {"base", "parent:0", "parent:1", "parent:2", "parent:3"} <= beaten
    assert {"uniform"} <= set(rows)
    assert any(name.startswith("scale:") for name in rows)
    assert report["tracking"] == "up to date"


def test_leaderboard_lists_every_candidate_with_its_run(quickstart: tuple[Path, dict[str, Any]]) -> None:
    runs, report = quickstart
    rows = evosearch(runs, "leaderboard", "quickstart")
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    candidates = [row for row in rows if row["kind"] == "candidate"]
    assert len(candidates) == report["candidates"]["asked"]
    assert all(row["run_id"] for row in rows)
    assert len({row["run_id"] for row in rows}) == len(rows)
    assert [row["state"] for row in rows].count("promoted") == 1


def test_mlflow_holds_what_the_ledger_holds_and_the_champion(quickstart: tuple[Path, dict[str, Any]]) -> None:
    _runs, report = quickstart
    from evosearch.tracking.mlflow import connect

    client = connect(report["tracking_uri"])
    version = client.get_model_version_by_alias("quickstart", "champion")
    assert version.tags["candidate_id"] == report["gate"]["promoted"]
    run = client.get_run(version.run_id)
    with Ledger.open(report["ledger"], read_only=True) as ledger:
        state = SearchState.from_events(ledger.events(report["search_id"]))
    card = state.cards[report["gate"]["promoted"], "search"]
    assert run.data.metrics["search/score"] == pytest.approx(card.score)
    recipe = client.list_artifacts(version.run_id)
    assert "recipe.yaml" in {artifact.path for artifact in recipe}


def test_lm_eval_as_a_program_agrees_on_the_exported_checkpoint(
    quickstart: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
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
        metric = card["tasks"][task]["metric"]
        (value,) = [number for key, number in measured.items() if key.split(",")[0] == metric]
        assert value == pytest.approx(card["tasks"][task]["value"], abs=1e-9), task


def test_the_exported_mergekit_file_gives_the_exported_weights(
    quickstart: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
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
    quickstart: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    runs, report = quickstart
    merged = evosearch(runs, "merge", report["exported"]["recipe"], tmp_path / "again")
    promoted = report["gate"]["promoted"]
    rows = {row["candidate"]: row for row in evosearch(runs, "leaderboard", "quickstart")}
    assert merged["recipe_id"] == rows[promoted]["recipe_id"]
    one, other = tmp_path / "again" / "model.safetensors", Path(report["exported"]["checkpoint"]) / "model.safetensors"
    assert one.read_bytes() == other.read_bytes()
    scored = evosearch(
        runs, "score", report["exported"]["recipe"], ROOT / "evals" / "quickstart.yaml", "--split", "search"
    )
    assert scored["score"] == pytest.approx(rows[promoted]["score"], abs=1e-6)


def test_the_same_command_again_only_reads(quickstart: tuple[Path, dict[str, Any]]) -> None:
    runs, report = quickstart
    again = evosearch(runs, "run", ROOT / "recipes" / "quickstart.yaml")
    assert again["candidates"] == report["candidates"] | {"resumed": report["candidates"]["asked"]}
    assert again["gate"] == report["gate"]
    assert again["test_openings"] == report["test_openings"]


# --- kill -9 of the process tree, with the real executor  ---


@pytest.fixture(scope="module")
def small_spec(zoo_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart with a small budget; its suite by an absolute path."""
    spec = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    spec |= {"name": "small", "suite": str(ROOT / "evals" / "quickstart.yaml"), "budget": {"candidates": 24}}
    spec |= {"promotion": {"finalists": 2}, "tracking": {"uri": "jsonl:events.jsonl"}, "baselines": {"scales": [0.5]}}
    path = tmp_path_factory.mktemp("small") / "small.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def read(runs: Path) -> dict[str, list[Mapping[str, Any]]]:
    """What the ledger holds, times and workers left out, by event type."""
    with Ledger.open(f"sqlite:///{runs / 'small' / 'ledger.db'}", read_only=True) as ledger:
        (info,) = ledger.searches()
        events = ledger.events(info.search_id)
    found: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in ("asked", "scored", "told", "gated")}
    for event in events:
        if event.type in found:
            found[event.type].append({k: v for k, v in event.payload.items() if k not in ("seconds", "worker")})
    found["scored"].sort(key=lambda payload: (payload["split"], payload["candidate"]))
    return found


@pytest.fixture(scope="module")
def uninterrupted(small_spec: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Mapping[str, Any]]]:
    runs = tmp_path_factory.mktemp("whole")
    run_to_end(small_spec, runs)
    return read(runs)


def run_to_end(spec: Path, runs: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "run", str(spec)], env=environment(runs), capture_output=True, text=True, timeout=LONG_S, check=False
    )
    assert done.returncode in (0, 3), done.stderr[-3000:]


def scored(runs: Path) -> int:
    try:
        with Ledger.open(f"sqlite:///{runs / 'small' / 'ledger.db'}", read_only=True) as ledger:
            return sum(len(ledger.events(info.search_id, types=["scored"])) for info in ledger.searches())
    except ValueError:  # there is none yet
        return 0


def kill_when_scored(spec: Path, runs: Path, count: int) -> None:
    """Start the search, and SIGKILL its process tree once `count` score cards are recorded."""
    with (runs / "log").open("w") as log:
        process = subprocess.Popen([*PROGRAM, "run", str(spec)], env=environment(runs), stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + STEP_S
            while scored(runs) < count:
                assert process.poll() is None, (runs / "log").read_text()
                assert time.monotonic() < deadline, (runs / "log").read_text()
                time.sleep(0.05)
        finally:
            tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for member in tree:
                with suppress(psutil.NoSuchProcess):  # Ray's end by themselves once those are gone that they serve
                    member.kill()
            psutil.wait_procs(tree, timeout=30)
            process.wait(STEP_S)


@pytest.mark.parametrize("count", [4, 10, 24], ids=["baselines", "first-generation", "second-generation"])
def test_kill_9_of_the_process_tree_then_the_same_command(
    small_spec: Path, uninterrupted: dict[str, list[Mapping[str, Any]]], count: int, tmp_path: Path
) -> None:
    kill_when_scored(small_spec, tmp_path, count)
    before = read(tmp_path)
    assert count <= len(before["scored"]) < len(uninterrupted["scored"])
    assert not before["gated"]
    run_to_end(small_spec, tmp_path)
    after = read(tmp_path)
    assert after["asked"] == uninterrupted["asked"]
    assert after["told"] == uninterrupted["told"]
    assert after["scored"] == uninterrupted["scored"], "the same scores, each once"
    assert after["gated"] == uninterrupted["gated"]


def test_kill_9_of_an_asynchronous_search_then_the_same_command(small_spec: Path, tmp_path: Path) -> None:
    """The record that was there stays and is replayed (or the run would stop); nothing is lost or scored twice."""
    changed = yaml.safe_load(small_spec.read_text())
    changed["optimizer"]["asynchronous"] = True
    spec = tmp_path / "small.yaml"
    spec.write_text(yaml.safe_dump(changed, sort_keys=False))
    kill_when_scored(spec, tmp_path, 16)
    before = read(tmp_path)
    run_to_end(spec, tmp_path)
    after = read(tmp_path)
    for kind in ("asked", "told"):
        assert after[kind][: len(before[kind])] == before[kind]
    told = [one["candidate"] for payload in after["told"] for one in payload["observations"]]
    assert sorted(told, key=int) == [payload["candidate"] for payload in after["asked"]]
    assert [payload["candidate"] for payload in after["asked"]] == [str(index) for index in range(24)]
    scored = [(payload["candidate"], payload["split"]) for payload in after["scored"]]
    assert len(set(scored)) == len(scored)
    known = {payload["candidate"]: payload for payload in before["scored"]}
    assert all(payload in after["scored"] for payload in known.values())
    new = {payload["candidate"] for payload in after["asked"] if payload["duplicate_of"] is None}
    assert new <= dict(scored).keys()


def test_ctrl_c_stops_cleanly_and_the_same_command_continues(
    small_spec: Path, uninterrupted: dict[str, list[Mapping[str, Any]]], tmp_path: Path
) -> None:
    """As a terminal does it: the signal goes to the whole process group, Ray's processes too."""
    process = subprocess.Popen(
        [*PROGRAM, "run", str(small_spec)],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + STEP_S
        while scored(tmp_path) < 12:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=STEP_S)
    finally:  # where it does not stop, neither it nor its Ray stays behind
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STEP_S)
        assert process.stdout is not None
        process.stdout.close()
    assert process.returncode == 130, output
    assert "Interrupted. Run the same command to resume." in output
    assert "Traceback" not in output
    with Ledger.open(f"sqlite:///{tmp_path / 'small' / 'ledger.db'}", read_only=True) as ledger:
        (info,) = ledger.searches()
        assert info.stopped == "interrupted"
        assert ledger.holder(info.search_id) is None
    run_to_end(small_spec, tmp_path)
    assert read(tmp_path)["asked"] == uninterrupted["asked"]
    assert read(tmp_path)["scored"] == uninterrupted["scored"]
