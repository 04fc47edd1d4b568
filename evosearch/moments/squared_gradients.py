"""Diagonal of the empirical Fisher matrix with sampled labels (Matena and Raffel 2022, arXiv:2111.09832).

    F = 1/N Σ_n 1/T_n (Σ_t ∂ log p(y_t | x_≤t) / ∂θ)²        y_t ~ p(· | x_≤t), N documents of T_n tokens

Labels are drawn from the model at every position, so that no right answers are read. The gradients of one document are
summed over its positions before they are squared: labels are independent, so the expected products of different
positions are zero, and one backward pass serves all positions.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evosearch.checkpoints.families.registry import Placement
from evosearch.evaluation.engine.recomputation import recomputed

Draws = Callable[[int, int], Tensor]  # (document, tokens) → uniform numbers (tokens,) in [0, 1), float64


def add_squared_gradients(
    model: Any,
    documents: Sequence[Sequence[int]],
    sums: Mapping[str, Tensor],
    places: Mapping[str, Placement],
    draws: Draws,
    done: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Add F to `sums`. Beside the model, one document's activations and at most two gradients are in memory.

    Layers are recomputed in the backward pass, and each gradient is squared, added and freed when it has been computed.

    Args:
        model: A causal transformers model in evaluation mode, without gradients.
        documents: Token ids of each document.
        sums: Name → tensor (*shape) float32 on the CPU.
        places: Name → its place in the live model.
        draws: Uniform numbers from which labels are drawn.
        done: Called with the fraction of the documents.
    """
    parts: dict[str, list[tuple[Tensor, Placement]]] = {}
    for name, total in sums.items():
        parts.setdefault(places[name].parameter, []).append((total, places[name]))
    live = dict(model.named_parameters())
    scale = [0.0]

    def add(own: Sequence[tuple[Tensor, Placement]], parameter: Tensor) -> None:
        grad, parameter.grad = parameter.grad, None
        assert grad is not None
        if grad.is_sparse:  # of embeddings
            rows = grad.coalesce()
            for total, _ in own:
                total.index_add_(0, rows.indices()[0].cpu(), rows.values().float().square_().cpu(), alpha=scale[0])
            return
        squared = grad.float().square_()
        for total, place in own:
            total.add_((squared[place.index] if place.index else squared).cpu(), alpha=scale[0])

    with ExitStack() as stack:
        for path, own in parts.items():
            _require(stack, live[path], own, add)
        _sparsify(stack, model, parts)
        stack.enter_context(recomputed(model))
        stack.enter_context(torch.enable_grad())
        for index, tokens in enumerate(documents):
            scale[0] = 1.0 / (len(tokens) * len(documents))
            logits = model(input_ids=torch.tensor([list(tokens)], device=model.device), use_cache=False).logits[0]
            labels = sampled(logits.detach(), draws(index, len(tokens)))
            nn.functional.cross_entropy(logits.float(), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
            done((index + 1) / len(documents))


def _require(
    stack: ExitStack,
    parameter: Tensor,
    own: Sequence[tuple[Tensor, Placement]],
    add: Callable[[Sequence[tuple[Tensor, Placement]], Tensor], None],
) -> None:
    """Let a parameter require gradients within the context, and add each as soon as it has been computed."""
    parameter.requires_grad_(True)
    stack.callback(parameter.requires_grad_, False)
    hook = parameter.register_post_accumulate_grad_hook(lambda one: add(own, one))  # type: ignore[no-untyped-call]
    stack.callback(hook.remove)


def _sparsify(stack: ExitStack, model: Any, parts: Mapping[str, Sequence[tuple[Tensor, Placement]]]) -> None:
    """Let embeddings have gradients of the rows that a document reads, within the context.

    If they are tied to the head, autograd adds these rows to the head's gradient: two matrices of their size are in
    memory instead of three.
    """
    for path, module in model.named_modules():
        whole = not any(place.index for _, place in parts.get(f"{path}.weight", ()))
        if isinstance(module, nn.Embedding) and whole and not module.sparse:
            module.sparse = True
            stack.callback(setattr, module, "sparse", False)


def sampled(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return labels (T,) drawn from the softmax of logits (T, V), by inversion of uniform numbers (T,)."""
    cumulated = logits.double().softmax(dim=-1).cumsum(dim=-1)
    below = uniform.to(logits.device).unsqueeze(1) * cumulated[:, -1:]
    return (cumulated <= below).sum(dim=-1).clamp_max(logits.shape[-1] - 1)


def draws_of(digest: str) -> Draws:
    """Return the numbers of a sample: the same for all of its models, and independent of the device."""

    def draw(document: int, tokens: int) -> Tensor:
        seed = hashlib.sha256(f"{digest} {document}".encode()).digest()
        return torch.from_numpy(
            np.random.Generator(np.random.Philox(int.from_bytes(seed[:8], "little"))).random(tokens)
        )

    return draw
