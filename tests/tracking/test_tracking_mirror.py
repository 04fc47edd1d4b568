"""The mirror and the JSON-lines tracker: no event is lost or doubled, and no error reaches the search."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger
from evosearch.tracking import mirror as mirror_room
from evosearch.tracking.jsonl import JsonLinesTracker
from evosearch.tracking.metrics import points_of, safe_name
from evosearch.tracking.mirror import Mirror, describe

Story = Any  # conftest.Story
LONG_S = 120.0  # generous for a shared machine
SOON_S = 20.0  # no wait for the store, on a busy machine


class Store:
    """A sink that can be down, and can fail in the middle of a write."""

    def __init__(self) -> None:
        self.down = False
        self.fails_after: int | None = None
        self.held: dict[int, Event] = {}
        self.marked = 0
        self.recalled: list[int] = []
        self.advanced: list[tuple[str, list[int]]] = []
        self.turns: threading.Semaphore | None = None  # writes that are allowed
        self.waits = threading.Event()  # a write has waited for its turn

    def open(self) -> int:
        if self.down:
            raise ConnectionError("no route to http://me:hunter2@host:5000\nmore")
        return self.marked

    def recall(self, events: Sequence[Event]) -> None:
        self.recalled += [event.seq for event in events]

    def advance(self, candidate: str, events: Iterable[Event]) -> None:
        if self.down:
            raise ConnectionError("connection reset")
        self.advanced.append((candidate, [event.seq for event in events]))

    def write(self, events: Sequence[Event]) -> None:
        if self.turns is not None:
            self.waits.set()
            assert self.turns.acquire(timeout=LONG_S)
        for count, event in enumerate(events):
            if self.down or (self.fails_after is not None and count >= self.fails_after):
                self.fails_after = None
                raise ConnectionError("connection reset")
            self.held[event.seq] = event
        self.marked = events[-1].seq


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_room, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(mirror_room, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(mirror_room, "CHUNK", 4)
    monkeypatch.setattr(mirror_room, "GATHER_S", 0.01)


def mirror(store: Store, story: Story) -> Mirror:
    return Mirror(store, lambda: Ledger.open(story.url, read_only=True), story.search_id)


def test_it_follows_the_ledger(story: Story) -> None:
    store = Store()
    made = mirror(store, story)
    story.begin()
    made.notify()
    _until(lambda: made.state == "up to date")
    assert list(store.held) == [1, 2, 3, 4]
    story.first_group()
    made.notify()
    _until(lambda: len(store.held) == 11)
    made.close(LONG_S)
    assert made.state == "up to date"


def test_a_store_that_is_down_never_reaches_the_search(story: Story) -> None:
    store = Store()
    store.down = True
    made = mirror(store, story)
    story.begin()
    began = time.monotonic()
    made.notify()
    assert time.monotonic() - began < SOON_S
    _until(lambda: made.state.startswith("behind: 4 events"))
    assert made.state == "behind: 4 events, ConnectionError: no route to http://***@host:5000"
    story.asked(0)
    _until(lambda: made.state.startswith("behind: 5 events"))
    store.down = False
    _until(lambda: made.state == "up to date")
    assert list(store.held) == [1, 2, 3, 4, 5]
    made.close(LONG_S)


def test_a_write_cut_short_is_done_again_from_the_mark(story: Story) -> None:
    store = Store()
    store.fails_after = 2
    story.all()
    made = mirror(store, story)
    made.close(LONG_S)
    assert made.state == "up to date"
    assert list(store.held.values()) == story.ledger.events(story.search_id)


def test_what_is_mirrored_already_is_recalled_not_written(story: Story) -> None:
    store = Store()
    store.marked = 4
    story.begin()
    story.first_group()
    mirror(store, story).close(LONG_S)
    assert store.recalled == [1, 2, 3, 4]
    assert min(store.held) == 5


def test_a_long_backlog_is_read_and_recalled_some_events_at_a_time(story: Story) -> None:
    read: list[int] = []

    class Counted(Ledger):
        def events(self, *given: Any, **named: Any) -> list[Event]:
            found = super().events(*given, **named)
            read.append(len(found))
            return found

    story.all()
    everything = [event.seq for event in story.ledger.events(story.search_id)]
    store = Store()
    store.marked = 6
    Mirror(store, lambda: Counted.open(story.url, read_only=True), story.search_id).close(LONG_S)
    assert store.recalled == everything[:6]
    assert list(store.held) == everything[6:]
    assert max(read) <= mirror_room.CHUNK


def test_events_gather_unless_a_caller_waits(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_room, "GATHER_S", 2.0 * LONG_S)
    store = Store()
    made = mirror(store, story)
    story.begin()
    made.notify()
    _until(lambda: len(store.held) == 4)  # the first pass does not wait
    story.asked(0)
    made.notify()
    time.sleep(0.3)
    assert len(store.held) == 4
    story.asked(1)
    assert made.bring_forward("1", LONG_S)
    made.close(LONG_S)
    assert len(store.held) == 6


def test_a_candidate_is_mirrored_ahead_of_what_is_missing(story: Story) -> None:
    store = Store()
    store.turns = threading.Semaphore(0)
    made = mirror(store, story)
    story.all()
    everything = [event.seq for event in story.ledger.events(story.search_id)]
    made.notify()
    assert store.waits.wait(LONG_S)
    assert not made.bring_forward("2", 0.2), "the first write goes on"
    store.turns.release()
    _until(lambda: store.advanced == [("2", everything)])
    assert len(store.held) == mirror_room.CHUNK
    store.turns.release(1000)
    _until(lambda: made.state == "up to date")
    assert list(store.held.values()) == story.ledger.events(story.search_id)
    assert made.bring_forward("4", LONG_S)
    assert len(store.advanced) == 1, "4 was mirrored already"
    made.close(LONG_S)


def test_a_candidate_waits_for_a_failing_store_and_closing_can_be_repeated(story: Story) -> None:
    store = Store()
    made = mirror(store, story)
    story.begin()
    assert made.bring_forward("base", LONG_S)
    assert len(store.held) == 4
    store.down = True
    story.asked(0)
    assert not made.bring_forward("0", 0.2)
    _until(lambda: made.state.startswith("behind: 1 event, ConnectionError"))
    store.down = False
    made.close(LONG_S)
    assert len(store.held) == 5
    assert store.advanced[-1][0] == "0", "it came next"
    story.asked(1)
    _until(lambda: made._thread is not None and not made._thread.is_alive())  # otherwise it may still write one more
    made.notify()  # after closing: mirrored at the next close
    assert made.state.startswith("behind: ")
    made.close(LONG_S)
    assert made.state == "up to date"
    assert list(store.held.values()) == story.ledger.events(story.search_id)


def test_closing_gives_up_in_time(story: Story) -> None:
    store = Store()
    store.down = True
    story.begin()
    made = mirror(store, story)
    began = time.monotonic()
    made.close(0.3)
    assert time.monotonic() - began < SOON_S
    assert made.state.startswith("behind: ")
    _until(lambda: not any(thread.name == "tracking" for thread in threading.enumerate()))


def test_a_failing_store_is_reported_once_and_again_when_it_recovers(story: Story) -> None:
    store, said = Store(), list[str]()
    store.down = True
    made = Mirror(store, lambda: Ledger.open(story.url, read_only=True), story.search_id, said.append)
    story.begin()
    for index in range(3):
        story.asked(index)
        made.notify()
        _until(lambda index=index: f"behind: {5 + index} events" in made.state)  # type: ignore[misc]
    store.down = False
    _until(lambda: made.state == "up to date")
    assert len(said) == 2
    assert said[0].startswith("ConnectionError: no route to http://***@host:5000. The search continues")
    assert said[1] == "is available again and up to date"
    made.close(LONG_S)


def test_all_waits_for_a_failing_store_share_their_patience(story: Story) -> None:
    store = Store()
    store.down = True
    story.begin()
    made = mirror(store, story)
    began = time.monotonic()
    assert not made.bring_forward("base", LONG_S, patience_s=0.4)
    assert 0.4 <= time.monotonic() - began < SOON_S
    began = time.monotonic()
    made.close(LONG_S, patience_s=2.0 * SOON_S)  # already used up: it began with the first wait
    made.close(LONG_S, patience_s=2.0 * SOON_S)
    assert time.monotonic() - began < SOON_S
    store.down = False
    made.close(LONG_S)
    assert made.state == "up to date"


def test_a_ledger_that_cannot_be_read_is_reported_not_raised(tmp_path: Path) -> None:
    made = Mirror(Store(), lambda: Ledger.open(f"sqlite:///{tmp_path}/none/ledger.db", read_only=True), "id")
    made.notify()
    _until(lambda: "LedgerError" in made.state)
    made.close(0.1)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def jsonl(path: Path, story: Story) -> JsonLinesTracker:
    made = JsonLinesTracker(path, lambda: Ledger.open(story.url, read_only=True), story.search_id)
    made.close(LONG_S)
    return made


def test_json_lines_hold_every_event_once(story: Story, tmp_path: Path) -> None:
    path = tmp_path / "night" / "events.jsonl"
    story.begin()
    assert jsonl(path, story).state == "up to date"
    with path.open("a") as file:
        file.write(f'{{"search_id": "{story.search_id}", "seq": 5, "ti')  # killed while writing
    story.first_group()
    assert jsonl(path, story).state == "up to date"
    assert jsonl(path, story).state == "up to date"
    expected = [{"search_id": story.search_id} | vars(event) for event in story.ledger.events(story.search_id)]
    assert lines(path) == expected


def test_json_lines_of_another_search_are_left_alone(story: Story, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    text = '{"search_id": "other", "seq": 1, "time": 0.0, "type": "started", "payload": {}}\n'
    path.write_text(text)
    story.begin()
    made = JsonLinesTracker(path, lambda: Ledger.open(story.url, read_only=True), story.search_id)
    made.notify()
    _until(lambda: "contains the events of another search" in made.state)
    made.close(0.1)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("task/copy/acc,none/search", "task/copy/acc/search"),
        ("exact_match,strict-match", "exact_match_strict-match"),
        ("models[0].weight", "models_0_.weight"),
        ("a/../b", "a/_/b"),
        ("x" * 300, "x" * 250),
        (f"task/{'x' * 300}/validation", f"task/{'x' * 234}/validation"),
    ],
)
def test_metric_names_are_accepted_by_mlflow(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_errors_are_one_line_without_credentials() -> None:
    error = ValueError("cannot reach postgresql://me:hunter2@db/x\nTraceback")
    assert describe(error) == "ValueError: cannot reach postgresql://***@db/x"
    cut = describe(ValueError(f"{'x' * 260} postgresql://me:{'hunter2' * 9}@db/x"))
    assert cut.endswith("x postgresql://***@db/x")
    assert describe(KeyError()) == "KeyError"
    wrapped = RuntimeError("API request failed with exception ...")
    wrapped.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert describe(wrapped) == "ConnectionRefusedError: [Errno 111] Connection refused"


def _until(condition: Callable[[], bool], timeout_s: float = LONG_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def test_reported_metrics_are_added_and_do_not_replace_the_score() -> None:
    card = {
        "split": "search",
        "score": 50.0,
        "fitness": {"value": -0.5, "stderr": 0.1},
        "tasks": {"wiki": {"metric": "acc,none", "value": 0.5, "stderr": 0.1, "n": 4}},
        "reported": {"wiki": {"acc": 0.25, "perplexity": 12.5, "byte_perplexity": None}},
    }
    found = {point.name: point.value for point in points_of(card, 0)}
    assert found["task/wiki/acc/search"] == 0.5
    assert found["task/wiki/perplexity/search"] == 12.5
    assert "task/wiki/byte_perplexity/search" not in found
