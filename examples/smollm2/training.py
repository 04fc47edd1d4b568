"""Training of a LoRA expert on a task's labels, and its accuracy."""

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
CHUNK = 8  # number of batches whose documents are sorted by length together, to reduce padding

Example = tuple[list[int], list[int]]  # tokens of the prompt, tokens of the label


@dataclass(frozen=True)
class Settings:
    """Training settings; the defaults need about eight minutes per expert on two idle cores, and 4 GB of memory."""

    rank: int = 16
    alpha: int = 32  # weight delta = (alpha / rank) · B · A
    steps: int = 140
    batch: int = 16  # documents per step
    rate: float = 5e-4  # AdamW's peak learning rate: linear warm-up over 10% of the steps, then linear decay to zero
    seed: int = 0


def train(
    model: Any,
    tokenizer: Any,
    task: Task,
    documents: Sequence[Document],
    settings: Settings,
    name: str,
    report: Callable[[str], None],
) -> Any:
    """Train a LoRA on all attention and MLP projections; the model's own weights are frozen.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        task: The task.
        documents: Training documents.
        settings: Training settings.
        name: Name of the expert in progress lines.
        report: Receives a progress line every few seconds: step, loss of the label tokens in nats, minutes left.

    Returns:
        The model with the trained adapter.
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
    began = reported = time.monotonic()
    lengths = [len(prompt) + len(label) for prompt, label in examples]
    for step, chosen in zip(range(1, settings.steps + 1), batches(lengths, settings), strict=False):
        logits, targets = label_logits(adapted, [examples[index] for index in chosen])
        loss = cross_entropy(logits, targets)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        now = time.monotonic()
        if now - reported >= REPORT_EVERY or step in (1, settings.steps):
            left = (now - began) / step * (settings.steps - step) / 60
            report(f"{name}: step {step}/{settings.steps}, loss {loss.item():.3f}, {left:.1f} minutes left")
            reported = now
    return adapted


def encode(tokenizer: Any, task: Task, text: str, label: str) -> Example:
    """Tokenize prompt and label as lm-eval does: together, split at the length of the prompt tokenized by itself."""
    prompt = task.prompt.format(text=text)
    alone = tokenizer(prompt)["input_ids"]
    return alone, tokenizer(prompt + label)["input_ids"][len(alone) :]


def batches(lengths: Sequence[int], settings: Settings) -> Iterator[list[int]]:
    """Yield batches of document indices without end; documents of a batch have similar lengths.

    An epoch uses every document once, except for a remainder that does not fill a batch.
    """
    order = random.Random(settings.seed)
    used = len(lengths) - len(lengths) % settings.batch
    while True:
        drawn = order.sample(range(len(lengths)), len(lengths))[:used]
        for start in range(0, used, CHUNK * settings.batch):
            chunk = sorted(drawn[start : start + CHUNK * settings.batch], key=lengths.__getitem__)
            ready = [chunk[at : at + settings.batch] for at in range(0, len(chunk), settings.batch)]
            order.shuffle(ready)
            while ready:
                yield ready.pop()


def label_logits(model: Any, examples: Sequence[Example]) -> "tuple[Tensor, Tensor]":
    """Logits (N, vocabulary) at the positions that predict the N label tokens of a batch, and these tokens (N,).

    Sequences are padded on the right, where causal attention hides the padding from all other tokens.
    """
    import torch

    longest = max(len(prompt) + len(label) for prompt, label in examples) - 1  # the last token predicts nothing
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
    """Fraction of documents whose correct label has the most likely first token of all labels."""
    import torch

    right = 0
    ordered = sorted(documents, key=lambda document: len(document.text))
    model.eval()
    with torch.inference_mode():
        for at in range(0, len(ordered), batch):
            chunk = ordered[at : at + batch]
            # Only the prediction after the prompt is used, so each prompt gets one label, truncated to one token.
            encoded = [[encode(tokenizer, task, document.text, label) for label in task.labels] for document in chunk]
            logits, _ = label_logits(model, [(prompt, first[:1]) for (prompt, first), *_ in encoded])  # (batch, vocab)
            for row, document, choices in zip(logits, chunk, encoded, strict=True):
                right += int(row[[label[0] for _, label in choices]].argmax()) == document.label
    return right / len(ordered)


def save(adapted: Any, folder: Path, base_name: str) -> None:
    """Save the adapter in bfloat16 in peft's format; the model's LoRA weights are rounded in place."""
    import torch

    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    adapted.save_pretrained(folder, save_embedding_layers=False)  # the default asks the hub for the base
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card
