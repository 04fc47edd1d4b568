"""Log-likelihoods of continuations: each distinct token prefix runs once, and logits are computed only where needed.

    ll(request)     = Σ_j log p(continuation_j | context, continuation_<j)    summed over the continuation's tokens
    margin(request) = min_j (logit of continuation_j − largest other logit)   positive if greedy decoding gives it

The layout (runs and positions) is computed once for a frozen batch and an execution mode (`modes.py`); scoring a
candidate then takes only forward passes and gathers.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.evaluation.engine.attention import DeviceRun, KVStack, forward
from evosearch.evaluation.engine.head import check_head, head_logits
from evosearch.evaluation.engine.modes import lay_out as lay_out_runs
from evosearch.evaluation.engine.modes import mode_of
from evosearch.evaluation.engine.picks import pick
from evosearch.evaluation.engine.runs import Layout, distinct_prefixes
from evosearch.evaluation.engine.score_options import Mode, ScoreOptions
from evosearch.evaluation.engine.soft_targets import SoftPicks, SoftTargets
from evosearch.evaluation.types import Tokens


@dataclass(frozen=True)
class LoglikelihoodRequest:
    """One continuation to score, as tokens."""

    inputs: tuple[int, ...]  # the model's input: context and continuation without the last token
    targets: tuple[int, ...]  # the continuation, predicted at the last len(targets) positions of inputs
    soft: SoftTargets | None = None  # distributions in place of the targets in the log-likelihood


@dataclass(frozen=True)
class _Chunk:
    """Positions whose logits are in memory at once, and the picks from them."""

    reads: slice  # into the pass's reads
    picks: slice  # into the pass's picks


@dataclass(frozen=True)
class Pass:
    """One run, and the log-probabilities to read from it: R positions, and P (request, token) picks at them."""

    run: DeviceRun
    reads: Tensor  # (R,) positions in the flattened (B · T)
    pick_read: Tensor  # (P,) index into reads
    pick_token: Tensor  # (P,) the token whose log-probability is picked
    chunks: tuple[_Chunk, ...]  # cover reads and picks; a long row has more reads than fit into memory
    soft: SoftPicks | None = None  # picks of requests with soft targets


@dataclass(frozen=True)
class Passes:
    """All passes of a batch of requests, in one mode and on one device."""

    mode: Mode
    passes: tuple[Pass, ...]
    pick_request: NDArray[np.int64]  # (ΣP,) request of each pick, over all passes
    tokens: Tokens


@dataclass
class LoglikelihoodPlan:
    """Requests and their layouts by execution mode and device, computed on first use and reused for every candidate."""

    requests: tuple[LoglikelihoodRequest, ...]
    options: ScoreOptions
    _laid: dict[tuple[Mode, torch.device, bool], Passes] = field(default_factory=dict)
    _smaller: dict[int, "LoglikelihoodPlan"] = field(default_factory=dict)  # by tokens of a pass

    def mode(self, model: Any) -> Mode:
        """Return this model's execution mode."""
        return mode_of(model, self._longest, len(self._longest), self.options.modes)

    @cached_property
    def _longest(self) -> tuple[int, ...]:
        return max((request.inputs for request in self.requests), key=len)

    @cached_property
    def distinct(self) -> int:
        """Number of distinct prefixes among the inputs: the minimum number of tokens to run."""
        return distinct_prefixes({request.inputs for request in self.requests})

    @property
    def reads_per_token(self) -> float:
        """Upper bound of the positions whose logits are read, relative to the tokens to run."""
        return min(sum(len(request.targets) for request in self.requests) / self.distinct, 1.0)

    def within(self, tokens: int, device: torch.device) -> "LoglikelihoodPlan":
        """Return a plan of the same requests with passes of at most `tokens` tokens: this one if it has such passes."""
        if self.options.budget(device).tokens <= tokens:
            return self
        if tokens not in self._smaller:
            self._smaller[tokens] = lay_out(self.requests, replace(self.options, batch_tokens=tokens))
        return self._smaller[tokens]

    def passes(self, mode: Mode, device: torch.device) -> Passes:
        """Return the passes for a mode and a device, laid out once."""
        key = mode, device, torch.is_inference_mode_enabled()  # tensors made in inference mode have no gradients
        if key not in self._laid:
            self._laid[key] = _passes(self.requests, mode, device, self.options)
        return self._laid[key]


def lay_out(requests: Sequence[LoglikelihoodRequest], options: ScoreOptions) -> LoglikelihoodPlan:
    """Plan log-likelihood requests."""
    return LoglikelihoodPlan(tuple(requests), options)


class Likelihoods(NamedTuple):
    """Results of the forward passes for each request, in request order."""

    lls: NDArray[np.float64]  # (requests,) log-likelihood
    greedy: NDArray[np.bool_]  # (requests,) whether greedy decoding gives the continuation
    margins: NDArray[np.float64]  # (requests,) smallest lead of a token's logit over the best other one
    tokens: Tokens = Tokens()


@torch.inference_mode()
def score_loglikelihoods(model: Any, plan: LoglikelihoodPlan) -> Likelihoods:
    """Compute the log-likelihood of each request.

    Args:
        model: A causal transformers model in evaluation mode.
        plan: A plan from `lay_out`.

    Raises:
        CandidateError: A log-likelihood is not finite, or the family changes its logits after the head.
    """
    count = len(plan.requests)
    if not count:
        return Likelihoods(np.zeros(0), np.zeros(0, dtype=np.bool_), np.zeros(0))
    laid = plan.passes(plan.mode(model), model.device)
    values, hits, leads = [], [], []
    prefixes = KVStack()
    for one in laid.passes:
        check_head(model, one.run.ids)
        hidden = forward(model, one.run, prefixes)[0][one.reads]  # (R, hidden size)
        for chunk in one.chunks:
            logits = head_logits(model, hidden[chunk.reads])  # (R, V) float32
            read, token = one.pick_read[chunk.picks] - chunk.reads.start, one.pick_token[chunk.picks]  # (P,)
            found = pick(logits, read, token) if one.soft is None else one.soft.pick(chunk.picks, logits, read, token)
            values.append(found[0])
            leads.append(found[1])
            hits.append(logits.argmax(dim=-1)[read] == token)
    # A single transfer for each kind, since on a GPU each transfer waits for all queued work.
    logprobs, hit, lead = (torch.cat(each).cpu().numpy() for each in (values, hits, leads))
    lls = np.bincount(laid.pick_request, weights=logprobs, minlength=count).astype(np.float64)
    misses = np.bincount(laid.pick_request[~hit], minlength=count)
    if not np.isfinite(lls).all():
        bad = int((~np.isfinite(lls)).sum())
        raise CandidateError("score", f"{bad} of {len(lls)} log-likelihoods are not finite: the weights overflow")
    margins = np.full(count, np.inf)
    np.minimum.at(margins, laid.pick_request, lead)
    return Likelihoods(lls, misses == 0, margins, laid.tokens)


def _passes(
    requests: Sequence[LoglikelihoodRequest], mode: Mode, device: torch.device, options: ScoreOptions
) -> Passes:
    sequences = list(dict.fromkeys(request.inputs for request in requests))
    layout = lay_out_runs(sequences, mode, options.budget(device))
    picks: list[list[tuple[int, int, int]]] = [[] for _ in layout.runs]  # flattened position, token, request
    for index, request in enumerate(requests):
        _add_picks(picks, layout, request, index)
    made, pick_request = [], []
    softened: Counter[int] = Counter()  # request → its soft picks so far, which are in the order of its targets
    for run, own in zip(layout.runs, picks, strict=True):
        own.sort()
        soft = [(number, r) for number, (_, _, r) in enumerate(own) if requests[r].soft is not None]
        made.append(_pass(DeviceRun.on(device, run), own, options.batch_reads, _soft(requests, soft, softened, device)))
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
    """Add the picks of one request to the runs with its last positions."""
    first = len(request.inputs) - len(request.targets)  # where the first target is predicted
    for stretch in layout.stretches[request.inputs]:
        skipped = max(first - stretch.first, 0)
        offset = stretch.first + skipped - first
        picks[stretch.run] += (
            (int(place), request.targets[offset + number], index)
            for number, place in enumerate(stretch.places[skipped:])
        )


def _soft(
    requests: Sequence[LoglikelihoodRequest], picks: list[tuple[int, int]], seen: Counter[int], device: torch.device
) -> SoftPicks | None:
    """Collect the soft picks of a run, given as (number of the pick, request); counts them in `seen`."""
    found = []
    for number, request in picks:
        targets = requests[request].soft
        assert targets is not None
        found.append((number, targets, seen[request]))
        seen[request] += 1
    return SoftPicks.on(device, found)


def _pass(run: DeviceRun, picks: list[tuple[int, int, int]], batch_reads: int, soft: SoftPicks | None) -> Pass:
    device = run.ids.device
    positions = sorted({position for position, _, _ in picks})
    index_of = {position: index for index, position in enumerate(positions)}
    pick_read = [index_of[position] for position, _, _ in picks]
    return Pass(
        run,
        torch.tensor(positions, dtype=torch.long, device=device),
        torch.tensor(pick_read, dtype=torch.long, device=device),
        torch.tensor([token for _, token, _ in picks], dtype=torch.long, device=device),
        tuple(_chunks(len(positions), pick_read, batch_reads)),
        soft,
    )


def _chunks(reads: int, pick_read: list[int], batch_reads: int) -> Iterator[_Chunk]:
    for start in range(0, reads, batch_reads):
        stop = min(start + batch_reads, reads)
        yield _Chunk(slice(start, stop), slice(bisect_left(pick_read, start), bisect_left(pick_read, stop)))
