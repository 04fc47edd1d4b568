"""Warnings about test splits that are too small, by the bounds that the gate uses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import ItemBatch, ItemSet
from evosearch.preflight.check import check
from evosearch.preflight.power import power_warnings
from evosearch.promotion.non_inferiority import GuardedTask, check_guard
from evosearch.search.progress import Silent
from evosearch.service.run import run

World = Callable[..., Path]


def suite_of(max_drop: float, chance: float = 0.25) -> Suite:
    task = {"task": "sort", "name": "sort", "metric": "acc", "chance": chance}
    counts = {"search": 9, "validation": 9, "test": 9}
    guards = [{"task": "sort", "max_drop": max_drop}]
    return Suite.model_validate(
        {"name": "s", "tasks": [task], "documents": counts, "guards": guards, "source": "s.yaml"}
    )


def batch_of(count: int, groups: int = 0) -> ItemBatch:
    ids = tuple(range(count))
    names = tuple(str(i % groups) for i in ids) if groups else ()
    return ItemBatch("test", (ItemSet("sort", "sort", ids, tuple(map(str, ids)), names),))


def holds(count: int, max_drop: float) -> bool:
    same = np.arange(count) % 2.0
    return check_guard("7", same, GuardedTask("sort", max_drop, 0.25, "base", same), None).holds


@pytest.mark.parametrize("max_drop", [0.5, 2.0, 7.0, 31.0])
def test_guard_warnings_agree_with_the_gates_bound(max_drop: float) -> None:
    for count in (15, 60, 170, 250, 1019, 1021):
        told = power_warnings(suite_of(max_drop), batch_of(count))
        assert bool(told) != holds(count, max_drop), (count, told)
    (text,) = power_warnings(suite_of(max_drop), batch_of(6))
    enough = int(text.split("at least ")[1].split()[0])
    assert holds(enough, max_drop)
    assert not holds(enough - 1, max_drop)
    assert holds(6, float(text.split()[-1]))


def test_text_of_a_guard_warning() -> None:
    assert power_warnings(suite_of(0.5, 0.0), batch_of(15)) == [
        "s.yaml: guards[0]: guard on 'sort': even if no answer changed, 15 right-or-wrong test items could not exclude "
        "a drop of 20.4 points, and max_drop is 0.5. Use at least 765 items or max_drop 20.4"
    ]
    assert power_warnings(suite_of(0.0, 0.0), batch_of(15))[0].endswith("and max_drop is 0. Use max_drop 20.4")
    assert power_warnings(suite_of(0.5), batch_of(15, groups=5)) == []


def test_few_units_are_warned_of() -> None:
    assert power_warnings(suite_of(100.0), batch_of(5)) == []
    for batch, units in ((batch_of(4), "4 items"), (batch_of(40, groups=3), "3 independent groups")):
        (text,) = power_warnings(suite_of(1000.0), batch)
        assert text.startswith(f"s.yaml: tasks[0].documents.test: 'sort' has {units} on test, too few for any gain")


def test_check_and_run_print_the_warnings(world: World) -> None:
    folder = world(name="few").parent
    suite: dict[str, Any] = yaml.safe_load((folder / "suite.yaml").read_text())
    suite["documents"]["test"] = 4
    suite["guards"] = [{"task": "choice", "max_drop": 2}]
    (folder / "suite_few.yaml").write_text(yaml.safe_dump(suite))
    spec = world(name="few", suite="suite_few.yaml", budget={"candidates": 2}, promotion={"finalists": 1})
    found = [check(path, dry_run=False, watcher=Silent()) for path in (spec, folder / "suite_few.yaml")]
    assert all(result.ok for result in found)

    heard: list[str] = []

    class Listening(Silent):
        def note(self, text: str) -> None:
            heard.append(text)

    run(spec, Listening())
    for said in (*(result.notes for result in found), heard):
        assert sum("has 4 items on test" in text for text in said) == 2
        assert sum("guards[0]: guard on 'choice'" in text for text in said) == 1
