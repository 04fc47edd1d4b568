"""Untrusted files cannot run code, read outside of their folder, or expose secrets in messages."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import CheckpointError, SuiteError
from evosearch.evaluation.suites.suite import load_suite

World = Callable[..., Path]
Program = Callable[..., tuple[int, str, str]]
SECRET = "hunter2-of-the-test"  # not a real one


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"ledger": f"postgresql://me:{SECRET}@db/evosearch"}, "ledger", "contains a password"),
        ({"ledger": f"postgresql://me@db/evosearch?password={SECRET}"}, "ledger", "contains a secret in 'password'"),
        ({"tracking": {"uri": f"https://me:{SECRET}@mlflow:5000"}}, "tracking.uri", "contains a password"),
        ({"tracking": {"uri": f"https://{SECRET}@mlflow:5000"}}, "tracking.uri", "contains a user name"),
        (
            {"workers": {"address": f"http://head:8265?token={SECRET}"}},
            "workers.address",
            "contains a secret in 'token'",
        ),
        ({"ledger": f"postgresql://me:hun/{SECRET}@db/evosearch"}, "ledger", "contains a password"),
        ({"ledger": f"postgresql://me:a[{SECRET}@db/evosearch"}, "ledger", "contains a password"),
        ({"tracking": {"uri": f"https://me:hun/{SECRET}@mlflow:5000"}}, "tracking.uri", "contains a password"),
        ({"tracking": {"uri": f"https://mlflow:5000?api_key={SECRET}"}}, "tracking.uri", "contains query parameters"),
        ({"tracking": {"uri": f"https://mlflow:5000?{SECRET}"}}, "tracking.uri", "contains query parameters"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_spec_with_a_secret_is_refused_and_not_repeated(
    world: World, evosearch: Program, tmp_path: Path, changes: dict[str, Any], key: str, said: str, command: str
) -> None:
    spec = world(**changes)
    code, out, err = evosearch(command, spec, "--json")
    assert code == 2
    text = out + err
    assert f"world.yaml: {key}" in text
    assert said in text
    assert SECRET not in text
    assert "PGPASSFILE" in text or "MLFLOW_TRACKING_PASSWORD" in text
    assert not (tmp_path / "runs").exists()


def test_urls_without_secrets_are_taken(world: World) -> None:
    from evosearch.spec.spec import load_spec

    spec = load_spec(
        world(ledger="postgresql://me@db/evosearch?sslmode=require", tracking={"uri": "http://[::1]:5000"})
    )
    assert spec.config.ledger == "postgresql://me@db/evosearch?sslmode=require"


@pytest.mark.parametrize("folder", ["../elsewhere", "tasks/../../elsewhere", "{absolute}"])
def test_task_code_comes_from_named_folders_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.delenv("EVOSEARCH_TASKS")
    elsewhere, own = tmp_path / "elsewhere", tmp_path / "suites"
    elsewhere.mkdir()
    (own / "tasks").mkdir(parents=True)
    ran = tmp_path / "ran"
    (elsewhere / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\ndef go(doc): return ''\n")
    task = {"task": "t_evil", "dataset_path": "json", "output_type": "generate_until", "doc_to_target": "a"}
    (elsewhere / "t.yaml").write_text(yaml.safe_dump(task) + "doc_to_text: !function evil.go\n")
    path = own / "s.yaml"
    include = folder.format(absolute=elsewhere)
    suite = {"name": "s", "include": [include], "tasks": [{"task": "t_evil", "metric": "acc", "chance": 0.0}]}
    path.write_text(yaml.safe_dump(suite | {"documents": {"search": 1, "validation": 1, "test": 1}}))
    with pytest.raises(SuiteError) as caught:
        load_suite(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: include[0]: {elsewhere} is outside of the suite's folder")
    assert f"EVOSEARCH_TASKS={elsewhere}" in text
    assert not ran.exists()
    monkeypatch.setenv("EVOSEARCH_TASKS", f"/nowhere:{elsewhere}")
    assert load_suite(path).include == (str(elsewhere),)


def suite_beside(own: Path, task: str) -> Path:
    """Write a suite into the folder `own`, and its task file into a folder below."""
    (own / "tasks").mkdir(parents=True, exist_ok=True)
    common = {"task": "t_own", "dataset_path": "json", "output_type": "generate_until", "doc_to_target": "a"}
    (own / "tasks" / "t.yaml").write_text(yaml.safe_dump(common) + task)
    suite = {"name": "s", "include": ["tasks"], "tasks": [{"task": "t_own", "metric": "acc", "chance": 0.0}]}
    suite |= {"documents": {"search": 1, "validation": 1, "test": 1}}
    (own / "s.yaml").write_text(yaml.safe_dump(suite))
    return own / "s.yaml"


@pytest.mark.parametrize(
    ("task", "key", "file"),
    [
        ("include: ../../elsewhere/base.yaml\n", "include", "base.yaml"),
        ("include: [near.yaml, '{elsewhere}/base.yaml']\n", "include", "base.yaml"),
        ("include: chain.yaml\n", "include", "base.yaml"),
        ("<<: {{include: '{elsewhere}/base.yaml'}}\n", "include", "base.yaml"),
        ("include: leads/../base.yaml\n", "include", "base.yaml"),
        ("doc_to_text: !function {elsewhere}/evil.go\n", "!function", "evil.py"),
        ("filter_list: [{{function: custom, filter_fn: !function '{elsewhere}/evil.go'}}]\n", "!function", "evil.py"),
        ("doc_to_text: !%66unction {elsewhere}/evil.go\nx: !unknown y\n", "!function", "evil.py"),
    ],
)
def test_what_a_task_file_names_comes_from_named_folders_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, key: str, file: str
) -> None:
    monkeypatch.delenv("EVOSEARCH_TASKS")
    elsewhere, own = tmp_path / "elsewhere", tmp_path / "suites"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "evil.py").write_text("def go(doc): return ''\n")
    (elsewhere / "base.yaml").write_text("doc_to_text: !function evil.go\n")
    path = suite_beside(own, task.format(elsewhere=elsewhere))
    (own / "tasks" / "leads").symlink_to(elsewhere / "deep")
    (own / "tasks" / "near.yaml").write_text("num_fewshot: 0\n")
    (own / "tasks" / "chain.yaml").write_text("include: ../../elsewhere/base.yaml\n")
    with pytest.raises(SuiteError) as caught:
        load_suite(path)
    text = str(caught.value)
    assert text.startswith(f"{own}/tasks/")
    assert f".yaml: {key}: got '" in text
    assert f"{file} is outside of the suite's folder, and task files are code. Files below {own}, or in" in text
    assert "EVOSEARCH_TASKS=/" in text
    monkeypatch.setenv("EVOSEARCH_TASKS", str(elsewhere))
    load_suite(path)


def test_what_a_task_file_may_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVOSEARCH_TASKS")
    from evosearch.evaluation.suites.library import library_folder

    own = tmp_path / "suites"
    library = next(path for path in sorted(library_folder().glob("*/*.yaml")) if b"!function" in path.read_bytes())
    functions = "doc_to_text: !function own.go\ndoc_to_choice: !function os.path.abspath\n"  # the last is installed
    task = f"include: ['{library}', ../common.yaml]\n{functions}"
    path = suite_beside(own, task)
    (own / "tasks" / "own.py").write_text("def go(doc): return ''\n")
    (own / "common.yaml").write_text("process_docs: !function shared.go\n")
    (own / "shared.py").write_text("def go(doc): return doc\n")
    assert load_suite(path).include == (str(own / "tasks"),)
    moved = tmp_path / "moved"
    (own / "tasks").rename(moved)
    (own / "tasks").symlink_to(moved)  # the link permits its target folder, but not the target's siblings
    with pytest.raises(SuiteError, match=f"{moved}/t.yaml: include: got '../common.yaml': "):
        load_suite(path)
    (moved / "t.yaml").write_text((moved / "t.yaml").read_text().replace("../common.yaml", "common.yaml"))
    for name in ("common.yaml", "shared.py"):
        (own / name).rename(moved / name)
    load_suite(path)


def test_a_suites_template_reaches_nothing_but_documents(tmp_path: Path) -> None:
    from evosearch.evaluation.suites.linked_documents import group_names

    ran = tmp_path / "ran"
    documents = [{"page": {"n": 1}, "text": "a"}]
    for template, said in (
        (f"{{{{ cycler.__init__.__globals__.os.system('touch {ran}') }}}}", "cannot have a call of 'system'"),
        (f"{{{{ text.__class__.__mro__[1].__subclasses__()[0]('{ran}') }}}}", "cannot have a call"),
        ("{{ ('%s'|attr('__class__')) }}", "cannot have the filter 'attr'"),
        ("{{ text.__class__ }}", "cannot render the group of document 0 of 't': SecurityError"),
        ("{{ page.update(n=2) }}", "cannot have a call of 'update'"),
    ):
        with pytest.raises(SuiteError, match=said):
            group_names("s.yaml: tasks[0]", "t", documents, template)
    assert not ran.exists()
    assert documents == [{"page": {"n": 1}, "text": "a"}]


@pytest.mark.parametrize("uri", ["jsonl:../events.jsonl", "jsonl:/tmp/events.jsonl", "jsonl:a/../../b", "jsonl:"])
def test_json_lines_stay_in_the_searchs_folder(world: World, evosearch: Program, uri: str) -> None:
    code, _, err = evosearch("run", world(tracking={"uri": uri}))
    assert code == 2
    assert f"tracking.uri: got '{uri}'" in err
    assert "a file in the run directory" in err


@pytest.mark.parametrize("reference", ["zoo:../../etc", "zoo:tiny/../base", "org/../../etc", "a/..", "..@main"])
def test_references_do_not_leave_their_roots(tmp_path: Path, reference: str) -> None:
    from evosearch.checkpoints.references import resolve
    from evosearch.execution.loaders import register_schemes

    register_schemes()
    with pytest.raises(CheckpointError):
        resolve(reference, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shard", ["../base/model.safetensors", "/etc/passwd", "weights.bin"])
def test_an_index_names_files_of_its_own_folder(world: World, tmp_path: Path, shard: str) -> None:
    from evosearch.checkpoints.reader import Checkpoint

    folder = tmp_path / "model"
    shutil.copytree(world().parent / "base", folder)
    (folder / "model.safetensors").rename(folder / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    with pytest.raises(CheckpointError, match="file in the same folder"):
        Checkpoint.open(folder, str(folder))


def test_code_in_a_model_folder_is_never_run(world: World, tmp_path: Path, evosearch: Program) -> None:
    """`auto_map` names Python files in the model folder; without `trust_remote_code` they are not run."""
    spec = world(budget={"candidates": 2}, promotion={"finalists": 1, "checkpoint": True})
    ran = tmp_path / "ran"
    names = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": ["code.T", "code.T"]}
    for model in ("base", "expert1", "expert2"):  # all the same, because a differing config is rejected
        folder = tmp_path / "hostile" / model
        shutil.copytree(spec.parent / model, folder)
        (folder / "code.py").write_text(
            f"open({str(ran)!r}, 'w').close()\n"
            "from transformers import LlamaConfig as C, LlamaForCausalLM as M, PreTrainedTokenizerFast as T\n"
        )
        for name in ("config.json", "tokenizer_config.json"):
            data = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(data | {"auto_map": names}))
    spec.write_text(spec.read_text().replace("./", f"{tmp_path}/hostile/"))
    code, out, err = evosearch("run", spec, "--json")
    assert code in (0, 3), err  # decided by the gate; a rejected spec would have loaded nothing
    (row,) = json.loads(evosearch("status", "--json")[1])
    assert (row["finished"], row["failed"]) == (2, 0), out + err
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["spec", "recipe", "suite"])
def test_yaml_makes_no_objects(tmp_path: Path, evosearch: Program, kind: str) -> None:
    ran = tmp_path / "ran"
    path = tmp_path / "x.yaml"
    key = {"spec": "recipe", "recipe": "merge_method", "suite": "tasks"}[kind]
    path.write_text(f"name: x\n{key}: !!python/object/apply:os.mkdir [{str(ran)!r}]\n")
    code, out, err = evosearch("check", path)
    assert code == 2
    assert "invalid YAML" in out + err
    assert not ran.exists()
