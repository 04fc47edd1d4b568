"""Booleans and strings in place of numbers are rejected in every YAML document."""

from pathlib import Path

import pytest

from evosearch.documents import validate
from evosearch.errors import SpecError, SuiteError
from evosearch.evaluation.suites.suite_task import DocumentCounts, SuiteTask
from evosearch.search.optimizer_config import OptimizerConfig
from evosearch.spec.config import BudgetConfig, PromotionConfig, WorkersConfig

REFUSED = [
    (OptimizerConfig, {"name": "cma_es", "population": True}, "population: got True"),
    (OptimizerConfig, {"name": "cma_es", "sigma": "0.2"}, "sigma: got '0.2'"),
    (BudgetConfig, {"candidates": "10"}, "candidates: got '10'"),
    (BudgetConfig, {"hours": True}, "hours: got True"),
    (WorkersConfig, {"count": "four"}, "count: got 'four'"),
    (WorkersConfig, {"threads": True}, "threads: got True"),
    (PromotionConfig, {"finalists": True}, "finalists: got True"),
]


@pytest.mark.parametrize(("model", "data", "message"), REFUSED)
def test_non_numbers_are_refused(model: type, data: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=rf"night\.yaml: {message}\. A (whole )?number"):
        validate(model, data, "night.yaml", SpecError)


def test_misspelled_keys_of_a_suite_are_refused() -> None:
    with pytest.raises(SuiteError, match=r"s\.yaml: search: got True\. A whole number"):
        validate(DocumentCounts, {"search": True}, "s.yaml", SuiteError)
    with pytest.raises(SuiteError, match=r"s\.yaml: chance: got '0\.5'\. A number"):
        validate(SuiteTask, {"task": "t", "metric": "acc", "chance": "0.5"}, "s.yaml", SuiteError)


def test_words_that_are_allowed_next_to_numbers_stay() -> None:
    assert validate(WorkersConfig, {"count": "auto"}, str(Path("n.yaml")), SpecError).count == "auto"
    assert validate(BudgetConfig, {"hours": 10}, "n.yaml", SpecError).hours == 10.0
