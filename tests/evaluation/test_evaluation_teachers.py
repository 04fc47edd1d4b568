"""Fitness by teachers: against plain torch, without right answers, and computed once."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evosearch.errors import SuiteError
from evosearch.evaluation.engine.gradient import differentiate
from evosearch.evaluation.engine.loglikelihood import lay_out
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.harness.teachers import Classroom
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.evaluation.types import TEACHERS, ItemBatch, Teacher
from evosearch.search.baselines import single

CONTEXT_LENGTH = 96
TASKS = ("choice", "letter", "t_word", "t_generate")


@pytest.fixture(scope="module")
def harness(suite_file: Path) -> Harness:
    return Harness(with_teachers(load_suite(suite_file)))


@pytest.fixture(scope="module")
def teacher(tokenizer: Any) -> Any:
    from tests.evaluation.conftest import make_model

    return make_model(tokenizer, seed=1)


def with_teachers(suite: Suite, teachers: Any = "auto", **more: Any) -> Suite:
    return Suite.model_validate(suite.model_dump() | {"fitness": {"teachers": teachers, **more}})


class Class:
    """A classroom whose only teacher is a model in memory; counts how often it is asked for."""

    def __init__(self, cache: Path, model: Any, top_k: int = 64, **options: Any) -> None:
        self.asked: list[str] = []
        self.room = Classroom(cache, top_k, ScoreOptions(**options), self._model)
        self._found = model

    def _model(self, teacher: Teacher) -> Any:
        self.asked.append(teacher.reference)
        return self._found


def lessons(tasks: tuple[str, ...] = TASKS) -> dict[str, Teacher]:
    return dict.fromkeys(tasks, Teacher("expert", "0" * 64, single("expert")))


def taught(harness: Harness, tokenizer: Any, room: Classroom, split: str = "search", **options: Any) -> Scorer:
    scorer = Scorer(harness.suite, tokenizer, CONTEXT_LENGTH, ScoreOptions(**options), harness)
    scorer.learn(scorer.batch(split), lessons(), room)
    return scorer


@torch.no_grad()
def logprobs(model: Any, tokens: list[int], count: int) -> torch.Tensor:
    """Log-probabilities (count, V) of the last `count` tokens, by the model's own forward."""
    return model(torch.tensor([tokens[:-1]])).logits[0, -count:].double().log_softmax(-1)


def greedy(model: Any, tokenizer: Any, prompt: list[int], stops: list[str], limit: int) -> list[int]:
    answer: list[int] = []
    while len(answer) < limit:
        with torch.no_grad():
            answer.append(int(model(torch.tensor([prompt + answer])).logits[0, -1].argmax()))
        text = tokenizer.decode(answer)
        if answer[-1] == tokenizer.eos_token_id or any(stop in text for stop in stops):
            break
    return answer


def divergence(q: torch.Tensor, p: torch.Tensor) -> float:
    """KL(q ‖ p), summed over all positions, from log-probabilities."""
    return float((q.exp() * (q - p)).sum())


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_tokens": 40, "modes": ("prefix", "rows")}, {"modes": ("rows",)}],
    ids=["tree", "prefix", "rows"],
)
def test_values_are_the_divergences_of_plain_torch(
    harness: Harness, tokenizer: Any, model: Any, teacher: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    scorer = taught(harness, tokenizer, Class(tmp_path, teacher, **options).room, **options)
    batch = scorer.batch("search")
    card = scorer.score(model, batch)
    frozen = scorer.plans(batch)[0]
    expected: dict[str, list[float]] = {name: [] for name in TASKS}
    for task in frozen.tasks:
        for document in task.documents:
            exercise = document.exercise
            assert exercise is not None
            if exercise.prompt is not None:
                prompt = list(exercise.prompt.prompt)
                answer = greedy(teacher, tokenizer, prompt, ["\n", "ab", "9"], 12)
                q, p = (logprobs(each, prompt + answer, len(answer)) for each in (teacher, model))
                expected[task.spec.name].append(-divergence(q, p) / len(answer))
            elif exercise.request is not None:
                request = frozen.loglikelihoods[exercise.request]
                tokens, count = [*request.inputs, request.targets[-1]], len(request.targets)
                q, p = (logprobs(each, tokens, count) for each in (teacher, model))
                expected[task.spec.name].append(-divergence(q, p) / count)
            else:
                row = document.document
                question = row["question"] + "?" if task.spec.name == "choice" else None
                z = [choices(each, tokenizer, task, document, question, frozen) for each in (teacher, model)]
                expected[task.spec.name].append(-divergence(*(each.log_softmax(-1) for each in z)))
    for name, values in expected.items():
        np.testing.assert_allclose(card.columns[name][TEACHERS], values, atol=2e-5, err_msg=name)
        assert max(values) < 0
    weights = {task.name: task.weight for task in harness.suite.fitted}
    mean = sum(weights[name] * np.mean(values) for name, values in expected.items()) / sum(weights.values())
    assert card.fitness.value == pytest.approx(mean, abs=2e-5)
    assert card.task_fitness["t_generate"].value == pytest.approx(np.mean(expected["t_generate"]), abs=2e-5)


def choices(model: Any, tokenizer: Any, task: Any, document: Any, question: str | None, frozen: Any) -> torch.Tensor:
    """The choices' log-likelihoods as the metric normalizes them; `acc_norm` divides by characters."""
    if question is None:
        requests = [frozen.loglikelihoods[index] for index in document.exercise.choice.requests]
        return torch.stack([logprobs(model, [*r.inputs, *r.targets], 1)[0, r.targets[0]] for r in requests])
    found = []
    for choice in document.document["choices"]:
        before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (question, f" {choice}"))
        each = logprobs(model, before + after, len(after))
        found.append(each[torch.arange(len(after)), after].sum() / len(choice))
    return torch.stack(found)


def test_the_teacher_itself_is_at_zero_and_agrees_in_every_mode(
    harness: Harness, tokenizer: Any, teacher: Any, tmp_path: Path
) -> None:
    scorer = taught(harness, tokenizer, Class(tmp_path, teacher).room)
    card = scorer.score(teacher, scorer.batch("search"))
    assert card.score is None
    assert card.tasks == {}
    assert -1e-5 < card.fitness.value <= 1e-6
    assert set(card.columns["t_generate"]) == {TEACHERS}


def test_top_k_probabilities_are_renormalized(
    harness: Harness, tokenizer: Any, model: Any, teacher: Any, tmp_path: Path
) -> None:
    scorer = taught(harness, tokenizer, Class(tmp_path, teacher, top_k=3).room)
    batch = scorer.batch("search")
    card, frozen = scorer.score(model, batch), scorer.plans(batch)[0]
    (task,) = (task for task in frozen.tasks if task.spec.name == "t_generate")
    document = task.documents[0]
    assert document.exercise is not None
    assert document.exercise.prompt is not None
    prompt = list(document.exercise.prompt.prompt)
    answer = greedy(teacher, tokenizer, prompt, ["\n", "ab", "9"], 12)
    q, p = (logprobs(each, prompt + answer, len(answer)) for each in (teacher, model))
    top, index = q.topk(3, dim=-1)
    renormalized = top.log_softmax(-1)
    value = -float((renormalized.exp() * (renormalized - p.gather(1, index))).sum()) / len(answer)
    assert card.columns["t_generate"][TEACHERS][0] == pytest.approx(value, abs=2e-5)


def test_the_gradient_is_that_of_plain_torch(
    harness: Harness, tokenizer: Any, new_model: Callable[..., Any], teacher: Any, tmp_path: Path
) -> None:
    model = new_model(tokenizer, seed=2)
    scorer = taught(harness, tokenizer, Class(tmp_path, teacher).room)
    frozen = scorer.plans(scorer.batch("search"))[0]
    told = frozen.item_fitness("teachers")
    plan = lay_out(told.requests, ScoreOptions())

    def values(lls: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
        return torch.cat(list(told(lls, margins).values()))

    differentiate(model, plan, told.owners.tolist(), values)
    weight = model.model.layers[0].mlp.up_proj.weight
    found = weight.grad.clone()
    model.zero_grad()
    rows = [
        model(torch.tensor([r.inputs])).logits[0, -len(r.targets) :].double().log_softmax(-1) for r in told.requests
    ]
    lls = []
    for request, row in zip(told.requests, rows, strict=True):
        if request.soft is None:
            lls.append(row[torch.arange(len(request.targets)), list(request.targets)].sum())
        else:
            q = torch.from_numpy(request.soft.probabilities)
            lls.append((q * row.gather(1, torch.from_numpy(request.soft.tokens))).sum())
    values(torch.stack(lls), torch.zeros(len(lls), dtype=torch.float64)).sum().backward()
    torch.testing.assert_close(found, weight.grad, rtol=1e-4, atol=1e-4)


def test_lessons_are_computed_once(harness: Harness, tokenizer: Any, model: Any, teacher: Any, tmp_path: Path) -> None:
    first = Class(tmp_path, teacher)
    scorer = taught(harness, tokenizer, first.room)
    batch = scorer.batch("search")
    before = scorer.score(model, batch)
    assert len(first.asked) == len(TASKS)
    scorer.learn(batch, lessons(), first.room)
    assert len(first.asked) == len(TASKS)
    again = Class(tmp_path, teacher)  # another worker of the node, or a resumed search
    other = taught(harness, tokenizer, again.room)
    assert again.asked == []
    after = other.score(model, batch)
    assert after.fitness == before.fitness
    part = ItemBatch(
        "search", tuple(replace(one, doc_ids=one.doc_ids[2:4], doc_hashes=one.doc_hashes[2:4]) for one in batch.sets)
    )
    sample = other.score(model, part)
    assert again.asked == []  # minibatches are parts of the split's lessons
    np.testing.assert_allclose(
        sample.columns["t_generate"][TEACHERS], before.columns["t_generate"][TEACHERS][2:4], atol=1e-6
    )
    for file in (tmp_path / "teachers").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    damaged = Class(tmp_path, teacher)
    taught(harness, tokenizer, damaged.room)
    assert len(damaged.asked) == len(TASKS)
    fewer = Class(tmp_path, teacher, top_k=3)
    taught(harness, tokenizer, fewer.room)
    assert len(fewer.asked) == len(TASKS)  # distributions of other tokens are other lessons


def test_right_answers_of_the_search_split_are_not_read(
    tokenizer: Any, model: Any, teacher: Any, tmp_path: Path, tasks_writer: Callable[..., Path], suite_data: Any
) -> None:
    values = {}
    for kind in ("right", "wrong", "missing"):
        folder = tmp_path / kind
        tasks_writer(folder / "tasks")
        for name in ("t_choice", "t_generate"):
            rows = [json.loads(line) for line in (folder / "tasks" / f"{name}.jsonl").read_text().splitlines()][:6]
            for number, row in enumerate(rows):
                row["id"] = number
                if kind == "wrong":
                    row |= {"gold": -1, "answer": "nonsense"}
                elif kind == "missing":
                    del row["gold"], row["answer"]
            config = yaml.safe_load((folder / "tasks" / f"{name}.yaml").read_text())
            config["dataset_kwargs"]["data_files"] = {"test": f"{name}_search.jsonl"}
            config = {key: value for key, value in config.items() if "fewshot" not in key}
            config |= {"task": f"{name}_search"}
            (folder / "tasks" / f"{name}_search.yaml").write_text(yaml.safe_dump(config))
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "tasks" / f"{name}_search.jsonl").write_text(text)
        suite_data["tasks"] = [
            {"task": own(name), "name": name, "metric": metric, "chance": 0.0, "documents": {"search": 6}}
            for name, metric in (("t_choice", "acc_norm"), ("t_generate", "exact_match"))
        ]
        suite_data |= {"near_duplicates": False, "fitness": {"teachers": "auto"}}
        (folder / "testing.yaml").write_text(yaml.safe_dump(suite_data))
        loaded = Harness(load_suite(folder / "testing.yaml"))
        scorer = Scorer(loaded.suite, tokenizer, CONTEXT_LENGTH, harness=loaded)
        teachers = lessons(("t_choice", "t_generate"))
        room = Class(folder / "cache", teacher).room
        for split in ("search", "validation"):
            scorer.learn(scorer.batch(split), teachers, room)
        card = scorer.score(model, scorer.batch("search"))
        values[kind] = {name: sorted(card.columns[name][TEACHERS]) for name in ("t_choice", "t_generate")}
        assert card.score is None
        assert scorer.score(model, scorer.batch("validation")).score is not None
    assert values["wrong"] == values["missing"] == values["right"]


def own(name: str) -> dict[str, str]:
    return {"search": f"{name}_search", "validation": name, "test": name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teachers": {"choice": "a"}}, "fitness.teachers: no teacher for 'letter'"),
        ({"teachers": dict.fromkeys([*TASKS, "chioce"], "a")}, "fitness.teachers.chioce: not a task of the fitness"),
        ({"teachers": "parents"}, "fitness.teachers: got 'parents'. auto, or a mapping from task to model"),
        ({"teachers": {"choice": 3}}, "fitness.teachers.choice: got 3. A model of the recipe, or auto"),
        ({"teachers": "auto", "top_k": 0}, "fitness.top_k: Input should be greater than or equal to 1, got 0"),
        ({"teacher": "auto"}, "fitness.teacher: unknown key. Known keys here: teachers, top_k"),
        ("teachers", "fitness: got 'teachers'. expected_score, score, gold_logprob, margin, or {teachers: …}"),
    ],
)
def test_errors_name_the_key(suite_file: Path, change: Any, message: str) -> None:
    data = yaml.safe_load(suite_file.read_text()) | {"fitness": change}
    path = suite_file.with_name("other.yaml")
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(SuiteError, match=re.escape(message)):
        load_suite(path)


def test_a_task_to_forget_has_no_teacher(suite_file: Path, suite_data: Any) -> None:
    suite_data["tasks"][0] = {"task": "t_choice", "metric": "acc", "unlearn": True}
    path = suite_file.with_name("unlearn.yaml")
    path.write_text(yaml.safe_dump(suite_data | {"fitness": {"teachers": "auto"}}))
    with pytest.raises(SuiteError, match=r"tasks\[0\]\.unlearn: true, and a task to be forgotten has no teacher"):
        load_suite(path)
