"""Integrity of a search's ledger after a fault: lost and duplicated candidates, and recorded reasons."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from benchmarks._cluster_proof.evidence import of_type, unanswered
from evosearch.search.ledger import store
from evosearch.search.ledger.database_errors import NoLedgerError
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger


@dataclass(frozen=True)
class Record:
    """State of one search according to its ledger.

    Attributes:
        candidates: Number of proposed candidates.
        lost: Proposed candidates that lack a result, a report to the optimizer, or per-item scores.
        duplicated: Proposals, results and reports that are recorded more than once.
        broken: Other inconsistencies, one sentence each.
        retried: Candidate and reason of each retry.
        failed: Candidate and reason of each failure.
        sessions: Number of starts of the search.
    """

    candidates: int
    lost: tuple[str, ...]
    duplicated: tuple[str, ...]
    broken: tuple[str, ...]
    retried: tuple[tuple[str, str], ...]
    failed: tuple[tuple[str, str], ...]
    sessions: int


def events_of(url: str, search: str) -> list[Event]:
    """All events of the search with this name; empty if the search or its ledger does not exist yet."""
    try:
        with Ledger.open(url, read_only=True) as ledger:
            found = ledger.search_by_name(search)
            return ledger.events(found.search_id) if found else []
    except NoLedgerError:
        return []


def examine(url: str, search: str, candidates: int) -> Record:
    """Check the ledger of a finished search.

    Args:
        url: URL of the ledger.
        search: Name of the search.
        candidates: Budget of the search.
    """
    with Ledger.open(url, read_only=True) as ledger:
        found = ledger.search_by_name(search)
        assert found is not None
        events = ledger.events(found.search_id)
    return judge(events, _scores(url, found.search_id), candidates)


def judge(events: Sequence[Event], scores: Sequence[tuple[str, str, str]], candidates: int) -> Record:
    """Check events against the stored scores, given as (candidate, split, item-set digest)."""
    proposed = [payload["candidate"] for payload in of_type(events, "asked")]
    reported = [one["candidate"] for payload in of_type(events, "told") for one in payload["observations"]]
    answers = of_type(events, "scored", "failed")
    results = [(one["candidate"], one["split"], one.get("minibatch")) for one in answers]
    lacking = _without_scores(of_type(events, "scored"), scores)
    duplicated = {"proposed": _twice(proposed), "reported": _twice(reported), "recorded": _twice(results)}
    broken = _gaps(events)
    if len(set(proposed)) != candidates:
        broken.append(f"{len(set(proposed))} candidates were proposed, not {candidates}")
    if unknown := sorted(set(reported) - set(proposed)):
        broken.append(f"{', '.join(unknown)}: reported to the optimizer but never proposed")
    if orphans := sorted({f"{name}@{split}" for name, split, _ in scores} - {f"{k[0]}@{k[1]}" for k in results}):
        broken.append(f"{', '.join(orphans)}: per-item scores without a result")
    if not events or events[-1].type != "stopped":
        broken.append("the last event is not 'stopped'")
    return Record(
        candidates=len(set(proposed)),
        lost=tuple(sorted(unanswered(events) | (set(proposed) - set(reported)) | lacking)),
        duplicated=tuple(f"{name} {how} twice" for how, names in duplicated.items() for name in names),
        broken=tuple(broken),
        retried=tuple((one["candidate"], one["reason"]) for one in of_type(events, "retried")),
        failed=tuple((one["candidate"], one["reason"]) for one in of_type(events, "failed")),
        sessions=len(of_type(events, "started")),
    )


def altered(before: Sequence[Event], after: Sequence[Event]) -> list[str]:
    """Problems: recorded events that have since disappeared or changed."""
    now = {event.seq: event for event in after}
    return [f"event {event.seq} ({event.type}) has changed" for event in before if now.get(event.seq) != event]


def _scores(url: str, search_id: str) -> list[tuple[str, str, str]]:
    """Distinct triples (candidate, split, item-set digest) of the stored per-item scores."""
    engine, at = sa.create_engine(url), store.scores.c
    query = sa.select(at.candidate, at.split, at.digest).where(at.search_id == search_id).distinct()
    try:
        with engine.connect() as connection:
            return [(row.candidate, row.split, row.digest) for row in connection.execute(query)]
    finally:
        engine.dispose()


def _without_scores(scored: Sequence[dict[str, Any]], scores: Sequence[tuple[str, str, str]]) -> set[str]:
    """Candidates with a result but with missing per-item scores."""
    stored = set(scores)
    return {
        one["candidate"]
        for one in scored
        if any((one["candidate"], one["split"], digest) not in stored for digest in one["sets"].values())
    }


def _twice(names: Sequence[Any]) -> list[str]:
    return [str(name) for name, count in Counter(names).items() if count > 1]


def _gaps(events: Sequence[Event]) -> list[str]:
    numbers = [event.seq for event in events]
    wanted = list(range(1, len(numbers) + 1))
    if numbers == wanted:
        return []
    at = next(want for want, number in zip(wanted, numbers, strict=True) if want != number)
    return [f"event numbers have a gap at {at}"]
