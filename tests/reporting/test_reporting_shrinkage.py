"""What finalists lost from split to split, on a whole small search and on recorded groups."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from evosearch.cli.tables import shrinkage_table
from evosearch.evaluation.statistics.intervals import interval
from evosearch.evaluation.types import Estimate, ItemBatch, ItemSet, ScoreCard, TaskScore
from evosearch.reporting.leaderboard import board
from evosearch.reporting.shrinkage import finalist_rows, unchosen_rows
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.search.state import SearchState
from evosearch.service.run import run
from evosearch.setup.loading import groups_of, score_interval

from evosearch.spec.spec import load_spec


def test_finalists_and_what_no_split_chose_fall_from_split_to_split(world: Callable[..., Path]) -> None:
    spec = world()
    report = run(spec, Silent()).to_json()
    with Ledger.open(report["ledger"], read_only=True) as ledger:
        state = SearchState.from_events(ledger.events(report["search_id"]))
    assert [row["rank"] for row in report["finalists"]] == [1, 2]
    assert {row["candidate"] for row in report["unchosen"]} == {"base", "parent:0", "parent:1"}
    first, second = report["finalists"]
    assert list(first["scores"]) == ["search", "validation", "test"]
    assert list(second["scores"]) == ["search", "validation"], "the test opens for the best of them only"
    for row in [first, second, *report["unchosen"]]:
        cards = {split: state.cards[row["candidate"], split] for split in row["scores"]}
        for split, score in row["scores"].items():
            assert score["value"] == pytest.approx(cards[split].score)
            assert score["lower"] <= score["value"] <= score["upper"]
        assert [(fall["from"], fall["to"]) for fall in row["falls"]] == list(
            zip(list(cards)[:-1], list(cards)[1:], strict=True)
        )
        for fall in row["falls"]:
            assert fall["value"] == pytest.approx(cards[fall["from"]].score - cards[fall["to"]].score)
            assert fall["lower"] <= fall["value"] <= fall["upper"]

    found = board(load_spec(spec).run_dir)
    by_name = {row["candidate"]: row["falls"] for row in found.rows}
    assert by_name[first["candidate"]] == first["falls"]
    assert by_name["base"] == report["unchosen"][0]["falls"]
    assert sum(bool(falls) for falls in by_name.values()) == 5
    console = Console(width=120, record=True, file=StringIO())
    console.print(shrinkage_table(found.finalists, found.unchosen))
    text = console.export_text()
    assert "base (not chosen)" in text
    fall = first["falls"][0]
    assert f"{-fall['value']:+.1f} [{-fall['upper']:+.1f}, {-fall['lower']:+.1f}]" in text


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
        assert row["falls"][0]["value"] == pytest.approx(100 * 0.2 / 0.75)
        assert row["falls"][0]["lower"] < 0.0, "five passages are not twenty questions"
        assert unchosen_rows(ledger, "s", state) == []
