"""Small copies of the hub's data sets, with the same names, configurations, splits and fields.

`datasets` uses a folder of a data set's name in the working directory instead of the hub, so the shipped suites run
unchanged without a network.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

EVALS = Path(__file__).parents[2] / "evals"
Rows = list[dict[str, Any]]


def words(n: int, letters: str = "abdefgilmnorstu", count: int = 14) -> str:
    """Random words, so that no two documents are near-duplicates."""
    draw = random.Random(n)
    return " ".join("".join(draw.choices(letters, k=4)) for _ in range(count)).capitalize()


def gsm8k(count: int, first: int) -> Rows:
    rows = []
    for n in range(first, first + count):
        total = 1000 + 3 * n
        bought = f"buys {n % 5 + 2} more, then {5 - n % 5} more"
        question = f"{words(n)}. Ann has {total - 7} stamps and {bought}. How many has she?"
        answer = f"She buys 7 stamps. {total - 7}+7 = <<{total - 7}+7={total}>>{total}.\n#### {total:,}"
        rows.append({"question": question, "answer": answer})
    return rows


def arc(count: int, first: int) -> Rows:
    """Mostly four choices, sometimes three or five, and sometimes labelled 1 to 4, as in the real set."""
    rows = []
    for n in range(first, first + count):
        texts = [
            f"{word} {words(n + 7 * k, count=2)}"
            for k, word in enumerate(("ice", "sand", "tea", "wood", "air")[: (4, 4, 3, 5)[n % 4]])
        ]
        labels = list("12345" if n % 8 == 1 else "ABCDE")[: len(texts)]
        choices = {"text": texts, "label": labels}
        row = {"id": f"T{n}", "question": f"{words(n)}. What melts?", "choices": choices}
        rows.append({**row, "answerKey": labels[n % len(texts)]})
    return rows


def hellaswag(count: int, first: int) -> Rows:
    rows = []
    for n in range(first, first + count):
        row = {"ind": n, "activity_label": "Cooking", "ctx_a": f"{words(n)} fills a pot.", "ctx_b": "the cook"}
        endings = [f"[substeps] boils it {n} times.", "sings.", f"[title] Serve {n}. [step] Eat.", "leaves  the room."]
        row |= {
            "ctx": f"{row['ctx_a']} {row['ctx_b']}",
            "endings": endings,
            "source_id": f"s~{n // 2}",
            "split": "train",
        }
        rows.append({**row, "split_type": "indomain", "label": str(n % 4)})
    return rows


def japanese(count: int, first: int) -> Rows:
    rows: Rows = []
    for n in range(first, first + count):
        scene = words(n, "あいうえおかきくけこさしすせそ")
        question = f"{scene}。りんごが{n}個あります。{n % 7 + 1}個もらうと、全部で何個ですか?"
        rows.append({"question": question, "answer_number": n + n % 7 + 1})
    return rows


def mgsm(count: int, first: int) -> Rows:
    return [{**row, "answer": None, "equation_solution": None} for row in japanese(count, first)]


# Data set → configuration (none: the default) → split → rows. Test and training sets have different numbers.
HUB: dict[str, dict[str, dict[str, Rows]]] = {
    "openai/gsm8k": {"main": {"train": gsm8k(60, 0), "test": gsm8k(40, 500)}},
    "allenai/ai2_arc": {
        "ARC-Easy": {"train": arc(40, 0), "validation": arc(30, 200), "test": arc(40, 400)},
        "ARC-Challenge": {"train": arc(40, 1000), "validation": arc(30, 1200), "test": arc(40, 1400)},
    },
    "Rowan/hellaswag": {
        "": {
            "train": hellaswag(60, 0),
            "validation": hellaswag(40, 500),
            "test": [{**row, "label": ""} for row in hellaswag(20, 900)],  # like the real set, without labels
        }
    },
    "juletxara/mgsm": {"ja": {"train": mgsm(8, 900), "test": mgsm(40, 0)}},
    # Unlike in the real set, the last problem is one of the test's: it must not be searched on.
    "SakanaAI/gsm8k-ja-test_250-1319": {"": {"test": japanese(60, 250) + japanese(1, 3)}},
}


def write_hub(folder: Path) -> None:
    for name, configurations in HUB.items():
        home = folder / name
        home.mkdir(parents=True)
        configs = []
        for configuration, splits in configurations.items():
            files = []
            for split, rows in splits.items():
                # A single file with the set's name, in which `datasets` finds the split, as on the hub.
                only = not configuration and list(splits) == ["test"]
                path = home / f"{home.name}.jsonl" if only else home / configuration / f"{split}.jsonl"
                path.parent.mkdir(exist_ok=True)
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                files.append({"split": split, "path": str(path.relative_to(home))})
            if not only:
                configs.append({"config_name": configuration or "default", "data_files": files})
        if configs:
            (home / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")


@pytest.fixture(scope="session")
def _hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    write_hub(folder)
    return folder


@pytest.fixture
def hub(_hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the data sets and the cache of `datasets`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", _hub_folder / "cache")
    monkeypatch.chdir(_hub_folder)
    return _hub_folder


@pytest.fixture
def smaller(tmp_path: Path) -> Callable[..., Path]:
    """`smaller("reasoning")`: a shipped suite with few documents per split and no other change."""

    def write(name: str, **changes: Any) -> Path:
        data = yaml.safe_load((EVALS / f"{name}.yaml").read_text())
        data["include"] = [str(EVALS / include) for include in data["include"]]
        assert all("documents" not in task for task in data["tasks"])
        data["documents"] = {"search": 5, "validation": 6, "test": 7}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data | changes))
        return path

    return write


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte tokenizer, so that text in any language survives a round trip."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A folder with `one` and `two`: random one-layer models whose context fits five worked examples in bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    for seed, name in enumerate(("one", "two")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            LlamaForCausalLM(config).eval().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder
