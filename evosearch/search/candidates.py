"""Steps of a candidate through a search, used by both loops: ask, record, score, report, tell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from evosearch.recipe.schema import Recipe
from evosearch.search.objectives import with_hops
from evosearch.search.optimizer import Optimizer, Recommends
from evosearch.search.protocols import Job
from evosearch.search.recorder import Recorder, job_id
from evosearch.search.records import CandidateRecord, Proposal, Reported
from evosearch.search.sampling import Sampling
from evosearch.search.space.dimensions import Evaluation, Genome, Observation
from evosearch.search.space.space import SearchSpace


@dataclass
class Candidates:
    """The candidates of a search, from an optimizer's genome to its result."""

    recorder: Recorder
    space: SearchSpace
    items: Sampling
    identify: Callable[[Recipe], str]  # recipe → recipe_id, with this search's inputs
    evaluation: Callable[[int], Evaluation] = lambda index: Evaluation()  # ask index of the current optimizer → how
    first_ask: int = 0  # number of asks of earlier optimizers
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
        first = self.state.proposed
        planned = [(genome, self._planned(first + offset)) for offset, genome in enumerate(optimizer.ask(count))]
        return self._propose(planned, together)

    def answer(self, optimizer: Optimizer) -> None:
        """Record the genomes that the optimizer recommends, unless that was done and nothing was proposed since."""
        genomes = optimizer.answers() if isinstance(optimizer, Recommends) else []
        new = [genome for genome in genomes if self.identify(self.space.fill(genome)) not in self.state.answers]
        self._propose([(genome, Evaluation()) for genome in new], event="answered")

    def _propose(
        self, planned: Sequence[tuple[Genome, Evaluation]], together: bool = True, event: str = "asked"
    ) -> list[Proposal]:
        first, group = len(self.state.candidates), self.state.groups
        found: list[Proposal] = []
        for offset, (genome, evaluation) in enumerate(planned):
            recipe = self.space.fill(genome)
            recipe_id = self.identify(recipe)
            twins = (p.candidate for p in found if (p.recipe_id, p.evaluation) == (recipe_id, evaluation))
            earlier = self.state.first_with.get((recipe_id, evaluation)) or next(twins, None)
            proposal = Proposal(
                candidate=str(first + offset),
                group=group if together else group + offset,
                genome=dict(genome),
                recipe=recipe.to_dict(),
                recipe_id=recipe_id,
                duplicate_of=None if evaluation.gradient else earlier,
                minibatch=evaluation.minibatch,
                gradient=evaluation.gradient,
            )
            found.append(proposal)
            self._made[proposal.candidate] = recipe
        if found:
            self.recorder.record([(event, proposal.to_payload()) for proposal in found])
        return found

    def _planned(self, index: int) -> Evaluation:
        return self.evaluation(index - self.first_ask)

    def items_of(self, index: int) -> int:
        """Return the number of item evaluations of the ask with an index, counted over all optimizers."""
        return self.items.cost(self._planned(index))

    def items_taken(self) -> int:
        """Return the number of item evaluations of all candidates; duplicates and answers take none."""
        return sum(count * self.items.cost(evaluation) for evaluation, count in self.state.distinct.items())

    def is_done(self, candidate: CandidateRecord) -> bool:
        """Return whether the candidate, or the one it duplicates, is evaluated or failed for good."""
        return self.items.is_done(candidate.original, candidate.minibatch)

    def job(self, proposal: Proposal) -> Job:
        """Return the job that scores or differentiates a candidate."""
        batch = self.items.batch(proposal.minibatch)
        recipe = self._made.pop(proposal.candidate, None) or Recipe.model_validate(proposal.recipe)
        job = Job(job_id(proposal.candidate, batch.split, proposal.minibatch), recipe, batch, proposal.minibatch)
        if not proposal.gradient:
            return job
        recipe, weights = self.space.with_derivatives(proposal.genome), self.items.weights(proposal.evaluation)
        return replace(job, recipe=recipe, gradient=len(self.space.dimensions), weights=weights)

    def report(self, proposal: Proposal) -> Reported:
        """Return the result to tell the optimizer for a candidate; a duplicate has the first one's score card."""
        self._made.pop(proposal.candidate, None)
        found = self.items.report(proposal)
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
            optimizer.tell([self._observation(proposal, reported) for proposal, reported in reports_of])

    def _observation(self, proposal: Proposal, reported: Reported) -> Observation:
        gradient = self.state.gradient(proposal) if proposal.gradient else None
        return reported.observation(proposal.genome, gradient.gradient if gradient else None)
