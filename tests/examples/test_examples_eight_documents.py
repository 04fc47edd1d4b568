"""Documents of the eight experts: read from wheels that are not installed, split, written and served to lm-eval."""

import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from evosearch.errors import CheckpointError, SuiteError
from examples.eight_experts import documents, sources
from examples.eight_experts.tasks import LANGUAGES, TASKS

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "evals" / "eight"
GENERATOR = """
from dataclasses import dataclass
from ..shared import WORDS

@dataclass
class NumberSortingConfig:
    seed: int
    size: int
    min_numbers: int
    max_numbers: int
    min_decimals: int
    max_decimals: int
    min_value: int
    max_value: int

class NumberSortingDataset:
    def __init__(self, config):
        self.config = config

    def __getitem__(self, index):
        numbers = [str(float(index * factor % 100)) for factor in (1, 7, 3, 9)][: self.config.max_numbers]
        direction = "descending" if index % 2 else "ascending"
        return {"question": WORDS[0], "answer": "", "metadata": {"direction": direction, "original_numbers": numbers}}
"""


@pytest.fixture
def wheels(tmp_path):
    """Wheels with the layout of the two packages; an `__init__` that imports every generator fails."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "evals-3.0.1.post1-py3-none-any.whl", "w") as archive:
        samples = [
            {"input": [{"content": "Is it?"}, {"content": f" headline {index} "}], "ideal": str(index % 2)}
            for index in range(4)
        ]
        lines = "".join(json.dumps(sample) + "\n\n" for sample in samples)
        archive.writestr("evals/registry/data/sarcasm/samples.jsonl", lines)
    with zipfile.ZipFile(folder / "reasoning_gym-0.1.25-py3-none-any.whl", "w") as archive:
        for package in ("reasoning_gym", "reasoning_gym/algorithmic"):
            archive.writestr(f"{package}/__init__.py", "raise ImportError('needs other packages')")
        archive.writestr("reasoning_gym/shared.py", "WORDS = ['sort these']")
        archive.writestr("reasoning_gym/algorithmic/number_sorting.py", GENERATOR)
    return folder


def test_both_wheels_are_read_and_nothing_stays_imported(wheels):
    with sources.open_sources(wheels) as found:
        assert list(TASKS["sarcasm"].asked(found)) == [
            (f"Headline: headline {index}", "yes" if index % 2 else "no") for index in range(4)
        ]
        ranked = TASKS["rank"].asked(found)
        assert [next(ranked) for _ in range(2)][1] == ("Rank: 3, 21, 9, 27", "27, 21, 9, 3")
        ranked.close()
    assert not [name for name in sys.modules if name.startswith("reasoning_gym")]


def test_a_missing_wheel_is_named_with_the_command_that_downloads_it(wheels):
    (wheels / "reasoning_gym-0.1.25-py3-none-any.whl").unlink()
    with (
        pytest.raises(CheckpointError, match=r"no wheel of reasoning-gym==0.1.25\. .*pip download --no-deps"),
        sources.open_sources(wheels),
    ):
        pytest.fail("opened")


class MadeUp:
    """Sources with two rows of each set and made-up questions of each generator."""

    def rows(self, name):
        language = name.removesuffix("-lexicon")
        if language in LANGUAGES:
            return iter([*((f"{language[:3]}{index}", "Y") for index in range(1300)), ("shared", "Y"), ("none", "N")])
        return iter([("a headline", "1")])

    def questions(self, module, name, **settings):
        made = {
            "WordSequenceReversal": {"answer": "d, c, b, a", "metadata": {"words": ["a", "b", "c", "d"]}},
            "NumberSorting": [
                {"metadata": {"direction": "descending", "original_numbers": ["3.0", "85", "12", "3"]}},
                {"metadata": {"direction": "ascending", "original_numbers": ["7", "85", "12", "3"]}},
            ],
            "ChainSum": {"answer": "-48", "metadata": {"expression": "51 - 99"}},
            "FamilyRelationships": {
                "question": "Jo is married to Al.\n\nWhat relation is Jo to Al? Answer with one word.",
                "answer": "wife",
                "metadata": {"person1": "Jo", "person2": "Al"},
            },
            "Syllogism": {
                "question": "Consider:\n1. All dogs are bees\n2. No bees are cats\n\nDoes it follow?",
                "answer": "Yes",
                "metadata": {"conclusion": "No dogs are cats"},
            },
        }[name]
        return iter(made if isinstance(made, list) else [made])


def test_each_task_asks_in_its_own_words_and_has_the_right_answer(monkeypatch):
    first = {name: next(iter(task.asked(MadeUp()))) for name, task in TASKS.items()}
    language = first.pop("language")
    assert first == {
        "reverse": ("Reverse: a, b, c, d", "d, c, b, a"),
        "sort": ("Sort: 7, 85, 12, 3", "3, 7, 12, 85"),
        "rank": ("Rank: 3, 85, 12, 3", "85, 12, 3, 3"),
        "compute": ("Compute: 51 - 99", "-48"),
        "family": ("Family: Jo is married to Al.\nWhat is Jo to Al?", "wife"),
        "sarcasm": ("Headline: a headline", "yes"),
        "syllogism": ("Premises: All dogs are bees. No bees are cats.\nConclusion: No dogs are cats.", "yes"),
    }
    assert language[1] in TASKS["language"].choices
    every = dict(TASKS["language"].asked(MadeUp()))
    assert not {"Word: shared", "Word: none"} & set(every), "a word of several languages, or of none"
    assert set(every.values()) == set(LANGUAGES.values())


def test_a_written_answer_ends_with_its_line():
    assert TASKS["sort"].pair("Sort: 2, 1", "1, 2") == ("Sort: 2, 1\nAnswer:", " 1, 2\n")
    assert TASKS["sarcasm"].pair("Headline: x", "no") == ("Headline: x\nAnswer:", " no")


def test_held_out_and_training_questions_are_disjoint_and_contradictions_are_dropped(monkeypatch):
    monkeypatch.setattr(documents, "SIZES", {"heldout": 20, "train": 50})
    asked = [(f"question {index % 80}", str(index % 80)) for index in range(160)]
    found = documents.split([*asked, ("question 3", "another answer")])
    heldout, train = ({question for question, _ in found[kind]} for kind in ("heldout", "train"))
    assert (len(heldout), len(train)) == (20, 50)
    assert not heldout & train
    assert "question 3" not in heldout | train
    assert found == documents.split([*reversed(asked), ("question 3", "another answer")])


def test_documents_are_written_once(monkeypatch, tmp_path, wheels):
    def opened(wheels):
        raise AssertionError("the files exist")

    class Opened:
        def __enter__(self):
            return MadeUp()

        def __exit__(self, *_):
            return None

    folders = {"heldout": tmp_path / "suite", "train": tmp_path / "train"}
    monkeypatch.setattr(documents, "open_sources", lambda wheels: Opened())
    monkeypatch.setattr(documents, "SIZES", {"heldout": 1, "train": 50})
    counts = documents.make_documents(wheels, folders)
    assert counts["language_train.jsonl"] == 50
    assert sorted(path.name for path in folders["heldout"].iterdir()) == sorted(
        f"{name}_heldout.jsonl" for name in TASKS
    )
    for name in ("reverse", "sort"):  # one document each, which is held out
        (folders["train"] / f"{name}_train.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    monkeypatch.setattr(documents, "open_sources", opened)
    assert documents.make_documents(wheels, {"heldout": folders["heldout"]})["sort_heldout.jsonl"] == 1
    assert documents.read_lines(folders["heldout"] / "sort_heldout.jsonl", "sort") == [
        ("Sort: 7, 85, 12, 3", "3, 7, 12, 85")
    ]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "sarcasm_train.jsonl"
    path.write_text('{"question": "Headline: a", "answer": "yes"}\n{"question": "Head')
    with pytest.raises(SuiteError, match=r"sarcasm_train.jsonl: line 2: not a document"):
        documents.read_lines(path, "sarcasm")
    path.write_text('{"question": "Headline: a", "answer": "maybe"}\n')
    with pytest.raises(SuiteError, match=r"line 1: answer 'maybe'\. .*no, yes"):
        documents.read_lines(path, "sarcasm")
    with pytest.raises(SuiteError, match=r"absent.jsonl: file not found"):
        documents.read_lines(tmp_path / "absent.jsonl", "sarcasm")


# ---- the suite


@pytest.fixture
def suite_folder(tmp_path):
    """Copy of the committed task files, with documents of every task."""
    folder = tmp_path / "evals" / "eight"
    shutil.copytree(SUITE, folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    (folder / "data").mkdir()
    for name, task in TASKS.items():
        answers = task.choices or ("b, a", "3")
        asked = [(f"{name} {index}", answers[index % len(answers)]) for index in range(6)]
        (folder / "data" / f"{name}_heldout.jsonl").write_text(documents.as_lines(asked))
    return folder


def load_tasks(folder, names):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return manager.load([f"eight_{name}" for name in names])["tasks"]


def test_tasks_have_the_prompts_and_answers_of_the_training(suite_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = load_tasks(suite_folder, TASKS)
    for name, trained in TASKS.items():
        task = found[f"eight_{name}"]
        task.build_all_requests(rank=0, world_size=1)
        lines = documents.read_lines(suite_folder / "data" / f"{name}_heldout.jsonl", name)
        for doc_id, (question, answer) in enumerate(lines):
            prompt, right = trained.pair(question, answer)
            requests = [instance for instance in task.instances if instance.doc_id == doc_id]
            if trained.choices:
                assert [one.args for one in requests] == [(prompt, f" {choice}") for choice in trained.choices]
                results = [(-1.0 if f" {choice}" == right else -2.0, False) for choice in trained.choices]
                assert task.process_results(requests[0].doc, results)["acc"] == 1.0
            else:
                assert requests[0].args[0] == prompt
                assert requests[0].args[1]["until"] == ["\n"]
                assert right.endswith("\n")
                for instance in task.instances:
                    instance.resps = [right.removesuffix("\n")]
                task.apply_filters()
                metrics = task.process_results(requests[0].doc, [requests[0].filtered_resps["strip"]])
                assert metrics["exact_match"] == 1.0


def test_a_task_without_its_data_names_the_command(suite_folder):
    (suite_folder / "data" / "sort_heldout.jsonl").write_text('{"question": "Sort: b, a"')
    with pytest.raises(ValueError, match=r"sort_heldout.jsonl: line 1: not .*examples.eight_experts.prepare"):
        load_tasks(suite_folder, ["sort"])
    (suite_folder / "data" / "sort_heldout.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"sort_heldout.jsonl: .*examples.eight_experts.prepare"):
        load_tasks(suite_folder, ["sort"])


def test_the_suite_and_the_recipe_list_every_task():
    suite = yaml.safe_load((ROOT / "evals" / "eight.yaml").read_text(encoding="utf-8"))
    assert {task["name"]: task["chance"] for task in suite["tasks"]} == {
        name: 1 / len(task.choices) if task.choices else 0.0 for name, task in TASKS.items()
    }
    assert [task["task"] for task in suite["tasks"]] == [f"eight_{name}" for name in TASKS]
    recipe = yaml.safe_load((ROOT / "recipes" / "eight_experts.yaml").read_text(encoding="utf-8"))["recipe"]
    assert [Path(model["model"].split("+")[1]).name for model in recipe["models"]] == list(TASKS)
