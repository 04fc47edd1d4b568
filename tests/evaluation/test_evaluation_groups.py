"""Groups and tags in a suite: local ones of every form, lm-eval's own by name, and errors."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import SuiteError
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.suites.library import TaskNames, library_tags
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.evaluation.suites.tasks import TaskLibrary

Data = dict[str, Any]
SIZES = {"t_choice": 40, "t_letter": 20, "t_word": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tasks_writer: Any) -> Path:
    """Three tasks of two sizes, one of them tagged and included by another, and groups of them."""
    made = tmp_path_factory.mktemp("groups")
    tasks = tasks_writer(made / "tasks")
    for name in ("t_letter", "t_word"):
        data = tasks / f"{name}.jsonl"
        data.write_text("".join(line + "\n" for line in data.read_text().splitlines()[:20]))
    for name in ("t_choice", "t_word"):
        config = yaml.safe_load((tasks / f"{name}.yaml").read_text())
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump({**config, "tag": ["t_tagged", "t_other"]}))
    (tasks / "heir.yaml").write_text("include: t_word.yaml\ntask: t_heir\ntag: t_none\ndoc_to_text: '{{question}}#'\n")
    write = {
        "t_sized": {"task": ["t_choice", "t_letter"], "aggregate_metric_list": [{"metric": "acc"}]},
        "t_equal": {
            "task": ["t_choice", "t_letter"],
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": False}],
        },
        "t_nested": {
            "task": ["t_equal", "t_tagged", {"group": "inner", "task": ["t_heir"]}],
            "aggregate_metric_list": [{"metric": "acc_norm", "weight_by_size": True}],
        },
        "t_shots": {"task": [{"task": "t_choice", "num_fewshot": 3}, {"task": "t_word", "target_delimiter": "="}]},
    }
    for name, config in write.items():
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump({"group": name, **config}))
    return made


def suite_of(folder: Path, *tasks: Data, **changes: Any) -> Suite:
    path = folder / "s.yaml"
    data = {"name": "s", "include": ["tasks"], "tasks": list(tasks), "documents": {"search": 2, "validation": 1}}
    path.write_text(yaml.safe_dump({**data, **changes} | {"documents": {**data["documents"], "test": 5}}))
    return load_suite(path)


def group(task: str, **changes: Any) -> Data:
    return {"task": task, "metric": "acc", "chance": 0.25, **changes}


def test_a_group_is_its_leaf_tasks_weighed_by_their_documents(folder: Path, tokenizer: Any, model: Any) -> None:
    suite = suite_of(
        folder, group("t_sized", name="both", weight=3.0), {"task": "t_word", "metric": "acc", "chance": 0}
    )
    assert [task.name for task in suite.tasks] == ["both/t_choice", "both/t_letter", "t_word"]
    assert suite.weights() == pytest.approx({"both/t_choice": 0.5, "both/t_letter": 0.25, "t_word": 0.25})
    assert [task.chance for task in suite.tasks] == [0.25, 0.25, 0]
    assert Suite.model_validate(suite.model_dump()) == suite
    scorer = Scorer(Suite.model_validate(suite.model_dump()), tokenizer, max_length_of(model.config, tokenizer))
    card = scorer.score(model, scorer.batch("test"))
    assert list(card.tasks) == ["both/t_choice", "both/t_letter", "t_word"]
    single = suite_of(folder, group("t_choice"), group("t_letter"))
    other = Scorer(single, tokenizer, max_length_of(model.config, tokenizer))
    leaf = other.score(model, other.batch("test")).tasks
    assert card.tasks["both/t_letter"] == leaf["t_letter"]


def test_equal_weights_where_the_aggregation_says_so_or_is_none(folder: Path) -> None:
    for name in ("t_equal", "t_tagged", "t_shots"):
        assert set(suite_of(folder, group(name)).weights().values()) == {0.5}, name
    assert set(suite_of(folder, group("t_sized", metric="exact_match")).weights().values()) == {0.5}


def test_nested_groups_tags_and_groups_inside_a_group(folder: Path) -> None:
    suite = suite_of(folder, group("t_nested", chance={"t_choice": 0.3, "t_letter": 0.2, "t_word": 0, "t_heir": 0.1}))
    assert {task.lm_eval_task("test"): task.chance for task in suite.tasks} == {
        "t_choice": 0.3,
        "t_letter": 0.2,
        "t_word": 0.0,
        "t_heir": 0.1,
    }
    assert set(suite.weights().values()) == {0.25}
    # t_heir has the documents of another member, so they cannot both score
    harness = Harness(suite_of(folder, {"task": "t_nested", "report_only": True}, group("t_choice", name="own")))
    assert (
        harness._tasks["t_nested/t_heir", "t_heir"].task.config.doc_to_text == "{{question}}#"
    )  # overrides its include


def test_what_a_group_says_of_its_members_holds(folder: Path, tokenizer: Any, model: Any) -> None:
    suite = suite_of(folder, group("t_shots"), {"task": "t_choice", "name": "own", "report_only": True})
    harness = Harness(suite)
    shots = {key: loaded.task.config.num_fewshot for key, loaded in harness._tasks.items()}
    assert shots == {("t_shots/t_choice", "t_choice"): 3, ("t_shots/t_word", "t_word"): 0, ("own", "t_choice"): 0}
    assert harness._tasks["t_shots/t_word", "t_word"].task.config.target_delimiter == "="


def test_a_group_that_is_only_reported(folder: Path) -> None:
    suite = suite_of(folder, {"task": "t_sized", "report_only": True}, {"task": "t_word", "metric": "acc", "chance": 0})
    assert [(task.name, task.weight) for task in suite.tasks] == [
        ("t_sized/t_choice", 0.0),
        ("t_sized/t_letter", 0.0),
        ("t_word", 1.0),
    ]


def test_the_digest_follows_the_members(folder: Path) -> None:
    before = suite_of(folder, group("t_equal")).digest()
    assert suite_of(folder, group("t_equal")).digest() == before
    path = folder / "tasks" / "t_equal.yaml"
    text = path.read_text()
    path.write_text(text.replace("- t_letter", "- t_letter\n- t_word"))
    try:
        assert suite_of(folder, group("t_equal")).digest() != before
    finally:
        path.write_text(text)


def test_lm_evals_own_groups_and_tags_by_name() -> None:
    library = TaskLibrary([])
    mmlu = library.leaves("here", "mmlu")
    assert len(mmlu) == 57
    assert {"mmlu_anatomy", "mmlu_world_religions"} < set(mmlu)
    assert library.weights_by_size("here", "mmlu", "acc")
    assert library.leaves("here", "ai2_arc") == ["arc_challenge", "arc_easy"]  # a tag
    assert not library.weights_by_size("here", "ai2_arc", "acc")
    assert "hellaswag" in library.leaves("here", "openllm")  # members from other folders
    assert "mmlu_stem_tasks" in library_tags()


def test_names_are_resolved_without_lm_evals_index(folder: Path) -> None:
    names = TaskNames([folder / "tasks"])
    groups = ("t_sized", "t_tagged", "t_other", "mmlu", "ai2_arc")
    assert [name for name in groups if names.is_group(name)] == list(groups)
    assert not any(map(names.is_group, ("t_choice", "t_heir", "mmlu_anatomy", "arc_easy", "nope")))


WRONG: list[tuple[Data, str]] = [
    (group("t_sized", chance={"t_choice": 0.3}), "tasks[0].chance.t_letter: missing. List every leaf task"),
    (group("t_sized", chance={"t_chioce": 0.3}), "tasks[0].chance.t_chioce: not a leaf task of this group."),
    (group("t_sized", chance={"t_chioce": 0.3}), "Leaf tasks: t_choice, t_letter. Did you mean 't_choice'?"),
    (group("t_sized", chance={"t_choice": 1.3}), "tasks[0].chance.t_choice: should be at least 0 and less than 1"),
    (group("t_sized", metric="acc_nrom"), "tasks[0].metric: 't_choice' has no metric 'acc_nrom'."),
    (group("t_broken"), "tasks[0].task: the group 't_broken' refers to the unknown task 't_gone'."),
    (group("t_round"), "tasks[0].task: the group 't_round' contains itself."),
    (group("t_empty"), "tasks[0].task: the group 't_empty' has no tasks."),
]


@pytest.mark.parametrize(("task", "message"), WRONG)
def test_groups_that_cannot_be_used(task: Data, message: str, folder: Path) -> None:
    for name, members in {"t_broken": ["t_choice", "t_gone"], "t_round": ["t_round"], "t_empty": []}.items():
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({"group": name, "task": members}))
    with pytest.raises(SuiteError) as caught:
        Harness(suite_of(folder, task))
    assert str(caught.value).startswith(f"{folder / 's.yaml'}: tasks[0].")
    assert message in str(caught.value)


def test_a_key_is_named_as_the_file_has_it(folder: Path) -> None:
    suite = suite_of(folder, group("t_sized"), group("t_word", metric="perplexity"))
    assert suite.where("tasks", 2, "metric") == f"{folder / 's.yaml'}: tasks[1].metric"
    with pytest.raises(SuiteError, match=r"tasks\[1\].metric: 'perplexity' of 't_word' is not the mean"):
        Harness(suite)


def test_a_group_that_lost_a_member_on_another_node(folder: Path) -> None:
    suite = suite_of(folder, group("t_equal"))
    path = folder / "tasks" / "t_equal.yaml"
    text = path.read_text()
    path.write_text(text.replace("- t_letter\n", ""))
    try:
        with pytest.raises(SuiteError, match=r"tasks\[0\].task: the group 't_equal' no longer has a task 't_letter'"):
            Harness(suite)
    finally:
        path.write_text(text)
