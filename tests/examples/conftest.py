"""A tiny base, LoRA adapters and documents for the SmolLM2 commands."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from examples.smollm2.documents import TASKS

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

RANK, ALPHA = 2, 6  # scale alpha / rank = 3


@pytest.fixture(autouse=True)
def _quiet_and_offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import torch

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("HF_XET_HIGH_PERFORMANCE", "1")  # set by the first import of lm-eval
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_model() -> "Callable[..., LlamaForCausalLM]":
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0, width: int = 32) -> LlamaForCausalLM:
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

    return make


@pytest.fixture(scope="session")
def write_base(tiny_model: Callable[..., Any]) -> Callable[[Path], Path]:
    """A tiny Llama and a word-level tokenizer that knows the labels of every task."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def write(folder: Path) -> Path:
        tiny_model().save_pretrained(folder)
        words = [label.strip() for task in TASKS.values() for label in task.labels]
        words = ["<unk>", *dict.fromkeys(words)]
        words += [f"w{index}" for index in range(64 - len(words))]
        tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def write_adapter(tiny_model: Callable[..., Any]) -> Callable[..., Path]:
    """A LoRA with random A and B (peft initializes B to zero) on an attention and an MLP projection."""
    import torch
    from peft import LoraConfig, get_peft_model

    def write(folder: Path, seed: int, width: int = 32) -> Path:
        settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        adapter = get_peft_model(tiny_model(width=width), settings)
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.1)
        adapter.save_pretrained(folder, save_embedding_layers=False)
        return folder

    return write


@pytest.fixture(scope="session")
def write_data() -> Callable[..., Path]:
    """`TASK_KIND.jsonl` of every task, with a few documents each."""

    def write(folder: Path, documents: int = 5, kinds: tuple[str, ...] = ("heldout", "fewshot")) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, task in TASKS.items():
            for kind in kinds:
                lines = [
                    {"text": f"{kind} {index} of {name} , naïve", "label": index % len(task.labels)}
                    for index in range(documents)
                ]
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                (folder / f"{name}_{kind}.jsonl").write_text(text, encoding="utf-8")
        return folder

    return write


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, write_adapter: Callable[..., Path]) -> Path:
    """A folder with one adapter for each task."""
    folder = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(TASKS, start=1):
        write_adapter(folder / name, seed)
    return folder
