"""The section on time spent, by phase and step; money is not on record."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

from evosearch.durations import duration
from evosearch.reporting.page.contents import Chart, Section, Text, plain_table
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.figures import COLORS, ROW, axis, layout, named_rows, rounded
from evosearch.search.records import CardSummary, GradientSummary, is_candidate

TITLE = "Where the time went"
PHASES = ("baselines", "search", "validation", "test", "fine-tuning")
STEPS = ("load", "materialize", "score", "train")


def spending(facts: Facts) -> Section:
    """Return the section."""
    state = facts.state
    seconds, counts, items, tokens, workers = _sums(facts)
    total = sum(sum(steps.values()) for steps in seconds.values())
    if not total:
        return Section("spending", TITLE, (Text("Left out: nothing was evaluated."),))
    wall, count = state.seconds_before, max(1, len(workers))
    busy = f", which were busy for {100 * total / (wall * count):.0f}% of it" if wall > total / count else ""
    text = (
        f"{duration(wall)} on the clock in {state.sessions} session(s), and {duration(total)} of work by {count} "
        f"worker(s){busy}. "
        f"{sum(items.values()):,} items and {sum(tokens.values()):,} tokens were run. Waiting, and the end of a run, "
        "are not in "
        "the table. Prices are not on record, so money is left out: multiply the clock by what your machines cost."
    )
    unit, length = ("minutes", 60.0) if total > 180.0 else ("seconds", 1.0)
    phases = [phase for phase in PHASES if seconds.get(phase)]
    traces = []
    for index, step in enumerate(STEPS):
        values = [seconds[phase].get(step, 0.0) / length for phase in phases]
        if any(values):
            shape = {"pattern": {"shape": ("", "/", ".", "x")[index]}, "color": COLORS[index]}
            trace = {
                "x": [rounded(one, 4) for one in values],
                "y": list(range(len(phases))),
                "marker": shape,
                "name": step,
            }
            hover = f"{step}: %{{x:.3g}} {unit}<extra></extra>"
            traces.append({"type": "bar", "orientation": "h", "hovertemplate": hover, **trace})
    rows = []
    for phase in phases:
        steps = [duration(seconds[phase][step]) if step in seconds[phase] else "" for step in STEPS]
        share = f"{100 * sum(seconds[phase].values()) / total:.0f}%"
        rows.append((phase, str(counts[phase]), f"{items[phase]:,}", f"{tokens[phase]:,}", *steps, share))
    headings = ("phase", "evaluations", "items", "tokens", *STEPS, "share")
    table = plain_table("Work by phase", headings, rows)
    summary = "; ".join(f"{row[0]} {row[-1]}" for row in rows)
    whole = layout(axis(f"{unit} of work"), named_rows(phases, showgrid=False), barmode="stack")
    chart = Chart(
        "Work by phase and step", f"Stacked bars: {summary}.", tuple(traces), whole, 140 + ROW * len(phases), table
    )
    return Section("spending", TITLE, (Text(text), chart))


def _sums(
    facts: Facts,
) -> tuple[dict[str, dict[str, float]], dict[str, int], dict[str, int], dict[str, int], set[str]]:
    """Return seconds by phase and step; evaluations, items and tokens by phase; and the workers."""
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    counts: dict[str, int] = defaultdict(int)
    items: dict[str, int] = defaultdict(int)
    tokens: dict[str, int] = defaultdict(int)
    workers: set[str] = set()
    for phase, card in _work(facts):
        counts[phase] += 1
        items[phase] += card.fitness.n
        tokens[phase] += card.tokens.forwarded
        workers.add(card.worker)
        for step, value in _known(card.seconds).items():
            seconds[phase][step] += value
    for trained in facts.state.trained.values():
        seconds["fine-tuning"]["train"] += trained.seconds
        counts["fine-tuning"] += 1
        items["fine-tuning"] += trained.items
        tokens["fine-tuning"] += 0
        workers.add(trained.worker)
    return seconds, counts, items, tokens, workers - {""}


def _work(facts: Facts) -> Iterator[tuple[str, CardSummary | GradientSummary]]:
    for (name, split), card in facts.state.cards.items():
        yield ("search" if is_candidate(name) else "baselines") if split == "search" else split, card
    for sample in facts.state.samples.values():
        yield "search", sample
    for gradient in facts.state.gradients.values():
        yield "search", gradient


def _known(seconds: Mapping[str, float]) -> dict[str, float]:
    return {step: value for step, value in seconds.items() if step in STEPS}
