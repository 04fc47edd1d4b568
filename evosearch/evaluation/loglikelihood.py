"""Log-likelihoods of continuations: each distinct token sequence once, the head only where it is read.

    ll(request) = Σ_j log p(continuation_j | context, continuation_<j)        summed over the continuation's tokens

Laying out (which sequences, which batches, which positions) is done once for a frozen batch; scoring a candidate is
then forward passes and gathers.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.evaluation.head import check_head, head_logits
from evosearch.evaluation.types import Tokens


@dataclass(frozen=True)
class ScoreOptions:
    """How much is run at once. Neither changes a result beyond float rounding."""

    batch_tokens: int = 8192  # rows × length of one forward pass, padding included
    batch_reads: int = 2048  # positions whose logits are held at once: memory is reads × vocabulary × 4 bytes


@dataclass(frozen=True)
class LoglikelihoodRequest:
    """One continuation to be scored, as tokens."""

    inputs: tuple[int, ...]  # context and continuation, less the last token: what the model runs on
    targets: tuple[int, ...]  # the continuation; read at the last len(targets) positions of inputs


@dataclass(frozen=True)
class _Part:
    """Positions whose logits are held at once, and the picks from them."""

    reads: slice  # of the batch's reads
    picks: slice  # of its picks


@dataclass(frozen=True)
class _Batch:
    """One forward pass and what is read from it: R positions, P (request, token) picks ordered by position."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor | None  # (B, T), None where nothing is padded
    reads: Tensor  # (R,) positions in the flattened (B · T)
    pick_read: Tensor  # (P,) index into reads
    pick_token: Tensor  # (P,) the token whose log-probability is wanted
    parts: tuple[_Part, ...]  # covering reads and picks: a long row has more reads than fit in memory

    def to(self, device: torch.device) -> "_Batch":
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        reads, read, token = (tensor.to(device) for tensor in (self.reads, self.pick_read, self.pick_token))
        return _Batch(self.input_ids.to(device), mask, reads, read, token, self.parts)


@dataclass
class LoglikelihoodPlan:
    """Requests laid out in batches; reused for every candidate."""

    n_requests: int
    batches: tuple[_Batch, ...]
    pick_request: NDArray[np.int64]  # (ΣP,) the request that each pick belongs to, over all batches
    tokens: Tokens
    _placed: dict[torch.device, tuple[_Batch, ...]] = field(default_factory=dict)

    def on(self, device: torch.device) -> tuple[_Batch, ...]:
        """The batches on a device, moved there once."""
        if device not in self._placed:
            self._placed[device] = tuple(batch.to(device) for batch in self.batches)
        return self._placed[device]


def lay_out(requests: Sequence[LoglikelihoodRequest], options: ScoreOptions) -> LoglikelihoodPlan:
    """Requests → batches of rows sorted by length, under the token budget."""
    row_of = _rows({request.inputs for request in requests})
    readers: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        readers.setdefault(row_of[request.inputs], []).append(index)
    rows = sorted(readers, key=lambda row: (-len(row), row))
    batches, pick_request = [], []
    for group in _groups(rows, readers, requests, options):
        batch, picks = _lay_out_batch(group, readers, requests, options.batch_reads)
        batches.append(batch)
        pick_request.extend(picks)
    forwarded, run = sum(map(len, rows)), sum(batch.input_ids.numel() for batch in batches)
    tokens = Tokens(
        forwarded=forwarded,
        padded=run - forwarded,
        distinct=distinct_prefixes([request.inputs for request in requests]),
        requested=sum(len(request.inputs) for request in requests),
    )
    return LoglikelihoodPlan(len(requests), tuple(batches), np.array(pick_request, dtype=np.int64), tokens)


@torch.inference_mode()
def score_loglikelihoods(model: Any, plan: LoglikelihoodPlan) -> tuple[NDArray[np.float64], NDArray[np.bool_], Tokens]:
    """Log-likelihood of each request, whether greedy decoding would give its continuation, and the work done.

    Args:
        model: a causal transformers model, in evaluation mode.
        plan: from `lay_out`.

    Raises:
        CandidateError: a log-likelihood is not finite, or the family changes its logits after the head.
    """
    values, hits = [], []
    for batch in plan.on(model.device):
        check_head(model, batch.input_ids)
        hidden = _hidden(model, batch)
        for part in batch.parts:
            logits = head_logits(model, hidden[part.reads])  # (R, V) float32
            read, token = batch.pick_read[part.picks] - part.reads.start, batch.pick_token[part.picks]  # (P,)
            picked = logits[read, token] - logits.logsumexp(dim=-1)[read]
            values.append(picked.double().cpu().numpy())
            hits.append((logits.argmax(dim=-1)[read] == token).cpu().numpy())
    if not values:
        return np.zeros(0), np.zeros(0, dtype=np.bool_), plan.tokens
    lls: NDArray[np.float64] = np.zeros(plan.n_requests)
    np.add.at(lls, plan.pick_request, np.concatenate(values))
    misses = np.bincount(plan.pick_request, weights=~np.concatenate(hits), minlength=plan.n_requests)
    if not np.isfinite(lls).all():
        bad = int((~np.isfinite(lls)).sum())
        raise CandidateError("score", f"{bad} of {len(lls)} log-likelihoods are not finite: the weights blew up")
    return lls, misses == 0, plan.tokens


def distinct_prefixes(sequences: Sequence[tuple[int, ...]]) -> int:
    """Nodes of the token trie of `sequences`: how many tokens must be run at least."""
    total, previous = 0, ()  # type: int, tuple[int, ...]
    for sequence in sorted(set(sequences)):
        total += len(sequence) - _common(previous, sequence)
        previous = sequence
    return total


def _rows(inputs: set[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Each sequence → the longest one it begins: attention is causal, so that row holds its hidden states too."""
    ordered = sorted(inputs)  # a sequence stands right before those it begins
    row_of: dict[tuple[int, ...], tuple[int, ...]] = {}
    for index in reversed(range(len(ordered))):
        sequence = ordered[index]
        following = ordered[index + 1] if index + 1 < len(ordered) else ()
        row_of[sequence] = row_of[following] if following[: len(sequence)] == sequence else sequence
    return row_of


def _groups(
    rows: list[tuple[int, ...]],
    readers: dict[tuple[int, ...], list[int]],
    requests: Sequence[LoglikelihoodRequest],
    options: ScoreOptions,
) -> list[list[tuple[int, ...]]]:
    """Rows, longest first, cut where the next one would exceed a budget."""
    groups: list[list[tuple[int, ...]]] = []
    reads = 0
    for row in rows:
        more = sum(len(requests[index].targets) for index in readers[row])  # at most: shared positions count once
        if not groups or reads + more > options.batch_reads or not _fits(row, groups[-1], options):
            groups.append([])
            reads = 0
        groups[-1].append(row)
        reads += more
    return groups


def _fits(row: tuple[int, ...], group: list[tuple[int, ...]], options: ScoreOptions) -> bool:
    """Whether a row joins a group of longer ones: within the budget, and not mostly as padding.

    A group of few tokens takes any row: a pass of its own costs more than padding does.
    """
    width = len(group[0])
    size = (len(group) + 1) * width
    return size <= options.batch_tokens and (len(row) * 4 >= width * 3 or size <= options.batch_tokens // 16)


def _lay_out_batch(
    rows: list[tuple[int, ...]],
    readers: dict[tuple[int, ...], list[int]],
    requests: Sequence[LoglikelihoodRequest],
    batch_reads: int,
) -> tuple[_Batch, list[int]]:
    width = len(rows[0])
    input_ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    picks: list[tuple[int, int, int]] = []  # flattened position, token, request
    for r, row in enumerate(rows):
        input_ids[r, : len(row)] = torch.tensor(row)
        mask[r, : len(row)] = 1
        for index in readers[row]:
            request = requests[index]
            first = r * width + len(request.inputs) - len(request.targets)
            picks += ((first + offset, token, index) for offset, token in enumerate(request.targets))
    picks.sort()
    positions = sorted({position for position, _, _ in picks})
    index_of = {position: index for index, position in enumerate(positions)}
    pick_read = [index_of[position] for position, _, _ in picks]
    padded = bool((mask == 0).any())
    batch = _Batch(
        input_ids,
        mask if padded else None,
        torch.tensor(positions),
        torch.tensor(pick_read),
        torch.tensor([token for _, token, _ in picks]),
        tuple(_parts(len(positions), pick_read, batch_reads)),
    )
    return batch, [request for _, _, request in picks]


def _parts(reads: int, pick_read: list[int], batch_reads: int) -> Iterator[_Part]:
    for start in range(0, reads, batch_reads):
        stop = min(start + batch_reads, reads)
        yield _Part(slice(start, stop), slice(bisect_left(pick_read, start), bisect_left(pick_read, stop)))


def _hidden(model: Any, batch: _Batch) -> Tensor:
    """Final hidden states (R, hidden size) at the positions that are read."""
    out = model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    hidden: Tensor = out.last_hidden_state  # (B, T, hidden size)
    return hidden.flatten(0, 1)[batch.reads]


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
