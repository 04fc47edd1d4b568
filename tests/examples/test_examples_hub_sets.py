"""The public sets, through `datasets` from local folders of the hub's own layout: what is drawn, what is refused."""

import dataclasses
import json

import datasets
import pytest

from evosearch.errors import EvosearchError, InputError
from examples.smollm2 import hub
from examples.smollm2.documents import TASKS, Document, read_lines, write_documents

SIZES = {"heldout": 10, "fewshot": 4, "train": 12}
CODES = {"trec": ["DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM"]}


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """The three sets in folders, in the place of the hub's, with some rows twice; returns the folders."""
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
def test_a_set_is_cut_into_parts_that_share_no_text(name, sets, tmp_path):
    files = hub.fetch(name, SIZES)
    assert list(files) == [f"{name}_{part}.jsonl" for part in SIZES]
    write_documents(files, tmp_path / "data")
    parts = {part: read_lines(tmp_path / "data" / f"{name}_{part}.jsonl", name) for part in SIZES}
    assert {part: len(documents) for part, documents in parts.items()} == SIZES
    texts = [document.text.casefold() for documents in parts.values() for document in documents]
    assert len(set(texts)) == sum(SIZES.values())
    assert f"{name} text 1" not in texts, "a text of two labels is left out"
    labels = len(TASKS[name].labels)
    for document in (document for documents in parts.values() for document in documents):
        assert document.label == int(document.text.split()[-1]) % labels
    assert hub.fetch(name, SIZES) == files


def test_the_parts_do_not_hang_on_the_order_of_the_rows():
    documents = [Document(f"text {index}", index % 2) for index in range(20)]
    assert hub.distinct(documents) == hub.distinct(reversed(documents))
    assert hub.distinct([Document("A  b", 0), Document("a b", 0)]) == [Document("A  b", 0)]
    assert hub.distinct([Document("a", 0), Document("a", 1), Document("a", 0)]) == []


def test_too_few_texts_an_unknown_label_or_a_missing_column_are_named(sets, monkeypatch):
    with pytest.raises(EvosearchError, match=r"hub_sst2: 29 different texts, 4664 needed\. .*--data DIR") as caught:
        hub.fetch("sst2")
    assert not isinstance(caught.value, InputError)  # exit code 1: what the user gave was right
    monkeypatch.setitem(sets, "subj", dataclasses.replace(sets["subj"], names={"objective": 1}))
    with pytest.raises(EvosearchError, match=r"hub_subj: row \d+: label 'subjective', where objective are known"):
        hub.fetch("subj", SIZES)
    monkeypatch.setitem(sets, "trec", dataclasses.replace(sets["trec"], label="coarse"))
    with pytest.raises(EvosearchError, match=r"hub_trec: has no column 'coarse'; there are .*'label_coarse_original'"):
        hub.fetch("trec", SIZES)


def test_a_hub_out_of_reach_says_what_else_to_do():
    with pytest.raises(EvosearchError, match=r"the set SetFit/subj: .*Give the sentences as files instead: --data DIR"):
        hub.fetch("subj")


def test_a_command_without_network_ends_with_1_and_trains_nothing(load_script, write_base, tmp_path, capsys):
    script = load_script("train_experts")
    base = write_base(tmp_path / "base")
    assert script.main(["--only", "subj", "--base", str(base), "--out", str(tmp_path / "out")]) == 1
    assert "train_experts: failed: the set SetFit/subj" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_written_sets_are_not_fetched_again(load_script, sets, tmp_path, monkeypatch):
    script = load_script("train_experts")
    monkeypatch.setattr(script, "fetch", lambda name: hub.fetch(name, SIZES))
    settings = script.Settings(batch=4)
    first = script.fetch_task(tmp_path / "data", "trec", settings)
    assert (len(first.train), len(first.heldout)) == (12, 10)
    monkeypatch.setattr(script, "fetch", lambda name: pytest.fail("fetched again"))
    assert script.fetch_task(tmp_path / "data", "trec", settings) == first
