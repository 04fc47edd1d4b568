"""Log-likelihoods of continuations: each distinct token prefix once, the head only where it is read.

    ll(request) = Σ_j log p(continuation_j | context, continuation_<j)        summed over the continuation's tokens

Laying out (which runs, which positions) is done once for a frozen batch and a mode of running models (`attention.py`);
scoring a candidate is then forward passes and gathers.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.evaluation.engine.attention import MODES, Budget, KVStack, Mode, Placed, forward, mode_of
from evosearch.evaluation.engine.attention import lay_out as lay_out_runs
from evosearch.evaluation.engine.head import check_head, head_logits
from evosearch.evaluation.engine.prefix_tree import Layout, distinct_prefixes
from evosearch.evaluation.types import Tokens

# Tokens of one forward pass. A CPU gains nothing beyond, and has no memory of its own to fill: what it takes is taken
# from everything else on the machine. A GPU is busy with a small model only at more; a worker measures how much it
# holds (execution/memory.py), and this is what a model takes that is scored without one.
_BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_ELSEWHERE = 8192


@dataclass(frozen=True)
class ScoreOptions:
    """How much is run at once, and in which modes. None of it changes a result beyond float rounding."""

    batch_tokens: int | None = None  # in one forward pass; None: by the kind of device
    batch_reads: int = 2048  # positions whose logits are held at once: memory is reads × vocabulary × 4 bytes
    cached_tokens: int = 32768  # keys and values of a batch of rows, in tokens: rows × length
    generation_rows: int = 512  # prompts that are continued together, at most
    modes: tuple[Mode, ...] = MODES  # how models may be run, see `attention.py`

    def budget(self, device: torch.device) -> Budget:
        """What a device runs at once."""
        tokens = self.batch_tokens or _BATCH_TOKENS.get(device.type, _BATCH_TOKENS_ELSEWHERE)
        return Budget(tokens, self.cached_tokens)


@dataclass(frozen=True)
class LoglikelihoodRequest:
    """One continuation to be scored, as tokens."""

    inputs: tuple[int, ...]  # context and continuation, less the last token: what the model runs on
    targets: tuple[int, ...]  # the continuation; read at the last len(targets) positions of inputs


@dataclass(frozen=True)
class _Part:
    """Positions whose logits are held at once, and the picks from them."""

    reads: slice  # of the pass's reads
    picks: slice  # of its picks


@dataclass(frozen=True)
class _Pass:
    """One run and what is read from it: R positions, P (request, token) picks ordered by position."""

    placed: Placed
    reads: Tensor  # (R,) positions in the flattened (B · T)
    pick_read: Tensor  # (P,) index into reads
    pick_token: Tensor  # (P,) the token whose log-probability is wanted
    parts: tuple[_Part, ...]  # covering reads and picks: a long row has more reads than fit in memory


@dataclass(frozen=True)
class Passes:
    """A batch of requests, laid out in one mode for one device."""

    mode: Mode
    passes: tuple[_Pass, ...]
    pick_request: NDArray[np.int64]  # (ΣP,) the request that each pick belongs to, over all passes
    tokens: Tokens


@dataclass
class LoglikelihoodPlan:
    """Requests, laid out on first use in the mode that a model is run in; reused for every candidate."""

    requests: tuple[LoglikelihoodRequest, ...]
    options: ScoreOptions
    _laid: dict[tuple[Mode, torch.device], Passes] = field(default_factory=dict)

    def mode(self, model: Any) -> Mode:
        """The mode this model is run in."""
        return mode_of(model, self._longest, len(self._longest), self.options.modes)

    @cached_property
    def _longest(self) -> tuple[int, ...]:
        return max((request.inputs for request in self.requests), key=len)

    def passes(self, mode: Mode, device: torch.device) -> Passes:
        """What is run in a mode on a device, laid out once."""
        if (mode, device) not in self._laid:
            self._laid[mode, device] = _passes(self.requests, mode, device, self.options)
        return self._laid[mode, device]


def lay_out(requests: Sequence[LoglikelihoodRequest], options: ScoreOptions) -> LoglikelihoodPlan:
    """A plan for requests."""
    return LoglikelihoodPlan(tuple(requests), options)


@torch.inference_mode()
def score_loglikelihoods(model: Any, plan: LoglikelihoodPlan) -> tuple[NDArray[np.float64], NDArray[np.bool_], Tokens]:
    """Log-likelihood of each request, whether greedy decoding would give its continuation, and the work done.

    Args:
        model: a causal transformers model, in evaluation mode.
        plan: from `lay_out`.

    Raises:
        CandidateError: a log-likelihood is not finite, or the family changes its logits after the head.
    """
    count = len(plan.requests)
    if not count:
        return np.zeros(0), np.zeros(0, dtype=np.bool_), Tokens()
    laid = plan.passes(plan.mode(model), model.device)
    values, hits = [], []
    path = KVStack()
    for one in laid.passes:
        check_head(model, one.placed.ids)
        hidden = forward(model, one.placed, path)[0][one.reads]  # (R, hidden size)
        for part in one.parts:
            logits = head_logits(model, hidden[part.reads])  # (R, V) float32
            read, token = one.pick_read[part.picks] - part.reads.start, one.pick_token[part.picks]  # (P,)
            picked = logits[read, token] - logits.logsumexp(dim=-1)[read]
            values.append(picked.double())
            hits.append(logits.argmax(dim=-1)[read] == token)
    # One transfer for all passes: on a GPU each one waits for everything that is queued.
    logprobs, hit = torch.cat(values).cpu().numpy(), torch.cat(hits).cpu().numpy()
    lls = np.bincount(laid.pick_request, weights=logprobs, minlength=count).astype(np.float64)
    misses = np.bincount(laid.pick_request[~hit], minlength=count)
    if not np.isfinite(lls).all():
        bad = int((~np.isfinite(lls)).sum())
        raise CandidateError("score", f"{bad} of {len(lls)} log-likelihoods are not finite: the weights blew up")
    return lls, misses == 0, laid.tokens


def _passes(
    requests: Sequence[LoglikelihoodRequest], mode: Mode, device: torch.device, options: ScoreOptions
) -> Passes:
    sequences = list(dict.fromkeys(request.inputs for request in requests))
    layout = lay_out_runs(sequences, mode, options.budget(device))
    picks: list[list[tuple[int, int, int]]] = [[] for _ in layout.runs]  # flattened position, token, request
    for index, request in enumerate(requests):
        _add_picks(picks, layout, request, index)
    made, pick_request = [], []
    for run, own in zip(layout.runs, picks, strict=True):
        own.sort()
        made.append(_pass(Placed.on(device, run), own, options.batch_reads))
        pick_request += [request for _, _, request in own]
    tokens = Tokens(
        forwarded=sum(run.tokens for run in layout.runs),
        padded=sum(run.padding for run in layout.runs),
        distinct=distinct_prefixes(sequences),
        requested=sum(len(request.inputs) for request in requests),
    )
    return Passes(mode, tuple(made), np.array(pick_request, dtype=np.int64), tokens)


def _add_picks(
    picks: list[list[tuple[int, int, int]]], layout: Layout, request: LoglikelihoodRequest, index: int
) -> None:
    """What is read for one request, in whichever runs its last positions are."""
    first = len(request.inputs) - len(request.targets)  # where the first target is predicted
    for stretch in layout.stretches[request.inputs]:
        skipped = max(first - stretch.first, 0)
        offset = stretch.first + skipped - first
        picks[stretch.run] += (
            (int(place), request.targets[offset + number], index)
            for number, place in enumerate(stretch.places[skipped:])
        )


def _pass(placed: Placed, picks: list[tuple[int, int, int]], batch_reads: int) -> _Pass:
    device = placed.ids.device
    positions = sorted({position for position, _, _ in picks})
    index_of = {position: index for index, position in enumerate(positions)}
    pick_read = [index_of[position] for position, _, _ in picks]
    return _Pass(
        placed,
        torch.tensor(positions, dtype=torch.long, device=device),
        torch.tensor(pick_read, dtype=torch.long, device=device),
        torch.tensor([token for _, token, _ in picks], dtype=torch.long, device=device),
        tuple(_parts(len(positions), pick_read, batch_reads)),
    )


def _parts(reads: int, pick_read: list[int], batch_reads: int) -> Iterator[_Part]:
    for start in range(0, reads, batch_reads):
        stop = min(start + batch_reads, reads)
        yield _Part(slice(start, stop), slice(bisect_left(pick_read, start), bisect_left(pick_read, stop)))
