"""What commands share: where text goes, and how a person watches.

With `--json` one document goes to standard output and nothing else; everything a person reads goes to standard error,
except the tables that are a command's result.
"""

import json
import sys
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from evosearch.errors import ClusterError
from evosearch.search import progress
from evosearch.search.progress import Progress as SearchProgress
from evosearch.search.progress import Silent

JSON = typer.Option(False, "--json", help="Print one JSON document on standard output, and nothing else there.")
ALLOW_PICKLE = typer.Option(
    False, "--allow-pickle", help="Read pickled weights (*.bin) of models that have no safetensors; weights only."
)
CONTINUE_FROM_BEST = typer.Option(
    False,
    "--continue-from-best",
    help="Where a recorded search cannot be replayed exactly, go on from its best candidate.",
)
ADDRESS = typer.Option(
    None,
    envvar="EVOSEARCH_ADDRESS",
    show_envvar=True,
    help="A cluster, by the URL of its Ray dashboard: http://HOST:8265.",
)
LINE_EVERY_S = 60.0
JSON_LINE_EVERY_S = 5.0


class ProgressAs(str, Enum):
    """How progress is told on standard error."""

    auto = "auto"
    json = "json"


# A log file has no width of its own: wide enough there that no table is cut.
console = Console() if Console().is_terminal else Console(width=110)
stderr = Console(stderr=True)


def json_wanted() -> bool:
    """Whether `--json` stands on the command line (an error may come before options are parsed)."""
    return "--json" in sys.argv


def print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def required_address(address: str | None) -> str:
    """Raises:
    ClusterError: no cluster is named.
    """
    if not address:
        allowed = "The URL of its Ray dashboard: http://HOST:8265"
        raise ClusterError("--address", "which cluster is not said", allowed, "Give it, or set EVOSEARCH_ADDRESS")
    return address


def print_error(text: str) -> None:
    stderr.print(text, style="bold red", markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    stderr.print(text, markup=False, highlight=False, soft_wrap=True)


def watcher(quiet: bool, progress: ProgressAs = ProgressAs.auto) -> "Silent | BarWatcher | LineWatcher":
    """A bar on a terminal, a line a minute in a file, nothing with `--json`; JSON lines where they are asked for."""
    if progress is ProgressAs.json:
        return LineWatcher(JSON_LINE_EVERY_S, json_line)
    if quiet:
        return Silent()
    return BarWatcher() if stderr.is_terminal else LineWatcher()


def describe(progress: SearchProgress) -> str:
    """`best 0.812 · 31.5 cand./min · 2 failed · 1 min 40 s left`, leaving out what is not known yet."""
    parts = []
    if progress.best is not None:
        parts.append(f"best fitness {progress.best:.4f}")
    if progress.per_minute is not None:
        parts.append(f"{progress.per_minute:.1f} cand./min")
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    return " · ".join(parts)


class BarWatcher:
    """A live bar: stage, how far, best fitness, candidates per minute, time left."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.fields[stage]:<10}"), BarColumn(bar_width=16))
        rest = (TextColumn("{task.completed:.0f}/{task.fields[of]}"), TextColumn("{task.description}"))
        self._bar = Progress(*columns, *rest, console=stderr, transient=True)
        self._task: TaskID | None = None
        self._stage = ""

    def update(self, progress: SearchProgress) -> None:
        of = "?" if progress.total is None else str(progress.total)
        if self._task is None or progress.stage != self._stage:
            self._begin(progress.stage)
        assert self._task is not None
        self._bar.update(
            self._task,
            completed=progress.done,
            total=progress.total,
            description=describe(progress),
            of=of,
            stage=progress.stage,
        )

    def note(self, text: str) -> None:
        note(text)

    def preparing(self, what: str, fraction: float) -> None:
        self.update(SearchProgress(what, round(fraction * 100), 100))

    def close(self) -> None:
        self._bar.stop()

    def _begin(self, stage: str) -> None:
        if self._task is None:
            self._bar.start()
        else:
            self._bar.remove_task(self._task)
        self._task, self._stage = self._bar.add_task("", stage=stage, of="?"), stage


def told(progress: SearchProgress) -> str:
    """`search: 12/18 · best fitness 0.8120 · 31.5 cand./min`."""
    of = f"/{progress.total}" if progress.total is not None else ""
    more = describe(progress)
    return f"{progress.stage}: {progress.done}{of}{' · ' + more if more else ''}"


def json_line(content: SearchProgress | str) -> str:
    if isinstance(content, str):
        return progress.line("note", {"text": content})
    return progress.progress_line(content)


def text_line(content: SearchProgress | str) -> str:
    return content if isinstance(content, str) else told(content)


class LineWatcher:
    """One line a minute, and one at the start of each stage: what a log file should hold.

    Args:
        every_s: seconds between two lines of one stage.
        form: what a line of progress, or a note, is written as.
    """

    def __init__(self, every_s: float = LINE_EVERY_S, form: Callable[[SearchProgress | str], str] = text_line) -> None:
        self._every_s, self._form = every_s, form
        self._last, self._stage = 0.0, ""

    def update(self, progress: SearchProgress) -> None:
        now = time.monotonic()
        finished = progress.total is not None and progress.done >= progress.total
        if progress.stage == self._stage and now - self._last < self._every_s and not finished:
            return
        self._last, self._stage = now, progress.stage
        note(self._form(progress))

    def note(self, text: str) -> None:
        note(self._form(text))

    def preparing(self, what: str, fraction: float) -> None:
        self.update(SearchProgress(what, round(fraction * 100), 100))

    def close(self) -> None:
        return None


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
