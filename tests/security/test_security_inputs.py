"""What a stranger's file may not do: bring in code, leave its folder, or carry a secret that is then shown to all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import CheckpointError, SuiteError
from evosearch.evaluation.suite import load_suite

World = Callable[..., Path]
Program = Callable[..., tuple[int, str, str]]
SECRET = "hunter2-of-the-test"  # of nobody


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"ledger": f"postgresql://me:{SECRET}@db/evosearch"}, "ledger", "holds a password"),
        ({"ledger": f"postgresql://me@db/evosearch?password={SECRET}"}, "ledger", "holds a secret under 'password'"),
        ({"tracking": {"uri": f"https://me:{SECRET}@mlflow:5000"}}, "tracking.uri", "holds a password"),
        ({"tracking": {"uri": f"https://{SECRET}@mlflow:5000"}}, "tracking.uri", "holds a name"),
        (
            {"workers": {"address": f"http://head:8265?token={SECRET}"}},
            "workers.address",
            "holds a secret under 'token'",
        ),
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
    from evosearch.service.spec import load_spec

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
    assert text.startswith(f"{path}: include[0]: {elsewhere} lies outside of the suite's own folder")
    assert f"EVOSEARCH_TASKS={elsewhere}" in text
    assert not ran.exists()
    monkeypatch.setenv("EVOSEARCH_TASKS", f"/nowhere:{elsewhere}")
    assert load_suite(path).include == (str(elsewhere),)


@pytest.mark.parametrize("uri", ["jsonl:../events.jsonl", "jsonl:/tmp/events.jsonl", "jsonl:a/../../b", "jsonl:"])
def test_json_lines_stay_in_the_searchs_folder(world: World, evosearch: Program, uri: str) -> None:
    code, _, err = evosearch("run", world(tracking={"uri": uri}))
    assert code == 2
    assert f"tracking.uri: got '{uri}'" in err
    assert "a file in the search's own folder" in err


@pytest.mark.parametrize("reference", ["zoo:../../etc", "zoo:tiny/../base", "org/../../etc", "a/..", "..@main"])
def test_references_do_not_leave_their_roots(tmp_path: Path, reference: str) -> None:
    from evosearch.checkpoints.references import resolve
    from evosearch.execution.worker import register_schemes

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
    """`auto_map` points transformers to python files beside the weights; without `trust_remote_code` they lie idle."""
    spec = world(budget={"candidates": 2})
    ran = tmp_path / "ran"
    folder = tmp_path / "hostile"
    shutil.copytree(spec.parent / "expert1", folder)
    (folder / "code.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import LlamaConfig as C, LlamaForCausalLM as M, PreTrainedTokenizerFast as T\n"
    )
    names = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": ["code.T", "code.T"]}
    for name in ("config.json", "tokenizer_config.json"):
        data = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(data | {"auto_map": names}))
    data = yaml.safe_load(spec.read_text())
    data["recipe"]["models"][0]["model"] = str(folder)
    data["recipe"]["base_model"] = str(folder)  # the donor, whose config and tokenizer are used
    spec.write_text(yaml.safe_dump(data))
    evosearch("run", spec)  # whether it is refused or run does not matter here
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["spec", "recipe", "suite"])
def test_yaml_makes_no_objects(tmp_path: Path, evosearch: Program, kind: str) -> None:
    ran = tmp_path / "ran"
    path = tmp_path / "x.yaml"
    key = {"spec": "recipe", "recipe": "merge_method", "suite": "tasks"}[kind]
    path.write_text(f"name: x\n{key}: !!python/object/apply:os.mkdir [{str(ran)!r}]\n")
    code, out, err = evosearch("check", path)
    assert code == 2
    assert "not readable as YAML" in out + err
    assert not ran.exists()
