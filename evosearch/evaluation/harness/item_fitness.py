"""Fitness of items as a function of log-likelihoods, in torch float64: one definition for scores and for gradients.

Choices j have z_j, their log-likelihood as the metric normalizes it (`acc`: as it is, `acc_norm`: per character,
`acc_bytes`: per byte, `acc_mutual_info`: minus that without the question). R are the right choices, or the right texts
with their ends; lm-eval counts an item as right if argmax z is in R, or if greedy decoding gives a text in R.

| fitness | choices | texts |
|---|---|---|
| expected_score | Σ_{j∈R} softmax(z)_j | min(1, Σ_{a∈R} exp ll(a)) |
| margin | σ(max_{j∈R} z_j − max_{j∉R} z_j) | σ(max_{a∈R} min over tokens of (logit − best other logit)) |
| gold_logprob | log softmax(ll) of the first right choice | ll of the first right text / its number of tokens |

An unlearning target has 1 − v instead of v, or log(1 − p) instead of log p.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest
from evosearch.evaluation.harness.right_answers import RightChoice, RightText
from evosearch.evaluation.statistics.fitness import COLUMNS, Share, shares, told_column
from evosearch.evaluation.suites.suite_task import SuiteTask
from evosearch.evaluation.types import FitnessKind


class Part(Protocol):
    """Items of one task whose values are computed in the same way."""

    @property
    def places(self) -> Tensor:
        """Positions of the items among the task's, (I,)."""
        ...

    def owners(self) -> tuple[Tensor, Tensor]:
        """Return (N,) requests and (N,) the position among the task's items of the item that each belongs to."""
        ...

    def __call__(self, lls: Tensor, margins: Tensor) -> Tensor:
        """Return (I,) values from the log-likelihoods and margins of all requests, (requests,) each."""
        ...


@dataclass(frozen=True)
class Choices:
    """Multiple-choice items. E entries: the choices of all I items."""

    places: Tensor  # (I,)
    item: Tensor  # (E,) item of each entry
    request: Tensor  # (E,)
    right: Tensor  # (E,) bool
    length: Tensor | None = None  # (E,) divisor
    minus: Tensor | None = None  # (E,) request that is subtracted

    def owners(self) -> tuple[Tensor, Tensor]:
        """Return the requests, and the positions of their items."""
        used = [self.request] if self.minus is None else [self.request, self.minus]
        return torch.cat(used), self.places[self.item].repeat(len(used))

    def z(self, lls: Tensor) -> Tensor:
        """The choices' log-likelihoods as the metric normalizes them, (E,); -inf for an empty choice."""
        z = lls[self.request] if self.minus is None else lls[self.request] - lls[self.minus]
        if self.length is None:
            return z
        empty = self.length == 0  # a division would have no gradient
        return (z / self.length.masked_fill(empty, 1.0)).masked_fill(empty, -math.inf)

    def largest(self, z: Tensor, among: Tensor) -> Tensor:
        """Each item's largest z of the entries in the mask `among`, (I,); -inf without such an entry."""
        none = torch.full((len(self.places),), -math.inf, dtype=z.dtype)
        return none.scatter_reduce(0, self.item[among], z[among], "amax")

    def sums(self, values: Tensor, among: Tensor) -> Tensor:
        """Each item's sum over the entries in the mask `among`, (I,)."""
        zeros = torch.zeros(len(self.places), dtype=values.dtype)
        return zeros.index_add(0, self.item[among], values[among])


class ChoiceProbability(Choices):
    """Σ_{j∈R} softmax(z)_j."""

    def __call__(self, lls: Tensor, margins: Tensor) -> Tensor:
        """Return (I,) probabilities of a right choice."""
        z, every = self.z(lls), torch.ones_like(self.right)
        likely = (z - self.largest(z.detach(), every)[self.item]).exp()
        return self.sums(likely, self.right) / self.sums(likely, every)


class ChoiceMargin(Choices):
    """σ(max_{j∈R} z_j − max_{j∉R} z_j)."""

    def __call__(self, lls: Tensor, margins: Tensor) -> Tensor:
        """Return (I,) softened leads of the best right choice."""
        z = self.z(lls)
        return torch.sigmoid(self.largest(z, self.right) - self.largest(z, ~self.right))


class ChoiceLogprob(Choices):
    """log softmax(ll)_j of the one right choice j; NaN without one."""

    def __call__(self, lls: Tensor, margins: Tensor) -> Tensor:
        """Return (I,) log-probabilities."""
        z, every = self.z(lls), torch.ones_like(self.right)
        shifted = z - self.largest(z.detach(), every)[self.item]
        gold = torch.full((len(self.places),), math.nan, dtype=z.dtype)
        gold = gold.index_copy(0, self.item[self.right], shifted[self.right])
        return gold - self.sums(shifted.exp(), every).log()


@dataclass(frozen=True)
class _Texts:
    """Items answered by a text. E entries: the right texts of all I items, of which an item may have none."""

    places: Tensor  # (I,)
    item: Tensor  # (E,) item of each entry
    request: Tensor  # (E,)
    length: Tensor  # (E,) divisor of the log-likelihood: 1, or the number of tokens

    def owners(self) -> tuple[Tensor, Tensor]:
        """Return the requests, and the positions of their items."""
        return self.request, self.places[self.item]


class TextProbability(_Texts):
    """min(1, Σ_{a∈R} exp ll(a))."""

    def __call__(self, lls: Tensor, margins: Tensor) -> Tensor:
        """Return (I,) probabilities of a right text."""
        each = (lls[self.request] / self.length).exp()
        return torch.zeros(len(self.places), dtype=each.dtype).index_add(0, self.item, each).clamp(max=1.0)


class TextMargin(_Texts):
    """σ of the largest margin of a right text."""

    def __call__(self, lls: Tensor, margins: Tensor) -> Tensor:
        """Return (I,) softened margins."""
        each = margins[self.request]
        none = torch.full((len(self.places),), -math.inf, dtype=each.dtype)
        return torch.sigmoid(none.scatter_reduce(0, self.item, each, "amax"))


class TextLogprob(_Texts):
    """Log-likelihood per token of the first right text; NaN without one."""

    def __call__(self, lls: Tensor, margins: Tensor) -> Tensor:
        """Return (I,) log-probabilities per token."""
        each = lls[self.request] / self.length
        return torch.full((len(self.places),), math.nan, dtype=each.dtype).index_copy(0, self.item, each)


C = TypeVar("C", bound=Choices)
_CHOICES: Mapping[FitnessKind, type[ChoiceProbability | ChoiceMargin | ChoiceLogprob]] = {
    "expected_score": ChoiceProbability,
    "margin": ChoiceMargin,
    "gold_logprob": ChoiceLogprob,
}
_TEXTS: Mapping[FitnessKind, type[TextProbability | TextMargin | TextLogprob]] = {
    "expected_score": TextProbability,
    "margin": TextMargin,
    "gold_logprob": TextLogprob,
}


@dataclass(frozen=True)
class TaskItems:
    """The items of one task: parts that cover disjoint items, and the task's share of the fitness."""

    spec: SuiteTask
    column: str  # of a score card
    count: int
    parts: tuple[Part, ...]
    complement: Callable[[Tensor], Tensor] | None  # of an unlearning target
    share: Share

    def values(self, lls: Tensor, margins: Tensor) -> Tensor:
        """Return (items,) values as `statistics/fitness.py` defines them; NaN for items in no part."""
        values = torch.full((self.count,), math.nan, dtype=lls.dtype)
        for part in self.parts:
            values = values.index_copy(0, part.places, part(lls, margins))
        return values if self.complement is None else self.complement(values)


@dataclass(frozen=True)
class ItemFitness:
    """Fitness of the items of a frozen batch, as a differentiable function of log-likelihoods and margins.

        fitness = Σ_t weights[t] · mean(self(lls, margins)[t])

    Attributes:
        kind: Kind of fitness.
        requests: The requests that it needs, no others.
        indices: (requests,) their positions in the frozen batch's requests.
        tasks: The scoring tasks with items in the batch.
        generated: Name of a task whose values depend on generated text, and so have no gradient; None without one.
    """

    kind: FitnessKind
    requests: tuple[LoglikelihoodRequest, ...]
    indices: tuple[int, ...]
    tasks: tuple[TaskItems, ...]
    generated: str | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Task → weight in the fitness; weights sum to 1."""
        return {task.spec.name: task.share.weight for task in self.tasks}

    @cached_property
    def owners(self) -> Tensor:
        """(requests,) item that each request belongs to, counted over the items of all tasks in order."""
        found, start = torch.zeros(len(self.requests), dtype=torch.long), 0
        for task in self.tasks:
            for part in task.parts:
                requests, places = part.owners()
                found[requests] = start + places
            start += task.count
        return found

    def __call__(self, lls: Tensor, margins: Tensor) -> dict[str, Tensor]:
        """Return task → (items,) float64 fitness of each item, in the unit of the suite's fitness.

        Args:
            lls: (requests,) float64 log-likelihoods, on the CPU.
            margins: (requests,) float64 smallest logit margins, on the CPU.
        """
        return {
            task.spec.name: task.share.scale * (task.values(lls, margins) - task.share.origin) for task in self.tasks
        }

    def columns(self, lls: Tensor, margins: Tensor) -> dict[str, dict[str, Tensor]]:
        """Return task → {column: (items,) float64 item values}, as score cards keep them."""
        return {task.spec.name: {task.column: task.values(lls, margins)} for task in self.tasks}


class ItemFitnessBuilder:
    """Builder of an `ItemFitness` from the right answers of a batch's tasks.

    Args:
        kind: Kind of fitness, except `score`, which is no function of log-likelihoods.
        requests: All requests of the frozen batch.
        raw: Compute values of unlearning targets like those of any other task.
    """

    def __init__(self, kind: FitnessKind, requests: Sequence[LoglikelihoodRequest], raw: bool = False) -> None:
        assert kind != "score"
        self._kind, self._all, self._raw = kind, requests, raw
        self._local: dict[int, int] = {}  # position in the frozen batch → own position
        self._tasks: list[tuple[SuiteTask, int, tuple[Part, ...]]] = []

    def add(
        self, spec: SuiteTask, count: int, choices: Mapping[int, RightChoice], texts: Mapping[int, RightText]
    ) -> None:
        """Add a task of `count` items; both mappings are by the item's position."""
        parts: list[Part] = []
        if choices:
            parts.append(self._choices(choices))
        if texts:
            parts.append(self._texts(texts))
        self._tasks.append((spec, count, tuple(parts)))

    def build(self, generated: str | None = None) -> ItemFitness:
        """Return the fitness of everything added."""
        own = shares(self._kind, [spec for spec, _, _ in self._tasks])
        tasks = tuple(self._items(spec, count, parts, own[spec.name]) for spec, count, parts in self._tasks)
        indices = tuple(self._local)
        return ItemFitness(self._kind, tuple(self._all[i] for i in indices), indices, tasks, generated)

    def _items(self, spec: SuiteTask, count: int, parts: tuple[Part, ...], share: Share) -> TaskItems:
        if self._raw or not spec.unlearn:
            return TaskItems(spec, COLUMNS[self._kind], count, parts, None, share)
        complement = log_unlikely if self._kind == "gold_logprob" else _one_minus
        return TaskItems(spec, told_column(self._kind, spec), count, parts, complement, share)

    def _choices(self, answers: Mapping[int, RightChoice]) -> Part:
        return self._entries(_CHOICES[self._kind], answers)

    def _entries(self, form: type[C], answers: Mapping[int, RightChoice]) -> C:
        gold = self._kind == "gold_logprob"  # of the log-likelihoods as they are
        entries = [
            (item, choice, answer)
            for item, answer in enumerate(answers.values())
            for choice in range(len(answer.requests))
        ]
        right = [choice == answer.gold if gold else choice in answer.right for _, choice, answer in entries]
        divided = not gold and any(answer.lengths for answer in answers.values())
        reduced = not gold and any(answer.minus for answer in answers.values())
        return form(
            places=torch.tensor(list(answers)),
            item=torch.tensor([item for item, _, _ in entries]),
            request=self._index([answer.requests[choice] for _, choice, answer in entries]),
            right=torch.tensor(right),
            length=torch.tensor([a.lengths[choice] for _, choice, a in entries]).double() if divided else None,
            minus=self._index([a.minus[choice] for _, choice, a in entries]) if reduced else None,
        )

    def _texts(self, answers: Mapping[int, RightText]) -> Part:
        each = self._kind == "gold_logprob"  # of the first right text
        entries = [
            (item, request, answer)
            for item, answer in enumerate(answers.values())
            for request in (answer.requests[:1] if each else answer.requests)
        ]
        lengths = [len(self._all[request].targets) if each or answer.per_token else 1 for _, request, answer in entries]
        return _TEXTS[self._kind](
            places=torch.tensor(list(answers)),
            item=torch.tensor([item for item, _, _ in entries], dtype=torch.long),
            request=self._index([request for _, request, _ in entries]),
            length=torch.tensor(lengths, dtype=torch.float64),
        )

    def _index(self, requests: Sequence[int]) -> Tensor:
        return torch.tensor([self._local.setdefault(one, len(self._local)) for one in requests], dtype=torch.long)


def log_unlikely(logprob: Tensor) -> Tensor:
    """Return log(1 − p) from log p, at most 0; 1 − p is at least 2⁻²³, the resolution of a float32 log p.

    Mächler 2012 (Accurately computing log(1 − exp(−|a|))): each of the two formulas is accurate on its side of log 2.
    """
    a = (-logprob).clamp(min=2.0**-23)
    near = (-torch.expm1(-a.clamp(max=math.log(2.0)))).log()
    far = torch.log1p(-torch.exp(-a.clamp(min=math.log(2.0))))
    return torch.where(a < math.log(2.0), near, far)


def _one_minus(value: Tensor) -> Tensor:
    return 1.0 - value
