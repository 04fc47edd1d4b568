"""`evosearch score MODEL SUITE` on every suite with documents from the hub, with small real models and tokenizers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from evosearch.preflight.check import check
from evosearch.search.progress import Silent
from evosearch.service.score import score

SPLITS = {"search": 5, "test": 7}  # they differ in tasks or documents; validation is like one of them
TASKS = {
    "reasoning": {"gsm8k": "exact_match", "arc_easy": "acc_norm", "arc_challenge": "acc_norm", "hellaswag": "acc_norm"},
    "mgsm_ja": {"problems": "exact_match"},
}


@pytest.mark.parametrize("name", TASKS)
def test_a_checkpoint_on_tuned_and_tested_documents(
    hub: Path, models: Path, smaller: Callable[..., Path], name: str
) -> None:
    suite = smaller(name, fitness="score", generation_kwargs={"max_gen_toks": 24})  # enough for a random model
    model = str(models / "one")
    forecast = check(suite, dry_run=False, watcher=Silent(), model=model)
    assert forecast.problems == ()
    for split, count in SPLITS.items():
        found = score(model, suite, split, None, Silent())
        assert {task: row.metric for task, row in found.tasks.items()} == TASKS[name]
        assert {row.n for row in found.tasks.values()} == {count}
        assert all(0 <= row.value <= 1 for row in found.tasks.values())
        expected = forecast.forecast["tokens"][split]
        limit = expected["generated_at_most"]
        assert expected["requested"] <= found.tokens.requested <= expected["requested"] + 2 * limit
        assert expected["distinct"] <= found.tokens.distinct <= expected["distinct"] + limit


def test_conclusions_after_reasoning_take_no_more_than_the_forecast(
    hub: Path, models: Path, smaller: Callable[..., Path]
) -> None:
    """With the suite's own fitness and room for reasoning; a random model concludes little."""
    suite, model = smaller("reasoning", generation_kwargs={"max_gen_toks": 40}), str(models / "one")
    forecast = check(suite, dry_run=False, watcher=Silent(), model=model)
    assert forecast.problems == ()
    for split, count in SPLITS.items():
        found = score(model, suite, split, None, Silent())
        assert {row.n for row in found.tasks.values()} == {count}
        expected = forecast.forecast["tokens"][split]
        assert 0 < found.tokens.requested <= expected["requested"] + 2 * expected["generated_at_most"]
        assert found.tokens.distinct <= expected["distinct"] + expected["generated_at_most"]


def test_a_recipe_and_its_items(hub: Path, models: Path, smaller: Callable[..., Path], tmp_path: Path) -> None:
    """The written items are the split's documents, and their mean is the score."""
    recipe = tmp_path / "recipe.yaml"
    weighted = [{"model": str(models / name), "parameters": {"weight": 0.5}} for name in ("one", "two")]
    recipe.write_text(yaml.safe_dump({"merge_method": "linear", "models": weighted}))
    suite = smaller("reasoning", fitness="score", generation_kwargs={"max_gen_toks": 8})
    found = score(str(recipe), suite, "search", tmp_path / "items.jsonl", Silent())
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert {item["documents"] for item in items} == {"train"}  # the dataset split of their doc ids
    for task, row in found.tasks.items():
        own = [item["metrics"][row.metric] for item in items if item["task"] == task]
        assert len(own) == 5
        assert sum(own) / 5 == pytest.approx(row.value)
    assert found.reported["gsm8k_flexible"].keys() == {"exact_match"}
    weights = {"gsm8k": 1 / 3, "arc_easy": 1 / 6, "arc_challenge": 1 / 6, "hellaswag": 1 / 3}
    points = {task: (row.value - chance(task)) / (1 - chance(task)) for task, row in found.tasks.items()}
    assert found.score == pytest.approx(100 * sum(weights[task] * points[task] for task in weights))


def chance(task: str) -> float:
    return 0.0 if task == "gsm8k" else 0.25


@pytest.mark.parametrize("name", TASKS)
def test_missing_data_is_an_error_at_the_task(
    hub: Path, smaller: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Without a network and without the data sets, the error is at the task that cannot be read."""
    suite = smaller(name)
    monkeypatch.chdir(tmp_path)
    found = check(suite, dry_run=False, watcher=Silent())
    assert not found.ok
    assert found.problems[0].where == f"{suite}: tasks[0].task"
