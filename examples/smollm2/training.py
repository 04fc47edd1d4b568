"""Training one LoRA expert to answer a task's prompts with its labels, and counting how often it does."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.smollm2.documents import Document, Task

if TYPE_CHECKING:
    from torch import Tensor

REPORT_EVERY = 5.0  # seconds between two lines of progress
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHUNK = 8  # batches whose documents are sorted by length together, so that a batch pads little

Example = tuple[list[int], list[int]]  # tokens of the prompt, tokens of the label


@dataclass(frozen=True)
class Settings:
    """Of a training; with these defaults an expert takes about eight minutes on two free cores, and 4 GB of memory."""

    rank: int = 16
    alpha: int = 32  # the change is (alpha / rank)·B·A
    steps: int = 140
    batch: int = 16  # documents a step
    rate: float = 5e-4  # of AdamW, at its highest: up in the first tenth of the steps, then down to zero in a line
    seed: int = 0


def train(
    model: Any,
    tokenizer: Any,
    task: Task,
    documents: Sequence[Document],
    settings: Settings,
    name: str,
    say: Callable[[str], None],
) -> Any:
    """The model with a trained LoRA on all its attention and MLP projections; its own weights stay as they are.

    Args:
        name: of the expert, in lines of progress.
        say: takes a line of progress every few seconds: step, loss of the label's tokens in nats, minutes left.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn.functional import cross_entropy

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        lora = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM"
        )
        adapted = get_peft_model(model, lora)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.rate, weight_decay=0.0)
    warm = max(1, settings.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (settings.steps - step) / max(1, settings.steps - warm))
    )
    examples = [encode(tokenizer, task, document.text, task.labels[document.label]) for document in documents]
    began = told = time.monotonic()
    lengths = [len(prompt) + len(label) for prompt, label in examples]
    for step, chosen in zip(range(1, settings.steps + 1), batches(lengths, settings), strict=False):
        logits, targets = label_logits(adapted, [examples[index] for index in chosen])
        loss = cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        now = time.monotonic()
        if now - told >= REPORT_EVERY or step in (1, settings.steps):
            left = (now - began) / step * (settings.steps - step) / 60
            say(f"{name}: step {step}/{settings.steps}, loss {loss.item():.3f}, {left:.1f} minutes left")
            told = now
    return adapted


def encode(tokenizer: Any, task: Task, text: str, label: str) -> Example:
    """Prompt and label as lm-eval cuts them: tokenized together, the label being what the prompt alone has not."""
    prompt = task.prompt.format(text=text)
    alone = tokenizer(prompt)["input_ids"]
    return alone, tokenizer(prompt + label)["input_ids"][len(alone) :]


def batches(lengths: Sequence[int], settings: Settings) -> Iterator[list[int]]:
    """Without end, lists of `batch` documents' indices, of like length together.

    A round takes each document once, but for those left that fill no batch; then the next round begins.
    """
    order = random.Random(settings.seed)
    whole = len(lengths) - len(lengths) % settings.batch
    while True:
        drawn = order.sample(range(len(lengths)), len(lengths))[:whole]
        for start in range(0, whole, CHUNK * settings.batch):
            chunk = sorted(drawn[start : start + CHUNK * settings.batch], key=lengths.__getitem__)
            ready = [chunk[at : at + settings.batch] for at in range(0, len(chunk), settings.batch)]
            order.shuffle(ready)
            while ready:
                yield ready.pop()


def label_logits(model: Any, examples: Sequence[Example]) -> "tuple[Tensor, Tensor]":
    """Logits (N, vocabulary) where each of the N label tokens of a batch is predicted, and those tokens (N,).

    Padding stands at the right, where causal attention keeps it from every token that is read.
    """
    import torch

    longest = max(len(prompt) + len(label) for prompt, label in examples) - 1  # nothing is predicted after the last
    tokens = torch.zeros((len(examples), longest), dtype=torch.long)
    read = torch.zeros((len(examples), longest), dtype=torch.bool)
    for row, (prompt, label) in enumerate(examples):
        sequence = (prompt + label)[:-1]
        tokens[row, : len(sequence)] = torch.tensor(sequence)
        read[row, len(prompt) - 1 : len(sequence)] = True
    hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state  # (batch, longest, width)
    targets = torch.tensor([token for _, label in examples for token in label])
    return model.get_output_embeddings()(hidden[read]), targets


def accuracy(model: Any, tokenizer: Any, task: Task, documents: Sequence[Document], batch: int = 16) -> float:
    """Share of the documents whose label's first token is the likeliest among the labels' first tokens."""
    import torch

    right = 0
    ordered = sorted(documents, key=lambda document: len(document.text))
    model.eval()
    with torch.inference_mode():
        for at in range(0, len(ordered), batch):
            part = ordered[at : at + batch]
            # The prompt alone decides, so the label cut to one token stands for any.
            encoded = [[encode(tokenizer, task, document.text, label) for label in task.labels] for document in part]
            logits, _ = label_logits(model, [(prompt, first[:1]) for (prompt, first), *_ in encoded])  # (batch, vocab)
            for row, document, choices in zip(logits, part, encoded, strict=True):
                right += int(row[[label[0] for _, label in choices]].argmax()) == document.label
    return right / len(ordered)


def save(adapted: Any, folder: Path, base_name: str) -> None:
    """The adapter's two files as peft writes them, in bfloat16; the model holds the rounded weights afterwards."""
    import torch

    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    adapted.save_pretrained(folder, save_embedding_layers=False)  # "auto" asks the hub for the base
    (folder / "README.md").unlink(missing_ok=True)  # a model card with nothing in it
