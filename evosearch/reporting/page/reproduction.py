"""The section on repeating the search: commands, spec, versions, and the inputs by hash."""

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from evosearch import documents
from evosearch.reporting.page.contents import Block, Code, Section, Text, plain_table
from evosearch.reporting.page.facts import Facts

TITLE = "How to reproduce"
MOST = 200_000  # characters of the spec


def reproduction(facts: Facts) -> Section:
    """Return the section."""
    state = facts.state
    first = next(event for event in facts.events if event.type == "started")
    versions: Mapping[str, Any] = first.payload.get("versions") or {}
    began = datetime.fromtimestamp(first.time, UTC)
    text = (
        f"Search {facts.search_id}, started {began:%Y-%m-%d %H:%M} UTC with evosearch "
        f"{versions.get('evosearch', '(unknown)')}. "
        "With the same inputs, versions, CPU type and number of threads, a synchronous search proposes the same "
        "candidates."
    )
    blocks: list[Block] = [Text(text), Code("Commands", _commands(facts))]
    blocks.append(Code("Spec, as recorded (it identifies the search)", documents.dump(state.spec)[:MOST]))
    budget = first.payload.get("budget") or {}
    if budget:
        blocks.append(Text("Budget: " + ", ".join(f"{key} {value}" for key, value in budget.items()) + "."))
    rows = [(reference, sha) for reference, sha in state.inputs.items()]
    blocks.append(plain_table("Inputs", ("model", "content_sha256"), rows, left=2))
    digests = [(split, digest) for split, digest in state.circumstances.batches.items()]
    blocks.append(plain_table("Items", ("split", "digest"), digests, left=2))
    blocks.append(
        plain_table("Versions", ("package", "version"), sorted((k, str(v)) for k, v in versions.items()), left=2)
    )
    return Section("reproduce", TITLE, tuple(blocks))


def _commands(facts: Facts) -> str:
    name = shlex.quote(facts.state.name)
    chosen = "" if facts.state.promoted or facts.state.winner else f" --candidate {facts.subject}"
    lines = [
        "evosearch run SPEC.yaml  # the spec below, with suite, budget and workers",
        f"evosearch export {name}{chosen} -o recipe.yaml",
        "evosearch merge recipe.yaml -o merged",
    ]
    return "\n".join(lines if facts.subject is not None else lines[:1])
