"""Sentence tasks in lm-eval: prompts and labels as in the experts' training, and errors for missing files."""

import shutil
from pathlib import Path

import pytest
import yaml

from examples.smollm2.documents import TASKS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def suite_folder(tmp_path):
    """Copy of the committed task files, without documents."""
    source = ROOT / "evals" / "sentences"
    folder = tmp_path / "evals" / "sentences"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    return folder


def load_tasks(folder, names):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return manager.load([f"sentences_{name}" for name in names])["tasks"]


def test_tasks_have_the_prompts_and_labels_of_the_training(suite_folder, write_data, tmp_path, monkeypatch):
    write_data(suite_folder / "data", documents=7)
    monkeypatch.chdir(tmp_path)
    tasks = load_tasks(suite_folder, TASKS)
    for name, trained in TASKS.items():
        prompt, labels = trained.prompt, trained.labels
        task = tasks[f"sentences_{name}"]
        assert len(task.eval_docs) == 7
        assert len(list(task.fewshot_docs())) == 7
        task.build_all_requests(rank=0, world_size=1)
        for doc_id in range(7):
            requests = [instance for instance in task.instances if instance.doc_id == doc_id]
            text = f"heldout {doc_id} of {name} , naïve"
            assert [instance.args for instance in requests] == [(prompt.format(text=text), label) for label in labels]
            right = doc_id % len(labels)
            results = [(-1.0 if index == right else -2.0, False) for index in range(len(labels))]
            assert task.process_results(requests[0].doc, results)["acc"] == 1.0


def test_a_task_without_its_data_names_the_command(suite_folder):
    with pytest.raises(FileNotFoundError, match=r"data/sst2_heldout.jsonl: .*examples.smollm2.prepare"):
        load_tasks(suite_folder, ["sst2"])


def test_a_damaged_data_file_is_named_with_its_line(suite_folder, write_data):
    path = write_data(suite_folder / "data") / "trec_heldout.jsonl"
    path.write_text('{"text": "Who ?", "label": 3}\n{"text": "Wha', encoding="utf-8")
    with pytest.raises(ValueError, match=r"trec_heldout.jsonl: line 2: not .*examples.smollm2.prepare"):
        load_tasks(suite_folder, ["trec"])


def test_the_suite_lists_the_tasks_with_their_chance_levels():
    suite = yaml.safe_load((ROOT / "evals" / "sentences.yaml").read_text(encoding="utf-8"))
    files = [yaml.safe_load(_plain(path)) for path in sorted((ROOT / "evals" / "sentences").glob("*.yaml"))]
    choices = {task["task"]: len(task["doc_to_choice"]) for task in files}
    assert {task["task"]: task["chance"] for task in suite["tasks"]} == pytest.approx(
        {name: 1 / count for name, count in choices.items()}
    )
    assert {task["name"]: choices[task["task"]] for task in suite["tasks"]} == {
        name: len(task.labels) for name, task in TASKS.items()
    }
    assert (ROOT / "evals" / suite["include"][0]).is_dir()


def _plain(path):
    return path.read_text(encoding="utf-8").replace("!function ", "")
