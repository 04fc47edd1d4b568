"""The guards: what they allow, how many candidates broke them, and the gate's checks of the winner."""

from evosearch.promotion.non_inferiority import GuardCheck
from evosearch.reporting.columns import Column, number
from evosearch.reporting.page.contents import Block, Section, Table, Text, plain_table, table_of
from evosearch.reporting.page.facts import Facts

TITLE = "Guards"


def guards(facts: Facts) -> Section:
    """Return the section."""
    limits = facts.state.limits
    if not limits:
        return Section("guards", TITLE, (Text("The suite has no guards."),))
    text = (
        "A guard limits the points that a task may lose to its reference. At the gate, the whole interval must stay "
        "within the "
        "limit."
    )
    blocks: list[Block] = [Text(text), _on_search(facts)]
    checks = facts.decision.guards if facts.decision is not None else ()
    blocks.append(
        table_of("Checks on the test split", _columns(facts), checks)
        if checks
        else Text("No gate has checked them yet.")
    )
    return Section("guards", TITLE, tuple(blocks))


def _on_search(facts: Facts) -> Table:
    rows = [row for row in facts.board.rows if row.kind == "candidate" and row.fitness is not None]
    references = facts.state.references()
    lines = []
    for task, limit in facts.state.limits.items():
        broken = [row.violations[task] for row in rows if task in row.violations]
        reference = facts.label(references[task]) if task in references else "-"
        most = number(max(broken, default=None), 1)
        lines.append((task, f"{limit:g}", reference, f"{len(broken)} of {len(rows)}", most))
    headings = ("task", "points it may lose", "compared with", "candidates that lost more", "most beyond the limit")
    return plain_table("On the search split", headings, lines)


def _columns(facts: Facts) -> list[Column[GuardCheck]]:
    return [
        Column("task", lambda one: one.task, left=True),
        Column("change", lambda one: f"{one.difference:+.1f} [{one.lower:+.1f}, {one.upper:+.1f}]"),
        Column("allowed", lambda one: f"{-one.max_drop:+g}"),
        Column("compared with", lambda one: facts.label(one.reference), left=True),
        Column("items", lambda one: str(one.n)),
        Column("holds", lambda one: "yes" if one.holds else "no", left=True),
    ]
