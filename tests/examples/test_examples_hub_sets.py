"""The public data sets, loaded by `datasets` from local folders with the hub's layout: splits and errors."""

import dataclasses
import json

import pytest

from evosearch.errors import EvosearchError, InputError
from examples.smollm2 import hub, train_experts
from examples.smollm2.documents import TASKS, Document, read_lines, write_documents

SIZES = {"heldout": 10, "fewshot": 4, "train": 12}
CODES = {"trec": ["DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM"]}


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Replace the hub's three data sets by local folders with some duplicate rows; return the sets."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    local = {}
    for name, source in hub.SETS.items():
        names = CODES.get(name, list(source.names))
        rows = [
            {"text": f"{name} text {index} ", "label": 9, source.label: names[index % len(names)]}
            for index in range(30)
        ]
        again = [rows[0] | {"text": f"{name.upper()}  text 0"}, rows[1] | {source.label: names[0]}]
        folder = tmp_path / f"hub_{name}"
        folder.mkdir()
        for split, part in (("train", rows[:20]), ("test", rows[20:] + again)):
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        local[name] = dataclasses.replace(source, path=str(folder))
    monkeypatch.setattr(hub, "SETS", local)
    return local


@pytest.mark.parametrize("name", list(TASKS))
def test_a_set_is_split_into_disjoint_files(name, sets, tmp_path):
    files = hub.fetch(name, SIZES)
    assert list(files) == [f"{name}_{kind}.jsonl" for kind in SIZES]
    write_documents(files, tmp_path / "data")
    read = {kind: read_lines(tmp_path / "data" / f"{name}_{kind}.jsonl", name) for kind in SIZES}
    assert {kind: len(documents) for kind, documents in read.items()} == SIZES
    texts = [document.text.casefold() for documents in read.values() for document in documents]
    assert len(set(texts)) == sum(SIZES.values())
    assert f"{name} text 1" not in texts, "a text with two labels is dropped"
    labels = len(TASKS[name].labels)
    for document in (document for documents in read.values() for document in documents):
        assert document.label == int(document.text.split()[-1]) % labels
    assert hub.fetch(name, SIZES) == files


def test_the_files_do_not_depend_on_the_order_of_the_rows():
    documents = [Document(f"text {index}", index % 2) for index in range(20)]
    assert hub.distinct(documents) == hub.distinct(reversed(documents))
    assert hub.distinct([Document("A  b", 0), Document("a b", 0)]) == [Document("A  b", 0)]
    assert hub.distinct([Document("a", 0), Document("a", 1), Document("a", 0)]) == []


def test_too_few_texts_an_unknown_label_and_a_missing_column_are_errors(sets, monkeypatch):
    with pytest.raises(EvosearchError, match=r"hub_sst2: 29 distinct texts, 4664 needed\. .*--data DIR") as caught:
        hub.fetch("sst2")
    assert not isinstance(caught.value, InputError)  # exit code 1: the input was valid
    monkeypatch.setitem(sets, "subj", dataclasses.replace(sets["subj"], names={"objective": 1}))
    with pytest.raises(EvosearchError, match=r"hub_subj: row \d+: unknown label 'subjective'; known labels: objective"):
        hub.fetch("subj", SIZES)
    monkeypatch.setitem(sets, "trec", dataclasses.replace(sets["trec"], label="coarse"))
    with pytest.raises(
        EvosearchError, match=r"hub_trec: column 'coarse' not found; columns: .*'label_coarse_original'"
    ):
        hub.fetch("trec", SIZES)


def test_an_unreachable_hub_names_the_alternative():
    with pytest.raises(EvosearchError, match=r"data set SetFit/subj: .*To use local files instead, give --data DIR"):
        hub.fetch("subj")


def test_without_network_the_command_exits_with_1_and_trains_nothing(write_base, tmp_path, capsys):
    base = write_base(tmp_path / "base")
    assert train_experts.main(["--only", "subj", "--base", str(base), "--out", str(tmp_path / "out")]) == 1
    assert "train_experts: failed: data set SetFit/subj" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_downloaded_sets_are_not_downloaded_again(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(train_experts, "fetch", lambda name: hub.fetch(name, SIZES))
    settings = train_experts.Settings(batch=4)
    first = train_experts.fetch_task(tmp_path / "data", "trec", settings)
    assert (len(first.train), len(first.heldout)) == (12, 10)
    monkeypatch.setattr(train_experts, "fetch", lambda name: pytest.fail("fetched again"))
    assert train_experts.fetch_task(tmp_path / "data", "trec", settings) == first
