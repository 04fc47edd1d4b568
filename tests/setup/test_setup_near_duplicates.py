"""A resume with another threshold of near-duplicates is refused, and data changes are not blamed on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import LedgerError
from evosearch.search.progress import Silent
from evosearch.service.run import run

World = Callable[..., Path]


def twin_suite(folder: Path, **keys: Any) -> str:
    """The world's suite, with two documents per question."""
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


def test_a_changed_threshold_is_refused_even_with_equal_documents(world: World) -> None:
    """Examples in prompts depend on it."""
    spec = world(name="plain", suite="suite_plain.yaml", budget={"candidates": 2})
    suite = yaml.safe_load((spec.parent / "suite.yaml").read_text())
    (spec.parent / "suite_plain.yaml").write_text(yaml.safe_dump(suite))
    run(spec, Silent())
    (spec.parent / "suite_plain.yaml").write_text(yaml.safe_dump(suite | {"near_duplicates": 0.9}))
    with pytest.raises(LedgerError, match=r"suite_plain\.yaml: near_duplicates: it changed .*\(0\.8 then, 0\.9 now\)"):
        run(spec, Silent())
