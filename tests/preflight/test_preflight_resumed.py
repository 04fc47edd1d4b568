"""A check of a search that has started: changes are problems, and only the rest is forecast."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import LedgerError
from evosearch.preflight import forecast
from evosearch.preflight.check import CheckReport, check
from evosearch.search.progress import Silent
from evosearch.service.run import run

World = Callable[..., Path]
RANDOM = {"optimizer": {"name": "random", "seed": 1}, "baselines": {"scales": []}}


@pytest.fixture
def begun(world: World) -> World:
    """The world's spec, of which four candidates are on record."""
    run(world(budget={"candidates": 4}, **RANDOM), Silent())
    return world


def looked(spec: Path, dry_run: bool = False) -> CheckReport:
    return check(spec, dry_run=dry_run, watcher=Silent())


def test_a_name_reused_for_another_search_fails_check_and_run(begun: World) -> None:
    spec = begun(budget={"candidates": 4}, **RANDOM | {"optimizer": {"name": "random", "seed": 2}})
    with pytest.raises(LedgerError) as caught:
        run(spec, Silent())
    (problem,) = looked(spec).problems
    assert problem.to_dict() == caught.value.to_dict()
    assert "optimizer.seed" in problem.where
    assert "this is another search" in problem.what


def test_changed_models_fail_the_check(begun: World) -> None:
    spec = begun(budget={"candidates": 4}, **RANDOM)
    expert = spec.parent / "expert1"
    other = (spec.parent / "expert2").resolve()
    expert.unlink()
    expert.symlink_to(other)
    (problem,) = looked(spec).problems
    assert "its weights changed since this search started" in problem.what


def test_time_and_price_are_those_of_the_rest(begun: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hours_of, paces = forecast.hours_of, []

    def remembered(pace: forecast.Pace, *given: Any) -> tuple[float, float]:
        paces.append(pace)
        return hours_of(pace, *given)

    monkeypatch.setattr(forecast, "hours_of", remembered)
    workers = {"executor": "local", "threads": 1, "price_per_hour": 3.0}
    result = looked(begun(budget={"candidates": 1000}, workers=workers, **RANDOM), dry_run=True)
    assert result.problems == ()
    assert "4 candidates are on record already: time and price are those of the rest" in result.notes
    found = result.forecast
    each, start = found["seconds_per_candidate"] / 3600, paces[0].start / 3600
    assert 995.9 * each <= found["search_hours"] - start < 996.1 * each  # the baselines are on record, too
    done = looked(begun(budget={"candidates": 4}, workers=workers, **RANDOM), dry_run=True).forecast
    assert done["search_hours"] - paces[1].start / 3600 < 0.1 * done["seconds_per_candidate"] / 3600
    assert done["price"] < found["price"] / 10


def test_a_search_that_has_not_started_is_forecast_in_full(world: World) -> None:
    result = looked(world(budget={"candidates": 1000}, **RANDOM), dry_run=True)
    assert not [text for text in result.notes if "on record" in text]
    assert result.forecast["search_hours"] * 3600 >= 1003 * result.forecast["seconds_per_candidate"]
