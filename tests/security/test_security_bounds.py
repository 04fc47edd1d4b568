"""Untrusted YAML and data: special files, depth, sizes, counts and numbers are refused before anything reads on."""

import bz2
import gzip
import io
import json
import lzma
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch import documents
from evosearch.errors import RecipeError, SpecError, SuiteError
from evosearch.evaluation.suites import data_sizes
from evosearch.evaluation.suites.data_sizes import MAX_BYTES
from evosearch.evaluation.suites.prompt_tasks import read_prompts
from evosearch.evaluation.suites.suite import load_suite
from evosearch.recipe import files
from evosearch.search.space.holes import Hole
from evosearch.spec.stages import load

from .conftest import write_suite

World = Callable[..., Path]
Data = dict[str, Any]


def special(kind: str, path: Path) -> Path:
    """Make a file that never ends, never begins, or is none."""
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_documents_are_regular_files(tmp_path: Path, kind: str) -> None:
    path = special(kind, tmp_path / "zero.yaml")
    with pytest.raises(SpecError, match=r"zero\.yaml: (not a regular file|Is a directory)"):
        documents.read(path, SpecError)
    with pytest.raises(RecipeError, match=r"zero\.yaml: (not a regular file|Is a directory)"):
        files.load(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: [" + "1," * 2**19 + "]", "larger than 1 MiB. Check that this is the right file."),
        ("x: [" + "1," * 250_000 + "]", "invalid YAML: line 1: more than 200000 keys and values."),
        ("x: " + "[" * 100_000, "invalid YAML: nested more than 64 levels deep."),
        ("{" * 300_000, "invalid YAML: nested more than 64 levels deep."),
        (
            "a: 1\nx: " + "9" * 4000,
            "invalid YAML: line 2: 9999999999999999999999999999999999999999... (4000 characters) is ",
        ),
        (
            "a: 1\nx: 9223372036854775808",
            "invalid YAML: line 2: 9223372036854775808 is too large; whole numbers are below 2^63",
        ),
        ("x: 0x" + "f" * 17, "is too large"),
    ],
)
def test_yaml_is_bounded(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(SpecError) as caught:
        documents.read(path, SpecError)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count(str(path)) == 1  # no error inside an error
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300
    assert time.process_time() - started < 30


def test_the_largest_numbers_are_read() -> None:
    assert documents.parse("x: 9223372036854775807\ny: -9223372036854775807", "x", SpecError) == {
        "x": 2**63 - 1,
        "y": 1 - 2**63,
    }


SPECS: list[tuple[Data, str]] = [
    ({"baselines": {"scales": [1e308, -1e308]}}, "baselines.scales[0]: Input should be less than or equal to 100"),
    (
        {"baselines": {"scales": [index / 7 for index in range(2000)]}},
        "baselines.scales: Tuple should have at most 100",
    ),
    ({"baselines": {"models": ["./base"] * 1001}}, "baselines.models: Tuple should have at most 1000"),
    ({"promotion": {"licences": ["mit"] * 101}}, "promotion.licences: Tuple should have at most 100"),
    ({"promotion": {"finalists": 10**9}}, "promotion.finalists: Input should be less than or equal to 10000"),
    ({"budget": {"candidates": 10**18}}, "budget.candidates: Input should be less than or equal to 1000000000"),
    ({"budget": {"hours": 1e308}}, "budget.hours: Input should be less than or equal to 100000"),
    ({"budget": {"items": 10**18}}, "budget.items: Input should be less than or equal to"),
    ({"budget": {"hours": 1.0, "patience": 10**18}}, "budget.patience: Input should be less than or equal to"),
    ({"workers": {"threads": 100_000}}, "workers.threads: Input should be less than or equal to 1024, got 100000"),
    ({"workers": {"threads": 10**10}}, "workers.threads: Input should be less than or equal to 1024"),
    ({"workers": {"count": 10**6}}, "workers.count"),
    ({"workers": {"batch_tokens": 10**12}}, "workers.batch_tokens: Input should be less than or equal to 100000000"),
    ({"workers": {"cached_tokens": 10**12}}, "workers.cached_tokens: Input should be less than or equal to"),
    ({"workers": {"price_per_hour": 1e308}}, "workers.price_per_hour: Input should be less than or equal to 1000000"),
    ({"workers": {"gpus_per_worker": 1e300}}, "workers.gpus_per_worker: Input should be less than or equal to 1024"),
]


@pytest.mark.parametrize(("changes", "said"), SPECS)
def test_numbers_and_counts_of_a_spec_are_bounded(world: World, changes: Data, said: str) -> None:
    path = world(**changes)
    with pytest.raises(SpecError) as caught:
        load(path)
    assert f"{path}: {said}" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_models_of_a_recipe_are_counted(tmp_path: Path) -> None:
    models = [{"model": f"./m{index}", "parameters": {"weight": 1.0}} for index in range(3000)]
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    with pytest.raises(RecipeError, match=r"r\.yaml: models: Tuple should have at most 1000 items"):
        files.load(path)


def test_parts_of_a_reference_are_counted(tmp_path: Path) -> None:
    data = {"merge_method": "linear", "models": [{"model": "./a" + "+" * 3000, "parameters": {"weight": 1.0}}]}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(RecipeError, match=r"the reference has 3001 parts separated by '\+'\. MODEL, or MODEL\+ADAPTER"):
        files.load(path)
    assert files.pieces("./a+./b", lambda reference: False) == ("./a", "./b")


@pytest.mark.parametrize(
    ("hole", "key"),
    [
        ({"low": 5e-324, "high": 1e308, "log": True}, "high"),
        ({"low": -1e31, "high": 1.0}, "low"),
        ({"low": 5e-324, "high": 1.0, "log": True}, "low"),
        ({"choices": list(range(10_001))}, "choices"),
    ],
)
def test_bounds_of_a_hole_are_bounded(hole: Data, key: str) -> None:
    from evosearch.recipe.shapes import Param
    from evosearch.search.space.holes import parse

    with pytest.raises(RecipeError, match=rf"x\.yaml: recipe\.hole\.{key}"):
        parse(hole, [Param(0.0, 2.0, default=1.0)], 4, "x.yaml: recipe.hole")
    assert Hole(low=0.0, high=1e25).high == 1e25


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite with one task of its own."""
    monkeypatch.setenv("EVOSEARCH_TASKS", "")
    return write_suite(tmp_path, "json", {"data_files": {"test": "t.jsonl"}})


def rows(*changed: Data) -> str:
    given = [{"question": f"q{index}", "options": ["a", "b"], "gold": 1} for index in range(6)]
    for index, change in enumerate(changed):
        given[index] |= change
    return "".join(json.dumps(row) + "\n" for row in given)


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_task_files_are_regular_files(suite: Path, kind: str) -> None:
    special(kind, suite.parent / "tasks" / "zero.yaml")
    with pytest.raises(SuiteError, match=r"tasks/zero\.yaml: (not a regular file|Is a directory)"):
        load_suite(suite)


def test_included_task_files_are_regular_files(suite: Path) -> None:
    os.mkfifo(suite.parent / "base")
    (suite.parent / "tasks" / "b.yaml").write_text("include: ../base\n")
    with pytest.raises(SuiteError, match=r"base: not a regular file"):
        load_suite(suite)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "invalid YAML: line 1: nested more than 64 levels deep"),
        ("{" * 300_000, "invalid YAML: line 1: nested more than 64 levels deep"),
        ("- " * 100_000, "invalid YAML: line 1: nested more than 64 levels deep"),
        ("? " * 100_000, "invalid YAML: line 1: nested more than 64 levels deep"),
        ('x: "]]]]"\ny: ' + "[']', " * 50_000, "invalid YAML: line 2: nested more than 64 levels deep"),
        ("\n".join(" " * depth + "a:" for depth in range(1000)), "invalid YAML: line 65: nested more than 64"),
        ("x: " + "y" * 2**20, "larger than 1 MiB"),
        ("%" + "[" * 1000, "invalid YAML"),
    ],
)
def test_task_files_are_bounded_before_libyaml_reads_them(suite: Path, text: str, said: str) -> None:
    (suite.parent / "tasks" / "deep.yaml").write_text(text)
    with pytest.raises(SuiteError) as caught:
        load_suite(suite)
    assert str(caught.value).startswith(f"{suite.parent}/tasks/deep.yaml: {said}")


def test_task_files_may_have_many_brackets(suite: Path) -> None:
    (suite.parent / "tasks" / "many.yaml").write_text(yaml.safe_dump({"samples": [{"text": "{{a}} [b]"}] * 500}))
    assert load_suite(suite).name == "s"


BROKEN: list[tuple[bytes, str, str]] = [
    (rows().encode() + b'{"question": "q", "opti\n', ":7", "not JSON: Invalid control character"),
    (rows().encode() + b"\n[1, 2]\n", ":8", "got a list"),
    (bytes(range(128, 256)) * 40, ":1", "not UTF-8 text"),
    (rows().encode() + '{"question": "é"}\n'.encode("latin-1"), ":7", "not UTF-8 text"),
    (b"", "", "has no documents"),
    (b"\n\n", "", "has no documents"),
    (b"[" * 100_000, ":1", "not JSON: nested too deeply"),
]


@pytest.mark.parametrize(("content", "line", "said"), BROKEN)
def test_broken_data_are_named_by_file_and_line(suite: Path, content: bytes, line: str, said: str) -> None:
    from evosearch.evaluation.harness.harness import Harness

    (suite.parent / "tasks" / "t.jsonl").write_bytes(content)
    with pytest.raises(SuiteError) as caught:
        Harness(load_suite(suite))
    assert str(caught.value).startswith(f"{suite.parent}/tasks/t.jsonl{line}: {said}")
    assert "One JSON object a line. It has the data of a task of " in str(caught.value)
    assert f"{suite}: tasks[0].task" in str(caught.value)


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_data_are_regular_files(suite: Path, kind: str) -> None:
    from evosearch.evaluation.harness.harness import Harness

    special(kind, suite.parent / "tasks" / "t.jsonl")
    with pytest.raises(SuiteError, match=r"tasks\[0\]\.task: data file .*t\.jsonl of 't_own' is not a regular file"):
        Harness(load_suite(suite))
    with pytest.raises(SuiteError, match=r"cannot read .*t\.jsonl: (not a regular file|Is a directory)"):
        read_prompts("s.yaml: tasks[0].prompts", suite.parent / "tasks" / "t.jsonl")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": ["a"], "gold": 0}, "has 1 choice. At least two."),
        ({"options": [], "gold": 0}, "has no choices. At least two."),
        ({"gold": 2}, "its right answer is 2. 0 to 1, or the text of a choice."),
        ({"gold": -1}, "its right answer is -1. 0 to 1, or the text of a choice."),
    ],
)
def test_right_answers_are_among_several_choices(suite: Path, evosearch: Any, change: Data, said: str) -> None:
    (suite.parent / "tasks" / "t.jsonl").write_text(rows({}, *[change] * 5))
    code, out, err = evosearch("check", suite)
    assert code == 2, out + err
    assert f"{suite}: tasks[0].task: document " in out
    assert f"of 't_own': {said.partition('.')[0]}" in out


def test_the_first_answer_is_among_the_choices(suite: Path) -> None:
    from evosearch.evaluation.harness.harness import Harness

    (suite.parent / "tasks" / "t.jsonl").write_text(rows({"gold": 2}))
    with pytest.raises(
        SuiteError, match=r"s\.yaml: tasks\[0\]\.task: .*IndexError.* a right answer among them"
    ) as caught:
        Harness(load_suite(suite))
    assert caught.value.next == "Check the first document"


def test_good_data_pass(suite: Path, evosearch: Any) -> None:
    (suite.parent / "tasks" / "t.jsonl").write_text(rows({"gold": 0}))
    code, out, err = evosearch("check", suite)
    assert code == 0, out + err


def packed(kind: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("t.jsonl", data)
        return buffer.getvalue()
    return {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}[kind](data)


def test_data_files_have_a_largest_size(suite: Path, evosearch: Any) -> None:
    data = suite.parent / "tasks" / "t.jsonl"
    with data.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # without blocks on the disk
    code, out, err = evosearch("check", suite)
    said = " ".join((out + err).split())
    assert code == 2
    assert f"s.yaml: tasks[0].task: the data of 't_own' are larger than 1 GiB (unpacked), with {data}" in said
    assert "Up to 1 GiB for a task Keep the documents that the suite needs" in said


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zip"])
@pytest.mark.parametrize("place", ["name", "pattern", "folder"])
def test_data_are_counted_unpacked(suite: Path, monkeypatch: pytest.MonkeyPatch, kind: str, place: str) -> None:
    """A bomb: a thousand bytes that unpack to a million, under any name."""
    from evosearch.evaluation.harness.harness import Harness

    monkeypatch.setattr(data_sizes, "MAX_BYTES", 2**19)
    data = suite.parent / "tasks" / "t.jsonl"
    data.write_bytes(packed(kind, b" " * 2**20))
    assert data.stat().st_size < 4096
    task = yaml.safe_load((suite.parent / "tasks" / "t.yaml").read_text())
    if place == "pattern":
        task["dataset_kwargs"]["data_files"] = {"test": f"{suite.parent}/tasks/*.jsonl"}
    elif place == "folder":
        del task["dataset_kwargs"]["data_files"]
        task["dataset_kwargs"]["data_dir"] = str(suite.parent / "tasks")
    (suite.parent / "tasks" / "t.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(SuiteError, match=rf"the data of 't_own' are larger than .* with {data}"):
        Harness(load_suite(suite))


def test_data_whose_size_cannot_be_counted_are_refused(suite: Path) -> None:
    from evosearch.evaluation.harness.harness import Harness

    (suite.parent / "tasks" / "t.jsonl").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))  # zstd
    with pytest.raises(SuiteError, match=r"packed in a format whose size cannot be checked\. Plain files, or gzip"):
        Harness(load_suite(suite))


def test_packed_data_within_the_limit_are_read(suite: Path) -> None:
    from evosearch.evaluation.harness.harness import Harness

    (suite.parent / "tasks" / "t.jsonl").write_bytes(packed("gzip", rows().encode()))
    assert len(Harness(load_suite(suite)).batch("search")) == 2
