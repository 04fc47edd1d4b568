"""Replay: restores an optimizer by repeating the recorded asks and tells.

Optimizers are never stored. An optimizer built with the same seed proposes the same genomes, so the recorded asks and
tells, with their gradients, are the complete state of a search. Answers are not repeated: they change no optimizer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evosearch.errors import ReplayError
from evosearch.search.ledger.events import Event
from evosearch.search.optimizer import Optimizer
from evosearch.search.pending import same_value
from evosearch.search.records import Payload, Proposal, Reported
from evosearch.search.space.dimensions import Genome, Observation


@dataclass(frozen=True)
class Replayed:
    """Result of a replay."""

    pending: list[Proposal]  # proposed and not yet reported, in ask order
    reported: int  # number of observations that the optimizer was told
    next_index: int  # ask index of the next candidate
    next_group: int


def replay(optimizer: Optimizer, events: Iterable[Event]) -> Replayed:
    """Ask and tell a fresh optimizer as recorded.

    If a genome differs from the record by rounding, the optimizer is told the recorded one.

    Args:
        optimizer: A new optimizer with the recorded seed.
        events: Events of the search, from the last `restarted` on.

    Raises:
        ReplayError: An ask differs from the record by more than a relative 1e-9.
    """
    run = _Replay(optimizer)
    for event in events:
        run.apply(event)
    run.ask_group()
    return Replayed(list(run.pending.values()), run.reported, len(run.seen), run.groups)


class _Replay:
    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.seen: set[str] = set()  # all candidates so far
        self.pending: dict[str, Proposal] = {}
        self.reported = 0
        self.groups = 0
        self._group: list[Proposal] = []  # recorded asks that are not repeated yet
        self._gradients: dict[str, Sequence[float]] = {}  # candidate that is not reported yet → (dimensions,)
        self._versions: Mapping[str, str] = {}

    def apply(self, event: Event) -> None:
        if event.type == "started" and not self._versions:
            self._versions = event.payload.get("versions") or {}
        elif event.type == "differentiated":
            self._gradients[event.payload["candidate"]] = event.payload["gradient"]
        elif event.type == "asked":
            proposal = Proposal.from_payload(event.payload)
            if self._group and self._group[-1].group != proposal.group:
                self.ask_group()
            self._group.append(proposal)
        elif event.type == "told":
            self.ask_group()
            self._tell(event.payload)

    def ask_group(self) -> None:
        """Ask for the group that has been read, and compare the answers with the record."""
        group, self._group = self._group, []
        if not group:
            return
        for proposal, genome in zip(group, self.optimizer.ask(len(group)), strict=True):
            assert proposal.candidate not in self.seen, "a candidate is asked once"
            self._compare(proposal, genome)
            self.seen.add(proposal.candidate)
            self.pending[proposal.candidate] = proposal
            self.groups = max(self.groups, proposal.group + 1)

    def _tell(self, payload: Payload) -> None:
        observations = [self._observation(Reported.from_payload(one)) for one in payload["observations"]]
        self.optimizer.tell(observations)
        self.reported += len(observations)

    def _observation(self, reported: Reported) -> Observation:
        genome = self.pending.pop(reported.candidate).genome
        return reported.observation(genome, self._gradients.pop(reported.candidate, None))

    def _compare(self, proposal: Proposal, genome: Genome) -> None:
        recorded = proposal.genome
        name = _first_difference(recorded, genome)
        if name is None:
            return
        versions = ", ".join(f"{package} {version}" for package, version in self._versions.items())
        raise ReplayError(
            f"candidate {proposal.candidate} was proposed with {name} = {recorded.get(name)!r}, but replay gives "
            f"{genome.get(name)!r}: the search cannot be resumed exactly. It was recorded with other library versions "
            f"or another optimizer{f' ({versions})' if versions else ''}. "
            "To continue with a new optimizer from the best candidate so far, add --continue-from-best."
        )


def _first_difference(recorded: Genome, genome: Genome) -> str | None:
    names: Sequence[str] = list(dict.fromkeys((*recorded, *genome)))
    for name in names:
        if name not in recorded or name not in genome or not same_value(recorded[name], genome[name]):
            return name
    return None
