"""Packs for a cluster: the same search, without references that are valid only on this machine."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch import documents
from evosearch.errors import SpecError
from evosearch.jobs import pack as packing
from evosearch.jobs.pack import Pack, local_problem, pack
from evosearch.jobs.submission import search_id_of
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.portable import TOP, portable
from evosearch.spec.spec import load_spec
from evosearch.spec.stages import load

World = Callable[..., Path]


@pytest.fixture
def spec(world: World, tmp_path: Path) -> World:
    """A spec with absolute paths of models, and copies of the suite and task files."""

    def write(name: str = "night", **changes: Any) -> Path:
        path = world(name, **changes)
        for entry in ("suite.yaml", "tasks"):
            link = path.parent / entry
            if link.is_symlink():
                source = link.resolve()
                link.unlink()
                shutil.copytree(source, link) if source.is_dir() else shutil.copyfile(source, link)
        text = path.read_text().replace("./", f"{path.parent}/")
        path.write_text(text)
        return path

    return write


def packed(path: Path, folder: Path) -> tuple[Pack, list[str]]:
    diagnostics = Diagnostics()
    folder.mkdir()
    found = load(path)
    return pack(path, found.name, found.suite, folder, diagnostics), [str(problem) for problem in diagnostics.problems]


def test_a_packed_spec_has_the_same_search_id(spec: World, tmp_path: Path) -> None:
    path = spec(
        "night", search_minibatches=2, objectives=["choice", "generate"], optimizer={"name": "random", "seed": 1e3}
    )
    (path.parent / "tasks" / "own.py").write_text("def process(doc):\n    return doc\n")
    (path.parent / "tasks" / "__pycache__").mkdir()
    (path.parent / "tasks" / "__pycache__" / "own.pyc").write_bytes(b"\0")
    (path.parent / "tasks" / ".git").mkdir()
    found, problems = packed(path, tmp_path / "there")
    assert problems == []
    there = load_spec(found.folder / found.spec)
    assert there.identity() == load_spec(path).identity()
    assert there.search_id() == load_spec(path).search_id()
    names = {str(entry.relative_to(found.folder)) for entry in found.folder.rglob("*") if entry.is_file()}
    below = f"{TOP}/below/tasks"
    files = ("w_choice.yaml", "w_choice.jsonl", "w_generate.yaml", "w_generate.jsonl", "own.py")
    assert names == {f"{TOP}/night.yaml", f"{TOP}/suite.yaml", *(f"{below}/{name}" for name in files)}
    assert found.models == tuple(f"{path.parent}/{name}" for name in ("base", "expert1", "expert2"))
    again, _ = packed(path, tmp_path / "again")
    assert again.digest == found.digest
    path.write_text(path.read_text().replace("candidates: 18", "candidates: 19"))
    other, _ = packed(path, tmp_path / "other")
    assert other.digest != found.digest
    assert load_spec(other.folder / other.spec).search_id() == there.search_id()


def test_submissions_that_differ_in_stage_budgets_are_the_same(spec: World, tmp_path: Path) -> None:
    path = spec("staged")
    data = documents.read(path, SpecError)
    own = {key: data.pop(key) for key in ("recipe", "optimizer", "budget")}
    parameters = {"weight": {"low": 0.0, "high": 1.0}}
    later = {"merge_method": "linear", "models": [{"model": "stage:first", "parameters": parameters}]}
    data["stages"] = [{"name": "first", **own}, {"name": "second", **own, "recipe": later}]
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    found, problems = packed(path, tmp_path / "there")
    assert problems == []
    here, there = load(path), load(found.folder / found.spec)
    assert search_id_of(there) == search_id_of(here)
    data["stages"][1]["budget"] = {"candidates": 7}
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    assert search_id_of(load(path)) == search_id_of(here)
    data["stages"][1]["optimizer"] = {"name": "random", "seed": 9}
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    assert search_id_of(load(path)) != search_id_of(here)


@pytest.mark.parametrize(
    ("reference", "what"),
    [
        ("./expert1", "models are not uploaded"),
        ("../models/expert1", "models are not uploaded"),
        ("~/expert1", "the home folder differs on the cluster"),
        ("./step.yaml", "recipe files are not uploaded"),
        ("org/model+./adapter", "models are not uploaded"),
    ],
)
def test_references_valid_only_on_this_machine_are_rejected(
    spec: World, tmp_path: Path, reference: str, what: str
) -> None:
    path = spec("night")
    data = documents.read(path, SpecError)
    data["recipe"]["models"][1]["model"] = reference
    data["baselines"]["base_model"] = reference
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    _, (recipe, baseline) = packed(path, tmp_path / "there")
    assert recipe.startswith(f"{path}: recipe.models[1].model: got '{reference}': {what}. An absolute path on every")
    assert baseline.startswith(f"{path}: baselines.base_model: got '{reference}'")


def test_hub_ids_and_schemes_are_kept(spec: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = spec("night")
    data = documents.read(path, SpecError)
    data["recipe"]["models"][0]["model"] = "org/model@main+org/adapter"
    data["recipe"]["models"][1]["model"] = "zoo:tiny/sort"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    found, problems = packed(path, tmp_path / "there")
    assert (problems, found.models) == ([], (f"{path.parent}/base",))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model@main").mkdir(parents=True)
    _, problems = packed(path, tmp_path / "elsewhere")
    assert "this is also a local folder, which is not uploaded" in problems[0]


def test_task_data_outside_of_the_included_folder_is_rejected(spec: World, tmp_path: Path) -> None:
    path = spec("night")
    tasks = path.parent / "tasks"
    (path.parent / "outside.jsonl").write_text('{"question": "a", "answer": "a"}\n')
    task = {"task": "w_own", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "../outside.jsonl"}}}
    (tasks / "own.yaml").write_text("process_docs: !function own.process\n" + yaml.safe_dump(task))
    (tasks / "far.yaml").write_text("task: far\ndataset_kwargs: {data_files: [/far/away.jsonl]}\n")
    found, (problem,) = packed(path, tmp_path / "there")
    where = f"{path.parent}/suite.yaml: include[0]: {tasks}/own.yaml names ../outside.jsonl under data_files, which is "
    assert problem.startswith(f"{where}{path.parent}/outside.jsonl and is not uploaded.")
    assert found.notes == (f"{tasks}/far.yaml: data_files: /far/away.jsonl is not uploaded: every node must have it",)


def test_task_code_outside_of_the_included_folder_is_rejected(spec: World, tmp_path: Path) -> None:
    path = spec("night")
    tasks = path.parent / "tasks"
    (tmp_path / "far").mkdir()
    for file in (tasks / "own.py", tmp_path / "far" / "code.py"):
        file.write_text("def process(doc):\n    return doc\n")
    functions = f"doc_to_text: !function own.process\nprocess_docs: !function {tmp_path}/far/code.process\n"
    (tasks / "own.yaml").write_text(f"task: w_own\ndoc_to_choice: !function os.path.abspath\n{functions}")
    _, (problem,) = packed(path, tmp_path / "there")
    named = f"{tasks}/own.yaml names {tmp_path}/far/code.process under !function"
    where = f"{path.parent}/suite.yaml: include[0]: {named}"
    assert problem.startswith(f"{where}, which is in {tmp_path}/far/code.py and is not uploaded. Python files next")


def test_links_out_of_a_folder_and_large_files_are_rejected(
    spec: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = spec("night")
    tasks = path.parent / "tasks"
    (tasks / "again.jsonl").symlink_to("w_choice.jsonl")
    found, problems = packed(path, tmp_path / "there")
    assert problems == []
    copied = found.folder / TOP / "below" / "tasks" / "again.jsonl"
    assert (copied.is_symlink(), copied.read_text()) == (False, (tasks / "w_choice.jsonl").read_text())
    (tasks / "secret").symlink_to("/etc/hostname")
    _, (problem,) = packed(path, tmp_path / "linked")
    assert f"include[0]: {tasks}/secret is a link to /etc/hostname, which is not uploaded" in problem
    (tasks / "secret").unlink()
    (tasks / "weights.bin").write_bytes(b"\0" * 2**20)
    monkeypatch.setattr(packing, "FILE_MIB", 0.5)
    _, (problem,) = packed(path, tmp_path / "large")
    assert f"{tasks}/weights.bin has 1 MiB. Files of up to 0.5 MiB." in problem
    monkeypatch.setattr(packing, "FILE_MIB", 32)
    monkeypatch.setattr(packing, "FILES", 3)
    _, (problem,) = packed(path, tmp_path / "many")
    assert "contain more than 64 MiB, or more than 3 files" in problem


def test_problems_from_the_cluster_name_the_original_files(spec: World, tmp_path: Path) -> None:
    path = spec("night")
    found, _ = packed(path, tmp_path / "there")
    problem = {
        "where": f"{found.spec}: recipe.models[0]",
        "what": f"see {TOP}/suite.yaml",
        "allowed": None,
        "next": None,
    }
    assert str(local_problem(problem, found.shown)) == f"{path}: recipe.models[0]: see {path.parent}/suite.yaml."


def test_packed_task_folders_and_prompts_are_passed_to_workers_as_relative_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [str(tmp_path / TOP / "below" / "tasks"), "/elsewhere/tasks", str(tmp_path / "tasks")]
    tasks = [{"task": "sort", "prompts": None}, {"prompts": str(tmp_path / TOP / "prompts" / "0" / "chat.txt")}]
    found = portable({"name": "night", "include": folders, "tasks": tasks})
    assert found["include"] == [f"{TOP}/below/tasks", "/elsewhere/tasks", str(tmp_path / "tasks")]
    assert found["tasks"] == [{"task": "sort", "prompts": None}, {"prompts": f"{TOP}/prompts/0/chat.txt"}]
    assert found["name"] == "night"


def test_files_of_prompts_are_packed_and_give_the_same_search(spec: World, tmp_path: Path) -> None:
    path = spec("night")
    suite = path.with_name("suite.yaml")
    data = yaml.safe_load(suite.read_text())
    (tmp_path / "chat.txt").write_text("hello\ngood morning\n")
    data["tasks"].append({"prompts": "../chat.txt", "documents": {"search": 1, "validation": 1}})
    model = f"{path.parent}/expert1"
    suite.write_text(
        yaml.safe_dump(data | {"fitness": {"teachers": dict.fromkeys(("choice", "generate", "chat"), model)}})
    )
    found, problems = packed(path, tmp_path / "there")
    assert problems == []
    copy = found.folder / TOP / "prompts" / "2" / "chat.txt"
    assert copy.read_text() == "hello\ngood morning\n"
    assert found.shown[f"{TOP}/prompts/2/chat.txt"] == str(path.parent.parent / "chat.txt")
    there = load_spec(found.folder / found.spec)
    assert there.suite.tasks[2].prompts == str(copy)
    assert there.search_id() == load_spec(path).search_id()
    (tmp_path / "chat.txt").write_text("x" * 40 * packing.MIB)
    _, problems = packed(path, tmp_path / "again")
    assert any("chat.txt has 40 MiB" in problem for problem in problems)
