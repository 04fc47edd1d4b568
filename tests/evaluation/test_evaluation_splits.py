"""Laws of splitting over random pools: disjoint by hash, exact in size, stable under growth."""

import datetime
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evosearch.errors import SuiteError
from evosearch.evaluation.suites.splits import Draw, Selection, document_hash, split_documents

WHERE = "x.yaml: tasks[1].documents"
hashes = st.lists(st.integers(0, 40).map(str), min_size=12, max_size=80)  # with duplicates
seeds = st.integers(-5, 5)


def one_pool(pool: list[str], search: int, validation: int, test: int, seed: int) -> dict[str, Selection]:
    draws = {"search": Draw("p", search), "validation": Draw("p", validation), "test": Draw("p", test)}
    return split_documents({"p": pool}, {"t": draws}, seed, {"t": WHERE})["t"]


def ids(chosen: Mapping[str, Selection], split: str) -> set[int]:
    return set(chosen[split].doc_ids)


@given(hashes, seeds)
def test_splits_are_disjoint_sorted_and_of_the_requested_size(pool: list[str], seed: int) -> None:
    third = len(set(pool)) // 3
    if third == 0:
        return
    chosen = one_pool(pool, third, third, third, seed)
    drawn = [doc_hash for selection in chosen.values() for doc_hash in selection.doc_hashes]
    assert len(drawn) == len(set(drawn)) == 3 * third
    for selection in chosen.values():
        assert list(selection.doc_ids) == sorted(selection.doc_ids)
        assert [pool[i] for i in selection.doc_ids] == list(selection.doc_hashes)
        assert all(
            pool.index(doc_hash) == i for i, doc_hash in zip(selection.doc_ids, selection.doc_hashes, strict=True)
        )


@given(hashes, seeds, st.data())
def test_growing_search_moves_nothing_else(pool: list[str], seed: int, data: st.DataObject) -> None:
    most = len(set(pool)) // 3
    if most < 2:
        return
    small = one_pool(pool, data.draw(st.integers(1, most - 1)), most, most, seed)
    large = one_pool(pool, most, most, most, seed)
    assert large["test"] == small["test"]
    assert large["validation"] == small["validation"]
    assert ids(small, "search") <= ids(large, "search")


@given(hashes, seeds)
def test_the_order_of_documents_does_not_matter(pool: list[str], seed: int) -> None:
    count = len(set(pool)) // 3
    if count == 0:
        return
    first = one_pool(pool, count, count, count, seed)
    second = one_pool(pool[::-1], count, count, count, seed)
    for split in first:
        assert set(first[split].doc_hashes) == set(second[split].doc_hashes)


def test_the_seed_decides() -> None:
    pool = [str(i) for i in range(60)]
    assert one_pool(pool, 20, 20, 20, 0)["test"] != one_pool(pool, 20, 20, 20, 1)["test"]


def test_a_document_of_test_is_in_no_other_pool_either() -> None:
    pools = {"train": [str(i) for i in range(10)], "held": [str(i) for i in range(5, 15)]}
    draws = {"search": Draw("train", 3), "validation": Draw("train", 1), "test": Draw("held", 8)}
    chosen = split_documents(pools, {"t": draws}, 0, {"t": WHERE})["t"]
    assert not set(chosen["search"].doc_hashes) & set(chosen["test"].doc_hashes)


def test_tasks_that_share_a_pool_share_no_document_between_splits() -> None:
    pools = {"p": [str(i) for i in range(30)]}
    tasks = {
        "zero-shot": {"search": Draw("p", 5), "test": Draw("p", 20)},
        "five-shot": {"search": Draw("p", 10), "test": Draw("p", 3)},
    }
    chosen = split_documents(pools, tasks, 0, dict.fromkeys(tasks, WHERE))
    searched = {i for splits in chosen.values() for i in splits["search"].doc_ids}
    tested = {i for splits in chosen.values() for i in splits["test"].doc_ids}
    assert not searched & tested
    assert (len(searched), len(tested)) == (10, 20)


def test_a_split_larger_than_its_data() -> None:
    with pytest.raises(SuiteError) as caught:
        one_pool(["a", "b", "c", "c"], 1, 1, 3, 0)
    assert str(caught.value) == (
        "x.yaml: tasks[1].documents.validation: 1 requested, 0 left after 3 for test of 4 documents (3 distinct). "
        "Request fewer, or add documents to the task."
    )


def test_hashes_take_every_field_and_no_order() -> None:
    assert document_hash({"a": 1, "b": "é"}) == document_hash({"b": "é", "a": 1})
    assert document_hash({"a": 1}) != document_hash({"a": 1, "b": None})
    assert document_hash({"a": np.int64(1)}) == document_hash({"a": 1})
    assert document_hash({"a": np.arange(2)}) == document_hash({"a": [0, 1]})
    assert document_hash({"a": datetime.date(2020, 1, 2)}) == document_hash({"a": "2020-01-02"})
    with pytest.raises(TypeError, match="object is not plain data"):
        document_hash({"a": object()})


def linked(pool: list[str], of: int) -> dict[str, tuple[str, ...]]:
    """Links between neighbouring documents of even numbers, `of` of them together."""
    return {name: (f"key{int(name) // (2 * of)}",) for name in set(pool) if int(name) % 2 == 0}


@given(hashes, seeds, st.integers(1, 4))
def test_linked_documents_stay_in_one_split(pool: list[str], seed: int, of: int) -> None:
    count = len(set(pool)) // 10  # each document is linked to at most three others
    links = linked(pool, of)
    draws = {split: Draw("p", count) for split in ("search", "validation", "test")}
    if count == 0:
        return
    chosen = split_documents({"p": pool}, {"t": draws}, seed, {"t": WHERE}, links)["t"]
    splits: dict[str, set[str]] = {}
    for split, selection in chosen.items():
        for doc_hash in selection.doc_hashes:
            for key in (doc_hash, *links.get(doc_hash, ())):
                splits.setdefault(key, set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert all(len(selection.doc_hashes) == count for selection in chosen.values())
    assert chosen["test"] == one_pool(pool, count, count, count, seed)["test"]  # the first split skips nothing


@given(hashes, seeds)
def test_documents_without_links_keep_their_positions(pool: list[str], seed: int) -> None:
    """A link within a split, or to a document that no split takes, changes nothing."""
    count = len(set(pool)) // 4
    if count < 2:
        return
    plain = one_pool(pool, count, count, count, seed)
    draws = {split: Draw("p", count) for split in ("search", "validation", "test")}
    for split in draws:
        links = dict.fromkeys(plain[split].doc_hashes[:2], ("k",))
        assert split_documents({"p": pool}, {"t": draws}, seed, {"t": WHERE}, links)["t"] == plain
    used = {doc_hash for selection in plain.values() for doc_hash in selection.doc_hashes}
    last = {plain["search"].doc_hashes[0], *sorted(set(pool) - used)[:1]}
    links = dict.fromkeys(last, ("k",))
    assert split_documents({"p": pool}, {"t": draws}, seed, {"t": WHERE}, links)["t"] == plain


def test_groups_are_taken_whole_and_the_rest_of_the_last_is_used_nowhere() -> None:
    pool = [str(i) for i in range(60)]
    groups = {"t": {name: f"g{int(name) % 12}" for name in pool}}  # twelve groups of five
    links = {name: (f"group:{group}",) for name, group in groups["t"].items()}
    draws = {"search": Draw("p", 10), "validation": Draw("p", 15), "test": Draw("p", 18)}
    chosen = split_documents({"p": pool}, {"t": draws}, 0, {"t": WHERE}, links, groups)["t"]
    of = {split: [groups["t"][name] for name in selection.doc_hashes] for split, selection in chosen.items()}
    assert [len(set(of[split])) for split in ("test", "validation", "search")] == [4, 3, 2]
    assert not set(of["test"]) & set(of["validation"])
    assert not (set(of["test"]) | set(of["validation"])) & set(of["search"])
    small = {**draws, "search": Draw("p", 3)}
    assert split_documents({"p": pool}, {"t": small}, 0, {"t": WHERE}, links, groups)["t"]["test"] == chosen["test"]


def test_a_split_that_near_duplicates_leave_too_little_for() -> None:
    links = dict.fromkeys("abcdef", ("near:a",))
    with pytest.raises(SuiteError) as caught:
        split_documents(
            {"p": list("abcdef")}, {"t": {"search": Draw("p", 2), "test": Draw("p", 3)}}, 0, {"t": WHERE}, links
        )
    assert str(caught.value) == (
        "x.yaml: tasks[1].documents.search: 2 requested, 0 left after 3 for test of 6 documents; 3 are near-duplicates "
        "of documents already taken, or in their groups. Request fewer, or add documents to the task; "
        "or raise the similarity threshold `near_duplicates` (`false` disables it)."
    )
