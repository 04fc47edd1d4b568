"""Steps of a candidate through a search, used by both loops: ask, record, score, report, tell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from evosearch.recipe.schema import Recipe
from evosearch.search.objectives import with_hops
from evosearch.search.optimizers.registry import Optimizer
from evosearch.search.protocols import Job
from evosearch.search.recorder import Recorder, job_id
from evosearch.search.records import CandidateRecord, Proposal, Reported
from evosearch.search.sampling import Minibatch, Sampling
from evosearch.search.space.space import SearchSpace


@dataclass
class Candidates:
    """The candidates of a search, from an optimizer's genome to its result."""

    recorder: Recorder
    space: SearchSpace
    items: Sampling
    identify: Callable[[Recipe], str]  # recipe → recipe_id, with this search's inputs
    generation: int = 1  # number of candidates that the current optimizer proposes together
    first_ask: int = 0  # ask index of the current optimizer's first candidate
    _made: dict[str, Recipe] = field(default_factory=dict)  # recipes of new candidates, until they become jobs

    def __post_init__(self) -> None:
        self.state = self.recorder.state

    def ask(self, optimizer: Optimizer, count: int, together: bool = True) -> list[Proposal]:
        """Ask for candidates and record them, before anything is scored.

        Args:
            optimizer: The current optimizer.
            count: Number of candidates.
            together: Whether they form one group, which is reported together; otherwise each is its own group.
        """
        first, group = self.state.proposed, self.state.groups
        found: list[Proposal] = []
        for offset, genome in enumerate(optimizer.ask(count)):
            recipe = self.space.fill(genome)
            recipe_id, minibatch = self.identify(recipe), self.minibatch(first + offset)
            twins = (p.candidate for p in found if (p.recipe_id, p.minibatch) == (recipe_id, minibatch))
            proposal = Proposal(
                candidate=str(first + offset),
                group=group if together else group + offset,
                genome=dict(genome),
                recipe=recipe.to_dict(),
                recipe_id=recipe_id,
                duplicate_of=self.state.first_with.get((recipe_id, minibatch)) or next(twins, None),
                minibatch=minibatch,
            )
            found.append(proposal)
            self._made[proposal.candidate] = recipe
        self.recorder.record([("asked", proposal.to_payload()) for proposal in found])
        return found

    def minibatch(self, index: int) -> Minibatch:
        """Return the minibatch on which the candidate with an ask index is scored."""
        return self.items.minibatch(index - self.first_ask, self.generation)

    def items_of(self, index: int) -> int:
        """Return the number of items on which the candidate with an ask index is scored."""
        return len(self.items.batch(self.minibatch(index)))

    def items_taken(self) -> int:
        """Return the number of item evaluations of all candidates; duplicates take none."""
        return sum(count * len(self.items.batch(minibatch)) for minibatch, count in self.state.distinct.items())

    def is_done(self, candidate: CandidateRecord) -> bool:
        """Return whether the candidate, or the one it duplicates, is scored or failed for good."""
        return self.items.is_done(candidate.original, candidate.minibatch)

    def job(self, proposal: Proposal) -> Job:
        """Return the job that scores a candidate."""
        batch = self.items.batch(proposal.minibatch)
        recipe = self._made.pop(proposal.candidate, None) or Recipe.model_validate(proposal.recipe)
        return Job(job_id(proposal.candidate, batch.split, proposal.minibatch), recipe, batch, proposal.minibatch)

    def report(self, proposal: Proposal) -> Reported:
        """Return the result to tell the optimizer for a candidate; a duplicate has the first one's score card."""
        self._made.pop(proposal.candidate, None)
        found = self.items.report(proposal.candidate, proposal.original, proposal.minibatch)
        if not found.objectives:
            return found
        return replace(found, objectives=with_hops(self.items.objectives, found.objectives, proposal.recipe))

    def tell(self, optimizer: Optimizer, groups: Sequence[tuple[int, Sequence[Proposal]]]) -> None:
        """Record the groups' results in this order, then tell them to the optimizer."""
        reports = [
            (group, [(proposal, self.report(proposal)) for proposal in proposals]) for group, proposals in groups
        ]
        self.recorder.record(
            [
                ("told", {"group": group, "observations": [reported.to_payload() for _, reported in reports_of]})
                for group, reports_of in reports
            ]
        )
        for _, reports_of in reports:
            optimizer.tell([reported.observation(proposal.genome) for proposal, reported in reports_of])
