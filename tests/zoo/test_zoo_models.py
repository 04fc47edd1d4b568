"""The built-in models have the properties that evals/README.md states, so that a search can improve on them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import CheckpointError
from evosearch.zoo.tiny_data import TASKS, evaluation_documents
from evosearch.zoo.tiny_models import SETTING, TINY, ensure, resolve
from evosearch.zoo.training_process import PASSIVE, train

DOCUMENTS = 400


@pytest.fixture(scope="module")
def skills(zoo_cache: Path) -> dict[str, dict[str, float]]:
    """Model → task → share of evaluation documents answered right (median: generated, not chosen)."""
    from transformers import LlamaForCausalLM

    from evosearch.zoo.tiny_training import skill

    documents = {task: evaluation_documents(task, DOCUMENTS) for task in TASKS}
    found: dict[str, dict[str, float]] = {}
    for name in TINY:
        model: Any = LlamaForCausalLM.from_pretrained(ensure(name, zoo_cache)).eval()
        found[name] = {task: skill(model, chosen) for task, chosen in documents.items()}
    return found


def test_the_base_has_some_skill_at_every_task(skills: dict[str, dict[str, float]]) -> None:
    assert all(0.15 <= value <= 0.6 for value in skills["base"].values()), skills["base"]


@pytest.mark.parametrize("task", TASKS)
def test_an_expert_is_good_only_at_its_own_task(task: str, skills: dict[str, dict[str, float]]) -> None:
    assert skills[task][task] >= 0.9
    others = [other for other in TASKS if other != task]
    assert all(skills[task][other] <= skills["base"][other] + 0.05 for other in others), skills[task]
    mean = sum(skills[task][other] - skills["base"][other] for other in others) / len(others)
    assert mean < 0.0, "an expert loses elsewhere"


def test_folders_are_standard_checkpoints(zoo_cache: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = ensure("base", zoo_cache)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 0.9e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.5e6
    context, answered = tokenizer("Sdbeac=")["input_ids"], tokenizer("Sdbeac=abcde")["input_ids"]
    assert answered[: len(context)] == context
    assert tokenizer.decode(answered, skip_special_tokens=True) == "Sdbeac=abcde"


def test_an_unknown_name_lists_the_known_models(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"zoo:tiny/srot: unknown built-in model\. Known: zoo:tiny/base.*Did you mean 'zoo:tiny/sort'\?",
    ):
        resolve("tiny/srot", tmp_path)
    assert not list(tmp_path.iterdir())


def program(folder: Path, *lines: str) -> str:
    """Write a shell script to run in place of the child process."""
    path = folder / "python"
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)
    return str(path)


def test_training_runs_in_a_child_process_with_a_passive_wait_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PASSIVE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.executable", program(tmp_path, "echo 0.5", f"env > {tmp_path}/environment"))
    fractions: list[float] = []
    train("base", tmp_path, tmp_path, SETTING, fractions.append)
    lines = (tmp_path / "environment").read_text().splitlines()
    assert {"OMP_WAIT_POLICY=PASSIVE", "GOMP_SPINCOUNT=0", "KMP_BLOCKTIME=0"} <= set(lines)
    assert fractions == [0.5]


def test_progress_is_reported_and_a_model_appears_atomically(tmp_path: Path) -> None:
    setting = replace(SETTING, base_limit=2, batch=4)
    seen: list[tuple[str, float]] = []
    folder = ensure("base", tmp_path, lambda what, fraction: seen.append((what, fraction)), setting)
    assert seen == [("training zoo:tiny/base", fraction) for fraction in (0.0, 1 / 160, 2 / 160, 1.0)]
    assert (folder / "model.safetensors").is_file()
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "base"]


def test_a_failed_training_leaves_no_files_and_gives_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", program(tmp_path, "echo 0.5", "echo 'out of memory' >&2", "exit 3"))
    with pytest.raises(
        CheckpointError, match=r"zoo:tiny/base: training failed: out of memory\. Check memory, and disk"
    ):
        ensure("base", tmp_path)
    (home,) = (tmp_path / "zoo").iterdir()
    assert [path.name for path in home.iterdir()] == [".lock"]
