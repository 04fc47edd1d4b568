"""How the tiny models are trained: a base that is stopped half-way, and experts that leave the rest as it was.

* The **base** practises all four tasks, the weaker ones more, until each is solved in one case out of seven. Stopping
  by measured skill rather than by step count makes the result hold on other CPUs, whose sums differ in the last bit.
* An **expert** goes on from the base with one task, and is held to the base's own output distribution on a share of
  documents of the other tasks. Without that share a fine-tuned model leaves the basin and merges collapse; with the
  right answers there, every expert becomes good at everything and merging is pointless; with the base's most likely
  answers instead of its distribution, experts insist on its mistakes and merges gain little.
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
_IGNORED = -100  # label of what is not asked for

Tell = Callable[[float], None]  # the part that is done, in [0, 1]


@dataclass(frozen=True)
class Schedule:
    """How one expert is trained: peak learning rate, and steps."""

    rate: float
    steps: int


@dataclass(frozen=True)
class Setting:
    """Everything that determines the zoo, besides the code of the documents and of the training."""

    seed: int = 0
    layers: int = 6
    width: int = 128
    mlp_width: int = 352
    heads: int = 4
    kv_heads: int = 2
    threads: int = 2
    batch: int = 64  # documents a step
    base_rate: float = 2e-3  # until the base begins to answer, then base_late_rate
    base_late_rate: float = 4e-4
    base_begins: float = 0.08  # mean skill in the three generative tasks
    base_limit: int = 300  # steps at most
    base_targets: dict[str, float] = field(
        default_factory=lambda: {"reverse": 0.15, "sort": 0.15, "deal": 0.15, "median": 0.36}
    )
    base_practice: dict[str, float] = field(  # how much a task is practised, for the same distance to its target
        default_factory=lambda: {"reverse": 1.0, "sort": 1.5, "deal": 1.1, "median": 0.8}
    )
    replay: float = 0.35  # share of an expert's documents that come from the other tasks
    experts: dict[str, Schedule] = field(
        default_factory=lambda: {
            "reverse": Schedule(5e-4, 90),
            "sort": Schedule(8e-4, 90),
            "deal": Schedule(9e-4, 70),
            "median": Schedule(8e-4, 90),
        }
    )


def new_model(setting: Setting) -> Any:
    """A LlamaForCausalLM with seeded random weights; the global generator is left as it was."""
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


def train_base(setting: Setting, tell: Tell) -> Any:
    """The base: all tasks, until each has reached its target on training-side strings."""
    model, rng = new_model(setting), random.Random(setting.seed)  # noqa: S311 - a seeded stream, no secret
    watch = random.Random(1000 + setting.seed)  # noqa: S311
    watched = {task: [draw(task, watch) for _ in range(150)] for task in TASKS}
    skills, late = dict.fromkeys(TASKS, 0.0), False
    optimizer = _optimizer(model)
    for step in range(setting.base_limit):
        short = [
            setting.base_practice[task] * max(target - skills[task], 0.02 * target)
            for task, target in setting.base_targets.items()
        ]
        documents = [draw(task, rng) for task in rng.choices(list(setting.base_targets), short, k=setting.batch)]
        rate = setting.base_late_rate if late else setting.base_rate
        _step(model, optimizer, documents, rate * min(1.0, (step + 1) / 30))
        if step >= 50 and step % 5 == 4:
            skills = {task: skill(model, documents) for task, documents in watched.items()}
            late = late or sum(skills[task] for task in TASKS if task != "median") / 3 > setting.base_begins
            if all(skills[task] >= target for task, target in setting.base_targets.items()):
                break
        tell(min(0.99, (step + 1) / 160))  # it takes 110 to 160 steps
    return model


def train_expert(setting: Setting, base: Any, task: str, tell: Tell) -> Any:
    """One expert, from the base: right answers in its task, the base's own predictions in the others."""
    rng = random.Random(100 * setting.seed + 1 + list(TASKS).index(task))  # noqa: S311 - a seeded stream, no secret
    others = [other for other in TASKS if other != task]
    model, schedule = deepcopy(base), setting.experts[task]
    optimizer = _optimizer(model)
    for step in range(schedule.steps):
        replayed = sum(rng.random() < setting.replay for _ in range(setting.batch))
        own = [draw(task, rng) for _ in range(setting.batch - replayed)]
        replay = [draw(rng.choice(others), rng) for _ in range(replayed)]
        left = (schedule.steps - step) / schedule.steps
        _step(model, optimizer, own + replay, schedule.rate * min(1.0, (step + 1) / 20, left / 0.3), base, len(own))
        tell((step + 1) / schedule.steps)
    return model


@torch.no_grad()
def skill(model: Any, documents: Sequence[Document]) -> float:
    """Share of documents whose every answer token is the most likely one: what greedy decoding gets right."""
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
    """One step of gradient descent on answers; documents from index `own` on are held to the teacher's predictions."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    ids, labels = _batch(documents)
    asked = labels[:, 1:] != _IGNORED  # (B, T−1)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # (B, T−1, V)
    wanted = torch.nn.functional.one_hot(ids[:, 1:], logits.shape[-1]).float()  # (B, T−1, V)
    if own is not None and own < len(documents):
        with torch.no_grad():
            wanted[own:] = teacher(input_ids=ids[own:, :-1], use_cache=False).logits.softmax(-1)
    loss = torch.nn.functional.cross_entropy(logits[asked], wanted[asked])
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _optimizer(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)


def _batch(documents: Sequence[Document]) -> tuple[Tensor, Tensor]:
    """Token ids and labels, both (B, T), padded on the right; only answers and their stop are labelled."""
    rows = [_encode(document) for document in documents]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [_IDS["<pad>"]] * (longest - len(row)) for row in rows])
    labels = torch.tensor([[_IGNORED] * _CONTEXT + row[_CONTEXT:] + [_IGNORED] * (longest - len(row)) for row in rows])
    return ids, labels


def _encode(document: Document) -> list[int]:
    return [_IDS["<bos>"], *(_IDS[letter] for letter in document.context + document.answer + STOP)]
