"""Shell completion, times in log files, and what `status` says where nothing is."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evosearch.cli.completion import BUILT_IN, models, searches
from evosearch.cli.console import text_line
from evosearch.search.progress import Progress
from evosearch.zoo.tiny_models import TINY

Evosearch = Callable[..., tuple[int, str, str]]


def test_names_of_searches_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path / "runs"))
    assert searches("") == []
    for name in ("night", "noon", "day"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert searches("n") == ["night", "noon"]


def test_models_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "math").mkdir(parents=True)
    (tmp_path / "models" / "mail.txt").touch()
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


def test_a_run_says_where_it_is_and_what_it_continues(world: Callable[..., Path], evosearch: Evosearch) -> None:
    spec = world()
    _, _, err = evosearch("run", spec)
    assert "run folder: " in err
    assert "evosearch ui world" in err
    assert "continuing" not in err
    _, _, err = evosearch("run", spec)
    assert re.search(r"continuing: \d+ candidates recorded", err)


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
