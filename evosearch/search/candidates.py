"""One candidate's way through a search: asked, recorded, made a job, observed, told. Both loops are made of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evosearch.recipe.schema import Recipe
from evosearch.search.objectives import with_hops
from evosearch.search.optimizers.registry import Optimizer
from evosearch.search.protocols import Job
from evosearch.search.recorder import Recorder, job_id
from evosearch.search.sampling import Minibatch, Sampling
from evosearch.search.space.space import SearchSpace
from evosearch.search.space.types import Observation

Payload = Mapping[str, Any]  # of an `asked` event


@dataclass
class Candidates:
    """What an optimizer asks, from its genome to what it is told of it.

    Args:
        identify: recipe → recipe_id, with this search's inputs.
    """

    recorder: Recorder
    space: SearchSpace
    items: Sampling
    identify: Callable[[Recipe], str]
    generation: int = 1  # how many the present optimizer asks together
    first_ask: int = 0  # of the present optimizer: not 0 after a restart
    _made: dict[str, Recipe] = field(default_factory=dict)  # asked just now, not yet a job

    def __post_init__(self) -> None:
        self.state = self.recorder.state

    def ask(self, optimizer: Optimizer, count: int, together: bool = True) -> list[Payload]:
        """Ask for candidates and record them, before anything is scored.

        Args:
            together: they are one group, which is told together; otherwise each is a group of its own.
        """
        first, group = self.state.asked_count, self.state.groups
        payloads: list[Payload] = []
        for offset, genome in enumerate(optimizer.ask(count)):
            recipe = self.space.fill(genome)
            recipe_id, minibatch = self.identify(recipe), self.minibatch(first + offset)
            twins = (p["candidate"] for p in payloads if (p["recipe_id"], p.get("minibatch")) == (recipe_id, minibatch))
            candidate = str(first + offset)
            payloads.append(
                ({} if minibatch is None else {"minibatch": minibatch})
                | {
                    "candidate": candidate,
                    "group": group if together else group + offset,
                    "genome": dict(genome),
                    "recipe": recipe.to_dict(),
                    "recipe_id": recipe_id,
                    "duplicate_of": self.state.first_with.get((recipe_id, minibatch)) or next(twins, None),
                }
            )
            self._made[candidate] = recipe
        self.recorder.record([("asked", dict(payload)) for payload in payloads])
        return payloads

    def minibatch(self, index: int) -> Minibatch:
        """What the candidate of an ask index is scored on."""
        return self.items.minibatch(index - self.first_ask, self.generation)

    def items_of(self, index: int) -> int:
        """How many items that is."""
        return len(self.items.batch(self.minibatch(index)))

    def items_taken(self) -> int:
        """How many items were to be scored of all that was asked."""
        return sum(count * len(self.items.batch(minibatch)) for minibatch, count in self.state.newly_asked.items())

    def is_done(self, payload: Payload) -> bool:
        """Whether it, or what it is a duplicate of, is scored or failed for good."""
        return self.items.is_done(payload["duplicate_of"] or payload["candidate"], payload.get("minibatch"))

    def job(self, payload: Payload) -> Job:
        candidate, minibatch = payload["candidate"], payload.get("minibatch")
        batch = self.items.batch(minibatch)
        recipe = self._made.pop(candidate, None) or Recipe.model_validate(payload["recipe"])
        return Job(job_id(candidate, batch.split, minibatch), recipe, batch, minibatch)

    def observe(self, payload: Payload) -> Observation:
        """What the optimizer is told of one candidate; a duplicate has the first one's score card."""
        self._made.pop(payload["candidate"], None)
        told = self.items.told(payload["duplicate_of"] or payload["candidate"], payload.get("minibatch"))
        if told is None:
            return Observation(payload["candidate"], payload["genome"], (), (), "failed")
        name, genome = payload["candidate"], payload["genome"]
        if not told.objectives:
            return Observation(name, genome, (told.fitness,), told.violations)
        found = with_hops(self.items.objectives, told.objectives, payload["recipe"])
        return Observation(name, genome, found, told.violations, fitness=told.fitness)

    def tell(self, optimizer: Optimizer, groups: Sequence[tuple[int, Sequence[Payload]]]) -> None:
        """Record what the optimizer is told, group by group in this order, then tell it."""
        told = [(group, [self.observe(payload) for payload in payloads]) for group, payloads in groups]
        self.recorder.record(
            [
                ("told", {"group": group, "observations": [plain(observation) for observation in observations]})
                for group, observations in told
            ]
        )
        for _, observations in told:
            optimizer.tell(observations)


def plain(observation: Observation) -> dict[str, Any]:
    """An observation as the ledger holds it."""
    estimate = observation.fitness or (observation.objectives[0] if observation.objectives else None)
    told = {
        "candidate": observation.ask_id,
        "value": estimate.value if estimate else None,
        "stderr": estimate.stderr if estimate else None,
        "n": estimate.n if estimate else 0,
        "state": observation.state,
    }
    several = {"objectives": [vars(one).copy() for one in observation.objectives]} if observation.fitness else {}
    return told | ({"violations": list(observation.violations)} if observation.violations else {}) | several
