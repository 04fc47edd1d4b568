"""`examples.smollm2.train_experts` on a tiny random Llama: written files, resumption, training and errors."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from evosearch.errors import CheckpointError, SuiteError
from examples.smollm2 import adapters, base, experts, train_experts, training
from examples.smollm2.documents import TASKS, Document
from examples.smollm2.training import Settings

ROOT = Path(__file__).resolve().parents[2]
NAMES = list(TASKS)
QUICK = Settings(steps=2, batch=4)
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
# peft 0.21 reads an attribute that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, write_base):
    return write_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture
def data(write_data, tmp_path):
    return write_data(tmp_path / "data", documents=12, kinds=("train", "heldout"))


def train_all(data, tiny, out, names=NAMES, settings=QUICK, force=False):
    return train_experts.train_experts(names, data, out, tiny, None, settings, force)


# ---- written and reused files


def test_three_adapters_that_fit_the_base_are_written_and_then_reused(data, tiny, tmp_path, capsys):
    import torch
    from safetensors.torch import load_file

    out = tmp_path / "out"
    first = train_all(data, tiny, out)
    assert list(first["experts"]) == NAMES
    assert sorted(path.name for path in out.iterdir()) == NAMES
    for name, made in first["experts"].items():
        files = {path.name for path in (out / name).iterdir()}
        assert files == {"adapter_config.json", "adapter_model.safetensors", "accuracy.json", "prepared.json"}
        assert not made["kept"]
        assert made["accuracy"]["n"] == 12
        adapters.attach_adapter(base.load_base(tiny)[0], out / name)  # raises if a tensor has no target
        tensors = load_file(out / name / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        assert any(tensor.abs().max() > 0 for key, tensor in tensors.items() if "lora_B" in key), "B is trained"
        config = json.loads((out / name / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], set(config["target_modules"])) == (16, 32, PROJECTIONS)
        assert config["inference_mode"] is True
    shown = capsys.readouterr().err
    assert "subj: step 2/2, loss " in shown
    assert "minutes left" in shown
    assert "trec: accuracy on 12 held-out documents: base 0." in shown

    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    second = train_all(data, tiny, out)
    assert all(made["kept"] for made in second["experts"].values())
    assert [made["accuracy"] for made in second["experts"].values()] == [
        made["accuracy"] for made in first["experts"].values()
    ]
    assert {path: path.stat().st_mtime_ns for path in written} == written

    forced = train_all(data, tiny, out, names=["subj"], force=True)
    assert not forced["experts"]["subj"]["kept"]
    assert (out / "subj" / "adapter_model.safetensors").stat().st_mtime_ns > written[
        out / "subj" / "adapter_model.safetensors"
    ]


def test_training_is_deterministic(data, tiny, tmp_path):
    import torch

    weights = []
    for out in (tmp_path / "one", tmp_path / "two"):
        torch.rand(3)  # advances the global generator
        train_all(data, tiny, out, names=["trec"])
        weights.append((out / "trec" / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_an_interrupted_run_resumes_after_the_finished_experts(write_data, tiny, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    real = experts.train

    def interrupted(model, tokenizer, pairs, settings, name, report):
        if name == "subj":
            raise KeyboardInterrupt
        return real(model, tokenizer, pairs, settings, name, report)

    monkeypatch.setattr(experts, "train", interrupted)
    data = write_data(tmp_path / "more", documents=20, kinds=("train",))
    arguments = ["--data", str(data), "--base", str(tiny), "--out", str(out), "--steps", "2", "--json"]
    assert train_experts.main(arguments) == 130
    assert [path.name for path in out.iterdir()] == ["sst2"]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "train_experts: Interrupted. Run the same command to resume." in shown.err

    monkeypatch.setattr(experts, "train", real)
    assert train_experts.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)["experts"]
    assert {name: made["kept"] for name, made in found.items()} == {"sst2": True, "subj": False, "trec": False}


def test_without_held_out_documents_there_is_no_accuracy(data, tiny, tmp_path):
    (data / "sst2_heldout.jsonl").unlink()
    found = train_all(data, tiny, tmp_path / "out", names=["sst2"])
    assert found["experts"]["sst2"]["accuracy"] is None
    assert not (tmp_path / "out" / "sst2" / "accuracy.json").exists()


def test_the_command_trains_only_the_given_tasks(write_data, tiny, tmp_path, capsys):
    data = write_data(tmp_path / "data", documents=20, kinds=("train",))
    out = tmp_path / "out"
    options = ["--only", "trec", "--data", data, "--base", tiny, "--out", out, "--steps", "2", "--json"]
    assert train_experts.main([str(option) for option in options]) == 0
    shown = capsys.readouterr()
    assert list(json.loads(shown.out)["experts"]) == ["trec"]
    assert [path.name for path in out.iterdir()] == ["trec"]
    assert "trec: step 2/2" in shown.err


# ---- training


def test_a_saved_expert_has_learned_its_task(tiny, tmp_path):
    """The text's last word determines the label; the expert learns that in sixty steps."""
    import torch

    task = TASKS["sst2"]
    documents = [Document(f"w{index % 30 + 10} w{index % 2 + 1}", index % 2) for index in range(120)]
    pairs = [task.pair(document) for document in documents]
    model, tokenizer = base.load_base(tiny)
    before = training.choice_accuracy(model, tokenizer, pairs, task.labels)
    weight = model.model.layers[0].self_attn.q_proj.weight.clone()
    settings = Settings(steps=60, batch=8, rate=1e-2)
    lines = []
    adapted = training.train(model, tokenizer, pairs[:80], settings, "sst2", lines.append)
    assert torch.equal(adapted.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight, weight)
    training.save(adapted, tmp_path, "tiny")
    stored = adapters.attach_adapter(base.load_base(tiny)[0], tmp_path)
    after = training.choice_accuracy(stored, tokenizer, pairs[80:], task.labels)
    assert before < 0.7
    assert after > 0.9
    assert lines[0].startswith("sst2: step 1/60, loss ")
    assert lines[-1].endswith("0.0 minutes left")


def test_the_loss_covers_only_answer_tokens_and_is_independent_of_the_batch(tiny):
    import torch
    from torch.nn.functional import cross_entropy

    model, _ = base.load_base(tiny)
    examples = [([5, 6, 7, 8, 9], [10]), ([11], [12, 13]), ([14, 15, 16], [17])]
    logits, targets = training.answer_logits(model, examples)
    assert targets.tolist() == [10, 12, 13, 17]
    alone = []
    for prompt, label in examples:
        every = model(torch.tensor([prompt + label])).logits[0]  # (tokens, vocabulary)
        alone.append(every[len(prompt) - 1 : -1])
    torch.testing.assert_close(logits, torch.cat(alone), rtol=0, atol=1e-5)
    assert cross_entropy(logits, targets).item() == pytest.approx(
        cross_entropy(torch.cat(alone), targets).item(), abs=1e-5
    )


def test_accuracy_ranks_the_labels_first_tokens(tiny):
    import torch

    task = TASKS["trec"]
    model, tokenizer = base.load_base(tiny)
    with torch.no_grad():  # with small random weights, all predictions are equal
        for parameter in model.parameters():
            parameter.mul_(10)
    documents = [
        Document(" ".join(f"w{(3 * index + at) % 40}" for at in range(index % 5 + 1)), 0) for index in range(9)
    ]
    firsts = [tokenizer(label)["input_ids"][0] for label in task.labels]
    answers = []
    for document in documents:
        prompt = tokenizer(task.prompt.format(text=document.text), return_tensors="pt")["input_ids"]
        answers.append(int(model(prompt).logits[0, -1, firsts].argmax()))
    assert len(set(answers)) > 1
    right = [Document(document.text, answer) for document, answer in zip(documents, answers, strict=True)]
    wrong = [Document(document.text, (document.label + 1) % 6) for document in right]
    right, wrong = ([task.pair(document) for document in documents] for documents in (right, wrong))
    assert training.choice_accuracy(model, tokenizer, right, task.labels, batch=4) == 1.0
    found = training.choice_accuracy(model, tokenizer, [*right, *wrong[:3]], task.labels, batch=4)
    assert found == pytest.approx(9 / 12)


def test_an_epoch_uses_every_document_once():
    lengths = [(7 * index) % 23 for index in range(150)]
    settings = Settings(batch=8)  # 18 batches per epoch, 6 documents left over

    def first(count, settings=settings):
        return list(itertools.islice(training.batches(lengths, settings), count))

    found = first(36)
    assert {len(batch) for batch in found} == {8}
    for one in (found[:18], found[18:]):
        taken = [index for batch in one for index in batch]
        assert len(set(taken)) == len(taken) == 144
    assert found == first(36)
    assert found != first(36, Settings(batch=8, seed=1))
    # A batch has similar lengths: half the spread of random batches (the full range is 22).
    spread = [max(lengths[index] for index in batch) - min(lengths[index] for index in batch) for batch in found]
    assert sum(spread) / len(spread) < 10


def test_labels_start_where_the_prompt_ends(tiny):
    _, tokenizer = base.load_base(tiny)
    for task in TASKS.values():
        for label in task.labels:
            text = task.prompt.format(text="w1 w2")
            prompt, answer = training.encode(tokenizer, text, label)
            assert tokenizer.decode(answer) == label.strip()
            assert prompt == tokenizer(text)["input_ids"]


# ---- errors


def test_the_documented_command_names_a_missing_folder_and_exits_with_2(tmp_path):
    absent, out = tmp_path / "absent", tmp_path / "out"
    command = [sys.executable, "-B", "-m", "examples.smollm2.train_experts", "--data", str(absent), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"train_experts: --data {absent}: folder not found" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_missing_base_or_an_unknown_task_exits_with_2(write_data, tmp_path, capsys):
    data = write_data(tmp_path / "data", documents=20, kinds=("train",))
    absent, out = tmp_path / "absent", tmp_path / "out"
    assert train_experts.main(list(map(str, ("--data", data, "--base", absent, "--out", out)))) == 2
    assert f"--base {absent}: no config.json in this folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        train_experts.main(["--only", "mnli", "--data", str(data)])
    assert stop.value.code == 2
    assert "invalid choice: 'mnli'" in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_file_a_damaged_line_or_a_wrong_label_is_an_error_before_training(data, tiny, tmp_path):
    path = data / "trec_train.jsonl"
    good = path.read_text(encoding="utf-8")
    path.write_text(good + '{"text": "Who', encoding="utf-8")
    with pytest.raises(SuiteError, match=r"trec_train.jsonl: line 13: not a document\. .*0 to 5"):
        train_all(data, tiny, tmp_path / "out")
    path.write_text(good + '{"text": "Who ?", "label": 6}\n', encoding="utf-8")
    with pytest.raises(SuiteError, match=r"trec_train.jsonl: line 13: label 6\. .*0 to 5"):
        train_all(data, tiny, tmp_path / "out")
    path.write_text('{"text": "Who ?", "label": 3}\n', encoding="utf-8")
    with pytest.raises(SuiteError, match=r"trec_train.jsonl: 1 documents\. At least 4"):
        train_all(data, tiny, tmp_path / "out")
    path.unlink()
    with pytest.raises(SuiteError, match=r"trec_train.jsonl: file not found"):
        train_all(data, tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    train_all(data, tiny, tmp_path / "out", names=["sst2"])  # trec's file is not needed


def test_an_expert_trained_differently_is_not_replaced(data, tiny, tmp_path):
    out = tmp_path / "out"
    train_all(data, tiny, out, names=["subj"])
    before = (out / "subj" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"subj: was trained with steps 2, not 3\. .*--force"):
        train_all(data, tiny, out, names=["sst2", "subj"], settings=Settings(steps=3, batch=4))
    assert not (out / "sst2").exists(), "refused before the first is trained"
    with (data / "subj_train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "one more", "label": 1}\n')
    with pytest.raises(CheckpointError, match=r"subj: was trained with train_sha256 "):
        train_all(data, tiny, out, names=["subj"])
    assert (out / "subj" / "adapter_model.safetensors").read_bytes() == before


def test_a_damaged_base_is_refused(data, write_base, tmp_path):
    damaged = write_base(tmp_path / "damaged")
    (damaged / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"damaged: cannot load a model: "):
        train_all(data, damaged, tmp_path / "out", names=["sst2"])
    assert list((tmp_path / "out").iterdir()) == []
    (damaged / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors: file not found"):
        train_all(data, damaged, tmp_path / "out", names=["sst2"])
