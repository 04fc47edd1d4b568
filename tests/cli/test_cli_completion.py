"""Shell completion, times in log files, and what `status` says where nothing is."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evosearch.cli.completion import BUILT_IN, LEDGERS, NOT_STAGES, files_and_models, models, searches
from evosearch.cli.console import text_line
from evosearch.search.progress import Progress
from evosearch.setup.trackers import invitation
from evosearch.spec.config import TrackingConfig
from evosearch.spec.own_names import EXPORT_FOLDER, LEDGER_FILE, LEDGER_URL_FILE
from evosearch.spec.run_dir import configured_run_dir
from evosearch.zoo.tiny_models import TINY

TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
Evosearch = Callable[..., tuple[int, str, str]]


def test_names_of_searches_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path / "runs"))
    assert searches("") == []
    for name, file in (("night", LEDGER_FILE), ("noon", LEDGER_URL_FILE), ("day", LEDGER_FILE), ("none", "notes.txt")):
        (tmp_path / "runs" / name / "groups").mkdir(parents=True)
        (tmp_path / "runs" / name / EXPORT_FOLDER).mkdir()
        (tmp_path / "runs" / name / file).touch()
    assert searches("n") == ["night", "night.groups", "noon", "noon.groups"]
    assert searches("night.g") == ["night.groups"]
    assert set(LEDGERS) == {LEDGER_FILE, LEDGER_URL_FILE}
    assert NOT_STAGES == (EXPORT_FOLDER,)


def test_models_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "math").mkdir(parents=True)
    (tmp_path / "models" / "mail.txt").touch()
    (tmp_path / "models" / "mean.yaml").touch()
    (tmp_path / ".hidden").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub" / "models--org--my--model").mkdir(parents=True)
    (tmp_path / "hub" / "datasets--org--set").mkdir()
    assert models("") == [*(f"zoo:tiny/{name}" for name in BUILT_IN), "org/my--model", "hub", "models"]
    assert models("org/") == ["org/my--model"]
    assert models("./mod") == ["./models"]
    assert models(".h") == [".hidden"]
    assert models("zoo:tiny/base+models/") == ["zoo:tiny/base+models/math"]
    assert files_and_models("models/m") == ["models/math", "models/mean.yaml"]
    assert models("nowhere/") == files_and_models("nowhere/") == []
    assert models("models/ma") == ["models/math"]
    assert models("zoo:tiny/s") == ["zoo:tiny/sort"]
    assert set(BUILT_IN) == set(TINY)


def test_lines_of_a_log_file_begin_with_the_time() -> None:
    for content in ("a note", Progress("search", 3, 10)):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (a note|search: 3/10)", text_line(content))


def test_status_says_that_there_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evosearch: Evosearch
) -> None:
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path / "none"))
    code, out, _ = evosearch("status")
    assert code == 0
    assert "no searches in" in out


def test_a_run_says_where_it_is_and_what_it_continues(
    world: Callable[..., Path], evosearch: Evosearch, tmp_path: Path
) -> None:
    spec = world()
    _, _, err = evosearch("run", spec)
    assert "run folder: " in err
    assert f"its events: {tmp_path / 'runs' / 'world' / 'events.jsonl'}" in err
    assert "continuing" not in err
    assert "baselines come first" in err
    assert all(TIME.match(line) for line in err.splitlines())
    _, _, err = evosearch("run", spec)
    assert re.search(r"continuing: \d+ candidates recorded", err)


def test_a_search_tracked_by_mlflow_says_how_to_see_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path))
    assert invitation(configured_run_dir("night", "groups", None, TrackingConfig())) == (
        "see it in MLflow: evosearch ui night.groups"
    )
    server = TrackingConfig(uri="http://mlflow.example:5000")
    assert invitation(configured_run_dir("night", None, None, server)) == "see it in MLflow: http://mlflow.example:5000"


def test_a_shell_gets_its_script_and_words() -> None:
    program = "import sys; sys.argv = ['evosearch']; from evosearch.cli.main import main; main()"

    def asked(**variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, **variables}, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert "_EVOSEARCH_COMPLETE=complete_bash" in asked(_EVOSEARCH_COMPLETE="source_bash")
    words = {"COMP_WORDS": "evosearch init zoo:tiny/s", "COMP_CWORD": "2"}
    assert asked(_EVOSEARCH_COMPLETE="complete_bash", **words).split() == ["zoo:tiny/sort"]
    words = {"COMP_WORDS": "evosearch\ninit\nzoo\n:\ntiny/s", "COMP_CWORD": "4"}  # as bash divides it
    assert asked(_EVOSEARCH_COMPLETE="complete_bash", **words).split() == ["tiny/sort"]
