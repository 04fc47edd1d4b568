"""Report-only tasks and metrics, and detection of broken weights in every kind of request."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evosearch.errors import CandidateError, SuiteError
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.suites.suite import load_suite
from evosearch.evaluation.types import GOLD, LOGLIKELIHOODS, REQUESTS, ItemBatch

Data = dict[str, Any]
ROLLING: Data = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tasks_writer: Any) -> Path:
    made = tmp_path_factory.mktemp("reported")
    tasks_writer(made / "tasks", {"t_text": ROLLING}, 40)
    more = tmp_path_factory.mktemp("more")
    tasks_writer(more / "tasks")
    for file in more.glob("tasks/t_*"):
        file.rename(made / "tasks" / file.name)
    return made


def suite_of(folder: Path, tasks: list[Data], **changes: Any) -> Any:
    path = folder / "s.yaml"
    data = {"name": "s", "include": ["tasks"], "tasks": tasks, "documents": {"search": 4, "validation": 1, "test": 9}}
    path.write_text(yaml.safe_dump({**data, **changes}))
    return load_suite(path)


CHOICE: Data = {"task": "t_choice", "metric": "acc", "chance": 0.3}
WORD: Data = {"task": "t_word", "metric": "acc", "chance": 0.0}
TEXT: Data = {"task": "t_text", "report_only": True}


def scorer_of(suite: Any, tokenizer: Any, model: Any) -> Scorer:
    return Scorer(suite, tokenizer, max_length_of(model.config, tokenizer))


def test_a_reported_task_is_in_no_score(folder: Path, tokenizer: Any, model: Any) -> None:
    both = scorer_of(suite_of(folder, [TEXT, WORD, CHOICE]), tokenizer, model)
    alone = scorer_of(suite_of(folder, [WORD, CHOICE]), tokenizer, model)
    assert both.suite.weights() == {"t_word": 0.5, "t_choice": 0.5}
    assert [task.name for task in both.suite.scoring] == ["t_word", "t_choice"]
    # the text task has other documents, so the other draws stay the same
    card, other = both.score(model, both.batch("test")), alone.score(model, alone.batch("test"))
    assert (card.score, card.tasks) == (pytest.approx(other.score), other.tasks)
    assert (card.fitness.value, card.fitness.n) == (pytest.approx(other.fitness.value), 18)
    assert set(card.set_digests) == {"t_text", "t_word", "t_choice"}
    assert set(card.reported["t_text"]) == {"word_perplexity", "bits_per_byte"}
    columns = card.columns["t_text"]
    assert GOLD not in columns
    assert columns[REQUESTS].tolist() == [1.0] * 9
    words = [len(text.split(" ")) for text in texts(both)]
    np.testing.assert_array_equal(columns["word_perplexity[0]"], columns[LOGLIKELIHOODS])
    np.testing.assert_array_equal(columns["word_perplexity[1]"], words)
    assert card.reported["t_text"]["word_perplexity"] == pytest.approx(
        math.exp(-columns[LOGLIKELIHOODS].sum() / sum(words))
    )
    json.dumps(card.summary(), allow_nan=False)
    assert card.summary()["reported"] == card.reported


def texts(scorer: Scorer) -> list[str]:
    items = next(items for items in scorer.batch("test").sets if items.task == "t_text")
    rows = (Path(scorer.suite.include[0]) / "t_text.jsonl").read_text().splitlines()
    return [str(json.loads(rows[index])["text"]) for index in items.doc_ids]


def test_every_metric_is_reported_unless_some_are_named(folder: Path, tokenizer: Any, model: Any) -> None:
    tasks = [WORD, {**WORD, "name": "named", "metrics": [], "report_only": True}, {**TEXT, "metric": "bits_per_byte"}]
    scorer = scorer_of(suite_of(folder, tasks), tokenizer, model)
    reported = scorer.score(model, scorer.batch("search")).reported
    assert {task: set(metrics) for task, metrics in reported.items()} == {
        "t_word": {"acc", "perplexity"},
        "named": {"acc"},
        "t_text": {"bits_per_byte"},
    }


def test_a_perplexity_beyond_all_numbers_is_no_failure(folder: Path, tokenizer: Any, model: Any) -> None:
    hopeless = copy.deepcopy(model)
    with torch.no_grad():
        hopeless.lm_head.weight.mul_(2000.0)
    scorer = scorer_of(suite_of(folder, [WORD]), tokenizer, model)
    card = scorer.score(hopeless, scorer.batch("search"))
    assert card.columns["t_word"][LOGLIKELIHOODS].mean() < -1000
    assert card.reported["t_word"]["perplexity"] == math.inf
    assert card.summary()["reported"]["t_word"] == {"acc": card.tasks["t_word"].value, "perplexity": None}


def broken(model: Any, value: float) -> Any:
    spoilt = copy.deepcopy(model)
    with torch.no_grad():
        spoilt.model.layers[1].mlp.down_proj.weight.fill_(value)
    return spoilt


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
@pytest.mark.parametrize("task", ["t_choice", "t_word", "t_text", "t_generate"])
def test_weights_that_are_not_finite_are_found_in_every_request(
    task: str, value: float, folder: Path, tokenizer: Any, model: Any
) -> None:
    generate = {"task": "t_generate", "metric": "exact_match", "chance": 0.0, "filter": "letter"}
    suite = suite_of(folder, [CHOICE, WORD, TEXT, generate], fitness="score")
    scorer = scorer_of(suite, tokenizer, model)
    batch = scorer.batch("search")
    alone = ItemBatch("search", tuple(items for items in batch.sets if items.task == task))
    if task == "t_generate":  # alone, because the log-likelihoods of its right answers would fail first
        plan = scorer.plans(alone)[2]
        from evosearch.evaluation.engine.generation import generate as run

        with pytest.raises(CandidateError, match="score: logits are not finite during generation"):
            run(broken(model, value), plan)
        return
    with pytest.raises(CandidateError, match=r"score: \d+ of \d+ log-likelihoods are not finite: the weights overflow"):
        scorer.score(broken(model, value), alone)


def test_a_batch_of_reported_tasks_alone_has_no_score(folder: Path, tokenizer: Any, model: Any) -> None:
    scorer = scorer_of(suite_of(folder, [WORD, TEXT]), tokenizer, model)
    batch = scorer.batch("search")
    with pytest.raises(SuiteError, match="the search batch has no item of a scoring task"):
        scorer.score(model, ItemBatch("search", batch.sets[1:]))


WRONG: list[tuple[list[Data], str]] = [
    ([{"task": "t_text", "metric": "word_perplexity", "chance": 0.0}], "tasks[0].task: 't_text' measures perplexity"),
    (
        [WORD, {**TEXT, "metric": "acc"}],
        "tasks[1].metric: 't_text' has no metric 'acc'. Metrics of 't_text': word_perp",
    ),
    ([{**WORD, "metrics": ["perplexty"]}], "tasks[0].metrics: 't_word' has no metric 'perplexty'. "),
    ([{**WORD, "metrics": ["perplexty"]}], "Did you mean 'perplexity'?"),
    ([TEXT], "tasks: every task is report-only, so there is no score."),
    ([WORD, {**TEXT, "weight": 0.5}], "tasks[1].weight: got 0.5 for a report-only task. Remove weight"),
    ([WORD, {**TEXT, "chance": 0.5}], "tasks[1].chance: got 0.5 for a report-only task."),
    ([WORD, {**TEXT, "num_fewshot": 2}], "tasks[1].num_fewshot: 't_text' has no prompt: it scores complete texts"),
    ([WORD, {**TEXT, "apply_chat_template": True}], "tasks[1].apply_chat_template: 't_text' has no prompt"),
    ([{**WORD, "generation_kwargs": {"until": []}}], "tasks[0].generation_kwargs: 't_word' does not generate"),
    ([{**CHOICE, "chance": {"t_choice": 0.3}}], "tasks[0].chance: a chance level for each leaf task, but 't_choice'"),
]


@pytest.mark.parametrize(("tasks", "message"), WRONG)
def test_roles_that_do_not_fit(tasks: list[Data], message: str, folder: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        Harness(suite_of(folder, tasks))
    assert str(caught.value).startswith(f"{folder / 's.yaml'}: tasks")
    assert message in str(caught.value)


def test_a_requested_metric_that_cannot_be_aggregated(
    tmp_path: Path, task_configs: Data, tasks_writer: Any, tokenizer: Any, model: Any
) -> None:
    config = task_configs["t_choice"]
    config["metric_list"].append({"metric": "f1", "aggregation": "f1", "higher_is_better": True})  # three classes
    tasks_writer(tmp_path / "tasks", {"t_choice": config})
    scorer = scorer_of(suite_of(tmp_path, [CHOICE]), tokenizer, model)
    assert set(scorer.score(model, scorer.batch("test")).reported["t_choice"]) == {"acc", "acc_norm"}
    asked = scorer_of(suite_of(tmp_path, [{**CHOICE, "metrics": ["f1"]}]), tokenizer, model)
    with pytest.raises(SuiteError, match=r"tasks\[0\].metrics: lm-eval cannot aggregate 'f1': ValueError"):
        asked.score(model, asked.batch("test"))
