"""Gradient of a batch's fitness in the model's weights: the passes of `loglikelihood.py`, run forwards and backwards.

Every pass has a graph of its own. The keys and values of a shared prefix are leaves for the passes behind it, which add
to their gradients; the prefix's own backward pass then starts from these. A pass goes backwards as soon as nothing else
needs it (`backward_order.py`): mostly, only the activations of one pass and of the prefixes before it are in memory. If
they do not fit, layers are recomputed (`recomputation.py`); if they still do not, the items are divided.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.evaluation.engine.activations import activations_of
from evosearch.evaluation.engine.attention import KVStack, fork, forward, new_cache, shares_tensors
from evosearch.evaluation.engine.backward_order import BackwardOrder
from evosearch.evaluation.engine.head import check_head, head_logits
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodPlan, Pass, Passes, lay_out
from evosearch.evaluation.engine.picks import pick
from evosearch.evaluation.engine.recomputation import recomputed
from evosearch.evaluation.engine.score_options import Mode
from evosearch.evaluation.types import Tokens

_EFFICIENT = 256  # tokens of a pass; recomputing layers costs less than smaller passes
_FEWEST = 32  # tokens of a pass, at least

# (requests,) log-likelihoods and (requests,) margins, both float64 → (items,) values. The value of an item depends on
# its own requests alone. Requests that have not been run yet have the log-likelihood 0 and the margin 0.
Values = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Differentiated:
    """Answers to all requests, values of all items, and the work done."""

    lls: NDArray[np.float64]  # (requests,) log-likelihoods
    margins: NDArray[np.float64]  # (requests,)
    values: NDArray[np.float64]  # (items,)
    tokens: Tokens
    mode: Mode
    recomputed: bool  # whether layers ran twice to save memory


def differentiate(model: Any, plan: LoglikelihoodPlan, items: Sequence[int], values: Values) -> Differentiated:
    """Add the gradient of the sum of all items' values to the `grad` of every parameter that requires it.

    Args:
        model: A causal transformers model in evaluation mode.
        plan: A plan of at least one request.
        items: (requests,) item that each request belongs to.
        values: The items' values.

    Raises:
        CandidateError: A log-likelihood is not finite, or the family changes its logits after the head.
    """
    mode, owners = mode_for_gradients(model, plan), np.asarray(items)
    fitting = _fitting(model, plan, mode, owners)
    if fitting is None:
        return _in_halves(model, plan, owners, values)
    laid, order, again = fitting
    tape = _Tape(model, laid, order, values, len(plan.requests))
    with torch.enable_grad(), recomputed(model) if again else nullcontext():
        for index in range(len(laid.passes)):
            tape.run(index)
    lls, margins = (found.numpy() for found in tape.requests(tape.picks))
    return Differentiated(lls, margins, tape.values.numpy(), laid.tokens, mode, again)


def mode_for_gradients(model: Any, plan: LoglikelihoodPlan) -> Mode:
    """Return a model's execution mode: that of scoring, unless its caches are updated in place."""
    mode = plan.mode(model)
    return mode if mode == "rows" or shares_tensors(new_cache(model, by_mask=mode == "tree")) else "rows"


def _fitting(
    model: Any, plan: LoglikelihoodPlan, mode: Mode, items: NDArray[np.int64]
) -> tuple[Passes, BackwardOrder, bool] | None:
    """Lay out passes whose activations fit, with recomputed layers if necessary (the last value).

    None if they do not fit even then, and there are several items, which can be differentiated one after the other.
    """
    limit = plan.options.activation_bytes(model.device)
    read = 8 * model.get_output_embeddings().weight.shape[0] * plan.reads_per_token  # logits and their gradient
    kept = activations_of(model, mode)
    for again in (False, True):
        fits = (kept.recomputed(model) if again else kept).tokens(limit, read)
        tokens = _power_of_two(fits if fits >= plan.distinct else fits // 2)  # prefixes are kept beside a pass
        laid = plan.within(max(tokens, _FEWEST), model.device).passes(mode, model.device)
        order = BackwardOrder.of(laid, items)
        if order.most_open <= fits and (again or fits >= min(2 * _EFFICIENT, plan.distinct)):
            return laid, order, again
    return None if len(set(items.tolist())) > 1 else (laid, order, True)


def _in_halves(model: Any, plan: LoglikelihoodPlan, items: NDArray[np.int64], values: Values) -> Differentiated:
    """Differentiate one half of the items after the other; prefixes that both share run twice."""
    count, full = int(items.max()) + 1, torch.zeros(2, len(items), dtype=torch.float64)
    result, parts = torch.zeros(count, dtype=torch.float64), list[Differentiated]()
    for half in np.array_split(np.unique(items), 2):
        own = np.flatnonzero(np.isin(items, half))
        chosen, at = torch.from_numpy(half), torch.from_numpy(own)

        def of_half(lls: Tensor, margins: Tensor, chosen: Tensor = chosen, at: Tensor = at) -> Tensor:
            return values(*(full.new_zeros(len(items)).index_copy(0, at, each) for each in (lls, margins)))[chosen]

        part = lay_out([plan.requests[index] for index in own], plan.options)
        parts.append(differentiate(model, part, np.searchsorted(half, items[own]).tolist(), of_half))
        full[:, at] = torch.from_numpy(np.stack([parts[-1].lls, parts[-1].margins]))
        result[chosen] = torch.from_numpy(parts[-1].values)
    tokens, again = parts[0].tokens + parts[1].tokens, any(part.recomputed for part in parts)
    return Differentiated(full[0].numpy(), full[1].numpy(), result.numpy(), tokens, parts[0].mode, again)


def _power_of_two(value: int) -> int:
    return 1 << (max(value, 1).bit_length() - 1)


@dataclass
class _Record:
    """A pass that has run forwards and not yet backwards."""

    picks: slice  # of all picks
    found: list[tuple[Tensor, Tensor]]  # (P,) log-probabilities and margins of each chunk, with their graph
    caches: list[tuple[Tensor, Tensor]]  # keys or values with their graph, and the leaf that later passes see
    until: int  # the last pass that needs it


@dataclass
class _Tape:
    """Runs passes forwards, in order, and backwards, in reverse order."""

    model: Any
    laid: Passes
    order: BackwardOrder
    of_items: Values
    count: int  # number of requests
    values: Tensor = field(init=False)  # (items,)
    picks: Tensor = field(init=False)  # (2, picks) log-probability and margin of every pick; 0 before its pass
    _slopes: Tensor = field(init=False)  # (2, picks) derivatives in these of the sum of all values
    _open: list[_Record] = field(default_factory=list)
    _prefixes: KVStack = field(default_factory=KVStack)

    def __post_init__(self) -> None:
        self.picks = torch.zeros(2, len(self.order.owners), dtype=torch.float64)
        self._slopes = torch.zeros_like(self.picks)
        self.values = torch.zeros(len(self.order.last), dtype=torch.float64)

    def run(self, index: int) -> None:
        """Run one pass forwards, and every pass backwards that nothing needs any more."""
        self._open.append(self._forward(index))
        complete = np.flatnonzero(self.order.last == index)
        if complete.size:
            self._resolve(torch.from_numpy(complete))
        while self._open and self._open[-1].until <= index:
            self._backward(self._open.pop())

    def requests(self, picks: Tensor) -> tuple[Tensor, Tensor]:
        """Return (requests,) log-likelihoods and margins from those of all picks (2, picks)."""
        request, zeros = torch.from_numpy(self.laid.pick_request), picks.new_zeros(self.count)
        lls = zeros.index_add(0, request, picks[0])
        return lls, zeros.scatter_reduce(0, request, picks[1], "amin", include_self=False)

    def _forward(self, index: int) -> _Record:
        one = self.laid.passes[index]
        check_head(self.model, one.run.ids)
        hidden, cache = forward(self.model, one.run, self._prefixes)
        caches = _cut(self._prefixes, cache) if one.run.run.is_prefix else []
        found = list(_picked(self.model, one, hidden[one.reads]))
        picks = self.order.picks(index)
        for row in (0, 1) if found else ():
            self.picks[row, picks] = torch.cat([pair[row].detach() for pair in found]).cpu()
        if not bool(self.picks[0, picks].isfinite().all()):
            raise CandidateError("score", "log-likelihoods are not finite: the weights overflow")
        return _Record(picks, found, caches, self.order.until[index])

    def _resolve(self, complete: Tensor) -> None:
        """Compute the values of items whose requests have all been run, and their derivatives in the picks."""
        picks = self.picks.detach().requires_grad_()
        values = self.of_items(*self.requests(picks))[complete]
        self.values[complete] = values.detach()
        if values.requires_grad:
            (slopes,) = torch.autograd.grad(values.sum(), picks)
            own = torch.isin(torch.from_numpy(self.order.owners), complete)  # the other items are not known yet
            self._slopes[:, own] = slopes[:, own]

    def _backward(self, record: _Record) -> None:
        tensors, slopes, start = [], [], record.picks.start
        for pair in record.found:
            stop = start + len(pair[0])
            for row, tensor in enumerate(pair):
                own = self._slopes[row, start:stop]
                if tensor.requires_grad and bool(own.any()):
                    tensors.append(tensor)
                    slopes.append(own.to(tensor.device))
            start = stop
        for tensor, leaf in record.caches:
            if leaf.grad is not None:
                tensors.append(tensor)
                slopes.append(leaf.grad)
        if tensors:
            torch.autograd.backward(tensors, slopes)


def _picked(model: Any, one: Pass, hidden: Tensor) -> Any:
    """Yield (P,) log-probabilities and margins of each chunk of a pass."""
    for chunk in one.chunks:
        read, token = one.pick_read[chunk.picks] - chunk.reads.start, one.pick_token[chunk.picks]  # (P,)
        logits = head_logits(model, hidden[chunk.reads])
        yield pick(logits, read, token) if one.soft is None else one.soft.pick(chunk.picks, logits, read, token)


def _cut(prefixes: KVStack, cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Replace the deepest prefix's keys and values by leaves; return the tensors with their graph, and the leaves."""
    leaves, pairs = fork(cache), list[tuple[Tensor, Tensor]]()
    for layer in leaves.layers:
        for name in ("keys", "values"):
            tensor = getattr(layer, name)
            leaf = tensor.detach().requires_grad_(tensor.requires_grad)
            setattr(layer, name, leaf)
            pairs += [(tensor, leaf)] if tensor.requires_grad else []
    prefixes.stack[-1] = (prefixes.stack[-1][0], leaves)
    return pairs
