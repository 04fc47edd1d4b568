"""Files of prompts as tasks of a suite."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import SuiteError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.prompt_tasks import prompt_task, read_prompts
from evosearch.evaluation.suites.suite import load_suite

SUITE: dict[str, Any] = {
    "name": "prompts",
    "tasks": [{"prompts": "chat.jsonl", "group_by": "topic"}, {"prompts": "more.txt", "name": "more", "weight": 3.0}],
    "documents": {"search": 4, "validation": 3},
    "near_duplicates": False,
    "fitness": {"teachers": {"chat": "a", "more": "b"}},
    "system_instruction": "be brief",
    "generation_kwargs": {"max_gen_toks": 5, "until": ["."]},
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(first: Any = None, **changes: Any) -> Path:
        lines = [f'{{"prompt": "word{n}?", "topic": "{n % 5}"}}' for n in range(30)]
        (tmp_path / "chat.jsonl").write_text("\n".join(lines) + "\n\n")
        (tmp_path / "more.txt").write_text("\r\n".join(f"letter {n}" for n in range(20)))
        path = tmp_path / "suite.yaml"
        tasks = SUITE["tasks"] if first is None else [first, SUITE["tasks"][1]]
        path.write_text(yaml.safe_dump(SUITE | {"tasks": tasks} | changes))
        return path

    return write


def test_prompts_are_documents_with_the_suites_options(write: Write, tokenizer: Any) -> None:
    suite = load_suite(write())
    assert [task.name for task in suite.fitted] == ["chat", "more"]
    assert suite.scoring == ()
    harness = Harness(suite)
    assert [[len(items) for items in harness.batch(split).sets] for split in ("search", "validation", "test")] == [
        [4, 4],
        [3, 3],
        [0, 0],
    ]
    assert all(harness.batch("search").sets[0].groups)
    frozen = harness.freeze(harness.batch("search"), tokenizer, 96)
    assert frozen.generations == ()
    (prompt,) = {task.documents[0].exercise.prompt for task in frozen.tasks[1:] if task.documents[0].exercise}
    assert prompt is not None
    text = tokenizer.decode(prompt.prompt)
    assert text.startswith("be brief")
    assert "letter " in text
    assert prompt.max_new_tokens == 5
    assert [stop.text for stop in prompt.stops] == [".", "</s>"]


def test_a_suite_does_not_depend_on_where_its_prompts_are(write: Write, tmp_path: Path) -> None:
    suite = load_suite(write())
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in ("suite.yaml", "chat.jsonl", "more.txt"):
        (tmp_path / file).rename(moved / file)
    there = load_suite(moved / "suite.yaml")
    assert there.digest() == suite.digest()
    assert there.to_record() == suite.to_record()
    assert Harness(there).fingerprint() == Harness(there).fingerprint()
    assert str(tmp_path) not in str(suite.to_record())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no prompts"),
        ('{"prompt": "a"}\n{"promt": "b"}', r"chat\.jsonl:2: no key 'prompt'"),
        ('{"prompt": " "}', r"chat\.jsonl:1: no text under 'prompt'"),
        ('{"prompt": "a"', r"chat\.jsonl:1: not JSON"),
        ('["a"]', r"chat\.jsonl:1: not an object"),
    ],
)
def test_an_invalid_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "chat.jsonl").write_text(text)
    with pytest.raises(SuiteError, match=message):
        read_prompts("suite.yaml: tasks[0].prompts", tmp_path / "chat.jsonl")


@pytest.mark.parametrize(("first", "second"), [(1, "x"), ([1], {"a": 1}), (1, 10**30)])
def test_a_key_has_values_of_one_type(tmp_path: Path, first: Any, second: Any) -> None:
    rows = [{"prompt": "a", "topic": first}, {"prompt": "b", "topic": second}]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SuiteError, match=r"s\.yaml: tasks\[0\]\.prompts: .*chat\.jsonl: a key has values of several"):
        prompt_task("s.yaml: tasks[0].prompts", "chat", str(tmp_path / "chat.jsonl"))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"prompts": "none.txt"}, r"tasks\[0\]\.prompts: no file"),
        ({"prompts": "chat.jsonl", "metric": "acc"}, r"metric: got 'acc' for a file of prompts"),
        ({"prompts": "chat.jsonl", "num_fewshot": 2}, r"num_fewshot: got 2 for a file of prompts"),
        ({"prompts": "chat.jsonl", "task": "arc_easy"}, r"task: got 'arc_easy' for a file of prompts"),
        ({"prompts": "chat.jsonl", "weight": 0}, r"weight: should be greater than 0"),
        ({"name": "chat", "metric": "acc", "chance": 0.0}, r"task: missing"),
    ],
)
def test_keys_that_need_answers_are_refused(write: Write, task: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        load_suite(write(task))


def test_prompts_need_teachers_that_are_named(write: Write) -> None:
    with pytest.raises(SuiteError, match=r"tasks\[0\]\.prompts: got .*, and prompts have no right answers"):
        load_suite(write(fitness="expected_score"))
    with pytest.raises(SuiteError, match="'chat' has no right answers by which `auto` could choose its teacher"):
        load_suite(write(fitness={"teachers": "auto"}))
