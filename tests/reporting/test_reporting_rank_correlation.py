"""Rank correlation of fitness and score: the formula, its warning, and every place that shows it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from evosearch.evaluation.statistics.rank_correlation import rank_correlation, spearman
from evosearch.reporting.leaderboard import leaderboard
from evosearch.search.ledger.events import Event
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.spec.spec import load_spec
from evosearch.tracking.changes import SEARCH, Plan
from evosearch.tracking.translator import Translator


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=20))
def test_it_is_scipys(pairs: list[tuple[int, int]]) -> None:
    one, other = ([float(value) for value in values] for values in zip(*pairs, strict=True))
    found = spearman(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(float(spearmanr(one, other).statistic), abs=1e-12)


def test_two_models_have_none() -> None:
    assert spearman([1.0, 2.0], [1.0, 2.0]) is None


@pytest.mark.parametrize(
    ("scores", "warned"),
    [
        ([6, 5, 4, 3, 2, 1], True),
        ([2, 1, 3, 6, 4, 5], False),
        ([3, 2, 1], False),  # too few
        ([1, 1, 1, 1, 1, 1], False),  # unknown
    ],
)
def test_a_low_correlation_of_enough_models_is_a_warning(scores: list[float], warned: bool) -> None:
    found = rank_correlation([float(index) for index in range(len(scores))], scores)
    assert (found.warning is not None) == warned
    assert f"over {len(scores)} models" in str(found)


def test_every_report_of_a_search_shows_it(world: Callable[..., Path], evosearch: Callable[..., Any]) -> None:
    spec = world()
    report = run(spec, Silent())
    found = report.rank_correlation
    assert found is not None
    board = leaderboard(load_spec(spec).run_dir)
    both = [row.splits for row in board.rows if {"search", "validation"} <= set(row.splits)]
    expected = spearman([one["search"].fitness for one in both], [float(one["validation"].score or 0) for one in both])
    assert (found.value, found.models) == (expected, len(both))
    assert len(both) >= 6
    assert board.rank_correlation == found
    assert json.loads(evosearch("leaderboard", spec, "--json")[1])["rank_correlation"] == vars(found)
    text = evosearch("leaderboard", spec)[1].replace("\n", " ")
    assert str(found) in text
    assert str(found) in board._repr_html_()
    assert str(found) in report._repr_html_()


def test_mlflow_has_it_as_a_metric_of_the_search() -> None:
    plan: Plan = {}
    translator = Translator("id", "s")

    def scored(name: str, split: str, fitness: float, score: float) -> None:
        card = {"split": split, "fitness": {"value": fitness, "stderr": 0.0}, "score": score, "tasks": {}}
        translator.translate(Event(1, 1.0, "scored", {"candidate": name, **card}), plan)

    for name, fitness, score in (("0", 1.0, 3.0), ("1", 2.0, 2.0), ("2", 3.0, 1.0), ("3", 4.0, 9.0)):
        scored(name, "search", fitness, 0.0)
        scored(name, "validation", 0.0, score)
    found = [(point.step, point.value) for point in plan[SEARCH].points if point.name == "rank_correlation"]
    assert found == [(3, pytest.approx(-1.0)), (4, pytest.approx(0.2))]
    assert plan[SEARCH].tags["rank_correlation_warning"] == ""
    for index in range(3):
        scored(f"x{index}", "search", 10.0 + index, 0.0)
        scored(f"x{index}", "validation", 0.0, -float(index))
    assert "unlike their scores" in plan[SEARCH].tags["rank_correlation_warning"]
