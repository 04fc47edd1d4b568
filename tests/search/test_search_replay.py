"""Replay: a search that is cut anywhere and resumed is the search that was never cut."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from evosearch.errors import ReplayError, SearchError
from evosearch.search.ledger.events import Event
from evosearch.search.optimizer import AsksForGradients, Optimizer
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.optimizers import registry
from evosearch.search.records import Proposal, Reported
from evosearch.search.replay import replay
from evosearch.search.space.dimensions import Dimension, Observation

NUMBERS = (
    Dimension("weight", "float", 0.5, low=0.0, high=1.5),
    Dimension("rate", "float", 0.1, low=0.01, high=1.0, log=True),
    Dimension("count", "int", 3, low=1, high=9),
)
METHOD = Dimension("merge_method", "categorical", "ties", choices=("ties", "linear"))
POPULATION, GROUPS = 5, 5


def fresh(name: str) -> Optimizer:
    dimensions = (*NUMBERS, METHOD) if registry.load(name).categoricals else NUMBERS
    if registry.load(name).gradients:
        dimensions = tuple(replace(one, kind="float", init=float(one.init)) for one in NUMBERS)
    dimensions = dimensions[:2] if name == "grid" else dimensions
    config = OptimizerConfig(name=name, population=POPULATION, seed=4)
    return create(config, dimensions, {dimension.name: dimension.init for dimension in dimensions})


def outcome(payload: dict[str, Any]) -> dict[str, Any]:
    """Result of a worker: deterministic, noisy-looking, with occasional failures."""
    index, weight = int(payload["candidate"]), float(payload["genome"]["weight"])
    if index % 7 == 3:
        return {"candidate": payload["candidate"], "value": None, "stderr": 0.0, "n": 0, "state": "failed"}
    value = -((weight - 0.8) ** 2) + (index * 37 % 11) / 100.0
    return {"candidate": payload["candidate"], "value": value, "stderr": 0.1, "n": 20, "state": "scored"}


class Record:
    """Events as recorded by a controller and read back from JSON."""

    def __init__(self, events: Sequence[Event] = ()) -> None:
        self.events = list(events)

    def add(self, kind: str, payload: dict[str, Any]) -> None:
        self.events.append(Event(len(self.events) + 1, 0.0, kind, json.loads(json.dumps(payload))))


def ask(record: Record, optimizer: Optimizer, first: int, group: int) -> list[dict[str, Any]]:
    payloads = [
        {
            "candidate": str(first + index),
            "group": group,
            "genome": genome,
            "recipe": {},
            "recipe_id": str(first + index),
        }
        for index, genome in enumerate(optimizer.ask(optimizer.population))
    ]
    for payload in payloads:
        record.add("asked", payload)
    return payloads


def tell(record: Record, optimizer: Optimizer, payloads: list[dict[str, Any]]) -> None:
    told = [outcome(payload) for payload in payloads]
    differentiate(record, optimizer, told)
    record.add("told", {"group": payloads[0]["group"], "observations": told})
    optimizer.tell(observed(told, payloads))


def differentiate(record: Record, optimizer: Optimizer, told: list[dict[str, Any]]) -> None:
    """Record a gradient of every candidate that was evaluated, once, if the optimizer asks for gradients."""
    known = {event.payload["candidate"] for event in record.events if event.type == "differentiated"}
    for one in told if isinstance(optimizer, AsksForGradients) else ():
        one["gradient"] = True
        if one["state"] == "scored" and one["candidate"] not in known:
            gradient = slopes(int(one["candidate"]))
            record.add("differentiated", {"candidate": one["candidate"], "minibatch": 0, "gradient": gradient})


def slopes(index: int) -> list[float]:
    return [(index * factor % 13) / 13.0 - 0.4 for factor in (37, 53, 71)]


def observed(told: list[dict[str, Any]], payloads: list[dict[str, Any]]) -> list[Observation]:
    """The observations that an optimizer is told, from their payloads."""
    reports = map(Reported.from_payload, told)
    return [
        one.observation(payload["genome"], slopes(int(one.candidate)) if one.gradient else None)
        for one, payload in zip(reports, payloads, strict=True)
    ]


def search(record: Record, optimizer: Optimizer) -> Record:
    """Run or resume a search until all groups are reported."""
    restored = replay(optimizer, record.events)
    pending = [proposal.to_payload() for proposal in restored.pending]
    index, group = restored.next_index, restored.next_group
    while True:
        if pending:
            tell(record, optimizer, pending)
        if group == GROUPS:
            return record
        pending = ask(record, optimizer, index, group)
        index, group = index + len(pending), group + 1


# Covered by the law tests: one has slow asks, the others end after a few
OTHERS = ("gp", "greedy_soup", "soup")


@pytest.fixture(params=[name for name in registry.names() if name not in OTHERS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_violations_are_replayed(name: str) -> None:
    record, optimizer = Record(), fresh(name)
    for group in range(GROUPS):
        payloads = ask(record, optimizer, group * POPULATION, group)
        told = [outcome(payload) for payload in payloads]
        differentiate(record, optimizer, told)
        for one, payload in zip(told, payloads, strict=True):
            if one["state"] == "scored":
                one["violations"] = [
                    0.0,
                    max(0.0, float(payload["genome"]["weight"]) - 0.6),
                ]  # the best break the constraint
        record.add("told", {"group": group, "observations": told})
        optimizer.tell(observed(told, payloads))
    again, blind = fresh(name), fresh(name)
    replay(again, record.events)
    assert again.ask(POPULATION) == optimizer.ask(POPULATION)
    if name in ("grid", "random") or registry.load(name).gradients:
        return
    for event in record.events:
        for one in event.payload.get("observations", ()):
            one.pop("violations", None)
    with pytest.raises(ReplayError):
        replay(blind, record.events)


def committed(events: Sequence[Event]) -> list[int]:
    """Every cut between two transactions: a group's asks are one transaction, and so is each `told`."""
    cuts = [0]
    for index, event in enumerate(events):
        after = events[index + 1] if index + 1 < len(events) else None
        if event.type == "told" or after is None or after.type == "told":
            cuts.append(index + 1)
    return cuts


def test_every_prefix_continues_as_if_never_cut(name: str) -> None:
    whole = search(Record(), fresh(name)).events
    assert sum(event.type == "asked" for event in whole) == GROUPS * POPULATION
    for cut in committed(whole):
        assert search(Record(whole[:cut]), fresh(name)).events == whole, f"cut after {cut} events"


def test_a_prefix_in_the_middle_of_a_group_replays_too(name: str) -> None:
    """Asks that were recorded one by one, as in asynchronous mode, are replayed one by one."""
    whole = search(Record(), fresh(name)).events
    for cut in range(len(whole)):
        restored = replay(fresh(name), whole[:cut])
        asked = [event.payload for event in whole[:cut] if event.type == "asked"]
        told = sum(len(event.payload["observations"]) for event in whole[:cut] if event.type == "told")
        assert restored.reported == told
        assert restored.next_index == len(asked)
        assert restored.pending == [Proposal.from_payload(payload) for payload in asked[told:]]


def test_other_events_are_ignored(name: str) -> None:
    whole = search(Record(), fresh(name)).events
    noisy = Record()
    for event in whole:
        noisy.add(event.type, event.payload)
        noisy.add("scored", {"candidate": "0"})
        noisy.add("a_type_of_tomorrow", {"group": 3})
    assert replay(fresh(name), noisy.events) == replay(fresh(name), whole)


def shifted(events: Sequence[Event], candidate: str, factor: float) -> list[Event]:
    out = json.loads(json.dumps([[e.seq, e.time, e.type, e.payload] for e in events]))
    for _, _, kind, payload in out:
        if kind == "asked" and payload["candidate"] == candidate:
            payload["genome"]["weight"] *= factor
    return [Event(*parts) for parts in out]


class RecordingOptimizer:
    """Optimizer that records the observations it is told."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner, self.told = inner, list[Observation]()

    @property
    def population(self) -> int:
        return self.inner.population

    def ask(self, n: int) -> list[Any]:
        return self.inner.ask(n)

    def tell(self, observations: Sequence[Observation]) -> None:
        self.told += observations
        self.inner.tell(observations)

    def stop_reason(self) -> str | None:
        return self.inner.stop_reason()


def test_rounding_is_ignored_and_the_recorded_genome_is_told(name: str) -> None:
    whole = search(Record(), fresh(name)).events
    events = shifted(whole, "2", 1 + 1e-12)
    listening = RecordingOptimizer(fresh(name))
    restored = replay(listening, events)
    assert restored.reported == GROUPS * POPULATION
    recorded = next(e.payload["genome"] for e in events if e.type == "asked" and e.payload["candidate"] == "2")
    assert listening.told[2].genome == recorded


def test_only_a_difference_beyond_the_tolerance_is_refused(name: str) -> None:
    """Replay accepts a relative 1e-10 and refuses 1e-8: the tolerance is 1e-9."""
    events = search(Record(), fresh(name)).events
    assert replay(fresh(name), shifted(events, "7", 1 + 1e-10)).reported == GROUPS * POPULATION
    with pytest.raises(ReplayError, match="candidate 7 was proposed with weight"):
        replay(fresh(name), shifted(events, "7", 1 + 1e-8))


def test_a_different_history_is_refused_with_a_hint(name: str) -> None:
    whole = [Event(0, 0.0, "started", {"versions": {"cma": "4.4.0"}}), *search(Record(), fresh(name)).events]
    with pytest.raises(
        SearchError, match=r"candidate 7 was proposed with weight = .*cma 4\.4\.0.*--continue-from-best"
    ):
        replay(fresh(name), shifted(whole, "7", 1 + 1e-6))
    with pytest.raises(SearchError, match="cannot be resumed exactly"):
        replay(create(OptimizerConfig(name=name, population=POPULATION), NUMBERS[:1], {"weight": 0.5}), whole)
