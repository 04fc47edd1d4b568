"""What the events of a search add up to: the one reading of the ledger that everybody shares."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from evosearch.evaluation.types import Estimate
from evosearch.search import guards
from evosearch.search.events import CIRCUMSTANCES, Event


@dataclass
class SearchState:
    """Folded events.

    `cards` and `done` are of all items of a split, keyed by (candidate, split); `samples` and `sampled` of a part of
    the search split, keyed by (candidate, part).
    """

    name: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    circumstances: dict[str, Any] = field(default_factory=dict)  # what the search began with, see events
    controls: dict[str, dict[str, Any]] = field(default_factory=dict)
    control_kinds: dict[str, str] = field(default_factory=dict)
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipe_ids: dict[str, str] = field(default_factory=dict)
    # (recipe_id, part that it is scored on) → the first asked candidate that had it
    first_with: dict[tuple[str, int | None], str] = field(default_factory=dict)
    cards: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    samples: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    told: dict[str, dict[str, Any]] = field(default_factory=dict)  # candidate → the observation
    failed: list[dict[str, Any]] = field(default_factory=list)
    retried: int = 0
    told_groups: int = 0
    finalists: list[dict[str, Any]] = field(default_factory=list)
    test_openings: list[dict[str, Any]] = field(default_factory=list)
    gated: dict[str, Any] | None = None
    gated_at: int = 0  # how many candidates had been asked when the gate last decided
    promoted: dict[str, Any] | None = None
    stopped: str | None = None
    sessions: int = 0
    seconds_before: float = 0.0  # time that the recorded sessions took, idle time between them not counted
    last_seq: int = 0
    last_time: float = 0.0

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> Self:
        state = cls()
        for event in events:
            state.apply(event)
        return state

    def apply(self, event: Event) -> None:
        """Fold in one event; types this version does not know are ignored."""
        if event.type != "started" and self.last_time:
            self.seconds_before += max(0.0, event.time - self.last_time)
        self.last_seq, self.last_time = event.seq, event.time
        handler = getattr(self, f"_on_{event.type}", None)
        if handler is not None:
            handler(event.payload)

    @property
    def inputs(self) -> dict[str, str]:
        """reference → content_sha256."""
        return dict(self.circumstances.get("inputs", {}))

    @property
    def done(self) -> set[tuple[str, str]]:
        """(candidate, split) pairs that need no more work: scored, or failed for good."""
        return self.cards.keys() | {(f["candidate"], f["split"]) for f in self.failed if f.get("part") is None}

    @property
    def sampled(self) -> set[tuple[str, int]]:
        """(candidate, part) pairs that need no more work."""
        return self.samples.keys() | {(f["candidate"], f["part"]) for f in self.failed if f.get("part") is not None}

    @property
    def finished(self) -> list[str]:
        """Asked candidates that are scored, or failed, on the search split or a part of it."""
        whole = {name for name, split in self.done if split == "search"}
        return [name for name in whole | {name for name, _ in self.sampled} if name.isdigit()]

    @property
    def any_scored(self) -> bool:
        """Whether at least one asked candidate has a score."""
        return any(name.isdigit() for name, _ in (*self.cards, *self.samples))

    @property
    def asked_count(self) -> int:
        return len(self.asked)

    @property
    def groups(self) -> int:
        return 1 + max((payload["group"] for payload in self.asked.values()), default=-1)

    def fitness(self, candidate: str, split: str = "search") -> Estimate | None:
        card = self.cards.get((candidate, split))
        return Estimate(**card["fitness"]) if card else None

    def score(self, candidate: str, split: str) -> float | None:
        card = self.cards.get((candidate, split))
        return float(card["score"]) if card else None

    def has_failed(self, candidate: str) -> bool:
        return any(failure["candidate"] == candidate for failure in self.failed)

    @property
    def limits(self) -> dict[str, float]:
        """Guarded task → by how many points it may fall."""
        return guards.limits(self.circumstances.get("suite", {}))

    def references(self) -> dict[str, str]:
        """Guarded task → the control it is held against, on every split; one is missing where none was scored."""
        controls = {name: self.cards.get((name, "search"), {}).get("guards", {}) for name in self.controls}
        found = {task: guards.reference(task, controls, self.control_kinds) for task in self.limits}
        return {task: name for task, name in found.items() if name is not None}

    def violations(self, candidate: str, split: str = "search") -> dict[str, float]:
        """Guarded task → points lost beyond what its guard allows, on all items of a split, where that is known."""
        return self._broken(candidate, split, self.limits, self._held(split))

    def _held(self, split: str) -> dict[str, float]:
        """Guarded task → the points of its reference on all items of a split, where that was scored."""
        return {
            task: self.cards[name, split]["guards"][task]
            for task, name in self.references().items()
            if (name, split) in self.cards
        }

    def _broken(self, candidate: str, split: str, limits: guards.Points, held: guards.Points) -> dict[str, float]:
        return guards.amounts(limits, held, self.cards.get((candidate, split), {}).get("guards", {}))

    def violation(self, candidate: str, split: str = "search") -> float:
        """By how many points a candidate breaks guards, in all."""
        return sum(self.violations(candidate, split).values())

    def evidence(self, candidate: str) -> tuple[float, float] | None:
        """(violation, fitness) on the search split: of all its items, else as the optimizer was told of a part."""
        return self._evidence(candidate, self.limits, self._held("search"))

    def _evidence(self, candidate: str, limits: guards.Points, held: guards.Points) -> tuple[float, float] | None:
        card = self.cards.get((candidate, "search"))
        if card is None:
            return self.as_told(candidate)
        violation = sum(self._broken(candidate, "search", limits, held).values()) if limits else 0.0
        return violation, float(card["fitness"]["value"])

    def as_told(self, candidate: str) -> tuple[float, float] | None:
        """(violation, fitness) as the optimizer was told; None of a failure, or before."""
        told = self.told.get(candidate)
        if told is None or told["state"] != "scored":
            return None
        return sum(max(0.0, amount) for amount in told.get("violations", ())), float(told["value"])

    def best(self) -> float | None:
        """Fitness of the best asked candidate, None before the first; those that break no guard come first."""
        limits, held = self.limits, self._held("search")  # once: this is asked at every outcome, of all candidates
        known = [found for name in self.asked if (found := self._evidence(name, limits, held)) is not None]
        return min(known, key=lambda found: (found[0], -found[1]))[1] if known else None

    def recipe(self, candidate: str) -> dict[str, Any]:
        """The recorded recipe of a control or an asked candidate, as plain data."""
        payload = self.controls.get(candidate) or self.asked[candidate]
        recipe: dict[str, Any] = payload["recipe"]
        return recipe

    def _on_started(self, payload: dict[str, Any]) -> None:
        self.name, self.spec = payload["name"], payload["spec"]
        self.circumstances |= {key: payload[key] for key in CIRCUMSTANCES if key in payload}
        self.sessions += 1
        self.stopped = None

    def _on_control(self, payload: dict[str, Any]) -> None:
        self.controls[payload["candidate"]] = payload
        self.control_kinds[payload["candidate"]] = payload["kind"]
        if payload.get("recipe_id"):
            self.recipe_ids[payload["candidate"]] = payload["recipe_id"]

    def _on_asked(self, payload: dict[str, Any]) -> None:
        self.asked[payload["candidate"]] = payload
        self.recipe_ids[payload["candidate"]] = payload["recipe_id"]
        self.first_with.setdefault((payload["recipe_id"], payload.get("part")), payload["candidate"])

    def _on_scored(self, payload: dict[str, Any]) -> None:
        if payload.get("part") is None:
            self.cards[payload["candidate"], payload["split"]] = payload
        else:
            self.samples[payload["candidate"], payload["part"]] = payload

    def _on_failed(self, payload: dict[str, Any]) -> None:
        self.failed.append(payload)

    def _on_retried(self, payload: dict[str, Any]) -> None:
        self.retried += 1

    def _on_told(self, payload: dict[str, Any]) -> None:
        self.told_groups += 1
        self.told.update((told["candidate"], told) for told in payload["observations"])

    def _on_finalist(self, payload: dict[str, Any]) -> None:
        if payload["rank"] == 1:  # a new round: the budget was extended and there are new candidates
            self.finalists.clear()
        self.finalists.append(payload)

    def _on_test_opened(self, payload: dict[str, Any]) -> None:
        self.test_openings.append(payload)

    def _on_gated(self, payload: dict[str, Any]) -> None:
        self.gated, self.gated_at = payload, self.asked_count

    def _on_promoted(self, payload: dict[str, Any]) -> None:
        self.promoted = payload

    def _on_stopped(self, payload: dict[str, Any]) -> None:
        self.stopped = payload["reason"]
