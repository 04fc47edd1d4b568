"""Panels of `evosearch watch`: sections of the report, as a terminal shows them."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.text import Text

from evosearch.cli.leaderboard_table import leaderboard_table
from evosearch.cli.tables import make_table
from evosearch.durations import duration
from evosearch.reporting.columns import Column, fitness_number
from evosearch.reporting.leaderboard import shown_rows
from evosearch.reporting.page import contents
from evosearch.reporting.page.curve import points
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.failures import failures
from evosearch.reporting.page.guard_table import guards
from evosearch.reporting.page.spending import spending
from evosearch.reporting.page.verdict import verdict
from evosearch.reporting.watched import Watched
from evosearch.visible import visible

BARS = "▁▂▃▄▅▆▇█"
WIDTH, TOP, ROWS = 60, 8, 6  # columns of the curve; rows of the leaderboard, and of other tables


def dashboard(watched: Watched, facts: Facts) -> RenderableType:
    """Return all panels of a search as it is now."""
    sections = [verdict(facts), spending(facts), failures(facts)]
    if facts.state.limits:
        sections.insert(1, guards(facts))
    shown = [_panel(section) for section in sections]
    return Group(_head(watched, facts), shown[0], *_curve(facts), *shown[1:])


def _head(watched: Watched, facts: Facts) -> RenderableType:
    state, now = facts.state, watched.progress()
    if watched.holder is not None:
        doing = f"running ({now.stage or 'starting'})"
    else:
        doing = f"stopped: {state.stopped}" if state.stopped else "interrupted"
    total = f" of {now.total}" if now.total else ""
    texts = [f"{state.name}: {doing}", f"{now.done or 0}{total} candidates", f"{duration(state.seconds_before)} so far"]
    texts += [f"{now.per_minute:.1f} candidates a minute"] if now.per_minute else []
    texts += [f"{duration(now.seconds_left)} left"] if now.seconds_left is not None else []
    line = Text(visible(", ".join(texts)), style="bold")
    if not now.total:
        return line
    bar = ProgressBar(total=now.total, completed=now.done or 0, width=WIDTH)
    return Group(line, Padding(bar, 0, expand=False))  # the bar alone has no line of its own


def _curve(facts: Facts) -> list[RenderableType]:
    """Return the best fitness over the items spent as a line of bars, and the top of the leaderboard."""
    found, steps = points(facts, by_score=False)
    values = [one.value for one in found] or [one.value for one in steps]
    best = [max(values[: at + 1]) for at in range(len(values))] if found else values
    parts: list[RenderableType] = []
    if best:
        name = "best fitness" if found else "fitness of gradient steps"
        ends = f" {fitness_number(best[0])} to {fitness_number(best[-1])}, {(found or steps)[-1].items:,.0f} items"
        parts.append(Text(f"{name} {sparkline(best, WIDTH)}{ends}"))
    rows = facts.board.rows
    return [*parts, leaderboard_table(shown_rows(rows, TOP))] if rows else parts


def sparkline(values: Sequence[float], width: int) -> str:
    """Return numbers as one line of bars; of more than `width` numbers every n-th, and the last.

    >>> sparkline([0.0, 0.5, 1.0], 10)
    '▁▅█'
    """
    step = max(1, -(-len(values) // width))
    shown = list(values[::-1][::step])[::-1]
    low, high = min(shown), max(shown)
    span = high - low or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in shown)


def _panel(section: contents.Section) -> RenderableType:
    parts = [part for block in section.blocks for part in _parts(block)]
    return Panel(Group(*parts), title=section.title, title_align="left", border_style="dim")


def _parts(block: contents.Block) -> list[RenderableType]:
    if isinstance(block, contents.Text):
        return [Text(visible(block.text))]
    if isinstance(block, contents.Bullets):
        return [Text(visible(f"• {text}")) for text in block.texts[:ROWS]]
    if isinstance(block, contents.Chart):
        return _parts(block.table)
    if isinstance(block, contents.Table):
        columns = [_column(at, heading, block.left[at]) for at, heading in enumerate(block.headings)]
        return [make_table(block.title, columns, block.rows[:ROWS])]
    return []


def _column(at: int, heading: str, left: bool) -> Column[tuple[str, ...]]:
    return Column(heading, lambda row: row[at], left)
