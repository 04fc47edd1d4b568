"""Progress as JSON lines, and rendered for people."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evosearch.cli.console import LineWatcher, ProgressAs, watcher
from evosearch.cli.logs import Reader
from evosearch.execution import ray_jobs
from evosearch.jobs.remote_check import START_TIMEOUT_S, head_notes, json_answer
from evosearch.search.progress import Progress, line, progress_line, progress_of, read_line

World = Callable[..., Path]
Evosearch = Callable[..., tuple[int, str, str]]


def test_a_line_is_read_back_as_what_it_was() -> None:
    progress = Progress("search", 3, None, best=-0.25, per_minute=4.5)
    found = read_line(progress_line(progress))
    assert found is not None
    assert progress_of(found) == progress
    assert "total" not in found
    assert read_line("Running entrypoint for job") is None
    assert read_line('{"evosearch": "progress", "time": 1.0, "sta') is None  # cut off


def test_json_lines_come_at_each_stage_and_at_most_every_few_seconds(capfd: pytest.CaptureFixture[str]) -> None:
    watching = watcher(quiet=True, progress=ProgressAs.json)
    assert isinstance(watching, LineWatcher)
    for done in range(4):
        watching.update(Progress("search", done, 3))
    watching.note("7@search failed: score: [not] a tag " + "x" * 300)
    watching.update(Progress("validation", 0, 2))
    watching.preparing("fetching org/model", 0.5)
    lines = [json.loads(text) for text in capfd.readouterr().err.splitlines()]
    kinds = [(one["evosearch"], one.get("stage"), one.get("done")) for one in lines]
    assert kinds == [
        ("progress", "search", 0),
        ("progress", "search", 3),  # the first and the last of a stage; those between come too soon
        ("note", None, None),
        ("progress", "validation", 0),
        ("progress", "fetching org/model", 50),
    ]
    assert lines[2]["text"] == "7@search failed: score: [not] a tag " + "x" * 300


def test_a_long_log_is_shown_as_a_line_a_minute() -> None:
    def at(second: int, done: int) -> str:
        return json.dumps({"evosearch": "progress", "time": second, "stage": "search", "done": done, "total": 100})

    reader = Reader(60.0)
    shown = [text for second in range(0, 300, 5) if (text := reader.read(at(second, second // 5))) is not None]
    assert [text.split(" ", 2)[2] for text in shown] == [f"search: {done}/100" for done in (0, 12, 24, 36, 48)]
    assert (reader.read(at(301, 100)) or "").endswith("search: 100/100")  # the last is always shown
    assert reader.read("Traceback (most recent call last):") == "Traceback (most recent call last):"
    assert (reader.read(line("note", {"text": "a worker died"})) or "").endswith(" a worker died")
    done = line("result", {"exit": 3, "stopped": "candidates", "promoted": None})
    assert (reader.read(done) or "").endswith(" ended: candidates; not promoted")
    stopped = line("result", {"exit": 130, "stopped": "interrupted"})
    assert (reader.read(stopped) or "").endswith(" ended: interrupted")


def test_the_last_line_of_a_run_says_how_it_ended(world: World, evosearch: Evosearch) -> None:
    path = world("wrong")
    path.write_text(path.read_text().replace("./expert2", "./gone"))
    code, _, err = evosearch("run", path, "--progress", "json")
    assert code == 2
    (result,) = [found for text in err.splitlines() if (found := read_line(text)) and found["evosearch"] == "result"]
    assert result["exit"] == 2
    assert "no such folder" in result["stopped"]


def test_the_answer_of_a_check_and_the_heads_settings_are_found_among_other_lines() -> None:
    log = 'Running entrypoint\nA=1\nwarning: {\n{\n  "ok": true,\n  "problems": []\n}\nafterwards'
    assert json_answer(log) == {"ok": True, "problems": []}
    assert json_answer("Traceback\n{\nno JSON") is None
    head = "RAY_JOB_START_TIMEOUT_SECONDS={} RAY_JOB_STOP_WAIT_TIME_S={}\n"
    assert head_notes(head.format(604800, 60)) == []
    (note,) = head_notes(head.format("", 60))
    assert f"waits for its turn longer than {START_TIMEOUT_S // 60} min: start its head with RAY_JOB_" in note
    for value, wait_s in (("", 3), ("7.5", 3), ("10", 10)):
        (note,) = head_notes(head.format(604800, value))
        assert f"kills a stopped job after {wait_s} s, possibly before it has checkpointed: start its head" in note


@pytest.mark.parametrize(("options", "exits"), [(("-f",), 130), (("-f", "--json"), 130), ((), 0)])
def test_logs_of_a_withdrawn_search_say_that_it_will_not_start(
    evosearch: Evosearch, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], exits: int
) -> None:
    class Withdrawn:
        """A cluster with one job, withdrawn while it waited."""

        def __init__(self, address: str) -> None: ...

        def all(self) -> list[ray_jobs.Job]:
            return [
                ray_jobs.Job("night-1", "night", "0" * 64, ray_jobs.RUN, "", "withdrawn", 1.0, None, None, "", True)
            ]

        def follow(self, id: str) -> Iterator[str]:
            return iter(())

        def log(self, id: str) -> str:
            return ""

    monkeypatch.setattr(ray_jobs, "Jobs", Withdrawn)
    code, out, err = evosearch("logs", "night", *options, "--address", "http://head:8265")
    assert (code, out, err) == (exits, "", "night was withdrawn and will not start\n")
