"""Replay: an optimizer brought to where a recorded search stands, by asking and telling it the same again.

No optimizer is ever stored. One built with the same seed asks the same, so the record of what was asked and told is
all that a search is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evosearch.errors import ReplayError
from evosearch.search.ledger.events import Event
from evosearch.search.optimizers._pending import same_value
from evosearch.search.optimizers.registry import Optimizer
from evosearch.search.records import Payload, Proposal, Reported
from evosearch.search.space.types import Genome


@dataclass(frozen=True)
class Replayed:
    """Where a recorded search stands."""

    pending: list[Proposal]  # proposed and not yet reported, in ask order
    told: int  # observations the optimizer was told
    next_index: int  # of the next candidate asked
    next_group: int


def replay(optimizer: Optimizer, events: Iterable[Event]) -> Replayed:
    """Ask and tell `optimizer`, fresh from its seed, what `events` record.

    What is recorded counts: an ask that comes out otherwise by rounding is told as it was recorded.

    Raises:
        ReplayError: an ask comes out otherwise by more than a relative 1e-9.
    """
    run = _Replay(optimizer)
    for event in events:
        run.apply(event)
    run.ask_group()
    return Replayed(list(run.pending.values()), run.told, len(run.asked), run.groups)


class _Replay:
    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.asked: set[str] = set()  # candidates, everything asked so far
        self.pending: dict[str, Proposal] = {}
        self.told = 0
        self.groups = 0
        self._group: list[Proposal] = []  # recorded asks that are not yet asked again
        self._versions: Mapping[str, str] = {}

    def apply(self, event: Event) -> None:
        if event.type == "started" and not self._versions:
            self._versions = event.payload.get("versions") or {}
        elif event.type == "asked":
            proposal = Proposal.from_payload(event.payload)
            if self._group and self._group[-1].group != proposal.group:
                self.ask_group()
            self._group.append(proposal)
        elif event.type == "told":
            self.ask_group()
            self._tell(event.payload)

    def ask_group(self) -> None:
        """Ask again for the group that has been read, and hold the answers against the record."""
        group, self._group = self._group, []
        if not group:
            return
        for proposal, genome in zip(group, self.optimizer.ask(len(group)), strict=True):
            assert proposal.candidate not in self.asked, "a candidate is asked once"
            self._compare(proposal, genome)
            self.asked.add(proposal.candidate)
            self.pending[proposal.candidate] = proposal
            self.groups = max(self.groups, proposal.group + 1)

    def _tell(self, payload: Payload) -> None:
        reports = map(Reported.from_payload, payload["observations"])
        observations = [one.observation(self.pending.pop(one.candidate).genome) for one in reports]
        self.optimizer.tell(observations)
        self.told += len(observations)

    def _compare(self, proposal: Proposal, genome: Genome) -> None:
        recorded = proposal.genome
        name = _first_difference(recorded, genome)
        if name is None:
            return
        versions = ", ".join(f"{package} {version}" for package, version in self._versions.items())
        raise ReplayError(
            f"candidate {proposal.candidate} was asked with {name} = {recorded.get(name)!r}, and asking again gives "
            f"{genome.get(name)!r}: the recorded search cannot be continued exactly. It was recorded with other "
            f"library versions or by another optimizer{f' ({versions})' if versions else ''}. "
            "To start a new optimizer from the best candidate so far, add --continue-from-best."
        )


def _first_difference(recorded: Genome, genome: Genome) -> str | None:
    names: Sequence[str] = list(dict.fromkeys((*recorded, *genome)))
    for name in names:
        if name not in recorded or name not in genome or not same_value(recorded[name], genome[name]):
            return name
    return None
