"""The shipped specs with small random models, so that they need no network and no training.

The folders `recipes` and `evals` are those of the repository. `zoo:` resolves to untrained models in a cache, a hub id
to a folder of that name in the working directory, and SmolLM2 and its adapters to folders next to the recipes.
"""

import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import with_kernels

ROOT = Path(__file__).parents[2]
TASKS = ("gsm8k", "hellaswag_processed", "glue_mnli", "glue_qnli", "glue_mrpc", "glue_cola", "dbpedia", "magicoder")
MISTRAL = "mistralai/Mistral-7B-v0.1"
MERGED = ("augmxnt/shisa-gamma-7b-v1", "WizardLMTeam/WizardMath-7B-V1.1", "GAIR/Abel-7B-002")
ABEL_HAS_MORE = 32  # tokens that the base lacks


def byte_tokenizer(more: Sequence[str] = ()) -> Any:
    """Make a byte-level tokenizer with `more` added tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens(list(more))
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def save_model(folder: Path, config: Any, tokenizer: Any, seed: int) -> None:
    """Save a random model of a transformers config, with its tokenizer."""
    import torch
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        getattr(transformers, config.architectures[0])(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_adapter(folder: Path, base: Path, seed: int) -> None:
    """Save a LoRA adapter of a saved model, on queries and values, with peft."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base)
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft uses a deprecated name of transformers
            adapted = get_peft_model(model, lora)
        adapted.save_pretrained(folder)


def save_zoo(cache: Path) -> None:
    """Save untrained models of the tiny zoo in the place of the trained ones."""
    from transformers import LlamaConfig

    from evosearch.zoo.tiny_models import SETTING, TINY, fingerprint
    from evosearch.zoo.tiny_tokenizer import tokenizer

    words = tokenizer()
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(words),
        hidden_size=SETTING.width,
        intermediate_size=SETTING.mlp_width,
        num_hidden_layers=SETTING.layers,
        num_attention_heads=SETTING.heads,
        num_key_value_heads=SETTING.kv_heads,
        max_position_embeddings=64,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    for seed, name in enumerate(TINY):
        save_model(cache / "zoo" / f"tiny-{fingerprint()}" / name, config, words, seed)


def save_mistrals(hub: Path) -> None:
    """Save a base, three fine-tunes (one with more tokens) and eight adapters under their names on the hub."""
    from transformers import MistralConfig

    for seed, name in enumerate((MISTRAL, *MERGED)):
        more = [f"<extra_{index}>" for index in range(ABEL_HAS_MORE)] if "Abel" in name else []
        words = byte_tokenizer(more)
        config = MistralConfig(
            architectures=["MistralForCausalLM"],
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=4,
            max_position_embeddings=4096,
            sliding_window=4096,
            bos_token_id=1,
            eos_token_id=2,
        )
        save_model(hub / name, config, words, seed)
    for seed, task in enumerate(TASKS):
        save_adapter(hub / "predibase" / task, hub / MISTRAL, seed)


def save_smollm2(models: Path) -> None:
    """Save a base with tied embeddings and three adapters."""
    from transformers import LlamaConfig

    words = byte_tokenizer()
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(words),
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=8,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    save_model(models / "base", config, words, 0)
    for seed, task in enumerate(("sst2", "subj", "trec")):
        save_adapter(models / "adapters" / task, models / "base", seed)


def save_evals(folder: Path) -> None:
    """Copy the suites with few documents per split: every spec builds all prompts of its suite."""
    folder.mkdir()
    for entry in (ROOT / "evals").iterdir():
        if entry.is_dir():
            (folder / entry.name).symlink_to(entry)
        elif entry.suffix == ".yaml":
            suite = yaml.safe_load(entry.read_text()) | {"documents": {"search": 6, "validation": 7, "test": 8}}
            (folder / entry.name).write_text(yaml.safe_dump(suite, sort_keys=False))


@pytest.fixture(scope="session")
def _shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("shipped")
    save_evals(home / "evals")
    save_zoo(home / "cache")
    save_mistrals(home / "hub")
    save_smollm2(home / "models" / "smollm2")
    return home


@pytest.fixture
def shipped(_shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A read-only folder of the shipped specs; searches write to the test's folder."""
    import datasets

    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVOSEARCH_CACHE", str(with_kernels(_shipped / "cache")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", _shipped / "datasets")
    monkeypatch.chdir(_shipped / "hub")
    recipes = _shipped / "recipes"
    shutil.rmtree(recipes, ignore_errors=True)
    shutil.copytree(ROOT / "recipes", recipes)
    return recipes


@pytest.fixture
def edited(shipped: Path) -> Callable[..., Path]:
    """`edited("ties", ("old", "new"), …)`: a shipped spec with replaced text, which it must contain."""

    def edit(name: str, *changes: tuple[str, str]) -> Path:
        path = shipped / f"{name}.yaml"
        text = path.read_text()
        for old, new in changes:
            assert old in text, f"{name}.yaml has no {old!r}"
            text = text.replace(old, new)
        path.write_text(text)
        return path

    return edit
