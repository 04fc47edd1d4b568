"""The count of openings is of documents: tasks that are renamed or grouped otherwise continue it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from evosearch.evaluation.types import ItemBatch, ItemSet
from evosearch.reporting.openings import openings, record_reread
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.spec.run_dir import data_folder

World = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOSEARCH_DATA", str(tmp_path / "data"))


def test_a_renamed_task_continues_the_count(world: World) -> None:
    budget = {"candidates": 2}
    spec = world(name="first", budget=budget)
    assert run(spec, Silent()).test_openings == 1
    suite = yaml.safe_load((spec.parent / "suite.yaml").read_text())
    suite["tasks"][0]["name"] = "renamed"
    (spec.parent / "suite_renamed.yaml").write_text(yaml.safe_dump(suite))
    renamed = world(name="second", suite="suite_renamed.yaml", budget=budget)
    assert run(renamed, Silent()).test_openings == 2
    assert run(spec, Silent()).test_openings == 2


def batches() -> tuple[ItemBatch, ItemBatch]:
    items = ItemSet("sort", "sort", (1, 4), ("b", "a"))
    other = replace(items, task="other", groups=("x", "y"))
    return ItemBatch("test", (items,)), ItemBatch("test", (other, items))


def test_the_documents_digest_is_of_documents_alone() -> None:
    one, other = batches()
    assert one.digest != other.digest
    assert one.documents_digest == other.documents_digest
    more = replace(one.sets[0], doc_ids=(1, 4, 5), doc_hashes=("b", "a", "c"))
    assert ItemBatch("test", (more,)).documents_digest != one.documents_digest


def test_a_reread_does_not_count_and_knows_the_documents_under_any_name() -> None:
    one, other = batches()
    with openings() as record:
        assert record.record_test_opening("first", one.documents_digest, ["base", "1"]) == 1
        assert record.record_test_opening("second", one.documents_digest, ["1", "base"]) == 2
    assert record_reread(one, "score x") == record_reread(other, "score x") == 2
    with Ledger.open(f"sqlite:///{data_folder() / 'openings.db'}", read_only=True) as own:
        assert own.count_test_openings(one.documents_digest) == 2
