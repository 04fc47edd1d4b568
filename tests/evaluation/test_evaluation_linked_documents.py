"""Near-duplicates and groups in a suite: their splits, item groups and digests."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import SuiteError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.linked_documents import LinkedDocuments, scopes
from evosearch.evaluation.suites.splits import Selection
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.evaluation.types import SPLITS, ItemBatch, ItemSet
from evosearch.search.ledger.ledger import Ledger
from evosearch.setup.resume_check import _difference

Data = dict[str, Any]
MEAN = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
REPORTED: Data = {"report_only": True, "chance": 0.0}  # two scoring tasks must not share documents
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "last")


def text(index: int) -> str:
    """A text of thirty words that shares almost none with other texts."""
    return " ".join(f"{NUMBERS[(index * 7 + k) % 13]}{index}x{k}" for k in range(30))


def write_task(folder: Path, name: str, documents: list[Data], **config: Any) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    data = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}?",
        "doc_to_choice": ["a", "b"],
        "doc_to_target": 0,
        "metric_list": [MEAN],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(data | config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain`: 40 texts. `twins`: the same with a changed copy of each. `passages`: 12 passages of five questions."""
    made = tmp_path_factory.mktemp("linked")
    tasks = made / "tasks"
    tasks.mkdir()
    write_task(tasks, "plain", [{"text": text(i)} for i in range(40)])
    twins = [{"text": text(i) + " indeed" * k} for k in range(2) for i in range(40)]
    write_task(tasks, "twins", twins)
    passages = [
        {"text": text(100 + i), "passage": f"p{i % 12}", "at": {"page": i % 12 // 2}, "none": "" if i == 7 else "x"}
        for i in range(60)
    ]
    write_task(tasks, "passages", passages)
    return made


def suite_of(folder: Path, *tasks: Data, **options: Any) -> Suite:
    counts = {"search": 10, "validation": 10, "test": 10}
    entries = [{"metric": "acc", "chance": 0.5, **task} for task in tasks]
    data = {"name": "s", "include": ["tasks"], "tasks": entries, "documents": counts, **options}
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(data))
    return load_suite(path)


def sets(harness: Harness, task: str) -> dict[str, ItemSet]:
    return {split: next(s for s in harness.batch(split).sets if s.task == task) for split in SPLITS}


def origins(items: ItemSet) -> list[int]:
    return [doc_id % 40 for doc_id in items.doc_ids]


def test_near_duplicates_stay_in_one_split_and_are_groups_there(folder: Path) -> None:
    found = sets(Harness(suite_of(folder, {"task": "twins"})), "twins")
    where = {split: set(origins(items)) for split, items in found.items()}
    assert not where["test"] & where["validation"]
    assert not (where["test"] | where["validation"]) & where["search"]
    assert any(len(set(origins(items))) < 10 for items in found.values())
    for items in found.values():
        if len(set(origins(items))) == 10:
            assert items.groups == ()
            continue
        assert len(set(zip(origins(items), items.groups, strict=True))) == len(set(items.groups))
        assert len(set(items.groups)) == len(set(origins(items)))


def test_without_the_check_the_splits_are_by_hash_alone(folder: Path) -> None:
    suite = suite_of(folder, {"task": "twins"}, near_duplicates=False)
    found = sets(Harness(suite), "twins")
    assert set(origins(found["test"])) & {*origins(found["validation"]), *origins(found["search"])}
    assert all(items.groups == () for items in found.values())
    kept = sets(Harness(suite_of(folder, {"task": "twins"})), "twins")
    assert kept["test"].doc_ids == found["test"].doc_ids  # the first split to choose skips nothing
    assert suite.digest() != suite_of(folder, {"task": "twins"}).digest()
    assert kept["search"].digest != found["search"].digest


def test_without_near_duplicates_the_check_changes_nothing(folder: Path) -> None:
    with_check = Harness(suite_of(folder, {"task": "plain"}))
    without = Harness(suite_of(folder, {"task": "plain"}, near_duplicates=False))
    assert [with_check.batch(split).digest for split in SPLITS] == [without.batch(split).digest for split in SPLITS]


def test_the_splits_of_the_quickstart_are_those_of_its_figures() -> None:
    """The figures in README depend on these documents."""
    harness = Harness(load_suite(Path(__file__).parents[2] / "evals" / "quickstart.yaml"))
    assert {split: harness.batch(split).documents_digest[:16] for split in SPLITS} == QUICKSTART


QUICKSTART = {"search": "423ca7e41573df6b", "validation": "13f76f484a50191d", "test": "6e4c851b8057578d"}


def test_tasks_of_a_suite_are_compared_with_one_another(folder: Path) -> None:
    """`plain` and `twins` contain the same texts: one must not be searched on the other's test documents."""
    both = Harness(suite_of(folder, {"task": "plain"}, {"task": "twins", **REPORTED}))
    plain, twins = sets(both, "plain"), sets(both, "twins")
    tested = set(origins(plain["test"])) | set(origins(twins["test"]))
    validated = set(origins(plain["validation"])) | set(origins(twins["validation"]))
    searched = set(origins(plain["search"])) | set(origins(twins["search"]))
    assert not tested & validated
    assert not (tested | validated) & searched
    split = {"search": "plain", "validation": "plain", "test": "twins"}
    apart = sets(Harness(suite_of(folder, {"task": split, "name": "both"})), "both")
    assert not set(origins(apart["test"])) & (set(origins(apart["search"])) | set(origins(apart["validation"])))


def test_what_asks_the_question_is_compared(tmp_path: Path) -> None:
    """Documents are near-duplicates if their questions are, regardless of their solutions."""
    (tmp_path / "tasks").mkdir()
    documents = [{"id": i, "text": text(i % 30), "solution": text(50 + i), "note": text(99)} for i in range(60)]
    write_task(tmp_path / "tasks", "solved", documents)
    write_task(tmp_path / "tasks", "listed", documents, doc_to_text="text", doc_to_choice=["{{solution}}", "none"])
    solved = Harness(suite_of(tmp_path, {"task": "solved"}))
    where = {split: {doc_id % 30 for doc_id in sets(solved, "solved")[split].doc_ids} for split in SPLITS}
    assert not where["test"] & where["validation"]
    assert not (where["test"] | where["validation"]) & where["search"]
    assert any(len(found) < 10 for found in where.values())
    listed = Harness(suite_of(tmp_path, {"task": "listed"}))  # different choices make different questions
    plain = Harness(suite_of(tmp_path, {"task": "listed"}, near_duplicates=False))
    assert [listed.batch(split).digest for split in SPLITS] == [plain.batch(split).digest for split in SPLITS]


def test_prompts_made_by_code_are_compared_by_every_field(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "code.py").write_text("def ask(document):\n    return document['text']\n")
    documents = [{"text": text(i % 30), "solution": text(50 + i)} for i in range(60)]
    write_task(folder, "coded", documents, doc_to_text="@")
    file = folder / "coded.yaml"
    file.write_text(file.read_text().replace("doc_to_text: '@'", "doc_to_text: !function code.ask"))
    coded = Harness(suite_of(tmp_path, {"task": "coded"}))
    plain = Harness(suite_of(tmp_path, {"task": "coded"}, near_duplicates=False))
    assert [coded.batch(split).digest for split in SPLITS] == [plain.batch(split).digest for split in SPLITS]


def test_a_group_stays_in_one_split(folder: Path) -> None:
    found = sets(Harness(suite_of(folder, {"task": "passages", "group_by": "passage"})), "passages")
    groups = {split: set(items.groups) for split, items in found.items()}
    assert {split: len(names) for split, names in groups.items()} == {"search": 2, "validation": 2, "test": 2}
    assert not groups["test"] & groups["validation"]
    assert not (groups["test"] | groups["validation"]) & groups["search"]
    for items in found.values():
        assert list(items.groups) == [f"p{doc_id % 12}" for doc_id in items.doc_ids]
    paged = sets(Harness(suite_of(folder, {"task": "passages", "group_by": "page {{at.page}}"})), "passages")
    assert set(paged["test"].groups) <= {f"page {i}" for i in range(6)}
    assert paged["test"].digest != found["test"].digest


def test_groups_hold_between_tasks_of_the_same_documents(folder: Path) -> None:
    """A task without `group_by` respects the groups of another task on the same documents."""
    tasks = ({"task": "passages", "group_by": "passage"}, {"task": "passages", "name": "free", **REPORTED})
    harness = Harness(suite_of(folder, *tasks, documents={"search": 5, "validation": 5, "test": 5}))
    grouped, free = sets(harness, "passages"), sets(harness, "free")
    passages = {split: {doc_id % 12 for doc_id in (*grouped[split].doc_ids, *free[split].doc_ids)} for split in SPLITS}
    assert not passages["test"] & passages["validation"]
    assert not (passages["test"] | passages["validation"]) & passages["search"]
    assert scopes({"a": ["x"], "b": ["y", "x"], "c": ["z"]}) == {"a": "y", "b": "y", "c": "z"}


def test_groups_and_clusters_that_overlap_are_one_group() -> None:
    linked = LinkedDocuments(
        {"a": "a", "b": "a", "x": "x", "y": "x"}, {"t": {"a": "p", "b": "q", "c": "q", "d": "r"}}, {"t": "l"}
    )
    assert linked.item_groups("t", Selection((0, 1, 2, 3), tuple("abcd"))) == ("p", "p", "p", "r")
    assert linked.item_groups("t", Selection((0, 3), tuple("ad"))) == ("p", "r")
    assert linked.item_groups("other", Selection((0, 1, 2), tuple("abz"))) == ("a", "a", "z")
    assert linked.item_groups("other", Selection((0, 1), tuple("az"))) == ()


def test_every_field_is_part_of_the_digest_of_an_item_set() -> None:
    plain = ItemSet("t", "l", (1, 2), ("a", "b"))
    changes: list[Data] = [{}, {"task": "u"}, {"lm_eval_task": "m"}, {"doc_ids": (1, 3)}, {"doc_hashes": ("a", "c")}]
    changes += [{"groups": ("g", "g")}, {"documents": "train"}]
    assert len({replace(plain, **change).digest for change in changes}) == len(changes)


def test_a_ledger_gives_back_groups_and_sources(tmp_path: Path) -> None:
    items = ItemSet("t", "l", (1, 2), ("a", "b"), ("g", "g"), "train")
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        ledger.put_item_sets(ItemBatch("search", (items,)))
        assert ledger.item_set(items.digest) == items
    regrouped = replace(items, groups=("g", "h"))
    assert _difference(items, regrouped, "test") == (
        "the groups of the documents of 'l' in the test split changed since this search started"
    )


WRONG: list[tuple[Data, Data, str]] = [
    (
        {"group_by": "pasage"},
        {},
        "tasks[0].group_by: documents of 'passages' have no field 'pasage'. Fields: text, passage, at, none. "
        "Did you mean 'passage'?",
    ),
    ({"group_by": "none"}, {}, "tasks[0].group_by: document 7 of 'passages' has no group. Use another field."),
    (
        {"group_by": "{{nothing}}"},
        {},
        "tasks[0].group_by: cannot render the group of document 0 of 'passages': Undefined",
    ),
    ({"group_by": "{{text"}, {}, "tasks[0].group_by: not a valid Jinja template: TemplateSyntaxError: "),
    ({"group_by": ""}, {}, "tasks[0].group_by: "),
    ({}, {"near_duplicates": True}, "near_duplicates: got True. A number."),
    ({}, {"near_duplicates": "0.9"}, "near_duplicates: got '0.9'. A number."),
    ({}, {"near_duplicates": 0.2}, "near_duplicates: should be at least 0.5 and at most 1, or false, got 0.2."),
    (
        {"group_by": "{{at.page // 3}}"},
        {},
        "tasks[0].documents.search: 10 requested, 0 left after 10 for test and 10 for validation of 60 documents; 40 "
        "are near-duplicates of documents already taken, or in their groups.",
    ),
]


@pytest.mark.parametrize(("task", "options", "message"), WRONG)
def test_what_cannot_be_used(task: Data, options: Data, message: str, folder: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        Harness(suite_of(folder, {"task": "passages", **task}, **options))
    assert str(caught.value).startswith(f"{folder / 's.yaml'}: {message}")


def test_a_groups_template_renders_the_text_that_lm_eval_renders() -> None:
    from lm_eval.utils import apply_template

    from evosearch.evaluation.suites.linked_documents import group_names

    documents = [{"text": "Straße <1> & more\n", "at": {"page": 7, "tags": ["a", "b"]}, "n": 3.0}]
    for template in (
        "{{text}}\n",
        "page {{at.page // 2}}/{{ at['tags'][-1] }}",
        "{{ text | trim | title }}{% if n > 2 and at %} long{% elif n %} short{% endif %}",
        "{{ at }}{{ at.tags }}{{ text.split('<')[0].strip() }}{{ n|round|int - 1 + 2 }}{{ text[2:5] ~ n }}",
        "{{ none|default('d', true) }}{{ at.tags|first|upper if at.page is odd else 'even' }}",
    ):
        assert group_names("s", "t", documents, template) == [
            apply_template(template, document) for document in documents
        ]
