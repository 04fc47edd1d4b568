"""What the events of a search add up to: the one reading of the ledger that everybody shares."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from evosearch.evaluation.types import Estimate
from evosearch.search import guards
from evosearch.search.ledger.events import CIRCUMSTANCES, Event

BULK = ("genome", "recipe")  # keys of `asked` as long as the genome: read back where that is possible


@dataclass
class SearchState:
    """Folded events.

    `cards` and `done` are of all items of a split, keyed by (candidate, split); `samples` and `sampled` of a minibatch of
    the search split, keyed by (candidate, minibatch). `done` and `sampled` need no more work: scored, or failed for good.

    What is asked for at every outcome takes the same time however long the search is. With `read`, genomes and recipes
    of candidates stay in the ledger: a state then grows by what is known of candidates, not by what they are.
    """

    read: Callable[[int], Event] | None = None  # seq → that event

    name: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    circumstances: dict[str, Any] = field(default_factory=dict)  # what the search began with, see events
    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)
    baseline_kinds: dict[str, str] = field(default_factory=dict)
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)  # without `BULK` where there is `read`
    recipe_ids: dict[str, str] = field(default_factory=dict)
    # (recipe_id, minibatch that it is scored on) → the first asked candidate that had it
    first_with: dict[tuple[str, int | None], str] = field(default_factory=dict)
    cards: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    samples: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    told: dict[str, dict[str, Any]] = field(default_factory=dict)  # candidate → the observation
    failed: list[dict[str, Any]] = field(default_factory=list)
    done: set[tuple[str, str]] = field(default_factory=set)
    sampled: set[tuple[str, int]] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)  # asked, and done on the search split or a minibatch of it
    any_scored: bool = False  # at least one asked candidate has a score
    groups: int = 0  # that were asked
    newly_asked: Counter[int | None] = field(default_factory=Counter)  # minibatch → candidates that were no duplicates
    repeated: int = 0  # the last so many that were asked were duplicates
    best_told: tuple[float, float] | None = None  # (violation, -fitness) of the best that an optimizer was told of
    told_since_best: int = 0  # to the present optimizer
    restarted: dict[str, Any] | None = None  # what the present optimizer began with, where it is not the first
    restarted_at: int = 0  # seq; the record of the present optimizer begins after it
    asked_before: int = 0  # candidates, by earlier optimizers
    retried: int = 0
    told_groups: int = 0
    finalists: list[dict[str, Any]] = field(default_factory=list)
    test_openings: list[dict[str, Any]] = field(default_factory=list)
    gated: dict[str, Any] | None = None
    gated_at: int = 0  # how many candidates had been asked when the gate last decided
    promoted: dict[str, Any] | None = None
    winner: dict[str, Any] | None = None  # of a stage
    winner_at: int = 0  # how many candidates had been asked when it was chosen
    warm_start: dict[str, Any] | None = None
    stopped: str | None = None
    sessions: int = 0
    seconds_before: float = 0.0  # time that the recorded sessions took, idle time between them not counted
    last_seq: int = 0
    last_time: float = 0.0
    _asked_at: dict[str, int] = field(default_factory=dict)  # candidate → seq of its `asked`, where there is `read`
    _failed_names: set[str] = field(default_factory=set)
    _leader: tuple[float, float] | None = None  # (violation, -fitness) of the best but for the two below
    _news: dict[str, None] = field(default_factory=dict)  # candidates of whom more is known since the leader was found
    _recount: bool = False  # what candidates are compared by has changed

    @classmethod
    def from_events(cls, events: Iterable[Event], read: Callable[[int], Event] | None = None) -> Self:
        state = cls(read=read)
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
        """Reference → content_sha256."""
        return dict(self.circumstances.get("inputs", {}))

    @property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """Reference → recipe, of the models that are recipes and of those that they are made of."""
        return dict(self.circumstances.get("recipes", {}))

    @property
    def asked_count(self) -> int:
        return len(self.asked)

    def fitness(self, candidate: str, split: str = "search") -> Estimate | None:
        card = self.cards.get((candidate, split))
        return Estimate(**card["fitness"]) if card else None

    def score(self, candidate: str, split: str) -> float | None:
        card = self.cards.get((candidate, split))
        return float(card["score"]) if card else None

    def has_failed(self, candidate: str) -> bool:
        return candidate in self._failed_names

    @property
    def limits(self) -> dict[str, float]:
        """Guarded task → by how many points it may fall."""
        return guards.limits(self.circumstances.get("suite", {}))

    def references(self) -> dict[str, str]:
        """Guarded task → the baseline it is held against, on every split; one is missing where none was scored."""
        baselines = {name: self.cards.get((name, "search"), {}).get("guards", {}) for name in self.baselines}
        found = {task: guards.reference(task, baselines, self.baseline_kinds) for task in self.limits}
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
        """(violation, fitness) on the search split: of all its items, else as the optimizer was told of a minibatch."""
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
        """Fitness of the best asked candidate, None before the first; those that break no guard come first.

        Looks only at what became known since it was last asked, unless a baseline's score changed what guards are held
        against.
        """
        names = self.asked if self._recount else self._news
        if names:
            limits, held = self.limits, self._held("search")  # once, however many there are
            known = [found for name in names if (found := self._evidence(name, limits, held)) is not None]
            ranked = [(violation, -fitness) for violation, fitness in known]
            if self._leader is not None and not self._recount:
                ranked.append(self._leader)
            self._leader = min(ranked, default=None)
            self._news, self._recount = {}, False
        return -self._leader[1] if self._leader else None

    def payload(self, candidate: str) -> dict[str, Any]:
        """All that was recorded when a candidate was asked."""
        if self.read is None:
            return self.asked[candidate]
        return self.read(self._asked_at[candidate]).payload

    def recipe(self, candidate: str) -> dict[str, Any]:
        """The recorded recipe of a baseline or an asked candidate, as plain data."""
        payload = self.baselines.get(candidate) or self.payload(candidate)
        recipe: dict[str, Any] = payload["recipe"]
        return recipe

    def _on_started(self, payload: dict[str, Any]) -> None:
        self.name, self.spec = payload["name"], payload["spec"]
        self.circumstances |= {key: payload[key] for key in CIRCUMSTANCES if key in payload}
        self._recount = True  # the suite, and with it the guards
        self.sessions += 1
        self.stopped = None

    def _on_baseline(self, payload: dict[str, Any]) -> None:
        self.baselines[payload["candidate"]] = payload
        self.baseline_kinds[payload["candidate"]] = payload["kind"]
        if payload.get("recipe_id"):
            self.recipe_ids[payload["candidate"]] = payload["recipe_id"]

    def _on_asked(self, payload: dict[str, Any]) -> None:
        candidate, minibatch, first = payload["candidate"], payload.get("minibatch"), payload.get("duplicate_of")
        if self.read is not None:
            self._asked_at[candidate] = self.last_seq
            payload = {key: value for key, value in payload.items() if key not in BULK}
        self.asked[candidate] = payload
        self.recipe_ids[candidate] = payload["recipe_id"]
        self.first_with.setdefault((payload["recipe_id"], minibatch), candidate)
        self.groups = max(self.groups, payload["group"] + 1)
        self.newly_asked[minibatch] += first is None
        self.repeated = self.repeated + 1 if first is not None else 0

    def _on_scored(self, payload: dict[str, Any]) -> None:
        candidate, split, minibatch = payload["candidate"], payload["split"], payload.get("minibatch")
        if minibatch is None:
            self.cards[candidate, split] = payload
        else:
            self.samples[candidate, minibatch] = payload
        self._settled(candidate, split, minibatch)
        self.any_scored |= candidate.isdigit()
        if split == "search" and minibatch is None:
            if candidate in self.asked and candidate not in self.told:
                self._news[candidate] = None
            else:  # a baseline, or more is known of a candidate than what was told, for better or worse
                self._recount = True

    def _on_failed(self, payload: dict[str, Any]) -> None:
        self.failed.append(payload)
        self._failed_names.add(payload["candidate"])
        self._settled(payload["candidate"], payload["split"], payload.get("minibatch"))

    def _settled(self, candidate: str, split: str, minibatch: int | None) -> None:
        if minibatch is None:
            self.done.add((candidate, split))
        else:
            self.sampled.add((candidate, minibatch))
        if candidate.isdigit() and (minibatch is not None or split == "search"):
            self.finished.add(candidate)

    def _on_retried(self, payload: dict[str, Any]) -> None:
        self.retried += 1

    def _on_told(self, payload: dict[str, Any]) -> None:
        self.told_groups += 1
        for told in payload["observations"]:
            name = told["candidate"]
            self.told[name], self._news[name] = told, None
            found = self.as_told(name)
            standing = (found[0], -found[1]) if found else None
            if standing is not None and (self.best_told is None or standing < self.best_told):
                self.best_told, self.told_since_best = standing, 0
            else:
                self.told_since_best += 1

    def _on_restarted(self, payload: dict[str, Any]) -> None:
        self.restarted, self.restarted_at, self.asked_before = payload, self.last_seq, self.asked_count
        self.told_since_best = 0

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

    def _on_winner(self, payload: dict[str, Any]) -> None:
        self.winner, self.winner_at = payload, self.asked_count

    def _on_warm_started(self, payload: dict[str, Any]) -> None:
        self.warm_start = payload

    def _on_stopped(self, payload: dict[str, Any]) -> None:
        self.stopped = payload["reason"]
