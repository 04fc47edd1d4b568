"""Sources of documents: public test documents are an error, and no document is its own few-shot example."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from evosearch.errors import SuiteError
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.suites.library import library_files
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.evaluation.types import SPLITS, ItemBatch, ItemSet

Data = dict[str, Any]
CONTEXT = 200
ARC: Data = {"task": "arc_easy", "metric": "acc", "chance": 0.25}
TRAIN: Data = {"documents_from": {"search": "train", "validation": "validation"}}


def rows(split: str, count: int) -> list[Data]:
    letters = "abcdefghijklmnopqrst"
    return [
        {
            "id": f"{split}-{i}",
            "question": f"{split} {letters[i % 20]}{letters[i // 20]} is",
            "choices": {"text": [f"{letters[(i + k) % 20]}{k}" for k in range(4)], "label": ["A", "B", "C", "D"]},
            "answerKey": "ABCD"[i % 4],
        }
        for i in range(count)
    ]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data of lm-eval's `arc_easy` as on the hub, in place of a download."""
    data = {split: rows(split, count) for split, count in {"train": 30, "validation": 12, "test": 20}.items()}
    made = datasets.DatasetDict({split: datasets.Dataset.from_list(found) for split, found in data.items()})
    asked: list[str] = []

    def load(path: str, name: str | None = None, **_: Any) -> datasets.DatasetDict:
        asked.append(f"{path} {name}")
        assert (path, name) == ("allenai/ai2_arc", "ARC-Easy")
        return made

    monkeypatch.setattr(datasets, "load_dataset", load)


def suite_of(folder: Path, *tasks: Data, **options: Any) -> Suite:
    path = folder / "s.yaml"
    data = {"name": "s", "tasks": list(tasks), "documents": {"search": 8, "validation": 6, "test": 5}, **options}
    path.write_text(yaml.safe_dump(data))
    return load_suite(path)


def sets(harness: Harness) -> dict[str, ItemSet]:
    return {split: harness.batch(split).sets[0] for split in SPLITS}


@pytest.mark.usefixtures("hub")
def test_tuning_on_the_test_documents_of_a_public_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        Harness(suite_of(tmp_path, ARC))
    assert str(caught.value) == (
        f"{tmp_path / 's.yaml'}: tasks[0].task: the search split would draw from the test documents of 'arc_easy', a "
        "public benchmark (allenai/ai2_arc): the search would tune on the benchmark's evaluation data. "
        "Set `documents_from: {search: train, validation: validation}`, or a separate task for each split with `task: "
        "{search: …, validation: …, test: …}`, or `acknowledge_contamination: true` to proceed and report it."
    )


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("sources", "key", "split"),
    [
        ({"search": "train"}, "task", "validation"),
        ({"validation": "validation"}, "task", "search"),
        ({"search": "train", "validation": "test"}, "documents_from.validation", "validation"),
    ],
)
def test_both_splits_that_tune_are_checked(sources: Data, key: str, split: str, tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        Harness(suite_of(tmp_path, {**ARC, "documents_from": sources}))
    said = f"{tmp_path / 's.yaml'}: tasks[0].{key}: the {split} split would draw from the test documents"
    assert str(caught.value).startswith(said)


@pytest.mark.usefixtures("hub")
def test_it_can_be_acknowledged(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, ARC, acknowledge_contamination=True)
    assert suite.acknowledge_contamination
    found = sets(Harness(suite))
    assert {items.documents for items in found.values()} == {""}
    assert suite.digest() != suite_of(tmp_path, ARC).digest()
    assert Suite.model_validate(suite.model_dump()) == suite


@pytest.mark.usefixtures("hub")
def test_what_is_only_reported_tunes_nothing_and_what_is_guarded_does(tmp_path: Path) -> None:
    clean = {**ARC, "name": "clean", **TRAIN}
    reported = {"task": "arc_easy", "report_only": True, "metric": "acc"}
    Harness(suite_of(tmp_path, clean, reported))
    guards = [{"task": "arc_easy", "max_drop": 1.0}]
    with pytest.raises(
        SuiteError, match=r"tasks\[1\].task: the search split would draw from the test documents of 'arc_easy'"
    ):
        Harness(suite_of(tmp_path, clean, reported, guards=guards))


@pytest.mark.usefixtures("hub")
def test_a_users_own_task_of_the_same_data_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    config = {
        "task": "my_arc",
        "dataset_path": "allenai/ai2_arc",
        "dataset_name": "ARC-Easy",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices.text}}",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
    }
    (tmp_path / "own" / "my_arc.yaml").write_text(yaml.safe_dump(config))
    counts = {"search": 3, "validation": 3, "test": 3}
    with pytest.raises(SuiteError) as caught:
        Harness(suite_of(tmp_path, {**ARC, "task": "my_arc"}, include=["own"], documents=counts))
    said = "the test documents of 'my_arc', a public benchmark (allenai/ai2_arc): the search would tune"
    assert said in str(caught.value)
    own = {**ARC, "task": "my_arc"}
    Harness(suite_of(tmp_path, own, include=["own"], documents=counts, acknowledge_contamination=True))


@pytest.mark.usefixtures("hub")
def test_documents_of_each_split_of_the_task(tmp_path: Path) -> None:
    harness = Harness(suite_of(tmp_path, {**ARC, **TRAIN}))
    found = sets(harness)
    assert {split: items.documents for split, items in found.items()} == {
        "search": "train",
        "validation": "validation",
        "test": "",  # evaluated by lm-eval: doc ids as in `--samples`
    }
    for split, source in (("search", "train"), ("validation", "validation"), ("test", "test")):
        items, given = found[split], rows(source, 30)
        loaded = harness._tasks["arc_easy", items.lm_eval_task + (f"[{items.documents}]" if items.documents else "")]
        assert [loaded.documents[i]["id"] for i in items.doc_ids] == [given[i]["id"] for i in items.doc_ids]
    explicit = {**ARC, "documents_from": {**TRAIN["documents_from"], "test": "test"}}
    assert sets(Harness(suite_of(tmp_path, explicit))) == found  # the test documents, explicit or not
    both = {**ARC, "documents_from": {"search": "train", "validation": "train"}}
    halves = sets(Harness(suite_of(tmp_path, both)))
    assert not set(halves["search"].doc_ids) & set(halves["validation"].doc_ids)


def test_each_key_is_part_of_the_digest(suite_file: Path, tmp_path: Path) -> None:
    include = [str(suite_file.parent / "tasks")]
    task = {"task": "t_choice", "metric": "acc", "chance": 0.3}
    own: list[Data] = [{}, {"group_by": "gold"}, {"language": "ja"}]
    own += [{"documents_from": {split: "train"}} for split in SPLITS]
    scored = {"include": include, "fitness": "score"}  # required by a language
    digests = [suite_of(tmp_path, {**task, **keys}, **scored).digest() for keys in own]
    digests.append(suite_of(tmp_path, task, **scored, acknowledge_contamination=True).digest())
    digests += [suite_of(tmp_path, task, **scored, near_duplicates=threshold).digest() for threshold in (False, 0.9)]
    assert len(set(digests)) == len(digests)
    unset = {"near_duplicates": 0.8, "acknowledge_contamination": False}
    assert suite_of(tmp_path, task, **scored, **unset).digest() == digests[0]


def test_documents_that_a_task_has_not(suite_file: Path, tmp_path: Path) -> None:
    own = {"task": "t_choice", "metric": "acc", "chance": 0.3, "documents_from": {"search": "train"}}
    with pytest.raises(SuiteError) as caught:
        Harness(suite_of(tmp_path, own, include=[str(suite_file.parent / "tasks")]))
    assert str(caught.value) == (
        f"{tmp_path / 's.yaml'}: tasks[0].documents_from.search: 't_choice' has no training documents. Available: test."
    )
    with pytest.raises(SuiteError, match=r"documents_from.search: .*'train', 'validation' or 'test', got 'dev'"):
        suite_of(tmp_path, {**own, "documents_from": {"search": "dev"}}, include=[str(suite_file.parent / "tasks")])


@pytest.mark.usefixtures("hub")
def test_training_documents_are_scored_as_lm_eval_would(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    """lm-eval's own task with exchanged splits is the oracle: the same prompts and metrics."""
    suite = suite_of(tmp_path, {**ARC, **TRAIN})
    scorer = Scorer(suite, tokenizer, max_length_of(model.config, tokenizer))
    batch = scorer.batch("search")
    card = scorer.score(model, batch)
    assert card.tasks["arc_easy"].n == 8
    own = {"include": "arc_easy.yaml", "task": "arc_train", "test_split": "train", "training_split": None, "tag": None}
    (tmp_path / "own").mkdir()
    arc = library_files()["arc_easy"]
    (tmp_path / "own" / "arc_train.yaml").write_text(yaml.safe_dump({**own, "include": str(arc)}))
    counts = {"search": 8, "validation": 1, "test": 1}
    task = {**ARC, "task": "arc_train", "name": "arc_easy"}
    swapped = suite_of(tmp_path, task, include=["own"], documents=counts, acknowledge_contamination=True)
    other = Scorer(swapped, tokenizer, max_length_of(model.config, tokenizer))
    (items,) = batch.sets
    same = ItemBatch("search", (replace(items, lm_eval_task="arc_train", documents=""),))
    expected = other.score(model, same)
    for name, column in expected.columns["arc_easy"].items():
        assert card.columns["arc_easy"][name].tolist() == column.tolist()


# --- few-shot examples ---


def write_task(folder: Path, **config: Any) -> Path:
    """Write a task whose examples come from the training documents."""
    folder.mkdir(exist_ok=True)
    for split, count in {"train": 12, "test": 6}.items():
        lines = [{"question": f"{split[:2]}{i}", "answer": f"{'abcdefghijkl'[i]}"} for i in range(count)]
        if split == "train":
            lines.append({**lines[3], "answer": "z"})  # the question of another document with another answer
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {
        "task": "t_shots",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"train": "train.jsonl", "test": "test.jsonl"},
            "cache_dir": str(folder / "cache"),
        },
        "training_split": "train",
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}=",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "fewshot_delimiter": "\n",
        "num_fewshot": 11,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 2, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "t_shots.yaml").write_text(yaml.safe_dump(data | config))
    return folder


def prompts(folder: Path, tokenizer: Any, config: Data, shots: int) -> dict[str, list[tuple[str, str]]]:
    """Split → (question, prompt) of each of its items."""
    write_task(folder / "own", **config)
    task = {
        "task": "t_shots",
        "metric": "exact_match",
        "chance": 0.0,
        "documents_from": {"search": "train"},
        "num_fewshot": shots,
    }
    counts = {"search": 10, "validation": 2, "test": 2}
    harness = Harness(suite_of(folder, task, include=["own"], documents=counts))
    found = {}
    for split in ("search", "test"):
        frozen = harness.freeze(harness.batch(split), tokenizer, CONTEXT)
        (judge,) = frozen.tasks
        found[split] = [(one.document["question"], one.instances[0].args[0]) for one in judge.documents]
    return found


@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_a_document_is_never_its_own_example(sampler: str, tmp_path: Path, tokenizer: Any) -> None:
    """Eleven of thirteen training documents are shown, so by chance a document would almost always see itself."""
    found = prompts(tmp_path, tokenizer, {"fewshot_config": {"sampler": sampler}}, shots=11)
    for question, prompt in found["search"]:
        shown = [line.split("=")[0] for line in prompt.split("\n")]
        assert shown[-1] == question
        assert len(shown) == 12
        assert question not in shown[:-1]  # neither copy of tr3, although one has another answer
    assert all(prompt.count("tr") == 11 for _, prompt in found["test"])  # exactly lm-eval's


def test_each_document_draws_its_examples_with_its_own_seed(tmp_path: Path, tokenizer: Any) -> None:
    """Both documents draw from the same thirteen examples, so only their seeds make the draws differ."""
    found = prompts(tmp_path, tokenizer, {"fewshot_config": {"sampler": "default"}}, shots=3)
    drawn = {question: [line.split("=")[0] for line in prompt.split("\n")[:-1]] for question, prompt in found["test"]}
    assert drawn == {"te0": ["tr2", "tr10", "tr3"], "te1": ["tr2", "tr7", "tr3"]}


def test_examples_that_are_processed_differently_are_found_by_position(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "own").mkdir()
    code = "def short(docs):\n    return docs.map(lambda d: {'question': d['question'] + '-', 'answer': 'x'})\n"
    (tmp_path / "own" / "code.py").write_text(code)
    write_task(tmp_path / "own", fewshot_config={"sampler": "first_n", "split": "train", "process_docs": "@"})
    file = tmp_path / "own" / "t_shots.yaml"
    text = file.read_text().replace("process_docs: '@'", "process_docs: !function code.short")
    file.write_text(text)
    task = {"task": "t_shots", "metric": "exact_match", "chance": 0.0, "documents_from": {"search": "train"}}
    counts = {"search": 10, "validation": 2, "test": 2}
    harness = Harness(suite_of(tmp_path, {**task, "num_fewshot": 11}, include=["own"], documents=counts))
    frozen = harness.freeze(harness.batch("search"), tokenizer, CONTEXT)
    for one in frozen.tasks[0].documents:
        assert f"{one.document['question']}-=" not in one.instances[0].args[0]
        assert one.instances[0].args[0].count("-=") == 11


def shared_pool(folder: Path, counts: Data, shots: int) -> Harness:
    """A task without `documents_from` whose examples are the documents that lm-eval evaluates."""
    write_task(folder / "own", training_split=None, fewshot_split=None, num_fewshot=shots)
    lines = "".join(json.dumps({"question": f"te{i}q", "answer": "a"}) + "\n" for i in range(20))
    (folder / "own" / "test.jsonl").write_text(lines)
    task = {"task": "t_shots", "metric": "exact_match", "chance": 0.0}
    return Harness(suite_of(folder, task, include=["own"], documents=counts, near_duplicates=False))


def test_examples_are_of_no_other_split_and_never_the_document(tmp_path: Path, tokenizer: Any) -> None:
    harness = shared_pool(tmp_path, {"search": 8, "validation": 4, "test": 4}, shots=3)
    questions = {s: {f"te{i}q" for i in items.doc_ids} for s, items in sets(harness).items()}
    for split in SPLITS:
        (judge,) = harness.freeze(harness.batch(split), tokenizer, CONTEXT).tasks
        for one in judge.documents:
            *shown, last = [line.split("=")[0] for line in one.instances[0].args[0].split("\n")]
            assert last == one.document["question"]
            assert len(shown) == 3
            assert last not in shown
            assert not set(shown) & set().union(*(questions[other] for other in SPLITS if other != split))


def test_too_few_examples_are_left(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        shared_pool(tmp_path, {"search": 10, "validation": 6, "test": 4}, shots=5)
    said = "tasks[0].task: 't_shots' shows 5 few-shot examples, but only 3 of 20 are left for a document of the test"
    assert said in str(caught.value)
    assert "Set `fewshot_split` in the task's YAML" in str(caught.value)


def test_tasks_that_score_share_no_documents(suite_file: Path, tmp_path: Path) -> None:
    include = [str(suite_file.parent / "tasks")]
    one = {"task": "t_choice", "metric": "acc", "chance": 0.3}
    with pytest.raises(SuiteError) as caught:
        Harness(suite_of(tmp_path, one, {**one, "name": "again"}, include=include))
    said = "tasks[1]: 'again' and 't_choice' (tasks[0]) both score and share 5 documents or groups of the test split"
    assert said in str(caught.value)
    Harness(suite_of(tmp_path, one, {**one, "name": "again", "report_only": True, "chance": 0.0}, include=include))


def test_generation_kwargs_of_a_suite_that_generates_nothing(suite_file: Path, tmp_path: Path) -> None:
    one = {"task": "t_choice", "metric": "acc", "chance": 0.3}
    include = [str(suite_file.parent / "tasks")]
    with pytest.raises(SuiteError, match="generation_kwargs: no task of this suite generates text"):
        Harness(suite_of(tmp_path, one, include=include, generation_kwargs={"max_gen_toks": 5}))


def test_a_language_needs_the_fitness_that_knows_of_it(suite_file: Path, tmp_path: Path) -> None:
    one = {"task": "t_generate", "metric": "exact_match", "filter": "letter", "chance": 0.0, "language": "ja"}
    with pytest.raises(SuiteError, match=r"tasks\[0\].language: 'ja' requires `fitness: score`"):
        suite_of(tmp_path, one, include=[str(suite_file.parent / "tasks")], fitness="gold_logprob")
