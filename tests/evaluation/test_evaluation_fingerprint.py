"""An edited task has another fingerprint at the edited key; comments and paths do not count."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import load_suite

CODE = '''"""Helpers."""
LIMIT = 3
NAMES = {"a": 1, "b": 2}


def shorten(text):
    """Cut."""
    return text[:LIMIT]


def ask(doc):
    # the prompt
    return shorten(doc["question"]) + "?"


def unused(doc):
    return doc


def judge(doc, results):
    return {"acc": float(results[0][1])}
'''


@pytest.fixture
def folder(tmp_path: Path, task_configs: dict[str, Any], tasks_writer: Any) -> Path:
    tasks_writer(tmp_path / "tasks", {name: task_configs[name] for name in ("t_word", "t_generate")})
    (tmp_path / "tasks" / "code.py").write_text(CODE)
    path = tmp_path / "tasks" / "t_word.yaml"
    path.write_text(path.read_text().replace("doc_to_text: '{{question}}: '", "doc_to_text: !function code.ask"))
    with path.open("a") as file:
        file.write("process_results: !function code.judge\n")
    assert "code.ask" in path.read_text()
    tasks = [
        {"task": "t_word", "metric": "acc", "chance": 0.0},
        {
            "task": {"search": "t_word", "validation": "t_generate", "test": "t_word"},
            "name": "mixed",
            "report_only": True,
        },
    ]
    counts = {"search": 2, "validation": 1, "test": 3}
    data = {"name": "s", "include": ["tasks"], "tasks": tasks, "documents": counts}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(data))
    return tmp_path


def taken(folder: Path) -> dict[str, dict[str, str]]:
    return Harness(load_suite(folder / "s.yaml")).fingerprint()


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    os.utime(path, ns=(path.stat().st_mtime_ns + 10**9,) * 2)  # lm-eval reloads a module by its modification time


def test_its_keys_are_those_of_the_configuration(folder: Path) -> None:
    found = taken(folder)
    assert {"doc_to_text", "doc_to_target", "process_results", "metric_list", "output_type"} < found["t_word"].keys()
    assert {"t_word.doc_to_text", "t_generate.generation_kwargs", "t_generate.filter_list"} < found["mixed"].keys()
    assert all(len(value) == 16 for value in found["t_word"].values())
    json.dumps(found)


EDITS = [
    ("t_word.yaml", "'{{answer}}'", "'{{answer}}.'", {"doc_to_target", "fewshot_config"}),
    ("code.py", 'doc["question"]', 'doc["answer"]', {"doc_to_text", "fewshot_config"}),
    ("code.py", "text[:LIMIT]", "text[1:LIMIT]", {"doc_to_text", "fewshot_config"}),  # code that the function calls
    ("code.py", "LIMIT = 3", "LIMIT = 4", {"doc_to_text", "fewshot_config"}),  # and a constant that it reads
    ("code.py", "float(results[0][1])", "1.0 - results[0][1]", {"process_results"}),
    ("code.py", "# the prompt", "# a prompt", set()),
    ("code.py", '"""Cut."""', '"""Cut it."""', set()),
    ("code.py", "def unused(doc):\n    return doc", "def unused(doc):\n    return None", set()),
]


@pytest.mark.parametrize(("file", "old", "new", "keys"), EDITS)
def test_an_edit_shows_at_its_key(file: str, old: str, new: str, keys: set[str], folder: Path) -> None:
    before = taken(folder)
    edit(folder / "tasks" / file, old, new)
    after = taken(folder)
    assert changed(before["t_word"], after["t_word"]) == keys
    assert changed(before["mixed"], after["mixed"]) == {f"t_word.{key}" for key in keys}


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        ("max_gen_toks: 12", "max_gen_toks: 13", {"t_generate.generation_kwargs"}),
        ("([a-j])", "([a-k])", {"t_generate.filter_list"}),
        ("num_fewshot: 1", "num_fewshot: 2", {"t_generate.num_fewshot"}),
        ("num_fewshot: 1", "num_fewshot: 1  # one", set()),
        (
            "fewshot_delimiter: '\n\n  '",
            "fewshot_delimiter: ;",
            {"t_generate.fewshot_delimiter", "t_generate.fewshot_config"},
        ),
    ],
)
def test_an_edit_of_the_yaml_shows_at_its_key(old: str, new: str, keys: set[str], folder: Path) -> None:
    before = taken(folder)
    edit(folder / "tasks" / "t_generate.yaml", old, new)
    after = taken(folder)
    assert changed(before["mixed"], after["mixed"]) == keys
    assert after["t_word"] == before["t_word"]


def test_it_is_the_same_in_another_place_and_process(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "deeper"
    folder.rename(other)
    for path in (other / "tasks").glob("*.yaml"):
        config = path.read_text().replace(str(folder), str(other))
        path.write_text("# moved\n" + config)
    code = (
        "import json, sys; from pathlib import Path; from evosearch.evaluation.suites.suite import load_suite;"
        "from evosearch.evaluation.harness.harness import Harness;"
        "print(json.dumps(Harness(load_suite(Path(sys.argv[1]))).fingerprint()))"
    )
    moved = subprocess.run(
        [sys.executable, "-c", code, str(other / "s.yaml")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    other.rename(folder)
    for path in (folder / "tasks").glob("*.yaml"):
        path.write_text(path.read_text().replace(str(other), str(folder)))
    assert json.loads(moved.stdout.splitlines()[-1]) == taken(folder)
