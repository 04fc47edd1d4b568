"""Terminals: questions are only asked there, 80 columns are enough, and NO_COLOR leaves out colours."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from evosearch.cli.console import describe
from evosearch.cli.leaderboard_table import finalists_table
from evosearch.cli.status_table import status_table
from evosearch.cli.tables import make_table
from evosearch.evaluation.statistics.intervals import Interval
from evosearch.reporting.columns import Column
from evosearch.reporting.generalization import FinalistRow, Gap
from evosearch.reporting.status import StatusRow
from evosearch.search.progress import Progress

World = Callable[..., Path]
COLOR = re.compile(r"\x1b\[[0-9;]*\b(3[0-7]|9[0-7]|38;[0-9;]+)m")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PROGRAM = "import sys; sys.argv[0] = 'evosearch'; from evosearch.cli.main import main; main()"
PATIENCE_S = 240.0


def on_terminal(
    *arguments: object, answers: tuple[tuple[str, str], ...] = (), folder: Path, **variables: str
) -> tuple[int, str]:
    """Run the program on a terminal of 80 columns; return its exit code and all that it showed.

    Args:
        arguments: Arguments of the program.
        answers: Question (a part of what is shown) and what is then typed, in order.
        folder: The working directory.
        variables: Changes of the environment.
    """
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        environment = {**os.environ, "TERM": "xterm-256color", **variables}
        os.execve(sys.executable, [sys.executable, "-c", PROGRAM, *map(str, arguments)], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    shown, left, until = b"", list(answers), time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            read = os.read(terminal, 65536)
        except OSError:  # it has ended
            break
        shown += read
        if not read:
            break
        if left and left[0][0] in ESCAPE.sub("", shown.decode("utf-8", "replace")):
            os.write(terminal, f"{left.pop(0)[1]}\n".encode())
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert not left, f"never asked: {left}; shown: {shown.decode('utf-8', 'replace')}"
    return os.waitstatus_to_exitcode(status), shown.decode("utf-8", "replace").replace("\r", "")


def test_init_asks_for_the_base_on_a_terminal(world: World) -> None:
    folder = world().parent
    code, shown = on_terminal(
        "init", "./expert1", "./expert2", "--suite", "suite.yaml", "-o", "first.yaml",
        answers=(("Number: ", "7"), ("Number: 7", "2")),
        folder=folder,
    )  # fmt: skip
    assert "Which of these is the base?" in " ".join(shown.split())  # it may be wrapped
    assert "  3  none of these" in shown
    assert code == 0, shown
    text = (folder / "first.yaml").read_text()
    assert "base_model: ./expert2" in text
    assert "since it was chosen" in text


def test_init_asks_nothing_elsewhere(world: World, evosearch: Callable[..., tuple[int, str, str]]) -> None:
    folder = world().parent
    models = (folder / "expert1", folder / "expert2")
    code, out, err = evosearch("init", *models, "--suite", folder / "suite.yaml", "-o", folder / "first.yaml")
    assert (code, "Which of these" in out + err) == (0, False)
    assert "merge_method: linear" in (folder / "first.yaml").read_text()


def test_no_color_leaves_out_colours(tmp_path: Path) -> None:
    code, plain = on_terminal("leaderboard", "nothing", folder=tmp_path, NO_COLOR="1")
    assert (code, COLOR.search(plain)) == (2, None)
    assert "no such search" in plain
    code, coloured = on_terminal("leaderboard", "nothing", folder=tmp_path, NO_COLOR="")
    assert code == 2
    assert COLOR.search(coloured)


# --- 80 columns ---


def lines(table: object, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue().splitlines()


def a_row(name: str, state: str) -> StatusRow:
    return StatusRow(
        name=name, state=state, done=160, total=160, failed=0, best_fitness=89.11, promoted="scale:0.60",
        per_minute=31.5, seconds_left=3900.0, test_openings=1, updated=1.8e9,
    )  # fmt: skip


def test_the_status_fits_80_columns_and_says_what_it_leaves_out() -> None:
    rows = [a_row("quickstart.tensors-placebo", "running"), a_row("quickstart.groups", "stopped: candidates")]
    shown = lines(status_table(rows), 80)
    assert max(map(len, shown)) <= 80
    assert not any("…" in line for line in shown)
    assert any("quickstart.tensors-placebo running" in line and "160/160" in line for line in shown)
    assert shown[-1].strip() == "not shown in 80 columns: failed, best fitness, per minute, opened, updated"
    wide = lines(status_table(rows), 140)
    assert "not shown" not in "\n".join(wide)
    assert all(text in wide[2] for text in ("89.11", "31.5", "1 h 5 min", "1x"))


def test_intervals_of_finalists_are_not_wrapped() -> None:
    scores = {split: Interval(61.25, 3.0, 55.5, 67.25, 120) for split in ("search", "validation", "test")}
    changes = [Gap(one, other, 5.25, 1.5, 9.0) for one, other in (("search", "validation"), ("validation", "test"))]
    rows = [
        FinalistRow(str(n), f"#{n}{' parent of the night' * (n % 2)}", n, 61.25, scores, tuple(changes)) for n in (1, 2)
    ]
    narrow, wide = (lines(finalists_table(rows), width) for width in (80, 120))
    changed = "-5.2 [-9.0, -1.5]"
    assert [line.count(changed) for line in wide if "#" in line] == [2, 2]
    assert [line.count(changed) for line in narrow if "#" in line] == [1, 1]
    assert narrow[-1].strip() == "not shown in 80 columns: search to validation"


def test_columns_are_left_out_by_their_numbers_and_the_last_first() -> None:
    columns = [
        Column[str]("name", lambda row: row, left=True),
        *(Column[str](f"task{index}", lambda row: "0.500", spare=1) for index in range(4)),
        Column[str]("note", lambda row: "-", spare=2),
        Column[str]("score", lambda row: "97.1"),
    ]
    table = make_table("Scores", columns, ["a model"])
    heads = {width: lines(table, width)[1].split() for width in (60, 40, 30, 10)}
    assert heads[60] == ["name", "task0", "task1", "task2", "task3", "note", "score"]
    assert heads[40] == ["name", "task0", "task1", "task2", "task3", "score"]
    assert heads[30] == ["name", "task0", "task1", "score"]
    assert "task0" not in heads[10]
    assert heads[60] == lines(table, 60)[1].split(), "the table itself is unchanged"


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (None, "best fitness 0.8120 · 131.5 cand./min · 2 failed · 1 h 6 min left"),
        (60, "best fitness 0.8120 · 2 failed · 1 h 6 min left"),
        (40, "best fitness 0.8120 · 1 h 6 min left"),
        (20, "1 h 6 min left"),
    ],
)
def test_progress_leaves_out_what_matters_least(width: int | None, text: str) -> None:
    assert describe(Progress("search", 3, 10, 0.812, 2, 131.5, 4000.0), width) == text
