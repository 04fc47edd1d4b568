"""Soft targets: distributions over the vocabulary in place of the tokens of a continuation.

    ll(request) = Σ_j Σ_k q_jk log p_jk        j target position, k the tokens that q gives a probability

With p the model and q another model's distribution, -ll is their cross entropy, and ll - Σ q log q = -KL(q ‖ p).
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evosearch.evaluation.engine.picks import pick


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """One distribution for each of T target positions, with K tokens each; probabilities of a position sum to one."""

    tokens: NDArray[np.int64]  # (T, K)
    probabilities: NDArray[np.float64]  # (T, K)

    @property
    def entropy(self) -> float:
        """Sum of the entropies of all positions, in nats: -Σ_j Σ_k q_jk log q_jk, where 0 log 0 = 0."""
        q = self.probabilities
        return float(-(q * np.log(np.where(q > 0, q, 1.0))).sum())


@dataclass(frozen=True)
class SoftPicks:
    """The picks of one pass that have a distribution: S of its P picks, in ascending order."""

    numbers: tuple[int, ...]  # (S,) index of each among the pass's picks
    index: Tensor  # (S,) the same, on the device
    tokens: Tensor  # (S, K) padded with token 0
    probabilities: Tensor  # (S, K) float64, 0 where padded

    @classmethod
    def on(cls, device: torch.device, found: Sequence[tuple[int, SoftTargets, int]]) -> Self | None:
        """Collect the soft picks of a pass; None if there are none.

        Args:
            device: Device of the pass.
            found: (number of the pick, its request's targets, position among them), in ascending order of the number.
        """
        if not found:
            return None
        width = max(targets.tokens.shape[1] for _, targets, _ in found)
        tokens = np.zeros((len(found), width), dtype=np.int64)
        probabilities = np.zeros((len(found), width))
        for row, (_, targets, position) in enumerate(found):
            own = targets.tokens.shape[1]
            tokens[row, :own] = targets.tokens[position]
            probabilities[row, :own] = targets.probabilities[position]
        numbers = tuple(number for number, _, _ in found)
        index = torch.tensor(numbers, dtype=torch.long, device=device)
        return cls(numbers, index, torch.from_numpy(tokens).to(device), torch.from_numpy(probabilities).to(device))

    def pick(self, picks: slice, logits: Tensor, read: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and margins as `picks.pick`, with expectations Σ_k q_k log p_k for soft picks.

        Args:
            picks: The picks of one chunk, as a slice of the pass's picks.
            logits: (R, V) float32 logits of the chunk's reads.
            read: (P,) row of each pick.
            token: (P,) token of each pick.
        """
        own = slice(bisect_left(self.numbers, picks.start), bisect_left(self.numbers, picks.stop))
        if own.start == own.stop:
            return pick(logits, read, token)
        at, tokens = self.index[own] - picks.start, self.tokens[own]  # (S,), (S, K)
        rows = read[at].repeat_interleave(tokens.shape[1])  # (S·K,)
        logprobs, margins = pick(logits, torch.cat([read, rows]), torch.cat([token, tokens.flatten()]))
        count = len(read)
        expected = (self.probabilities[own] * logprobs[count:].view(tokens.shape)).sum(dim=-1)
        return logprobs[:count].index_copy(0, at, expected), margins[:count]
