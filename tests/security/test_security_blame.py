"""A fault of a model's config or tokenizer is reported as that model's, not as the suite's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import CheckpointError, InputError
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.suites.suite import load_suite
from evosearch.setup.prompt_tokens import count_in

World = Callable[..., Path]


@pytest.fixture
def harness(world: World) -> Harness:
    return Harness(load_suite((world().parent / "suite.yaml").resolve()))


def changed(world: World, tmp_path: Path, file: str, **values: Any) -> Path:
    """Copy the base model, with other values in one of its files."""
    folder = tmp_path / "model"
    shutil.copytree(world().parent / "base", folder)
    data = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(data | values))
    return folder


@pytest.mark.parametrize("length", [0, 1, -5])
def test_a_context_length_is_the_configs_fault(world: World, tmp_path: Path, harness: Harness, length: int) -> None:
    folder = changed(world, tmp_path, "config.json", max_position_embeddings=length)
    with pytest.raises(InputError, match=str(folder)) as caught:
        count_in(harness, folder)
    assert isinstance(caught.value, CheckpointError)
    assert "max_position_embeddings" in str(caught.value)
    assert "suite.yaml" not in str(caught.value)


def test_a_length_that_is_no_number_is_the_tokenizers_fault(world: World, tmp_path: Path, harness: Harness) -> None:
    folder = changed(world, tmp_path, "tokenizer_config.json", model_max_length="x")
    with pytest.raises(InputError, match=str(folder)) as caught:
        count_in(harness, folder)
    assert isinstance(caught.value, CheckpointError)
    assert "suite.yaml" not in str(caught.value)


def test_what_a_tokenizer_raises_is_its_own_fault(world: World, harness: Harness) -> None:
    from evosearch.checkpoints.tokenizers.loading import load_tokenizer

    folder = world().parent / "base"
    tokenizer = load_tokenizer(folder)
    assert max_length_of(None, tokenizer) >= 2
    tokenizer.model_max_length = "x"  # transformers compares it with the length of each text
    with pytest.raises(CheckpointError, match="the tokenizer cannot encode a prompt: '>' not supported") as caught:
        harness.freeze(harness.batch("search"), tokenizer, 64)
    assert caught.value.where.endswith("base")
