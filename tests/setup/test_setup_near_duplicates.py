"""A search that began before near-duplicates were looked for, or with another threshold, is refused with the way on."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import LedgerError
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.spec.run_dir import places_of
from evosearch.spec.spec import load_spec

World = Callable[..., Path]


def twin_suite(folder: Path, **keys: Any) -> str:
    """The world's suite, of documents that ask everything twice."""
    suite = yaml.safe_load((folder / "suite.yaml").read_text())
    tasks = folder / "twin_tasks"
    if not tasks.exists():
        tasks.mkdir()
        task = yaml.safe_load((folder / "tasks" / "w_choice.yaml").read_text())
        rows = (folder / "tasks" / "w_choice.jsonl").read_text().splitlines()[:30]
        twice = [json.loads(row) | {"copy": copy} for row in rows for copy in (0, 1)]
        (tasks / "w_twins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in twice))
        task["dataset_kwargs"] = {"data_files": {"test": "w_twins.jsonl"}, "cache_dir": str(folder / "twin_cache")}
        (tasks / "w_twins.yaml").write_text(yaml.safe_dump(task | {"task": "w_twins"}))
    suite["include"] = ["twin_tasks"]
    suite["tasks"] = [{"task": "w_twins", "name": "twins", "metric": "acc", "chance": 0.33}]
    (folder / "suite_twins.yaml").write_text(yaml.safe_dump(suite | keys, sort_keys=False))
    return "suite_twins.yaml"


def write(world: World, **keys: Any) -> Path:
    suite = twin_suite(world(name="old").parent, **keys)
    return world(name="old", suite=suite, budget={"candidates": 6}, promotion={"finalists": 1})


def rewrite(spec: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Make the record one of an earlier version."""
    with sqlite3.connect(places_of(load_spec(spec)).ledger.removeprefix("sqlite:///")) as ledger:
        for rowid, text in ledger.execute("SELECT rowid, payload FROM ledger_events WHERE type = 'started'").fetchall():
            payload = json.loads(text)
            change(payload)
            ledger.execute("UPDATE ledger_events SET payload = ? WHERE rowid = ?", (json.dumps(payload), rowid))
    ledger.close()


def test_a_search_of_before_there_was_the_key_goes_on_without_it(world: World) -> None:
    report = run(write(world, near_duplicates=False), Silent())
    rewrite(write(world), lambda payload: payload["suite"].pop("near_duplicates"))
    with pytest.raises(LedgerError) as refused:
        run(write(world), Silent())
    assert "suite_twins.yaml: tasks[0].task: " in str(refused.value)
    assert "It began before near-duplicates were looked for, and near_duplicates is 0.8 now" in str(refused.value)
    assert "set near_duplicates: false in" in str(refused.value)
    assert "Restore the data" not in str(refused.value)

    again = run(write(world, near_duplicates=False), Silent())
    assert again.search_id == report.search_id
    assert again.candidates == report.candidates | {"resumed": 6}
    assert again.gate == report.gate


def test_a_record_without_item_sets_names_it_too(world: World) -> None:
    run(write(world, near_duplicates=False), Silent())
    rewrite(write(world), lambda payload: [payload.pop(key) for key in ("suite", "item_sets")])
    with pytest.raises(LedgerError, match=r"documents of the \w+ split changed .*set near_duplicates: false in"):
        run(write(world), Silent())


def test_a_changed_threshold_is_named_and_changed_data_are_not_blamed_on_it(world: World) -> None:
    spec = write(world)
    run(spec, Silent())
    with pytest.raises(LedgerError, match=r"suite_twins\.yaml: near_duplicates: it changed .*\(0\.8 then, False now\)"):
        run(write(world, near_duplicates=False), Silent())
    data = spec.parent / "twin_tasks" / "w_twins.jsonl"
    data.write_text(data.read_text().replace('"copy": 1', '"copy": 2'))
    with pytest.raises(LedgerError, match="Restore the data") as refused:
        run(write(world), Silent())
    assert "near_duplicates" not in str(refused.value)


def test_a_threshold_is_compared_where_it_draws_the_same_documents_too(world: World) -> None:
    """Examples in prompts depend on it."""
    spec = world(name="plain", suite="suite_plain.yaml", budget={"candidates": 2})
    suite = yaml.safe_load((spec.parent / "suite.yaml").read_text())
    (spec.parent / "suite_plain.yaml").write_text(yaml.safe_dump(suite))
    run(spec, Silent())
    (spec.parent / "suite_plain.yaml").write_text(yaml.safe_dump(suite | {"near_duplicates": 0.9}))
    with pytest.raises(LedgerError, match=r"suite_plain\.yaml: near_duplicates: it changed .*\(0\.8 then, 0\.9 now\)"):
        run(spec, Silent())


def test_another_change_is_not_taken_for_a_key_that_the_record_lacks(world: World) -> None:
    run(write(world), Silent())

    def older(payload: dict[str, Any]) -> None:
        for key in ("near_duplicates", "acknowledge_contamination", "guards"):
            del payload["suite"][key]

    rewrite(write(world), older)
    with pytest.raises(LedgerError, match=r"suite_twins\.yaml: guards\[0\]\.task: "):
        run(write(world, guards=[{"task": "twins", "max_drop": 5}]), Silent())
