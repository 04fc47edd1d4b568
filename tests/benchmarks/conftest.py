"""What the tests of the scripts stand on: the scripts themselves, and a tiny base, adapters and documents for them."""

import json
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
RANK, ALPHA = 2, 6  # scale alpha / rank = 3


@pytest.fixture(autouse=True)
def _quietly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """A script without ending, as a module."""

    def load(name: str) -> ModuleType:
        loader = SourceFileLoader(name, str(SCRIPTS / name))
        module = module_from_spec(spec_from_loader(name, loader))
        writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # else a cache file lands in scripts/
        sys.modules[name] = module  # where a dataclass of the script looks for its own module
        try:
            loader.exec_module(module)
        finally:
            sys.dont_write_bytecode = writes_bytecode
        return module

    return load


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., LlamaForCausalLM]:
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
def write_base(tiny_model) -> Callable[[Path], Path]:
    """A tiny Llama and a tokenizer of whole words that knows the labels of every task."""

    def write(folder: Path) -> Path:
        from examples.smollm2.documents import TASKS

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
def write_adapter(tiny_model) -> Callable[..., Path]:
    """A LoRA of random A and B (peft starts B at zero) on an attention and an MLP projection."""

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
    """`TASK_PART.jsonl` of every task, some documents each."""

    def write(folder: Path, documents: int = 5, parts: tuple[str, ...] = ("heldout", "fewshot")) -> Path:
        from examples.smollm2.documents import TASKS

        folder.mkdir(parents=True, exist_ok=True)
        for name, task in TASKS.items():
            for part in parts:
                lines = [
                    {"text": f"{part} {index} of {name} , naïve", "label": index % len(task.labels)}
                    for index in range(documents)
                ]
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                (folder / f"{name}_{part}.jsonl").write_text(text, encoding="utf-8")
        return folder

    return write


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, write_adapter) -> Path:
    from examples.smollm2.documents import TASKS

    folder = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(TASKS, start=1):
        write_adapter(folder / name, seed)
    return folder
