"""A tiny random Llama over characters, and lm-eval tasks on disk for every output type."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

CHARACTERS = "\nabcdefghijklmnopqrstuvwxyz :=?+-0123456789.#"
CONTEXT_LENGTH = 96


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *CHARACTERS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_model(tokenizer: Any, seed: int = 0) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.3,  # large enough that greedy answers differ between documents
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def model(tokenizer: Any) -> Any:
    return make_model(tokenizer)


def documents(count: int, seed: int, first: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    made = []
    for index in range(first, first + count):
        words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(3)]
        row = {"question": f"{index} {words[0]}", "choices": words, "gold": index % 3, "answer": words[index % 3]}
        made.append({**row, "text": " ".join(words * (1 + index % 5 * 6))})  # from a few tokens to a few hundred
    return made


MEAN = {"aggregation": "mean", "higher_is_better": True}
TASKS: dict[str, dict[str, Any]] = {
    "t_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}?",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
    },
    "t_letter": {  # one-token choices: all of a document's requests are one sequence
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}=",
        "doc_to_choice": ["a", "b", "c"],
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "num_fewshot": 2,
        "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
    },
    "t_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}: ",  # ends in a space, which moves to the continuation
        "doc_to_target": "{{answer}}",
        "metric_list": [
            {"metric": "acc", **MEAN},
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        ],
    },
    "t_generate": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}=",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "num_fewshot": 1,
        "generation_kwargs": {"until": ["\n", "ab", "9"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", **MEAN}],
        "filter_list": [
            {"name": "whole", "filter": [{"function": "take_first"}]},
            {
                "name": "letter",
                "filter": [
                    {"function": "regex", "regex_pattern": "([a-j])", "fallback": "none"},
                    {"function": "take_first"},
                ],
            },
        ],
    },
}


def write_tasks(folder: Path, tasks: dict[str, dict[str, Any]] = TASKS, count: int = 40) -> Path:
    """A folder of task YAMLs with their data."""
    folder.mkdir(parents=True)
    for number, (name, config) in enumerate(tasks.items()):
        rows = documents(count, seed=number)
        if name == "t_generate":
            rows = [{**row, "answer": row["answer"][:1]} for row in rows]  # short enough to be generated sometimes
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        shots = [{**row, "question": "s" + row["question"]} for row in documents(5, seed=99, first=900)]
        (folder / f"{name}_shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shots))
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": f"{name}.jsonl", "shots": f"{name}_shots.jsonl"},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            "fewshot_split": "shots",
            "fewshot_config": {"sampler": "first_n"},
            "fewshot_delimiter": "\n",
            **config,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


SUITE: dict[str, Any] = {
    "name": "testing",
    "include": ["tasks"],
    "tasks": [
        {"task": "t_choice", "name": "choice", "metric": "acc_norm", "chance": 0.3},
        {"task": "t_letter", "name": "letter", "metric": "acc", "chance": 0.3, "weight": 2.0},
        {"task": "t_word", "metric": "acc", "chance": 0.0},
        {"task": "t_generate", "metric": "exact_match", "filter": "letter", "chance": 0.0},
    ],
    "documents": {"search": 6, "validation": 7, "test": 9},
    "fitness": "gold_logprob",
    "split_seed": 3,
}


@pytest.fixture(scope="session")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    write_tasks(folder / "tasks")
    path = folder / "testing.yaml"
    path.write_text(yaml.safe_dump(SUITE, sort_keys=False))
    return path


@pytest.fixture
def suite_data() -> dict[str, Any]:
    """The suite's YAML as data, for tests that break it."""
    return copy.deepcopy(SUITE)


@pytest.fixture
def task_configs() -> dict[str, dict[str, Any]]:
    return copy.deepcopy(TASKS)


@pytest.fixture(scope="session")
def tasks_writer() -> Any:
    return write_tasks


@pytest.fixture
def new_model() -> Any:
    return make_model
