"""`examples.smollm2.prepare` on tiny random models: written files, errors, and the recipes' paths."""

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from evosearch.errors import CheckpointError, SuiteError
from examples.smollm2 import adapters, base, documents, folders, prepare

ROOT = Path(__file__).resolve().parents[2]
NAMES = list(documents.TASKS)
# peft 0.21 reads an attribute that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def copied_experts(experts, tmp_path):
    return Path(shutil.copytree(experts, tmp_path / "copied"))


@pytest.fixture
def tiny_base(monkeypatch, write_base):
    """Replace the downloaded base by a random one; return the list of wheels of all calls."""
    made = []

    def write(wheel, folder):
        made.append(wheel)
        write_base(folder)

    monkeypatch.setattr(base, "write_base_from_wheel", write)
    return made


# ---- preparation


def test_base_adapters_and_documents_are_written_and_then_reused(experts, tiny_base, write_data, tmp_path):
    data = write_data(tmp_path / "data")
    arguments = (experts, data, tmp_path / "out", None, tmp_path / "suite")
    first = prepare.prepare(*arguments)
    assert list(first["adapters"]) == NAMES
    assert not any(made["kept"] for made in (first["base"], *first["adapters"].values()))
    assert first["data"]["documents"] == {path.name: 5 for path in data.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "suite").iterdir()} == {
        path.name: path.read_bytes() for path in data.iterdir()
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["adapters", "base"]
    assert sorted(path.name for path in (tmp_path / "out" / "adapters").iterdir()) == NAMES
    files = {path.name for path in (tmp_path / "out" / "base").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    for made in (first["base"], *first["adapters"].values()):
        modes = {stat.S_IMODE(path.stat().st_mode) for path in Path(made["path"]).iterdir()}
        assert len(modes) == 1, "the weights have the permissions of the other files"

    weights = tmp_path / "out" / "adapters" / "sst2" / "adapter_model.safetensors"
    written = weights.stat().st_mtime_ns
    second = prepare.prepare(*arguments)
    assert all(made["kept"] for made in (second["base"], *second["adapters"].values()))
    assert weights.stat().st_mtime_ns == written
    assert len(tiny_base) == 1


def test_only_an_adapters_two_files_are_copied_and_unchanged(experts, tiny_base, write_data, tmp_path):
    prepare.prepare(experts, write_data(tmp_path / "data"), tmp_path / "out", None, tmp_path / "suite")
    for name in NAMES:
        copied = tmp_path / "out" / "adapters" / name
        assert {path.name for path in copied.iterdir()} == {adapters.CONFIG, adapters.WEIGHTS, folders.MARKER}
        for file in (adapters.CONFIG, adapters.WEIGHTS):
            assert (copied / file).read_bytes() == (experts / name / file).read_bytes()


def test_a_changed_adapter_or_an_incomplete_copy_is_copied_again(
    copied_experts, tiny_base, write_data, write_adapter, tmp_path
):
    arguments = (copied_experts, write_data(tmp_path / "data"), tmp_path / "out", None, tmp_path / "suite")
    prepare.prepare(*arguments)
    write_adapter(copied_experts / "subj", seed=9)
    (tmp_path / "out" / "adapters" / "trec" / "adapter_model.safetensors").unlink()
    (tmp_path / "out" / "adapters" / ".sst2.partial").mkdir()
    again = prepare.prepare(*arguments)
    assert again["base"]["kept"]
    assert {name: made["kept"] for name, made in again["adapters"].items()} == {
        "sst2": True,
        "subj": False,
        "trec": False,
    }
    digests = adapters.check_adapter(copied_experts / "subj")
    assert adapters.check_adapter(tmp_path / "out" / "adapters" / "subj") == digests
    assert (tmp_path / "out" / "adapters" / "trec" / "adapter_model.safetensors").is_file()


def test_a_foreign_folder_is_never_replaced(experts, tiny_base, write_data, tmp_path):
    mine = tmp_path / "out" / "adapters" / "sst2" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(CheckpointError, match=r"sst2: exists and was not written by this command"):
        prepare.prepare(experts, write_data(tmp_path / "data"), tmp_path / "out", None, tmp_path / "suite")
    assert mine.read_text() == "mine"


def test_a_failure_leaves_no_partial_folder(tmp_path):
    def write(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        folders.make_folder(tmp_path / "base", {}, write)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_can_be_locked_only_once(tmp_path):
    with (
        folders.locked(tmp_path),
        pytest.raises(CheckpointError, match="another process is writing to this folder"),
        folders.locked(tmp_path),
    ):
        pytest.fail("locked twice")
    with folders.locked(tmp_path):
        pass  # the lock is released


# ---- errors


def test_the_documented_command_names_a_missing_folder_and_exits_with_2(tmp_path):
    absent, out = tmp_path / "absent", tmp_path / "out"
    command = [sys.executable, "-B", "-m", "examples.smollm2.prepare", "--experts", str(absent), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"prepare: --experts: {absent / 'sst2'}: folder not found" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_missing_data_folder_is_named_and_exits_with_2(experts, tmp_path, capsys):
    out = tmp_path / "out"
    for data in ((), ("--data", tmp_path / "absent")):
        assert prepare.main(list(map(str, ("--experts", experts, *data, "--out", out)))) == 2
        expected = data[1] if data else experts / "data"
        assert f"--data {expected}: folder not found" in capsys.readouterr().err
    assert not out.exists()


def test_standard_output_is_only_the_json_summary(experts, tiny_base, write_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "SUITE_DATA", tmp_path / "suite")
    data = write_data(tmp_path / "data")
    code = prepare.main(["--experts", str(experts), "--data", str(data), "--out", str(tmp_path / "out"), "--json"])
    shown = capsys.readouterr()
    assert code == 0
    assert json.loads(shown.out)["adapters"]["subj"]["bytes"] > 0
    assert "trec: checking the adapter against the base" in shown.err


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_incomplete_adapter_is_refused_before_anything_is_written(file, copied_experts, tmp_path):
    (copied_experts / "trec" / file).unlink()
    with pytest.raises(CheckpointError, match=rf"trec/{file}: file not found\. .*examples.smollm2.train_experts"):
        prepare.prepare(copied_experts, tmp_path, tmp_path / "out", None, tmp_path / "suite")
    assert not (tmp_path / "out").exists()


def test_a_missing_wheel_is_refused(experts, write_data, tmp_path):
    with pytest.raises(CheckpointError, match=r"--wheel .*absent.whl: file not found"):
        prepare.prepare(
            experts, write_data(tmp_path / "data"), tmp_path / "out", tmp_path / "absent.whl", tmp_path / "suite"
        )


def test_an_adapter_of_another_type_is_refused(copied_experts):
    (copied_experts / "sst2" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(CheckpointError, match=r"adapter_config.json: peft_type 'IA3'. LORA"):
        adapters.check_adapter(copied_experts / "sst2")


def test_an_adapter_that_does_not_fit_the_base_is_refused(write_base, write_adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_base(tmp_path / "base")
    target = tmp_path / "target"
    target.mkdir()
    wide = write_adapter(tmp_path / "wide", seed=1, width=64)
    with pytest.raises(CheckpointError, match=r"wide: does not fit the base: size mismatch"):
        adapters.copy_adapter(folder, wide, target)

    partly = write_adapter(tmp_path / "partly", seed=1)
    tensors = load_file(partly / "adapter_model.safetensors")
    moved = tensors.pop("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight")
    save_file(
        tensors | {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": moved},
        partly / "adapter_model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"partly: .*1 tensors without a target, 1 missing"):
        adapters.copy_adapter(folder, partly, target)

    (partly / "adapter_model.safetensors").write_bytes(b"truncated")
    with pytest.raises(CheckpointError, match=r"partly: does not fit the base"):
        adapters.copy_adapter(folder, partly, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "not a document"),
        ('["text", "label"]', "not a document"),
        ('{"label": 0}', "not a document"),
        ('{"text": "a film", "label": 2}', "label 2"),
        ('{"text": "a film", "label": true}', "label True"),
        ("", "not a document"),
    ],
)
def test_a_line_that_is_not_a_document_is_named(line, what, write_data, tmp_path):
    path = write_data(tmp_path) / "sst2_fewshot.jsonl"
    path.write_text('{"text": "a film", "label": 1}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(SuiteError, match=rf"sst2_fewshot.jsonl: line 2: {what}\. .*0 to 1"):
        documents.read_documents(tmp_path)


def test_a_missing_data_file_is_named(write_data, tmp_path):
    (write_data(tmp_path) / "subj_heldout.jsonl").unlink()
    with pytest.raises(SuiteError, match=r"subj_heldout.jsonl: file not found"):
        documents.read_documents(tmp_path)


# ---- the recipes


@pytest.mark.parametrize(("file", "method"), [("smollm2.yaml", "task_arithmetic"), ("smollm2_ties.yaml", "ties")])
def test_the_recipes_paths_are_those_that_the_command_writes(file, method):
    spec = yaml.safe_load((ROOT / "recipes" / file).read_text(encoding="utf-8"))
    folder = ROOT / "models" / "smollm2"
    assert folder == folders.MODELS
    assert spec["recipe"]["merge_method"] == method
    assert (ROOT / "recipes" / spec["recipe"]["base_model"]).resolve() == folder / "base"
    for name, entry in zip(NAMES, spec["recipe"]["models"], strict=True):
        model, adapter = entry["model"].split("+")
        assert (ROOT / "recipes" / model).resolve() == folder / "base"
        assert (ROOT / "recipes" / adapter).resolve() == folder / "adapters" / name
        assert set(entry["parameters"]) == ({"weight", "density"} if method == "ties" else {"weight"})
    assert (ROOT / "recipes" / spec["suite"]).resolve() == ROOT / "evals" / "sentences.yaml"


def test_the_two_recipes_merge_the_same_models_for_the_same_suite():
    specs = [
        yaml.safe_load((ROOT / "recipes" / file).read_text(encoding="utf-8"))
        for file in ("smollm2.yaml", "smollm2_ties.yaml")
    ]
    assert [spec.pop("name") for spec in specs] == ["smollm2-task-arithmetic", "smollm2-ties"]
    assert specs[0]["suite"] == specs[1]["suite"]
    bases, models = zip(*((one["recipe"]["base_model"], one["recipe"]["models"]) for one in specs), strict=True)
    assert bases[0] == bases[1]
    assert [one["model"] for one in models[0]] == [one["model"] for one in models[1]]
