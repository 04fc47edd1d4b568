"""Attacks by long inputs, names, settings and files that no other file of this folder plays: see README.md here."""

import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evosearch.checkpoints.tokenizers.loading import load_tokenizer
from evosearch.errors import LedgerError, SuiteError
from evosearch.evaluation.suites.suite import load_suite
from evosearch.jobs.commands import Options, run_command
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.run import run

World = Callable[..., Path]
Program = Callable[..., tuple[int, str, str]]
SLOW_S = 60.0  # of processor time; each long input once took more, or never ended
SECRET = "TOPSECRET-4711"


def long_inputs(kind: str) -> tuple[str, dict[str, Any] | str, str]:
    """Return file, keys or text, and what the error says."""
    numbers = "[" + "1, " * 999_999 + "1]"
    cases: dict[str, tuple[str, dict[str, Any] | str, str]] = {
        "licences": ("spec", {"promotion": {"licences": ["mit"] * 100_000}}, "promotion.licences: Tuple should have"),
        "scales": ("spec", {"baselines": {"scales": [0.5] * 100_000}}, "baselines.scales: Tuple should have at most"),
        "numbers": ("spec", f"baselines: {{scales: {numbers}}}\n", "larger than 1 MiB"),
        "fewer numbers": ("spec", f"baselines: {{scales: {numbers[:300_000]}1]}}\n", "scales: Tuple should have at"),
        "models": ("recipe", {"models": [{"model": f"./m{i}"} for i in range(3000)]}, "models: Tuple should have at"),
        "pluses": ("recipe", {"models": [{"model": "./a" + "+" * 3000}]}, "3001 parts separated by '+'"),
        "instruction": ("suite", {"system_instruction": "x" * 1_000_000}, "String should have at most 100000"),
        "10 MB": ("recipe", "# " + "x" * 10_000_000, "larger than 1 MiB"),
    }
    return cases[kind]


@pytest.mark.parametrize(
    "kind", ["licences", "scales", "numbers", "fewer numbers", "models", "pluses", "instruction", "10 MB"]
)
def test_long_inputs_are_refused_in_time(world: World, evosearch: Program, tmp_path: Path, kind: str) -> None:
    what, change, said = long_inputs(kind)
    spec = world()
    path = {"spec": spec, "suite": spec.parent / "suite.yaml", "recipe": tmp_path / "r.yaml"}[what]
    data = {"merge_method": "linear"} if what == "recipe" else yaml.safe_load(path.read_text())
    if isinstance(change, str):
        path.write_text(yaml.safe_dump({key: data[key] for key in data if key != "baselines"}) + change)
    else:
        path.write_text(yaml.safe_dump(data | change))
    began = time.process_time()
    code, out, err = evosearch("check", path)
    assert time.process_time() - began < SLOW_S
    text = " ".join((out + err).split())
    assert code == 2
    assert said in text
    assert str(path) in text
    assert len(text) < 2000


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/x",
        ".",
        "..",
        "x" * 65,
        "night\n",
        "ni\nght",
        "ni\0ght",
        "\x1b[2Jx",
        "niсht",
        "a b",
        "a;b",
        "a'b",
        "",
    ],
)
@pytest.mark.parametrize("key", ["name", "register_as"])
def test_names_are_plain(world: World, evosearch: Program, tmp_path: Path, name: str, key: str) -> None:
    spec = world()
    data = yaml.safe_load(spec.read_text())
    data |= {"name": name} if key == "name" else {"promotion": {"register_as": name}}
    spec.write_text(json.dumps(data))  # YAML too, with escapes
    code, out, err = evosearch("run", spec)
    assert code == 2
    assert key in out + err or "invalid character" in out + err
    assert {path.name for path in tmp_path.iterdir()} <= {"specs", "cache"}
    assert not re.search(r"[\x00\x1b]", out + err)


def test_the_command_of_a_job_quotes_its_spec() -> None:
    assert run_command("packed/a'; touch x; '.yaml", Options()).endswith(
        """run 'packed/a'"'"'; touch x; '"'"'.yaml' --progress json"""
    )


TEXTS: list[tuple[bytes, int, str]] = [
    (b"", 2, "got an empty file"),
    (b"\tname: x", 2, "invalid YAML"),
    (b"name: \0", 2, "invalid YAML"),
    ("name: x".encode("utf-16"), 2, "not UTF-8 text"),
    ("name: é".encode("latin-1"), 2, "not UTF-8 text"),
    (b"\xed\xa0\x80", 2, "not UTF-8 text"),
    (b"a: 1\n---\nb: 2\n", 2, "document"),
    (b"budget: .inf", 2, "budget"),
    (b"seed: " + b"9" * 4300, 2, "too large"),
]


@pytest.mark.parametrize(("content", "code", "said"), TEXTS)
def test_broken_documents_give_one_error(
    tmp_path: Path, evosearch: Program, content: bytes, code: int, said: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    got, out, err = evosearch("check", path)
    assert got == code
    assert said in out + err
    assert "Traceback" not in out + err


def test_what_editors_write_is_read(tmp_path: Path, world: World, evosearch: Program) -> None:
    """A byte-order mark, CRLF and merge keys are no damage."""
    folder = world().parent
    text = "\ufeffmerge_method: linear\nmodels:\n"
    text += f"- {{model: {folder}/base, parameters: &same {{weight: 1.0}}}}\n"
    text += f"- {{model: {folder}/expert1, parameters: {{<<: *same}}}}\n"
    (tmp_path / "r.yaml").write_bytes(text.replace("\n", "\r\n").encode())
    code, out, err = evosearch("check", tmp_path / "r.yaml")
    assert code == 0, out + err


@pytest.mark.parametrize("file", ["/etc/passwd", "/proc/self/mem", "/dev/zero", "/dev/stdin"])
def test_files_of_the_system_are_no_ledgers(file: str) -> None:
    if not os.path.exists(file):
        pytest.skip(f"no {file}")
    for read_only in (True, False):
        with pytest.raises(LedgerError) as caught:
            Ledger.open(f"sqlite:///{file}", "night.yaml: ledger", read_only=read_only)
        said = str(caught.value)
        assert said.startswith(f"night.yaml: ledger: {file} ")
        assert "recorded is safe" not in said
        if file.startswith("/dev/"):
            assert "is not a regular file" in said


# --- settings of a model folder that name code or other files ---------------------------------------------------------

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    (
        "config.json",
        {"attn_implementation": "kernels-community/evil", "_attn_implementation": "kernels-community/evil"},
    ),
    ("tokenizer_config.json", {"tokenizer_class": "os.system"}),
    ("tokenizer_config.json", {"vocab_file": "{secret}", "tokenizer_file": "{secret}", "merges_file": "{secret}"}),
    ("tokenizer_config.json", {"chat_template": [{"name": "../../../x", "template": "evil"}]}),
]


@pytest.mark.parametrize(("name", "changes"), SETTINGS, ids=["attention", "class", "files", "template"])
def test_settings_of_a_model_reach_nothing_outside(
    world: World, tmp_path: Path, evosearch: Program, name: str, changes: dict[str, Any]
) -> None:
    """They are refused, or have no effect: no code, no file from elsewhere in the output, no file outside of it."""
    (tmp_path / "secret").write_text(SECRET)
    folder = tmp_path / "models" / "hostile"
    shutil.copytree(world().parent / "base", folder)
    data = json.loads((folder / name).read_text())
    text = json.dumps(data | changes).replace("{secret}", str(tmp_path / "secret"))
    (folder / name).write_text(text)
    models = [{"model": str(folder), "parameters": {"weight": 1.0}}]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    code, _, err = evosearch("merge", tmp_path / "r.yaml", tmp_path / "deep" / "down" / "out")
    assert code in (0, 2), err
    assert "Traceback" not in err
    out = tmp_path / "deep" / "down" / "out"
    written = {path for path in tmp_path.rglob("*") if "cache" not in path.parts} - before
    assert all(path.is_relative_to(out) or out.is_relative_to(path) for path in written), written
    assert not any(SECRET.encode() in path.read_bytes() for path in written if path.is_file())
    if code == 0:
        assert load_tokenizer(out)("ab").input_ids == load_tokenizer(world().parent / "base")("ab").input_ids


def test_a_kernel_that_a_config_names_is_not_fetched(world: World, tmp_path: Path, evosearch: Program) -> None:
    """Scores are those of the same model without the setting."""
    folder = world().parent
    shutil.copytree(folder / "base", tmp_path / "hostile")
    config = tmp_path / "hostile" / "config.json"
    name, changes = SETTINGS[0]
    assert name == config.name
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    found = []
    for model in (folder / "base", tmp_path / "hostile"):
        code, out, err = evosearch("score", model, folder / "suite.yaml", "--json")
        assert code == 0, err
        found.append(json.loads(out))
    assert found[0]["tasks"] == found[1]["tasks"]


class Evil:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["pickled data", "dataset script", "script in a folder"])
def test_data_of_a_task_run_nothing(tmp_path: Path, kind: str) -> None:
    """Data, unlike functions of a task's YAML, are no code: neither pickles nor scripts are run."""
    from evosearch.evaluation.harness.harness import Harness

    ran, tasks = tmp_path / "ran", tmp_path / "tasks"
    (tasks / "evil").mkdir(parents=True)
    script = f"open({str(ran)!r}, 'w').close()\n"
    for place in (tasks / "evil.py", tasks / "evil" / "evil.py"):
        place.write_text(script)
    (tasks / "evil.pkl").write_bytes(pickle.dumps(Evil(ran)))
    (tasks / "d.jsonl").write_text(json.dumps({"q": "a", "a": "b"}) + "\n")
    task: dict[str, Any] = {
        "task": "t_evil",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "d.jsonl"}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
    }
    task |= {
        "pickled data": {"dataset_path": "pandas", "dataset_kwargs": {"data_files": {"test": "evil.pkl"}}},
        "dataset script": {"dataset_path": str(tasks / "evil.py"), "dataset_kwargs": {}},
        "script in a folder": {"dataset_path": str(tasks / "evil"), "dataset_kwargs": {}},
    }[kind]
    (tasks / "t.yaml").write_text(yaml.safe_dump(task))
    suite = {"name": "s", "include": ["tasks"], "tasks": [{"task": "t_evil", "metric": "exact_match", "chance": 0.0}]}
    suite["documents"] = {"search": 1, "validation": 1, "test": 1}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(suite))
    with pytest.raises(SuiteError, match=r"s\.yaml: tasks\[0\]"):
        Harness(load_suite(tmp_path / "s.yaml"))
    assert not ran.exists()


@pytest.mark.parametrize("metric", ["{elsewhere}/evil.py", "{elsewhere}/evil", "../elsewhere/evil.py", "org/evil"])
@pytest.mark.parametrize("inline", [False, True])
def test_metrics_of_a_task_are_code_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, inline: bool
) -> None:
    """The evaluate library runs a metric's file, and downloads one of the hub."""
    monkeypatch.delenv("EVOSEARCH_TASKS")
    own, elsewhere, ran = tmp_path / "suites", tmp_path / "elsewhere", tmp_path / "ran"
    (own / "tasks").mkdir(parents=True)
    (elsewhere / "evil").mkdir(parents=True)
    for place in (elsewhere / "evil.py", elsewhere / "evil" / "evil.py"):
        place.write_text(f"open({str(ran)!r}, 'w').close()\n")
    monkeypatch.chdir(own)
    task: dict[str, Any] = {"task": "t", "metric_list": [{"metric": metric.format(elsewhere=elsewhere)}]}
    task = {"group": "g", "task": [task]} if inline else task
    (own / "tasks" / "t.yaml").write_text(yaml.safe_dump(task))
    suite = {"name": "s", "include": ["tasks"], "tasks": [{"task": "t", "metric": "acc", "chance": 0.0}]}
    suite["documents"] = {"search": 1, "validation": 1, "test": 1}
    (own / "s.yaml").write_text(yaml.safe_dump(suite))
    said = (
        "a metric of the hub is a program" if metric == "org/evil" else "outside of the suite's folder, and task files"
    )
    with pytest.raises(SuiteError, match=rf"tasks/t\.yaml: metric: got '.*{said}"):
        load_suite(own / "s.yaml")
    assert not ran.exists()
    if metric != "org/evil":
        monkeypatch.setenv("EVOSEARCH_TASKS", str(elsewhere))
        load_suite(own / "s.yaml")


def test_the_help_of_check_says_that_task_code_is_run(evosearch: Program) -> None:
    code, out, _ = evosearch("check", "--help")
    assert code == 0
    assert "code of the suite's tasks is run" in " ".join(re.sub(r"[│╭╰─╮╯]", " ", out).split())


def test_a_moved_search_continues_with_other_threads(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are those of an undisturbed search, bit for bit."""
    changes: dict[str, Any] = {"optimizer": {"name": "random", "seed": 1}, "promotion": {"finalists": 1}}

    def scores(folder: str, candidates: int, threads: int) -> dict[str, float]:
        monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path / folder))
        workers = {"executor": "local", "threads": threads}
        run(world(budget={"candidates": candidates}, baselines={"scales": []}, workers=workers, **changes), Silent())
        with Ledger.open(f"sqlite:///{tmp_path}/{folder}/world/ledger.db", read_only=True) as ledger:
            (info,) = ledger.searches()
            found = [
                e.payload for e in ledger.events(info.search_id, types=["scored"]) if e.payload["split"] == "search"
            ]
        assert len({each["candidate"] for each in found}) == len(found)
        return {each["candidate"]: each["score"] for each in found}

    undisturbed = scores("whole", 5, 1)
    first = scores("first", 3, 1)
    assert first.items() < undisturbed.items()
    (tmp_path / "first").rename(tmp_path / "second")
    try:
        assert scores("second", 5, 2) == undisturbed
    finally:
        torch.set_num_threads(1)
