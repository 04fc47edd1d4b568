"""Honest baselines end to end: fine-tuned and placebo, recorded, resumed, shown, and never promoted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.reporting.report import RunReport
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.search.state import SearchState
from evosearch.service.run import run
from evosearch.setup.loading import read_search
from evosearch.spec.lookup import find

World = Callable[..., Path]
HONEST = {"scales": [0.3, 0.6], "trained": True, "placebo": True}


def state_of(name: str) -> SearchState:
    run_dir = find(name)
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        return read_search(ledger, run_dir)[1]


@pytest.fixture(scope="module")
def shared() -> dict[str, Any]:
    return {}


@pytest.fixture
def ran(world: World, shared: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, RunReport]:
    """One complete run, made by the first test that needs it."""
    if not shared:
        spec = world(baselines=HONEST)
        shared["ran"] = spec, run(spec, Silent())
    spec, report = shared["ran"]
    monkeypatch.setenv("EVOSEARCH_RUNS", str(spec.parents[1] / "runs"))
    monkeypatch.setenv("EVOSEARCH_CACHE", str(spec.parents[1] / "cache"))
    return spec, report


def test_both_are_tested_beside_the_winner(ran: tuple[Path, RunReport]) -> None:
    _, report = ran
    print([row.label for row in report.test])
    print(report.gate.reasons)
    state = state_of("world")
    print([(n, b.kind) for n, b in state.baselines.items()])
    print(state.trained)
