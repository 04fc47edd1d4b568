"""`benchmarks.exported`: lm-eval's program scores the exported winner of a search as the ledger has it."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import exported
from evosearch.errors import EvosearchError, SuiteError
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.spec.spec import load_spec


@pytest.fixture
def spec(world: Any) -> Any:
    path = world("exported", budget={"candidates": 6})
    run(path, Silent())
    return load_spec(path)


def test_lm_evals_program_repeats_the_ledger(spec: Any) -> None:
    found = exported.collect(spec, None, "validation", threads=1)
    assert found["largest_difference"] < 1e-9
    tasks = {row["task"] for row in found["rows"]}
    assert tasks == {task.name for task in spec.suite.tasks}
    assert all(row["documents"] > 1 for row in found["rows"])
    assert len(exported.show(found).splitlines()) == 2 + len(found["rows"])


def test_a_model_without_scores_and_prompt_options_are_refused(spec: Any, tmp_path: Path) -> None:
    with pytest.raises(EvosearchError, match="exported: 5 has no scores on test"):
        exported.collect(spec, "5", "test", threads=1)
    chatting = spec.suite.model_copy(update={"num_fewshot": 2})
    with pytest.raises(SuiteError, match="has prompt options"):
        exported.lm_eval(tmp_path, chatting, {}, tmp_path, 1)
