"""Training of a LoRA expert on right answers, and its accuracy."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

REPORT_EVERY = 5.0  # seconds between two lines of progress
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHUNK = 8  # number of batches whose documents are sorted by length together, to reduce padding

Pair = tuple[str, str]  # a prompt and its right answer, which begins with the space between them
Example = tuple[list[int], list[int]]  # tokens of the prompt, tokens of the answer


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
    pairs: Sequence[Pair],
    settings: Settings,
    name: str,
    report: Callable[[str], None],
) -> Any:
    """Train a LoRA on all attention and MLP projections; the model's own weights are frozen.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        pairs: Training documents: prompts and right answers.
        settings: Training settings.
        name: Name of the expert in progress lines.
        report: Receives a progress line every few seconds: step, loss of the answer tokens in nats, minutes left.

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
    examples = [encode(tokenizer, *pair) for pair in pairs]
    began = reported = time.monotonic()
    lengths = [len(prompt) + len(answer) for prompt, answer in examples]
    for step, chosen in zip(range(1, settings.steps + 1), batches(lengths, settings), strict=False):
        logits, targets = answer_logits(adapted, [examples[index] for index in chosen])
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


def encode(tokenizer: Any, prompt: str, answer: str) -> Example:
    """Tokenize prompt and answer as lm-eval does: together, split at the length of the prompt tokenized by itself."""
    alone = tokenizer(prompt)["input_ids"]
    return alone, tokenizer(prompt + answer)["input_ids"][len(alone) :]


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


def answer_logits(model: Any, examples: Sequence[Example]) -> "tuple[Tensor, Tensor]":
    """Logits (N, vocabulary) at the positions that predict the N answer tokens of a batch, and these tokens (N,).

    Sequences are padded on the right, where causal attention hides the padding from all other tokens.
    """
    import torch

    longest = max(len(prompt) + len(answer) for prompt, answer in examples) - 1  # the last token predicts nothing
    tokens = torch.zeros((len(examples), longest), dtype=torch.long)
    read = torch.zeros((len(examples), longest), dtype=torch.bool)
    for row, (prompt, answer) in enumerate(examples):
        sequence = (prompt + answer)[:-1]
        tokens[row, : len(sequence)] = torch.tensor(sequence)
        read[row, len(prompt) - 1 : len(sequence)] = True
    hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state  # (batch, longest, width)
    targets = torch.tensor([token for _, answer in examples for token in answer])
    return model.get_output_embeddings()(hidden[read]), targets


def choice_accuracy(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], choices: Sequence[str], batch: int = 16
) -> float:
    """Fraction of documents whose right answer has the most likely first token of all choices."""

    def right(chunk: Sequence[Pair]) -> int:
        # Only the prediction after the prompt is used, so each prompt gets one answer, truncated to one token.
        firsts = [[encode(tokenizer, prompt, choice)[1][0] for choice in choices] for prompt, _ in chunk]
        prompts = [encode(tokenizer, prompt, choices[0])[0] for prompt, _ in chunk]
        logits, _ = answer_logits(model, [(prompt, row[:1]) for prompt, row in zip(prompts, firsts, strict=True)])
        picked = [choices[int(row[tokens].argmax())] for row, tokens in zip(logits, firsts, strict=True)]
        return sum(choice == answer for choice, (_, answer) in zip(picked, chunk, strict=True))

    return _share(model, pairs, right, batch)


def exact_accuracy(model: Any, tokenizer: Any, pairs: Sequence[Pair], batch: int = 16) -> float:
    """Fraction of documents whose right answer greedy decoding writes: every token is the most likely one."""

    def right(chunk: Sequence[Pair]) -> int:
        examples = [encode(tokenizer, *pair) for pair in chunk]
        logits, targets = answer_logits(model, examples)
        hits = iter((logits.argmax(-1) == targets).tolist())
        return sum(all(list(islice(hits, len(answer)))) for _, answer in examples)

    return _share(model, pairs, right, batch)


def _share(model: Any, pairs: Sequence[Pair], right: Callable[[Sequence[Pair]], int], batch: int) -> float:
    """Fraction of documents that are right, counted in batches of similar length."""
    import torch

    ordered = sorted(pairs, key=lambda pair: len(pair[0]))
    model.eval()
    with torch.inference_mode():
        return sum(right(ordered[at : at + batch]) for at in range(0, len(ordered), batch)) / len(ordered)


def save(adapted: Any, folder: Path, base_name: str) -> None:
    """Save the adapter in bfloat16 in peft's format; the model's LoRA weights are rounded in place."""
    import torch

    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    adapted.save_pretrained(folder, save_embedding_layers=False)  # the default asks the hub for the base
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card
