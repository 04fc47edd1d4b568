"""Generalization gaps of finalists, on a small search and with recorded groups."""

from collections.abc import Callable
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from evosearch.cli.leaderboard_table import finalists_table
from evosearch.evaluation.statistics.intervals import interval
from evosearch.evaluation.types import Estimate, ItemBatch, ItemSet, ScoreCard, TaskScore
from evosearch.reporting.generalization import finalist_rows, unchosen_rows
from evosearch.reporting.leaderboard import leaderboard
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.search.state import SearchState
from evosearch.service.run import run
from evosearch.setup.loading import groups_of, score_interval
from evosearch.spec.spec import load_spec


def test_finalists_base_and_parents_have_gaps_between_splits(world: Callable[..., Path]) -> None:
    spec = world()
    report = run(spec, Silent())
    with Ledger.open(report.ledger, read_only=True) as ledger:
        state = SearchState.from_events(ledger.events(report.search_id))
    assert [row.rank for row in report.finalists] == [1, 2, 3], "two, and the answer"
    assert {row.candidate for row in report.unchosen} == {"base", "parent:0", "parent:1"}
    first, second, third = report.finalists
    assert list(first.scores) == ["search", "validation", "test"]
    for row in (second, third):
        assert list(row.scores) == ["search", "validation"], "the test opens for the best of them only"
    for row in [*report.finalists, *report.unchosen]:
        cards = {split: state.cards[row.candidate, split] for split in row.scores}
        for split, score in row.scores.items():
            assert score.value == pytest.approx(cards[split].score)
            assert score.lower <= score.value <= score.upper
        assert [(gap.from_split, gap.to_split) for gap in row.gaps] == list(pairwise(cards))
        for gap in row.gaps:
            assert gap.value == pytest.approx(cards[gap.from_split].score - cards[gap.to_split].score)
            assert gap.lower <= gap.value <= gap.upper

    found = leaderboard(load_spec(spec).run_dir)
    by_name = {row.candidate: row.gaps for row in found.rows}
    assert by_name[first.candidate] == first.gaps
    assert by_name["base"] == report.unchosen[0].gaps
    assert sum(bool(gaps) for gaps in by_name.values()) == 6
    console = Console(width=120, record=True, file=StringIO())
    console.print(finalists_table(found.finalists, found.unchosen))
    text = console.export_text()
    assert "base (not selected)" in text
    gap = first.gaps[0]
    assert f"{-gap.value:+.1f} [{-gap.upper:+.1f}, {-gap.lower:+.1f}]" in text


def test_recorded_groups_count_as_units(tmp_path: Path) -> None:
    right = {"search": np.repeat([1.0, 1.0, 1.0, 0.0, 1.0], 4), "validation": np.repeat([1.0, 0.0, 1.0, 0.0, 1.0], 4)}
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        spec = {"name": "night", "suite": {"weights": {"t": 1.0}, "chances": {"t": 0.25}}}
        ledger.append("s", [("started", {"name": "night", "spec": spec})])
        for split, values in right.items():
            hashes = tuple(f"{split}{index}" for index in range(20))
            items = ItemSet("t", "t", tuple(range(20)), hashes, tuple(str(index // 4) for index in range(20)))
            batch = ItemBatch(split, (items,))
            ledger.put_item_sets(batch)
            score = float(100 * (values.mean() - 0.25) / 0.75)
            tasks = {"t": TaskScore("acc", float(values.mean()), 0.1, 20)}
            card = ScoreCard(
                *(split, batch.digest, {"t": {"acc": values}}, {"t": items.digest}, tasks),
                score=score,
                fitness=Estimate(score, 1.0, 20),
            )
            ledger.append("s", [("scored", {"candidate": "0"} | card.summary())], scores=[("0", card)])
        ledger.append("s", [("finalist", {"candidate": "0", "rank": 1, "score": 0.0})])
        state = SearchState.from_events(ledger.events("s"))
        groups = groups_of(ledger, state, "0", "search")
        assert len(set(groups["t"])) == 5
        found = score_interval(ledger, "s", state, "0", "search")
        assert found == interval({"t": right["search"]}, {"t": 1.0}, {"t": 0.25}, groups)
        alone = interval({"t": right["search"]}, {"t": 1.0}, {"t": 0.25})
        assert found.upper - found.lower > 1.3 * (alone.upper - alone.lower)
        (row,) = finalist_rows(ledger, "s", state)
        assert row.gaps[0].value == pytest.approx(100 * 0.2 / 0.75)
        assert row.gaps[0].lower < 0.0, "five passages are not twenty questions"
        assert unchosen_rows(ledger, "s", state) == ()
