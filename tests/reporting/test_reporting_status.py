"""Status of searches on this machine, and `stop` of one that runs here."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.reporting.status import SearchProgress, StatusRow, progress_of, statuses
from evosearch.search.ledger.events import Event
from evosearch.search.state import SearchState
from evosearch.spec.run_dir import runs_folder

World = Callable[..., Path]
Evosearch = Callable[..., tuple[int, str, str]]
LONG_S = 240.0


def events(*entries: tuple[str, float, dict[str, Any]]) -> list[Event]:
    return [Event(seq, time, kind, payload, time) for seq, (kind, time, payload) in enumerate(entries, start=1)]


def started(at: float, **budget: Any) -> tuple[str, float, dict[str, Any]]:
    return "started", at, {"name": "night", "spec": {}, "budget": budget, "resumed": at > 0}


def asked(at: float, name: str) -> tuple[str, float, dict[str, Any]]:
    payload = {"candidate": name, "recipe_id": name, "group": 0, "duplicate_of": None, "genome": {}, "recipe": {}}
    return "asked", at, payload


TASKS = {name: {"metric": "acc", "value": 0.5, "stderr": 0.1, "n": n} for name, n in (("a", 6), ("b", 4))}


def scored(at: float, name: str, split: str = "search") -> tuple[str, float, dict[str, Any]]:
    card = {"fitness": {"value": 0.5, "stderr": 0.1, "n": 10}, "score": 50.0, "tasks": TASKS}
    return "scored", at, {"candidate": name, "split": split, "worker": "w", "recipe_id": name} | card


def progress(*entries: tuple[str, float, dict[str, Any]], now: float, running: bool = True) -> SearchProgress:
    found = events(*entries)
    return progress_of(found, SearchState.from_events(found), now, running)


def test_progress_is_of_the_budget_and_speed_of_this_session() -> None:
    before = [started(0, candidates=10), asked(5, "0"), asked(5, "1"), scored(6, "0")]
    session = [started(1000, candidates=10), scored(1060, "1"), asked(1060, "2"), asked(1060, "3"), scored(1090, "2")]
    found = progress(*before, *session, now=1120.0)
    # Two since the first proposal of this session, a minute ago; seven left
    assert (found.stage, found.done, found.total, found.since) == ("search", 3, 10, 1000)
    assert (found.per_minute, found.seconds_left) == (pytest.approx(2.0), pytest.approx(7 * 30.0))
    stopped = progress(*before, *session, now=1120.0, running=False)
    assert (stopped.done, stopped.per_minute, stopped.seconds_left) == (3, None, None)


def test_a_clock_ends_a_search_before_its_candidates_do() -> None:
    entries = [started(100, candidates=1000, hours=0.1), asked(110, "0"), scored(140, "0")]
    found = progress(*entries, now=170.0)
    assert (found.total, found.seconds_left) == (1000, pytest.approx(360.0 - 70.0))
    only_clock = progress(started(100, hours=0.1), asked(110, "0"), scored(140, "0"), now=170.0)
    assert (only_clock.total, only_clock.seconds_left) == (None, pytest.approx(290.0))


def test_a_budget_of_items_is_converted_to_candidates() -> None:
    entries = [started(0, items=105), asked(10, "0"), scored(70, "0"), asked(70, "1")]
    found = progress(*entries, now=70.0)
    assert (found.total, found.per_minute, found.seconds_left) == (10, 1.0, 9 * 60.0)


def test_the_stage_is_what_was_scored_last() -> None:
    first = [started(0, candidates=1), scored(1, "base")]
    assert progress(*first, now=2).stage == "baselines"
    search = [*first, asked(2, "0"), scored(3, "0")]
    assert progress(*search, now=4).stage == "search"
    validated = progress(*search, scored(5, "base", "validation"), now=6)
    assert (validated.stage, validated.seconds_left) == ("validation", None)


def test_a_search_here_is_shown_while_it_runs_and_stopped_on_record(world: World, evosearch: Evosearch) -> None:
    spec = world("long", budget={"candidates": 100_000})
    command = [sys.executable, "-m", "evosearch.cli.main", "run", str(spec), "--progress", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=dict(os.environ)) as process:
        try:
            row: StatusRow | None = None
            deadline = time.monotonic() + LONG_S
            while row is None or not row.seconds_left:
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.3)
                row = next(iter(statuses()), None)
            assert (row.state, row.stage, row.total) == ("running", "search", 100_000)
            assert row.per_minute > 0
            assert f"process {process.pid} on" in str(row.held_by)
            table = evosearch("status")[1]
            assert "per minute" in table
            assert "/100000" in table
            code, out, err = evosearch("stop", "long", "--json")
            assert code == 0, err
            stopped = json.loads(out)
            assert (stopped["was"], stopped["state"], stopped["clean"]) == ("running", "stopped: interrupted", True)
            assert process.stderr is not None
            lines = process.stderr.read().decode().splitlines()
            assert process.wait() == 130
        finally:
            process.send_signal(signal.SIGKILL)
    said = [json.loads(line) for line in lines if line.startswith('{"evosearch"')]
    assert {"baselines", "search"} <= {line["stage"] for line in said if line["evosearch"] == "progress"}
    assert (said[-1]["evosearch"], said[-1]["exit"], said[-1]["stopped"]) == ("result", 130, "interrupted")
    assert "per minute" not in evosearch("status")[1]
    code, out, _ = evosearch("stop", "long")
    assert (code, out) == (0, "long is not running: stopped: interrupted\n")
    code, _, err = evosearch("stop", "lang")
    assert (code, f"lang: no such search. Searches in {runs_folder()}: long" in err) == (2, True)
