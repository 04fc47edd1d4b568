"""`evosearch watch`: what it shows of a search, and how it follows one that grows."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

from rich.console import Console

from evosearch.cli.watch_panels import BARS, dashboard, sparkline
from evosearch.reporting.watched import Watched
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.spec.spec import load_spec
from tests.early_ledger import EarlyLedger

World = Callable[..., Path]
Command = Callable[..., tuple[int, str, str]]


def shown(watched: Watched) -> str:
    console = Console(width=120, record=True, file=StringIO())
    console.print(dashboard(watched, watched.refresh()))
    return console.export_text()


def test_it_shows_a_finished_search_once(world: World, evosearch: Command) -> None:
    spec = world(budget={"candidates": 6})
    report = run(spec, Silent())
    code, out, err = evosearch("watch", spec)  # no terminal: once
    assert code == 0, err
    assert "world: stopped: candidates, 6 of 6 candidates" in out
    assert "Verdict" in out
    assert "Leaderboard" in out
    assert "Work by phase" in out
    assert "every evaluation succeeded" in out
    assert report.gate is not None
    assert evosearch("watch", "nothing")[0] == 2


def test_it_follows_the_events_of_a_ledger(world: World) -> None:
    spec = world(budget={"candidates": 6})
    run(spec, Silent())
    run_dir = load_spec(spec).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name("world")
        assert info is not None
        events = ledger.events(info.search_id)
        end = next(event.seq for event in events if event.type == "told")

        growing = EarlyLedger(ledger, end)
        watched = Watched(growing, info.search_id)  # type: ignore[arg-type]
        first = shown(watched)
        assert not watched.ended
        assert "world: interrupted" in first
        assert "in the lead is #" in first
        growing.end = events[-1].seq + 1
        last = shown(watched)
        assert watched.ended
        assert "world: stopped: candidates" in last
        assert "The search has not ended" not in last
        assert last == shown(Watched(ledger, info.search_id)), "reading in parts is reading at once"


def test_a_line_of_bars_has_its_ends() -> None:
    assert sparkline([1.0, 1.0], 10) == BARS[0] * 2
    line = sparkline([float(value) for value in range(1000)], 60)
    assert len(line) <= 60
    assert line[-1] == BARS[-1]
    assert line[0] == BARS[0]
