"""Training of the tiny models: a base that is stopped early, and one expert per task.

* The **base** is trained on all four tasks, with more documents of the weaker ones, until it solves each in about one
  case out of seven. Stopping by measured skill instead of by step count reproduces the result on other CPUs, whose sums
  differ in the last bit.
* An **expert** is fine-tuned from the base on one task. On a share of documents from the other tasks it is distilled
  from the base's output distribution. Without this share the fine-tuned model leaves the basin and merges collapse.
  With right answers on this share every expert learns every task and merging is pointless. With the base's most likely
  answers instead of its distribution, experts reproduce its mistakes and merges gain little.
"""

import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evosearch.zoo.tiny_data import LENGTH, STOP, TASKS, VOCABULARY, Document, draw

_IDS = {token: i for i, token in enumerate(VOCABULARY)}
_CONTEXT = LENGTH + 3  # tokens of a context: <bos>, tag, letters, =
_IGNORED = -100  # label of tokens outside of the answer

Report = Callable[[float], None]  # takes the fraction done, in [0, 1]


@dataclass(frozen=True)
class Schedule:
    """Peak learning rate and number of steps of one expert."""

    rate: float
    steps: int


@dataclass(frozen=True)
class Setting:
    """Hyperparameters of the zoo; with the code of documents and training they determine its weights."""

    seed: int = 0
    layers: int = 6
    width: int = 128
    mlp_width: int = 352
    heads: int = 4
    kv_heads: int = 2
    threads: int = 2
    batch: int = 64  # documents per step
    base_rate: float = 2e-3  # until the mean skill exceeds base_begins, then base_late_rate
    base_late_rate: float = 4e-4
    base_begins: float = 0.08  # mean skill in the three generative tasks
    base_limit: int = 300  # maximum number of steps
    base_targets: dict[str, float] = field(
        default_factory=lambda: {"reverse": 0.15, "sort": 0.15, "deal": 0.15, "median": 0.36}
    )
    base_practice: dict[str, float] = field(  # sampling weight of a task, per distance to its target
        default_factory=lambda: {"reverse": 1.0, "sort": 1.5, "deal": 1.1, "median": 0.8}
    )
    replay: float = 0.35  # share of an expert's documents drawn from the other tasks
    experts: dict[str, Schedule] = field(
        default_factory=lambda: {
            "reverse": Schedule(5e-4, 90),
            "sort": Schedule(8e-4, 90),
            "deal": Schedule(9e-4, 70),
            "median": Schedule(8e-4, 90),
        }
    )


def new_model(setting: Setting) -> Any:
    """Return a LlamaForCausalLM with seeded random weights; the state of the global generator is restored."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=setting.width,
        intermediate_size=setting.mlp_width,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        num_key_value_heads=setting.kv_heads,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=_IDS["<pad>"],
        bos_token_id=_IDS["<bos>"],
        eos_token_id=_IDS["<eos>"],
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        return LlamaForCausalLM(config)


def train_base(setting: Setting, report: Report) -> Any:
    """Train the base on all tasks until each reaches its target on training strings."""
    model, rng = new_model(setting), random.Random(setting.seed)  # noqa: S311 - a seeded stream, not a secret
    probe_rng = random.Random(1000 + setting.seed)  # noqa: S311
    probes = {task: [draw(task, probe_rng) for _ in range(150)] for task in TASKS}
    skills, late = dict.fromkeys(TASKS, 0.0), False
    optimizer = _optimizer(model)
    for step in range(setting.base_limit):
        shortfall = [
            setting.base_practice[task] * max(target - skills[task], 0.02 * target)
            for task, target in setting.base_targets.items()
        ]
        documents = [draw(task, rng) for task in rng.choices(list(setting.base_targets), shortfall, k=setting.batch)]
        rate = setting.base_late_rate if late else setting.base_rate
        _step(model, optimizer, documents, rate * min(1.0, (step + 1) / 30))
        if step >= 50 and step % 5 == 4:
            skills = {task: skill(model, documents) for task, documents in probes.items()}
            late = late or sum(skills[task] for task in TASKS if task != "median") / 3 > setting.base_begins
            if all(skills[task] >= target for task, target in setting.base_targets.items()):
                break
        report(min(0.99, (step + 1) / 160))  # 110 to 160 steps are needed
    return model


def train_expert(setting: Setting, base: Any, task: str, report: Report) -> Any:
    """Fine-tune one expert from the base: right answers in its task, the base's predictions in the others."""
    rng = random.Random(100 * setting.seed + 1 + list(TASKS).index(task))  # noqa: S311 - a seeded stream, not a secret
    others = [other for other in TASKS if other != task]
    model, schedule = deepcopy(base), setting.experts[task]
    optimizer = _optimizer(model)
    for step in range(schedule.steps):
        replayed = sum(rng.random() < setting.replay for _ in range(setting.batch))
        own = [draw(task, rng) for _ in range(setting.batch - replayed)]
        replay = [draw(rng.choice(others), rng) for _ in range(replayed)]
        left = (schedule.steps - step) / schedule.steps
        _step(model, optimizer, own + replay, schedule.rate * min(1.0, (step + 1) / 20, left / 0.3), base, len(own))
        report((step + 1) / schedule.steps)
    return model


@torch.no_grad()
def skill(model: Any, documents: Sequence[Document]) -> float:
    """Return the share of documents that greedy decoding answers right: each answer token is the most likely one."""
    ids, labels = _batch(documents)
    guesses = model(input_ids=ids[:, :-1], use_cache=False).logits.argmax(-1)  # (B, T−1)
    right = (guesses == labels[:, 1:]) | (labels[:, 1:] == _IGNORED)
    return float(right.all(dim=1).float().mean())


def _step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    documents: Sequence[Document],
    rate: float,
    teacher: Any = None,
    own: int | None = None,
) -> None:
    """Take one optimizer step; documents from index `own` on have the teacher's predictions as targets."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    ids, labels = _batch(documents)
    answered = labels[:, 1:] != _IGNORED  # (B, T−1)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # (B, T−1, V)
    targets = torch.nn.functional.one_hot(ids[:, 1:], logits.shape[-1]).float()  # (B, T−1, V)
    if own is not None and own < len(documents):
        with torch.no_grad():
            targets[own:] = teacher(input_ids=ids[own:, :-1], use_cache=False).logits.softmax(-1)
    loss = torch.nn.functional.cross_entropy(logits[answered], targets[answered])
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _optimizer(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)


def _batch(documents: Sequence[Document]) -> tuple[Tensor, Tensor]:
    """Return token ids and labels, both (B, T), padded on the right; only answers and their stop are labelled."""
    rows = [_encode(document) for document in documents]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [_IDS["<pad>"]] * (longest - len(row)) for row in rows])
    labels = torch.tensor([[_IGNORED] * _CONTEXT + row[_CONTEXT:] + [_IGNORED] * (longest - len(row)) for row in rows])
    return ids, labels


def _encode(document: Document) -> list[int]:
    return [_IDS["<bos>"], *(_IDS[letter] for letter in document.context + document.answer + STOP)]
