"""Tiny random Llama checkpoints with statistics over a few tokens: a base and three fine-tunes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evosearch.checkpoints.reader import Checkpoint
from evosearch.moments.sampled_moments import SampledMoments
from evosearch.recipe.sample import Sample

torch.set_num_threads(1)
Family = dict[str, Checkpoint]
SAMPLE = Sample(text="drawn tokens")
DOCUMENTS = ((5, 6, 7, 8, 4), (9, 10, 4), (11,), (4, 12, 13, 6))


@pytest.fixture(scope="session")
def make_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Family]:
    """Make base, a, b and c, by their paths; `spread` is the distance of the fine-tunes from the base."""

    def make(spread: float = 0.02, dtype: torch.dtype = torch.float32, **config: object) -> Family:
        folder = tmp_path_factory.mktemp("models")
        settings: dict[str, object] = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 100,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**settings | config)).to(dtype)
        start = {name: tensor.clone() for name, tensor in model.named_parameters()}
        for seed, name in enumerate(("base", "a", "b", "c")):
            generator = torch.Generator().manual_seed(seed)
            for key, parameter in model.named_parameters():
                shift = spread * torch.randn(parameter.shape, generator=generator) if seed else 0.0
                parameter.data.copy_(start[key] + shift)
            model.save_pretrained(folder / name)
        found = {str(path): Checkpoint.open(path, str(path)) for path in sorted(folder.iterdir(), key=order)}
        samples = SampledMoments(tmp_path_factory.mktemp("cache"), "cpu", known={SAMPLE.key: DOCUMENTS})
        samples.attach(SAMPLE, found)
        return found

    def order(path: Path) -> int:
        return ("base", "a", "b", "c").index(path.name)

    return make


@pytest.fixture(scope="session")
def untied(make_family: Callable[..., Family]) -> Family:
    return make_family()


@pytest.fixture(scope="session")
def tied(make_family: Callable[..., Family]) -> Family:
    return make_family(tie_word_embeddings=True)
