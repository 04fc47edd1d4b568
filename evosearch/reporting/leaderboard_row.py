"""One row of the leaderboard: its fields, their values and its columns.

A new column is one field of `LeaderboardRow`, its value in `row_of`, and one `Column` in `leaderboard_columns`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from evosearch.evaluation.types import Estimate, TaskScore
from evosearch.recipe.shapes import Scalar
from evosearch.reporting.columns import Column, fitness_number, number, task_heading
from evosearch.reporting.generalization import Gap
from evosearch.search.records import CardSummary
from evosearch.search.space.folding import Folded, fold
from evosearch.search.state import SearchState

LEADERBOARD_TITLE = "Leaderboard (score on the search split)"
FRAME_GROUPS = ("score", "task", "objective", "violation", "genome")  # of columns of a data frame, in order


@dataclass(frozen=True)
class SplitScores:
    """Scores on one full split; those on test come with their disclosures.

    Attributes:
        score: Weighted mean over tasks, in points; None if no right answers were read on this split.
        fitness: The value that the optimizer maximizes.
        tasks: Task → the suite's metric.
        openings: Openings of the test set by all searches; None on other splits.
        contamination_acknowledged: Whether the suite acknowledges contamination; None on other splits.
    """

    score: float | None
    fitness: float
    tasks: Mapping[str, TaskScore]
    openings: int | None = None
    contamination_acknowledged: bool | None = None


@dataclass(frozen=True, kw_only=True)
class LeaderboardRow:
    """One candidate or baseline.

    Attributes:
        rank: Rank from 1.
        candidate: Number of a candidate, or name of a baseline.
        title: The same in words, such as `#17` or `parent sort`.
        recipe_id: Id of its recipe, which identifies its models by their weights.
        kind: `candidate`, `base`, `parent`, `stage`, `uniform`, `scale`, `trained` or `placebo`; the last two are not
            scored on the search split.
        state: `promoted`, `winner`, `scored`, `answer` (recommended by the optimizer at the end), `duplicate of …`,
            `failed` or `pending`.
        score: Score on the search split, or on a minibatch of it; None without one.
        fitness: Fitness on the same items.
        sample: Number of items of the minibatch that score and fitness refer to; None for the full split.
        violations: Guarded task → points lost beyond the allowed drop.
        splits: Split → scores on the full split.
        objectives: Objective → value as reported to the optimizer, if there are several.
        pareto: Whether it is in the Pareto set; None with one objective, or if it was not reported yet.
        genome: Dimension → value; one entry for a hole with many numbers (`fold`); empty for a baseline.
        gaps: Generalization gaps of finalists, base and parents.
        run_id: Id of its MLflow run, if requested.
    """

    rank: int = 0
    candidate: str
    title: str
    recipe_id: str
    kind: str
    state: str
    score: float | None
    fitness: float | None
    sample: int | None
    violations: Mapping[str, float]
    splits: Mapping[str, SplitScores]
    objectives: Mapping[str, Estimate] = field(default_factory=dict)
    pareto: bool | None = None
    genome: Mapping[str, Scalar | Folded] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()
    run_id: str | None = None

    def to_record(self) -> dict[str, Scalar | None]:
        """Return the row as flat data; see `Leaderboard.to_frame`."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        found = {name: value for name, value in values.items() if not isinstance(value, Mapping | tuple)}
        for split, scores in self.splits.items():
            found[f"score.{split}"] = scores.score
            found |= {f"task.{task}.{split}": score.value for task, score in scores.tasks.items()}
        found |= {f"objective.{name}": estimate.value for name, estimate in self.objectives.items()}
        found |= {f"violation.{task}": points for task, points in self.violations.items()}
        for name, value in self.genome.items():
            if isinstance(value, Folded):
                ends = {"mean": value.mean, "low": value.low, "high": value.high}
                found |= {f"genome.{name}.{end}": number for end, number in ends.items()}
            else:
                found[f"genome.{name}"] = value
        return found


def row_of(state: SearchState, name: str, objectives: tuple[str, ...], front: set[str]) -> LeaderboardRow:
    """Return the row of a candidate or baseline, before it is ranked.

    Args:
        state: A folded search.
        name: Number of a candidate, or name of a baseline.
        objectives: Names of the objectives; empty for a search with one.
        front: Members of the Pareto set.
    """
    original = state.original(name)
    cards = {split: card for (candidate, split), card in state.cards.items() if candidate == original}
    sample = None if "search" in cards else _sample(state, name)
    search = sample or cards.get("search")
    reported = state.reported.get(name) if objectives else None
    return LeaderboardRow(
        candidate=name,
        title=state.title(name),
        recipe_id=state.recipe_ids[name],
        kind=state.kind(name),
        state=_state(state, name, search is not None or bool(cards)),
        score=search.score if search else None,
        fitness=search.fitness.value if search else None,
        sample=sample.items if sample else None,
        violations=_violations(state, name),
        splits={split: _scores(card) for split, card in sorted(cards.items())},
        objectives=dict(zip(objectives, reported.objectives, strict=False)) if reported else {},  # a failure has none
        pareto=name in front if reported else None,
        genome=_folded(state, name),
    )


def _folded(state: SearchState, name: str) -> dict[str, Scalar | Folded]:
    if name not in state.candidates:
        return {}
    proposal = state.proposal(name)
    return fold(proposal.genome, proposal.recipe)


def folded_numbers(rows: Sequence[LeaderboardRow]) -> str | None:
    """Return the summaries of holes with many numbers in the winner, or else in the best candidate; None without any.

    Such as `#31: reverse.weight: 0.62 (0.1 to 1.4) over 57 numbers; sort.weight: …`.
    """
    candidates = [row for row in rows if row.kind == "candidate"]
    chosen = [row for row in candidates if row.state in ("promoted", "winner")] or candidates
    found = [value for value in chosen[0].genome.values() if isinstance(value, Folded)] if chosen else []
    listed = "; ".join(f"{one.title}: {one}" for one in found)
    return f"{chosen[0].title}: {listed}" if found else None


def _scores(card: CardSummary) -> SplitScores:
    return SplitScores(card.score, card.fitness.value, card.tasks)


def _sample(state: SearchState, name: str) -> CardSummary | None:
    """Return the card on the minibatch that a candidate was scored on."""
    minibatch = state.candidates[name].minibatch if name in state.candidates else None
    return None if minibatch is None else state.samples.get((state.original(name), minibatch))


def _violations(state: SearchState, name: str) -> dict[str, float]:
    """Return guarded task → points lost beyond the allowed drop, where positive."""
    found = state.violations(state.original(name))
    if not found and name in state.reported:  # scored on a minibatch
        found = dict(zip(state.limits, state.reported[name].violations, strict=False))
    return {task: amount for task, amount in found.items() if amount > 0}


def _state(state: SearchState, name: str, scored: bool) -> str:
    if state.promoted is not None and state.promoted.candidate == name:
        return "promoted"
    if state.winner is not None and state.winner.candidate == name:
        return "winner"
    original = state.original(name)
    if scored:
        own = "answer" if state.is_answer(name) else "scored"
        return own if name == original else f"duplicate of {original}"
    return "failed" if state.has_failed(original) else "pending"


def records_of(rows: Sequence[LeaderboardRow]) -> tuple[list[str], list[dict[str, Scalar | None]]]:
    """Return the columns of a data frame, plain fields first, and its records."""
    records = [row.to_record() for row in rows]
    columns = dict.fromkeys(name for record in records for name in record)
    return sorted(columns, key=_frame_group), records


def _frame_group(column: str) -> int:
    group, dot, _ = column.partition(".")
    return FRAME_GROUPS.index(group) if dot else -1


def leaderboard_columns(rows: Sequence[LeaderboardRow]) -> list[Column[LeaderboardRow]]:
    """Return the columns of the leaderboard: scores by split, and each task's metric on the search split."""
    return [
        Column("rank", lambda row: str(row.rank)),
        Column("candidate", lambda row: row.title, left=True),
        Column("score", lambda row: number(row.score, 1)),
        Column("fitness", lambda row: fitness_number(row.fitness)),
        *_task_columns(rows),
        Column("valid.", lambda row: _split_score(row, "validation")),
        Column("test", lambda row: _split_score(row, "test")),
        Column("state", _state_cell, left=True),
    ]


def _task_columns(rows: Sequence[LeaderboardRow]) -> list[Column[LeaderboardRow]]:
    scored = [row.splits["search"].tasks for row in rows if "search" in row.splits]
    headings = {task: task_heading(task, score) for tasks in scored for task, score in tasks.items()}
    return [_task_column(task, headings[task]) for task in sorted(headings)]


def _task_column(task: str, heading: str) -> Column[LeaderboardRow]:
    def cell(row: LeaderboardRow) -> str:
        score = row.splits["search"].tasks.get(task) if "search" in row.splits else None
        return number(score.value if score else None, 3)

    return Column(heading, cell, spare=1)


def _split_score(row: LeaderboardRow, split: str) -> str:
    """Format the score on a split, or the fitness if no right answers were read there."""
    if split not in row.splits:
        return number(None, 1)
    found = row.splits[split]
    return number(found.fitness, 4) if found.score is None else number(found.score, 1)


def _state_cell(row: LeaderboardRow) -> str:
    """Format the state with the sample and the broken guards: `scored on 45 items; breaks sort by 3.2`."""
    state = row.state + (f" on {row.sample} items" if row.sample else "")
    broken = [f"{task} by {points:.1f}" for task, points in row.violations.items()]
    return f"{state}; breaks {', '.join(broken)}" if broken else state
