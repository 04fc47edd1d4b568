"""Prompt options of a suite and of its tasks: precedence and errors."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import SuiteError
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.suites.suite import Suite, load_suite

Data = dict[str, Any]
CHAT = "{% for m in messages %}{{ m.role[0] }}={{ m.content }}.{% endfor %}{% if add_generation_prompt %}a={% endif %}"
CHOICE: Data = {"task": "t_choice", "metric": "acc", "chance": 0.3}
WRITE: Data = {"task": "t_generate", "metric": "exact_match", "chance": 0.0, "filter": "letter"}


@pytest.fixture
def suite_of(suite_file: Path, tmp_path: Path) -> Any:
    def make(*tasks: Data, **options: Any) -> Suite:
        path = tmp_path / "s.yaml"
        counts = {"search": 2, "validation": 1, "test": 3}
        data = {"name": "s", "include": [str(suite_file.parent / "tasks")], "tasks": list(tasks), "documents": counts}
        path.write_text(yaml.safe_dump({**data, **options}))
        return load_suite(path)

    return make


def prompts(suite: Suite, tokenizer: Any, model: Any) -> list[str]:
    """The context of each task's first request."""
    scorer = Scorer(suite, tokenizer, max_length_of(model.config, tokenizer))
    frozen, _, _ = scorer.plans(scorer.batch("search"))
    return [task.documents[0].instances[0].args[0] for task in frozen.tasks]


def test_a_tasks_options_go_before_the_suites(suite_of: Any, tokenizer: Any, model: Any) -> None:
    talking = copy.deepcopy(tokenizer)
    talking.chat_template = CHAT
    plain = {**CHOICE, "name": "plain", "apply_chat_template": False, "num_fewshot": 0, "system_instruction": ""}
    plain |= {"report_only": True, "chance": 0.0}  # two scoring tasks must not share documents
    suite = suite_of(CHOICE, plain, WRITE, apply_chat_template=True, num_fewshot=1, system_instruction="hear")
    chat, text, write = prompts(suite, talking, model)
    assert chat.startswith("s=hear.u=")
    assert chat.endswith("?.a=")
    assert chat.count("a=") == 2
    assert text.endswith("?")
    assert "hear" not in text
    assert write.startswith("s=hear.u=")


def test_generation_arguments_are_laid_over_the_tasks(suite_of: Any) -> None:
    suite = suite_of(CHOICE, {**WRITE, "generation_kwargs": {"until": ["x"]}}, generation_kwargs={"max_gen_toks": 3})
    harness = Harness(suite)
    kwargs = harness._tasks["t_generate", "t_generate"].task.config.generation_kwargs
    assert kwargs == {"until": ["x"], "max_gen_toks": 3, "do_sample": False}
    assert harness._tasks["t_choice", "t_choice"].task.config.generation_kwargs is None


def test_the_suites_shots_leave_a_fixed_zero_alone(
    tmp_path: Path, task_configs: Data, tasks_writer: Any, suite_of: Any
) -> None:
    task_configs["t_choice"]["num_fewshot"] = 0
    tasks_writer(tmp_path / "tasks", {name: task_configs[name] for name in ("t_choice", "t_generate")})
    suite = suite_of(CHOICE, WRITE, num_fewshot=2, include=[str(tmp_path / "tasks")])
    shots = {name: loaded.task.config.num_fewshot for (name, _), loaded in Harness(suite)._tasks.items()}
    assert shots == {"t_choice": 0, "t_generate": 2}


def test_each_option_is_part_of_the_digest(suite_of: Any) -> None:
    options: list[Data] = [
        {},
        {"apply_chat_template": True},
        {"apply_chat_template": "short"},
        {"apply_chat_template": True, "fewshot_as_multiturn": False},
        {"system_instruction": "hear"},
        {"num_fewshot": 1},
        {"generation_kwargs": {"max_gen_toks": 3}},
    ]
    shared = [suite_of(WRITE, **option).digest() for option in options]
    own = [suite_of({**WRITE, **option}).digest() for option in options]
    assert len({*shared, *own}) == 2 * len(options) - 1


@pytest.mark.parametrize(
    ("template", "asked", "message"),
    [
        (
            None,
            True,
            "tasks[0].apply_chat_template: the tokenizer has no chat template. Set it to false, or use models",
        ),
        (CHAT, "toolz", "the tokenizer has no chat template 'toolz'. Its templates: default."),
        ({"default": CHAT, "tools": CHAT}, "toolz", "Its templates: default, tools. Did you mean 'tools'?"),
        (
            {"rag": CHAT, "tools": CHAT},
            True,
            "the tokenizer has no chat template 'default'. Its templates: rag, tools.",
        ),
    ],
)
def test_a_chat_template_that_the_tokenizer_has_not(
    template: Any, asked: bool | str, message: str, suite_of: Any, tokenizer: Any, model: Any, tmp_path: Path
) -> None:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    for suite in (suite_of(CHOICE, apply_chat_template=asked), suite_of({**CHOICE, "apply_chat_template": asked})):
        with pytest.raises(SuiteError) as caught:
            prompts(suite, other, model)
        assert str(caught.value).startswith(f"{tmp_path / 's.yaml'}: tasks[0].apply_chat_template: ")
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "own", "message"),
    [
        (
            {"fewshot_as_multiturn": True},
            {},
            "fewshot_as_multiturn: true, but no chat template is applied to 't_choice'",
        ),
        ({}, {"fewshot_as_multiturn": True}, "tasks[0].fewshot_as_multiturn: true, but no chat template is applied"),
        ({"apply_chat_template": ""}, {}, "apply_chat_template: "),
        ({"num_fewshot": -1}, {}, "num_fewshot: Input should be greater than or equal to 0, got -1"),
        ({}, {"gen_kwargs": {}}, "tasks[0].gen_kwargs: unknown key."),
        ({}, {"group": "x"}, "tasks[0].group: unknown key."),
        ({}, {"place": 1}, "tasks[0].place: unknown key."),
    ],
)
def test_options_that_make_no_sense(options: Data, own: Data, message: str, suite_of: Any, tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        suite_of({**CHOICE, **own}, **options)
    assert str(caught.value).startswith(f"{tmp_path / 's.yaml'}: {message}")


@pytest.mark.parametrize("kwargs", [{"do_sample": True}, {"num_beams": 2}, {"repetition_penalty": 1.2}])
def test_sampling_in_a_suite_is_refused_by_name(kwargs: Data, suite_of: Any, tokenizer: Any, model: Any) -> None:
    ((name, value),) = kwargs.items()
    message = rf"generation_kwargs.{name} is {value!r}: only greedy decoding is supported"
    with pytest.raises(SuiteError, match=message):
        prompts(suite_of(WRITE, generation_kwargs=kwargs), tokenizer, model)
