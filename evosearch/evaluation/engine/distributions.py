"""A model's distributions along given continuations: its most probable tokens at every target position."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evosearch.errors import CandidateError
from evosearch.evaluation.engine.attention import KVStack, forward
from evosearch.evaluation.engine.head import check_head, head_logits
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodPlan
from evosearch.evaluation.types import Tokens


@dataclass(frozen=True)
class TopTokens:
    """The K most probable tokens at each of ΣT target positions, over all requests in order."""

    tokens: NDArray[np.int32]  # (ΣT, K) most probable first
    probabilities: NDArray[np.float32]  # (ΣT, K) renormalized over the K tokens


@torch.inference_mode()
def top_tokens(model: Any, plan: LoglikelihoodPlan, k: int) -> tuple[TopTokens, Tokens]:
    """Compute a model's most probable tokens at the target positions of all requests, given the tokens before.

    Args:
        model: A causal transformers model in evaluation mode.
        plan: A plan of at least one request.
        k: Number of tokens for each position, at most; fewer if the vocabulary is smaller.

    Returns:
        The tokens with their probabilities, and token counts.

    Raises:
        CandidateError: A probability is not finite, or the family changes its logits after the head.
    """
    laid = plan.passes(plan.mode(model), model.device)
    found = list(_passes(model, plan, k))
    tokens = np.concatenate([part[0] for part in found])
    probabilities = np.concatenate([part[1] for part in found])
    if not np.isfinite(probabilities).all():
        raise CandidateError("score", "the teacher's probabilities are not finite: its weights overflow")
    order = np.argsort(laid.pick_request, kind="stable")  # picks of a request are in the order of its positions
    return TopTokens(tokens[order], probabilities[order]), laid.tokens


def _passes(model: Any, plan: LoglikelihoodPlan, k: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Tokens and probabilities of each chunk's picks."""
    prefixes = KVStack()
    for one in plan.passes(plan.mode(model), model.device).passes:
        check_head(model, one.run.ids)
        hidden = forward(model, one.run, prefixes)[0][one.reads]  # (R, hidden size)
        for chunk in one.chunks:
            logits = head_logits(model, hidden[chunk.reads])  # (R, V) float32
            top, index = logits.topk(min(k, logits.shape[-1]), dim=-1)  # (R, K)
            shares = top.double().softmax(dim=-1)  # renormalized: softmax over the K tokens alone
            read = one.pick_read[chunk.picks] - chunk.reads.start  # (P,)
            yield index[read].int().cpu().numpy(), shares[read].float().cpu().numpy()
