"""What a ledger says of a search that met a fault: who is lost, who is there twice, what reasons stand in it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from benchmarks._cluster_proof.evidence import of_type, unanswered
from evosearch.search.ledger import store
from evosearch.search.ledger.errors import NoLedgerError
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger


@dataclass(frozen=True)
class Record:
    """One search, as its ledger has it.

    Attributes:
        lost: candidates asked that have no result, of which the optimizer was not told, or whose scores are not there.
        doubled: results, tellings or asks that are there more than once.
        broken: what else is not whole, one sentence each.
        retried: candidate and reason of each time that one was scored again.
        failed: candidate and reason.
    """

    candidates: int
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    broken: tuple[str, ...]
    retried: tuple[tuple[str, str], ...]
    failed: tuple[tuple[str, str], ...]
    sessions: int  # how often it was started


def events_of(url: str, search: str) -> list[Event]:
    """All events of a search by its name; none where it has not started, or there is no ledger yet."""
    try:
        with Ledger.open(url, read_only=True) as ledger:
            found = ledger.search_by_name(search)
            return ledger.events(found.search_id) if found else []
    except NoLedgerError:
        return []


def examine(url: str, search: str, candidates: int) -> Record:
    """Look at a search that has ended.

    Args:
        candidates: its budget.
    """
    with Ledger.open(url, read_only=True) as ledger:
        found = ledger.search_by_name(search)
        assert found is not None
        events = ledger.events(found.search_id)
    return judge(events, _scores(url, found.search_id), candidates)


def judge(events: Sequence[Event], scores: Sequence[tuple[str, str, str]], candidates: int) -> Record:
    """What `examine` says of these events and (candidate, split, item-set digest) of the scores beside them."""
    asked = [payload["candidate"] for payload in of_type(events, "asked")]
    told = [one["candidate"] for payload in of_type(events, "told") for one in payload["observations"]]
    answers = of_type(events, "scored", "failed")
    results = [(one["candidate"], one["split"], one.get("minibatch")) for one in answers]
    lacking = _without_scores(of_type(events, "scored"), scores)
    doubled = {"asked": _twice(asked), "told": _twice(told), "recorded": _twice(results)}
    broken = _gaps(events)
    if len(set(asked)) != candidates:
        broken.append(f"{len(set(asked))} candidates were asked, not {candidates}")
    if strange := sorted(set(told) - set(asked)):
        broken.append(f"told of {', '.join(strange)}, which nobody asked")
    if ownless := sorted({f"{name}@{split}" for name, split, _ in scores} - {f"{k[0]}@{k[1]}" for k in results}):
        broken.append(f"there are scores of {', '.join(ownless)}, and no result")
    if not events or events[-1].type != "stopped":
        broken.append("it has not stopped")
    return Record(
        candidates=len(set(asked)),
        lost=tuple(sorted(unanswered(events) | (set(asked) - set(told)) | lacking)),
        doubled=tuple(f"{name} {how} twice" for how, names in doubled.items() for name in names),
        broken=tuple(broken),
        retried=tuple((one["candidate"], one["reason"]) for one in of_type(events, "retried")),
        failed=tuple((one["candidate"], one["reason"]) for one in of_type(events, "failed")),
        sessions=len(of_type(events, "started")),
    )


def altered(before: Sequence[Event], after: Sequence[Event]) -> list[str]:
    """What was on record and is not any more, or reads otherwise."""
    now = {event.seq: event for event in after}
    return [f"event {event.seq} ({event.type}) is not what it was" for event in before if now.get(event.seq) != event]


def _scores(url: str, search_id: str) -> list[tuple[str, str, str]]:
    """Candidate, split and item-set digest of the per-item scores, each digest once."""
    engine, at = sa.create_engine(url), store.scores.c
    query = sa.select(at.candidate, at.split, at.digest).where(at.search_id == search_id).distinct()
    try:
        with engine.connect() as connection:
            return [(row.candidate, row.split, row.digest) for row in connection.execute(query)]
    finally:
        engine.dispose()


def _without_scores(scored: Sequence[dict[str, Any]], scores: Sequence[tuple[str, str, str]]) -> set[str]:
    """Candidates with a result whose per-item scores are not all there."""
    there = set(scores)
    return {
        one["candidate"]
        for one in scored
        if any((one["candidate"], one["split"], digest) not in there for digest in one["sets"].values())
    }


def _twice(names: Sequence[Any]) -> list[str]:
    return [str(name) for name, count in Counter(names).items() if count > 1]


def _gaps(events: Sequence[Event]) -> list[str]:
    numbers = [event.seq for event in events]
    wanted = list(range(1, len(numbers) + 1))
    if numbers == wanted:
        return []
    at = next(want for want, number in zip(wanted, numbers, strict=True) if want != number)
    return [f"events are not numbered one after the other from {at} on"]
