"""Texts of files reach the terminal without control characters: errors, notes, tables, progress, logs, tracebacks."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evosearch.cli.console import BarWatcher, LineWatcher, SafeConsole, console, note, print_error, show_problem
from evosearch.cli.tables import make_table
from evosearch.errors import SpecError
from evosearch.reporting.columns import Column
from evosearch.search.progress import Progress
from evosearch.visible import visible

Program = Callable[..., tuple[int, str, str]]
TITLE, SHOWN = "\x1b]0;pwn\x07", r"\x1b]0;pwn\x07"
HOSTILE = [
    (TITLE, SHOWN),
    ("\x1b[2J", r"\x1b[2J"),
    ("\x9b31m", r"\x9b31m"),
    ("safe\u202egnp.exe", r"safe\u202egnp.exe"),
    ("\u2066x\u2069\u200f", r"\u2066x\u2069\u200f"),
    ("over\rwritten\b\x7f", r"over\x0dwritten\x08\x7f"),
    ("line\u2028end", r"line\u2028end"),
    ("\udc80", r"\udc80"),
    ("tab\tand\nline, ü λ 日本 🙂", "tab\tand\nline, ü λ 日本 🙂"),
]


@pytest.mark.parametrize(("text", "shown"), HOSTILE)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(("text", "shown"), HOSTILE[:7])
def test_errors_notes_and_progress_are_shown_safely(capfd: pytest.CaptureFixture[str], text: str, shown: str) -> None:
    print_error(text)
    note(text)
    show_problem(console, SpecError(text, text, text, text))
    LineWatcher().preparing(text, 0.5)
    console.print(text, f"[bold]{text}[/nothing]", style="dim")
    out, err = capfd.readouterr()
    assert err.count(shown) == 3
    assert out.count(shown) == 6
    assert "[bold]" in out  # text from files is never markup
    assert visible(out + err) == out + err


def test_tables_are_shown_safely(capfd: pytest.CaptureFixture[str]) -> None:
    columns: list[Column[str]] = [Column("name", lambda row: row, left=True), Column(TITLE, lambda row: f"[b]{row}[/]")]
    SafeConsole(width=150).print(make_table(f"of {TITLE}", columns, [TITLE, "\u202egnp"]))
    out, _ = capfd.readouterr()
    assert out.count(SHOWN) == 4
    assert out.count(r"\u202egnp") == 2
    assert "[b]" in out
    assert visible(out) == out


def test_bars_are_shown_safely(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = BarWatcher()
    try:
        bar.update(Progress(f"fetching [/x] {TITLE}", 1, 2))
        (task,) = bar._bar.tasks
        with bar._bar.console.capture() as captured:
            bar._bar.console.print(bar._bar.make_tasks_table([task]))
    finally:
        bar.close()
    assert "fetching [/x]" in captured.get()
    assert "\x1b]0" not in captured.get()


def test_a_key_of_a_file_is_shown_safely(tmp_path: Path, evosearch: Program) -> None:
    path = tmp_path / "x.yaml"
    path.write_text('name: x\n"\\e]0;pwn\\a": 1\nrecipe: {}\n')
    code, out, err = evosearch("check", path)
    assert code == 2
    assert f"x.yaml: {SHOWN}: unknown key" in out
    assert visible(out + err) == out + err


def test_a_traceback_is_shown_safely(monkeypatch: pytest.MonkeyPatch, evosearch: Program) -> None:
    def fail(**options: Any) -> None:
        raise RuntimeError(TITLE)

    monkeypatch.setattr("evosearch.cli.main.app", fail)
    code, out, err = evosearch("status")
    assert code == 1
    assert f"RuntimeError: {SHOWN}" in err
    assert visible(out + err) == out + err


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_logs_of_workers_are_shown_safely(
    monkeypatch: pytest.MonkeyPatch, evosearch: Program, options: tuple[str, ...]
) -> None:
    job = SimpleNamespace(id="job", name="x", state="running", active=True)
    lines = [f"\x1b[36m(worker)\x1b[0m {TITLE}", '{"evosearch": "note", "time": 1.0, "text": "\\u001b[2J\\u202e"}']
    monkeypatch.setattr("evosearch.execution.ray_jobs.Jobs", lambda address: None)
    monkeypatch.setattr("evosearch.jobs.queue.find_job", lambda jobs, search: job)
    monkeypatch.setattr("evosearch.jobs.queue.lines_of", lambda jobs, job, follow: iter(lines))
    code, out, err = evosearch("logs", "x", "--address", "http://127.0.0.1:1", *options)
    assert code == 0
    assert out.startswith(f"(worker) {SHOWN}\n")
    assert (r"\u001b[2J\u202e" if options else r"\x1b[2J\u202e") in out
    assert visible(out + err) == out + err
    assert sys.argv[1] == "logs"
