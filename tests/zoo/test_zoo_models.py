"""The embedded models are what evals/README.md says: constructed so that there is something to find."""

from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import CheckpointError
from evosearch.zoo.tiny_data import TASKS, evaluation_documents
from evosearch.zoo.tiny_models import TINY, ensure, resolve

DOCUMENTS = 400


@pytest.fixture(scope="module")
def skills(zoo_cache: Path) -> dict[str, dict[str, float]]:
    """Model → task → share of evaluation documents answered right (the middle letter: written, not chosen)."""
    from transformers import LlamaForCausalLM

    from evosearch.zoo.tiny_training import skill

    documents = {task: evaluation_documents(task, DOCUMENTS) for task in TASKS}
    found: dict[str, dict[str, float]] = {}
    for name in TINY:
        model: Any = LlamaForCausalLM.from_pretrained(ensure(name, zoo_cache)).eval()
        found[name] = {task: skill(model, chosen) for task, chosen in documents.items()}
    return found


def test_the_base_knows_something_of_everything(skills: dict[str, dict[str, float]]) -> None:
    assert all(0.15 <= value <= 0.6 for value in skills["base"].values()), skills["base"]


@pytest.mark.parametrize("task", TASKS)
def test_an_expert_is_good_at_its_own_task_and_at_no_other(task: str, skills: dict[str, dict[str, float]]) -> None:
    assert skills[task][task] >= 0.9
    others = [other for other in TASKS if other != task]
    assert all(skills[task][other] <= skills["base"][other] + 0.05 for other in others), skills[task]
    mean = sum(skills[task][other] - skills["base"][other] for other in others) / len(others)
    assert mean < 0.0, "an expert loses elsewhere"


def test_folders_are_stock_checkpoints(zoo_cache: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = ensure("base", zoo_cache)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 0.9e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.5e6
    context, whole = tokenizer("Sdbeac=")["input_ids"], tokenizer("Sdbeac=abcde")["input_ids"]
    assert whole[: len(context)] == context
    assert tokenizer.decode(whole, skip_special_tokens=True) == "Sdbeac=abcde"


def test_unknown_names_list_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"zoo:tiny/srot.*zoo:tiny/base.*Did you mean 'zoo:tiny/sort'\?"):
        resolve("tiny/srot", tmp_path)
    assert not list(tmp_path.iterdir())
