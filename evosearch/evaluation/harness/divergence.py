"""Divergence of a candidate from teachers: items of an `ItemFitness` that need no right answers.

    value of an item = -mean_j KL(q_j ‖ p_j) = mean_j Σ_k q_jk (log p_jk - log q_jk)

in nats, at most 0. j are the answer positions, q_j the teacher's distribution and p_j the candidate's: over the next
token along the teacher's answer, or over the choices of a document as its metric normalizes them (j is then one).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evosearch.evaluation.engine.generation_plan import GenerationRequest
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest
from evosearch.evaluation.harness.item_fitness import Choices, ItemFitness, ItemFitnessBuilder, Part
from evosearch.evaluation.harness.right_answers import RightChoice
from evosearch.evaluation.suites.suite_task import SuiteTask


@dataclass(frozen=True)
class Exercise:
    """The question of a document to a teacher; one of three kinds."""

    prompt: GenerationRequest | None = None  # a prompt to continue
    request: int | None = None  # a continuation to read, as a log-likelihood request of the frozen batch
    choice: RightChoice | None = None  # choices, of which none is marked as right

    @property
    def kind(self) -> str:
        """What the teacher is asked for, in words."""
        if self.choice is not None:
            return "the likelihoods of several texts"
        return "an answer" if self.prompt is not None else "the likelihood of one text"


@dataclass(frozen=True)
class TaughtText:
    """A document compared along a text."""

    request: int  # a request with soft targets
    positions: int  # its answer positions
    entropy: float  # of the teacher's distributions, summed over the positions


@dataclass(frozen=True)
class TaughtChoice:
    """A document compared by its choices."""

    choice: RightChoice
    shares: tuple[float, ...]  # the teacher's probability of each choice


Taught = TaughtText | TaughtChoice


@dataclass(frozen=True)
class TextDivergence:
    """Items compared along texts."""

    places: Tensor  # (I,) positions of the items among the task's
    request: Tensor  # (I,)
    positions: Tensor  # (I,)
    entropy: Tensor  # (I,)

    def owners(self) -> tuple[Tensor, Tensor]:
        """Return the requests, and the positions of their items."""
        return self.request, self.places

    def __call__(self, lls: Tensor, margins: Tensor) -> Tensor:
        """Return (I,) values: the log-likelihood of soft targets is Σ_j Σ_k q_jk log p_jk."""
        return (lls[self.request] + self.entropy) / self.positions


@dataclass(frozen=True)
class ChoiceDivergence:
    """Items compared by their choices; `choices` has E entries of I items."""

    choices: Choices
    shares: Tensor  # (E,) the teacher's probability of each choice

    @property
    def places(self) -> Tensor:
        """(I,) positions of the items among the task's."""
        return self.choices.places

    def owners(self) -> tuple[Tensor, Tensor]:
        """Return the requests, and the positions of their items."""
        return self.choices.owners()

    def __call__(self, lls: Tensor, margins: Tensor) -> Tensor:
        """Return (I,) values, with log p = z - log Σ exp z."""
        z, every = self.choices.z(lls), torch.ones_like(self.choices.right)
        shifted = z - self.choices.largest(z.detach(), every)[self.choices.item]
        total = self.choices.sums(shifted.exp(), every).log()  # (I,)
        logprobs = torch.where(self.shares > 0, shifted - total[self.choices.item], 0.0)  # 0 · log 0 = 0
        return self.choices.sums(self.shares * logprobs - torch.xlogy(self.shares, self.shares), every)


def taught_fitness(
    tasks: Sequence[tuple[SuiteTask, Mapping[int, Taught]]], requests: Sequence[LoglikelihoodRequest]
) -> ItemFitness:
    """Return the fitness of a batch's items by their teachers.

    Args:
        tasks: Each task with its items, by their positions.
        requests: All requests of the frozen batch.
    """
    builder = _Builder("teachers", requests)
    for spec, taught in tasks:
        builder.add_taught(spec, taught)
    return builder.build()


class _Builder(ItemFitnessBuilder):
    """Builder from comparisons with teachers in place of right answers."""

    def add_taught(self, spec: SuiteTask, taught: Mapping[int, Taught]) -> None:
        """Add a task, all of whose items are compared with their teacher."""
        texts = {item: one for item, one in taught.items() if isinstance(one, TaughtText)}
        choices = {item: one for item, one in taught.items() if isinstance(one, TaughtChoice)}
        parts: list[Part] = []
        if texts:
            parts.append(self._along(texts))
        if choices:
            parts.append(self._among(choices))
        self._tasks.append((spec, len(taught), tuple(parts)))

    def _along(self, texts: Mapping[int, TaughtText]) -> Part:
        return TextDivergence(
            places=torch.tensor(list(texts)),
            request=self._index([one.request for one in texts.values()]),
            positions=torch.tensor([one.positions for one in texts.values()], dtype=torch.float64),
            entropy=torch.tensor([one.entropy for one in texts.values()], dtype=torch.float64),
        )

    def _among(self, taught: Mapping[int, TaughtChoice]) -> Part:
        unmarked = self._entries(Choices, {item: one.choice for item, one in taught.items()})
        shares = torch.tensor([share for one in taught.values() for share in one.shares], dtype=torch.float64)
        return ChoiceDivergence(unmarked, shares)
