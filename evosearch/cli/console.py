"""Console output shared by all commands: options, JSON, errors, notes and progress.

With `--json`, standard output is exactly one JSON document. Otherwise it has a command's result; notes, errors and
progress always go to standard error.
"""

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import IO, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from evosearch.durations import clock, duration
from evosearch.errors import ClusterError, InputError
from evosearch.search import progress
from evosearch.search.progress import Progress as SearchProgress
from evosearch.search.progress import Silent
from evosearch.visible import visible

JSON = typer.Option(False, "--json", help="Print exactly one JSON document to standard output.")
ALLOW_PICKLE = typer.Option(
    False,
    "--allow-pickle",
    help="Read pickled weights (*.bin) of models without safetensors, loaded with weights_only.",
)
CONTINUE_FROM_BEST = typer.Option(
    False,
    "--continue-from-best",
    help="If a recorded search cannot be replayed exactly, continue from its best candidate.",
)
ALLOW_UNRELATED = typer.Option(
    False,
    "--allow-unrelated",
    help="Merge models that share no base. Without it they are refused, with figures.",
)
UNVERIFIED = typer.Option(
    False,
    "--unverified",
    help="Of a suite without right answers: promote the best model by the teachers' fitness on validation, unverified.",
)
ADDRESS = typer.Option(
    None,
    envvar="EVOSEARCH_ADDRESS",
    show_envvar=True,
    help="URL of a cluster's Ray dashboard: http://HOST:8265.",
)
LINE_EVERY_S = 60.0
JSON_LINE_EVERY_S = 5.0
STAGE_WIDTH, BAR_WIDTH, NARROW_BAR_WIDTH = 10, 16, 8  # characters of a progress bar
WIDE = 100  # columns of a terminal that the longer bar needs
PROXIED = "rich_proxied_file"  # attribute of rich's stand-in for a stream: the stream


class ProgressAs(str, Enum):
    """Format of the progress on standard error."""

    auto = "auto"
    json = "json"


class _StandardError:
    """Standard error for as long as someone reads it: a closed terminal or pipe must not end a search."""

    def write(self, text: str) -> int:
        try:
            self._stream().write(text)
        except OSError as exc:
            self._give_up(exc)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream().flush()
        except OSError as exc:
            self._give_up(exc)

    def _give_up(self, exc: OSError) -> None:
        """Discard all later output, also of libraries, if nobody can read it; a full disk may become free again."""
        if exc.errno in (errno.EIO, errno.EPIPE):
            with suppress(OSError), open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self._stream().fileno())

    def __getattr__(self, name: str) -> Any:
        if name == PROXIED:  # or rich would write to that stream itself
            raise AttributeError(name)
        return getattr(self._stream(), name)

    def _stream(self) -> Any:
        """Return the stream of the moment, or the one behind it while a progress bar has replaced it."""
        return getattr(sys.stderr, PROXIED, sys.stderr)


class SafeConsole(Console):
    """Console that shows control characters in text instead of sending them to the terminal; text has no markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts with control characters made visible; tables are made by `tables.make_table`, which does so."""
        super().print(*(visible(each) if isinstance(each, str) else each for each in objects), **options)


# A log file has no width; make it wide enough that no table is truncated.
console = SafeConsole() if Console().is_terminal else SafeConsole(width=110)
stderr = SafeConsole(file=cast(IO[str], _StandardError()))


def json_wanted() -> bool:
    """Whether the command line contains `--json`; errors can occur before options are parsed."""
    return "--json" in sys.argv


def print_json(data: Any) -> None:
    """Print one JSON document to standard output; the keys of a dataclass are its field names."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False, default=_jsonable) + "\n")
    sys.stdout.flush()


def _jsonable(value: Any) -> dict[str, Any]:
    if isinstance(value, InputError):
        return value.to_dict()
    if is_dataclass(value):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def required_address(address: str | None) -> str:
    """Return the address of the cluster.

    Raises:
        ClusterError: No cluster is given.
    """
    if not address:
        allowed = "The URL of its Ray dashboard: http://HOST:8265"
        raise ClusterError("--address", "no cluster given", allowed, "Pass --address, or set EVOSEARCH_ADDRESS")
    return address


def print_error(text: str) -> None:
    """Print an error to standard error."""
    stderr.print(text, style="bold red", markup=False, highlight=False, soft_wrap=True)


def show_problem(console: Console, problem: InputError) -> None:
    """Print one problem, with what is allowed and what to do next."""
    line = "" if problem.line is None else f" (line {problem.line})"
    console.print(f"{problem.where}: {problem.what}{line}", style="red", markup=False, soft_wrap=True)
    for text in (problem.allowed, problem.next):
        if text:
            console.print(f"  {text}", markup=False, soft_wrap=True)


def note(text: str) -> None:
    """Print a note to standard error."""
    stderr.print(text, markup=False, highlight=False, soft_wrap=True)


def watcher(quiet: bool, progress: ProgressAs = ProgressAs.auto) -> "Silent | BarWatcher | LineWatcher":
    """Return a watcher that shows a bar on a terminal, or one line per minute in a log file.

    Args:
        quiet: Show nothing, as with `--json`.
        progress: `json` writes JSON lines, even if `quiet` is set.
    """
    if progress is ProgressAs.json:
        return LineWatcher(JSON_LINE_EVERY_S, json_line)
    if quiet:
        return Silent()
    return BarWatcher() if stderr.is_terminal else LineWatcher()


def describe(progress: SearchProgress, width: int | None = None) -> str:
    """Format `best fitness 0.8120 · 31.5 cand./min · 2 failed · 1 min 40 s left`, omitting unknown values.

    Args:
        progress: The progress.
        width: Characters that there is room for: the speed, the failures and the best fitness are left out for it.
    """
    parts: dict[str, str] = {}
    if progress.best is not None:
        parts["best"] = f"best fitness {progress.best:.4f}"
    if progress.per_minute is not None:
        parts["speed"] = f"{progress.per_minute:.1f} cand./min"
    if progress.failed:
        parts["failed"] = f"{progress.failed} failed"
    if progress.seconds_left is not None:
        parts["left"] = f"{duration(progress.seconds_left)} left"
    for least in ("speed", "failed", "best"):
        if width is not None and len(" · ".join(parts.values())) > width:
            parts.pop(least, None)
    return " · ".join(parts.values())


class BarWatcher:
    """Live bar with stage, progress, best fitness, candidates per minute and time left."""

    def __init__(self) -> None:
        self._bar_width = BAR_WIDTH if stderr.width >= WIDE else NARROW_BAR_WIDTH
        stage = TextColumn(f"{{task.fields[stage]:<{STAGE_WIDTH}}}", markup=False)
        columns = (stage, BarColumn(bar_width=self._bar_width))
        rest = (TextColumn("{task.completed:.0f}/{task.fields[of]}"), TextColumn("{task.description}", markup=False))
        self._bar = Progress(*columns, *rest, console=stderr, transient=True)
        self._task: TaskID | None = None
        self._stage = ""

    def update(self, progress: SearchProgress) -> None:
        """Show the progress."""
        of = "?" if progress.total is None else str(progress.total)
        if self._task is None or progress.stage != self._stage:
            self._begin(progress.stage)
        assert self._task is not None
        taken = max(STAGE_WIDTH, len(progress.stage)) + self._bar_width + len(f"{progress.done}/{of}") + 3  # with gaps
        self._bar.update(
            self._task,
            completed=progress.done,
            total=progress.total,
            description=describe(progress, stderr.width - taken),
            of=of,
            stage=visible(progress.stage),
        )

    def note(self, text: str) -> None:
        """Print a note above the bar."""
        note(text)

    def preparing(self, what: str, fraction: float) -> None:
        """Show how much of a preparation is done, in percent."""
        self.update(SearchProgress(what, round(fraction * 100), 100))

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()

    def _begin(self, stage: str) -> None:
        if self._task is None:
            self._bar.start()
        else:
            self._bar.remove_task(self._task)
        self._task, self._stage = self._bar.add_task("", stage=visible(stage), of="?"), stage


def progress_text(progress: SearchProgress) -> str:
    """Format `search: 12/18 · best fitness 0.8120 · 31.5 cand./min`."""
    of = f"/{progress.total}" if progress.total is not None else ""
    more = describe(progress)
    return f"{progress.stage}: {progress.done}{of}{' · ' + more if more else ''}"


def json_line(content: SearchProgress | str) -> str:
    """Format progress or a note as a line of JSON."""
    if isinstance(content, str):
        return progress.line("note", {"text": content})
    return progress.progress_line(content)


def text_line(content: SearchProgress | str) -> str:
    """Format progress or a note as a line of text that begins with the time, for log files."""
    text = content if isinstance(content, str) else progress_text(content)
    return f"{clock(time.time())} {text}"


class LineWatcher:
    """Watcher for log files: one line at the start and the end of each stage, and one per minute in between.

    Args:
        every_s: Seconds between two lines of one stage.
        form: Formats a line from progress or from a note.
    """

    def __init__(self, every_s: float = LINE_EVERY_S, form: Callable[[SearchProgress | str], str] = text_line) -> None:
        self._every_s, self._form = every_s, form
        self._last, self._stage = 0.0, ""

    def update(self, progress: SearchProgress) -> None:
        """Print the progress, if a line is due."""
        now = time.monotonic()
        finished = progress.total is not None and progress.done >= progress.total
        if progress.stage == self._stage and now - self._last < self._every_s and not finished:
            return
        self._last, self._stage = now, progress.stage
        note(self._form(progress))

    def note(self, text: str) -> None:
        """Print a note."""
        note(self._form(text))

    def preparing(self, what: str, fraction: float) -> None:
        """Print how much of a preparation is done, in percent."""
        self.update(SearchProgress(what, round(fraction * 100), 100))

    def close(self) -> None:
        """Do nothing: there is nothing to clean up."""
