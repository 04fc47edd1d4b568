"""Suite files, and their errors, which give the file and the key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import SuiteError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.library import library_files
from evosearch.evaluation.suites.suite import Suite, load_suite

Data = dict[str, Any]
Change = Callable[[Data], Any]


def save(data: Data, folder: Path) -> Path:
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def test_a_suite_is_the_same_from_plain_data(suite_file: Path) -> None:
    suite = load_suite(suite_file)
    again = Suite.model_validate(suite.model_dump())
    assert again == suite
    assert Suite.model_validate_json(suite.model_dump_json()) == suite
    assert Path(suite.include[0]).is_absolute()
    assert [task.name for task in suite.tasks] == ["choice", "letter", "t_word", "t_generate"]
    assert suite.weights() == pytest.approx({"choice": 0.2, "letter": 0.4, "t_word": 0.2, "t_generate": 0.2})
    assert [suite.count(suite.tasks[0], split) for split in ("search", "validation", "test")] == [6, 7, 9]


def test_the_digest_is_of_the_content_not_of_its_location(suite_data: Data, suite_file: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    digest = load_suite(suite_file).digest()
    assert load_suite(save(suite_data, tmp_path)).digest() == digest
    suite_data["split_seed"] = 4
    assert load_suite(save(suite_data, tmp_path)).digest() != digest


def test_counts_of_a_task_go_before_the_suites(suite_data: Data, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    suite_data["tasks"][1]["documents"] = {"test": 2}
    suite = load_suite(save(suite_data, tmp_path))
    assert [suite.count(suite.tasks[1], split) for split in ("search", "test")] == [6, 2]


MALFORMED: list[tuple[Change, str]] = [
    (lambda d: d.update(fitnes="score"), "fitnes: unknown key. Known keys here: num_fewshot, apply_chat_template, "),
    (lambda d: d["tasks"][1].update(metrik="acc"), "tasks[1].metrik: unknown key."),
    (lambda d: d["tasks"][0].pop("metric"), "tasks[0].metric: missing."),
    (lambda d: d["tasks"][0].update(chance=1.0), "tasks[0].chance: should be at least 0 and less than 1, got 1.0."),
    (
        lambda d: d["tasks"][0].update(weight=0),
        "tasks[0].weight: should be greater than 0, got 0. Set `report_only: true`",
    ),
    (lambda d: d["documents"].update(test=0), "documents.test: Input should be greater than or equal to 1, got 0"),
    (lambda d: d["documents"].pop("test"), "tasks[0].documents.test: missing for the task and for the suite."),
    (lambda d: d["tasks"][3].update(name="choice"), "tasks[3].name: 'choice' is also the name of tasks[0]."),
    (lambda d: d.update(tasks=[]), "tasks: Tuple should have at least 1 item"),
    (lambda d: d.update(include=["tasks", "nowhere"]), "include[1]: folder "),
    (lambda d: d.update(source="x"), "source: unknown key."),
    (
        lambda d: d.update(fitness="loss"),
        "fitness: got 'loss'. expected_score, score, gold_logprob, margin, or {teachers: …}",
    ),
]


@pytest.mark.parametrize(("change", "message"), MALFORMED)
def test_malformed_suites(change: Change, message: str, suite_data: Data, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    change(suite_data)
    path = save(suite_data, tmp_path)
    with pytest.raises(SuiteError) as caught:
        load_suite(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"no\.yaml: No such file or directory"):
        load_suite(tmp_path / "no.yaml")


UNFIT: list[tuple[Change, str]] = [
    (lambda d: d["tasks"][0].update(task="t_chioce"), "tasks[0].task: unknown task 't_chioce'. "),
    (lambda d: d["tasks"][0].update(task="t_chioce"), "Did you mean 't_choice'?"),
    (lambda d: d["tasks"][0].update(metric="ac"), "tasks[0].metric: 't_choice' has no metric 'ac'. "),
    (lambda d: d["tasks"][0].update(metric="ac"), "Item means of 't_choice': acc, acc_norm. Did you mean 'acc'?"),
    (lambda d: d["tasks"][2].update(metric="perplexity"), "tasks[2].metric: 'perplexity' of 't_word' is not the mean"),
    (lambda d: d["tasks"][3].update(filter="leter"), "Filters of 't_generate': whole, letter. Did you mean 'letter'?"),
    (
        lambda d: d["tasks"][1]["documents"].update(test=30),
        "tasks[1].documents.search: 6 requested, 3 left after 30 for test and 7 for validation of 40 documents.",
    ),
    (
        lambda d: d["tasks"][1]["documents"].update(test=41),
        "tasks[1].documents.test: 41 requested, 40 left of 40 documents.",
    ),
    (
        lambda d: d["tasks"][0].update(task={"search": "mmlu", "validation": "t_choice", "test": "t_choice"}, name="m"),
        "tasks[0].task: 'mmlu' is a group or tag of lm-eval, not a task.",
    ),
    (lambda d: d["tasks"][0].update(task="arc_easy_group_ai2"), "unknown task 'arc_easy_group_ai2'"),
]


@pytest.mark.parametrize(("change", "message"), UNFIT)
def test_suites_that_do_not_fit_their_tasks(
    change: Change, message: str, suite_data: Data, suite_file: Path, tmp_path: Path
) -> None:
    suite_data["include"] = [str(suite_file.parent / "tasks")]
    suite_data["tasks"][1]["documents"] = {}
    change(suite_data)
    path = save(suite_data, tmp_path)
    with pytest.raises(SuiteError) as caught:
        Harness(load_suite(path))
    assert str(caught.value).startswith(f"{path}: tasks[")
    assert message in str(caught.value)


UNFIT_TASKS: list[tuple[str, Change, str]] = [
    (
        "t_choice",
        lambda c: c.update(output_type="loglikelihood_rolling"),
        "measures perplexity, which is not an item mean",
    ),
    ("t_choice", lambda c: c.update(unsafe_code=True), "executes model-written code"),
    ("t_choice", lambda c: c.update(doc_to_text="{{question.x.y}}"), "lm-eval cannot load 't_choice': UndefinedError"),
    ("t_choice", lambda c: c["metric_list"][1].update(higher_is_better=False), "smaller values of 'acc_norm'"),
    ("t_choice", lambda c: c.update(custom_dataset=None, test_split="tset"), "KeyError: 'tset'"),
]


@pytest.mark.parametrize(("name", "change", "message"), UNFIT_TASKS)
def test_tasks_that_cannot_be_used(
    name: str, change: Change, message: str, suite_data: Data, task_configs: Data, tasks_writer: Any, tmp_path: Path
) -> None:
    change(task_configs[name])
    tasks_writer(tmp_path / "tasks", {name: task_configs[name]})
    suite_data["tasks"] = suite_data["tasks"][:1]
    with pytest.raises(SuiteError) as caught:
        Harness(load_suite(save(suite_data, tmp_path)))
    assert str(caught.value).startswith(f"{tmp_path / 's.yaml'}: tasks[0].")
    assert message in str(caught.value)


def test_a_missing_data_file(suite_data: Data, task_configs: Data, tasks_writer: Any, tmp_path: Path) -> None:
    folder = tasks_writer(tmp_path / "tasks", {"t_choice": task_configs["t_choice"]})
    (folder / "t_choice.jsonl").unlink()
    suite_data["tasks"] = suite_data["tasks"][:1]
    with pytest.raises(SuiteError) as caught:
        Harness(load_suite(save(suite_data, tmp_path)))
    where = f"{tmp_path / 's.yaml'}: tasks[0].task: data file t_choice.jsonl of 't_choice' not found."
    assert str(caught.value).startswith(where)


def test_an_include_folder_missing_on_another_node(suite_file: Path) -> None:
    suite = load_suite(suite_file).model_copy(update={"include": ("/nowhere/tasks",)})
    with pytest.raises(SuiteError, match=r"include\[0\]: folder /nowhere/tasks not found"):
        Harness(suite)


def test_shots_that_lm_eval_would_not_override(
    suite_data: Data, task_configs: Data, tasks_writer: Any, tmp_path: Path
) -> None:
    task_configs["t_choice"]["num_fewshot"] = 0
    tasks_writer(tmp_path / "tasks", {"t_choice": task_configs["t_choice"]})
    suite_data["tasks"] = [{**suite_data["tasks"][0], "num_fewshot": 2}]
    with pytest.raises(SuiteError, match=r"tasks\[0\].num_fewshot: 't_choice' fixes num_fewshot at 0"):
        Harness(load_suite(save(suite_data, tmp_path)))


def test_one_pool_or_a_task_for_each_split(suite_data: Data, suite_file: Path, tmp_path: Path) -> None:
    suite_data["include"] = [str(suite_file.parent / "tasks")]
    split = {"search": "t_choice", "validation": "t_choice", "test": "t_letter"}
    suite_data["tasks"] = [{"task": split, "metric": "acc", "chance": 0.3, "documents": {"test": 40}}]
    harness = Harness(load_suite(save(suite_data, tmp_path)))
    (search,), (validation,), (test,) = (harness.batch(name).sets for name in ("search", "validation", "test"))
    assert search.task == validation.task == test.task == "t_choice"  # named after the search split's task
    assert (search.lm_eval_task, test.lm_eval_task) == ("t_choice", "t_letter")
    assert not set(search.doc_ids) & set(validation.doc_ids)
    assert (len(search), len(validation), len(test)) == (6, 7, 40)
    assert harness.batch("search") is harness.batch("search")


def test_the_library_is_found_without_its_index() -> None:
    files = library_files()
    assert files["arc_easy"].name == "arc_easy.yaml"
    assert len(files) > 5000
