"""Failures and retries, by reason."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from evosearch.redaction import hidden_in
from evosearch.reporting.page.contents import Block, Section, Table, Text, plain_table
from evosearch.reporting.page.facts import Facts

TITLE = "Failures and retries"
NAMED, WIDEST = 8, 300  # candidates that are named; characters of a reason


def failures(facts: Facts) -> Section:
    """Return the section."""
    failed = [event.payload for event in facts.events if event.type == "failed"]
    retried = [event.payload for event in facts.events if event.type == "retried"]
    restarts = [event.payload for event in facts.events if event.type == "restarted"]
    blocks: list[Block] = []
    if not failed and not retried:
        blocks.append(Text("None: every evaluation succeeded at its first attempt."))
    if failed:
        blocks.append(_table("Failed for good", failed))
    if retried:
        blocks.append(_table("Repeated on another worker", retried))
    blocks += [Text(f"A new optimizer took over: {_first(one.get('reason', ''))}") for one in restarts]
    return Section("failures", TITLE, tuple(blocks))


def _table(title: str, payloads: Iterable[Mapping[str, Any]]) -> Table:
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for one in payloads:
        found[str(one.get("stage", "")), str(one.get("split", "")), _first(one.get("reason", ""))].append(
            str(one["candidate"])
        )
    rows = []
    for (stage, split, reason), names in sorted(found.items(), key=lambda item: -len(item[1])):
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        rows.append((stage, split, reason, str(len(names)), ", ".join(names[:NAMED]) + more))
    return plain_table(title, ("step", "split", "reason", "times", "candidates"), rows, left=3)


def _first(reason: object) -> str:
    lines = hidden_in(str(reason)).strip().splitlines()
    return lines[0][:WIDEST] if lines else "no reason recorded"
