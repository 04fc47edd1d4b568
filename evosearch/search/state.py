"""State of a search, folded from the events of its ledger."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from evosearch.errors import LedgerError
from evosearch.search.ledger.events import Event
from evosearch.search.ranked_models import RankedModels
from evosearch.search.records import (
    BaselineRecord,
    CandidateRecord,
    CardSummary,
    Circumstances,
    FailureRecord,
    FinalistRecord,
    GateRecord,
    GradientRecord,
    GradientSummary,
    OpeningRecord,
    OptimizerRecord,
    Payload,
    PromotedRecord,
    Proposal,
    Reported,
    ReseededRecord,
    RestartRecord,
    TeachersRecord,
    TrainedRecord,
    WarmStart,
    WinnerRecord,
    is_candidate,
)
from evosearch.search.space.dimensions import Evaluation
from evosearch.search.titles import title


@dataclass
class SearchState(RankedModels):
    """Folded events; `RankedModels` compares the scores.

    `cards` and `done` refer to a full split, keyed by (candidate, split); `samples`, `gradients` and `sampled` to a
    minibatch of the search split, keyed by (candidate, minibatch). Entries of `done` and `sampled` are scored or
    differentiated, or failed for good.

    Queries at every outcome take constant time, however long the search is. With `read`, genomes, recipes and gradients
    of candidates stay in the ledger, so that the state of a long search stays small.
    """

    read: Callable[[int], Event] | None = None  # seq → that event

    name: str = ""
    spec: dict[str, Any] = field(default_factory=dict)  # the spec's identity
    suite_file: str | None = None  # where the suite was when the search was last started
    optimizer: OptimizerRecord | None = None  # of the first session
    recipe_ids: dict[str, str] = field(default_factory=dict)  # candidate or baseline → recipe_id
    # (recipe_id, how it is evaluated) → the first candidate with it
    first_with: dict[tuple[str, Evaluation], str] = field(default_factory=dict)
    samples: dict[tuple[str, int], CardSummary] = field(default_factory=dict)
    gradients: dict[tuple[str, int], GradientSummary] = field(default_factory=dict)
    reseeded: dict[str, ReseededRecord] = field(default_factory=dict)  # name → a finalist with another seed
    trained: dict[str, TrainedRecord] = field(default_factory=dict)  # baseline of kind `trained` → its training
    failed: list[FailureRecord] = field(default_factory=list)
    done: set[tuple[str, str]] = field(default_factory=set)
    sampled: set[tuple[str, int]] = field(default_factory=set)
    # Candidates done on the search split or a minibatch of it, without answers
    finished: set[str] = field(default_factory=set)
    # Recipes that the current optimizer recommends: recipe_id → candidate; empty once it has proposed more
    answers: dict[str, str] = field(default_factory=dict)
    any_scored: bool = False  # at least one candidate has a score or a gradient
    groups: int = 0  # number of groups so far
    proposed: int = 0  # number of candidates that optimizers have proposed, without answers
    distinct: Counter[Evaluation] = field(default_factory=Counter)  # → candidates that are not duplicates, nor answers
    repeated: int = 0  # number of consecutive duplicates up to the last candidate
    best_reported: tuple[float, float] | None = None  # least (violation, -fitness) that an optimizer was told
    reported_since_best: int = 0  # to the current optimizer
    restarted: RestartRecord | None = None  # start of the current optimizer, unless it is the first
    restarted_at: int = 0  # seq; the record of the current optimizer begins after it
    proposed_before: int = 0  # candidates of earlier optimizers
    retried: int = 0
    reported_groups: int = 0
    finalists: list[FinalistRecord] = field(default_factory=list)
    test_openings: list[OpeningRecord] = field(default_factory=list)
    gated: GateRecord | None = None
    gated_at: int = 0  # number of candidates when the gate last decided
    promoted: PromotedRecord | None = None
    winner: WinnerRecord | None = None  # of a stage
    winner_at: int = 0  # number of candidates when it was chosen
    warm_start: WarmStart | None = None
    teachers: dict[str, str] = field(default_factory=dict)  # task → reference of its teacher
    stopped: str | None = None
    sessions: int = 0
    seconds_before: float = 0.0  # duration of the recorded sessions by their clocks, without the time between them
    last_seq: int = 0
    last_time: float = 0.0
    last_clock: float = 0.0
    _proposed_at: dict[str, int] = field(default_factory=dict)  # candidate → seq of its `asked`, with `read`
    _proposals: dict[str, Payload] = field(default_factory=dict)  # candidate → payload of its `asked`, without `read`
    _differentiated_at: dict[tuple[str, int], int] = field(default_factory=dict)  # as `gradients` → seq, with `read`
    _failed_names: set[str] = field(default_factory=set)
    _answered: set[str] = field(default_factory=set)  # all answers, also of earlier sessions

    @classmethod
    def from_events(cls, events: Iterable[Event], read: Callable[[int], Event] | None = None) -> Self:
        """Fold the events of a search, in order.

        Raises:
            LedgerError: A payload is not what this version writes.
        """
        state = cls(read=read)
        for event in events:
            try:
                state.apply(event)
            except (LookupError, TypeError, ValueError, AttributeError) as exc:
                what = f"event {event.seq} ({event.type}) is not what this version writes: {type(exc).__name__}: {exc}"
                raise LedgerError("ledger", what, next="Restore a backup, or use the version that wrote it") from exc
        return state

    def apply(self, event: Event) -> None:
        """Fold in one event; types that the state does not depend on are ignored."""
        if event.type != "started" and self.last_seq:
            self.seconds_before += max(0.0, event.clock - self.last_clock)
        self.last_seq, self.last_time, self.last_clock = event.seq, event.time, event.clock
        handler = getattr(self, f"_on_{event.type}", None)
        if handler is not None:
            handler(event.payload)

    @property
    def inputs(self) -> dict[str, str]:
        """Reference → content_sha256."""
        return dict(self.circumstances.inputs)

    @property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """Reference → recipe, of the models that are recipes and of the models those are made of."""
        return dict(self.circumstances.recipes)

    def kind(self, name: str) -> str:
        """Return `candidate`, or the kind of a baseline."""
        return self.baselines[name].kind if name in self.baselines else "candidate"

    def title(self, name: str) -> str:
        """Return the title of a candidate or baseline; see `titles`."""
        baseline = self.baselines.get(name)
        return title(name, baseline.recipe if baseline else None, self.circumstances.inputs)

    def is_answer(self, name: str) -> bool:
        """Return whether a candidate was recommended at the end of a search, rather than proposed during it."""
        return name in self._answered

    def latest(self, kind: str) -> str | None:
        """Return the baseline of a kind that was recorded last; None without one."""
        return next((name for name in reversed(self.baselines) if self.baselines[name].kind == kind), None)

    def has_failed(self, candidate: str) -> bool:
        """Return whether a candidate failed for good on any split."""
        return candidate in self._failed_names

    def proposal(self, candidate: str) -> Proposal:
        """Return the record of a candidate's proposal."""
        if self.read is None:
            return Proposal.from_payload(self._proposals[candidate])
        return Proposal.from_payload(self.read(self._proposed_at[candidate]).payload)

    def gradient(self, candidate: CandidateRecord) -> GradientRecord | None:
        """Return the recorded gradient of a candidate; None if it failed or is not evaluated yet."""
        assert candidate.minibatch is not None, "gradients are computed on minibatches"
        key = candidate.candidate, candidate.minibatch
        found = self.gradients.get(key)
        if found is None or self.read is None:
            assert found is None or isinstance(found, GradientRecord)
            return found
        return GradientRecord.from_payload(self.read(self._differentiated_at[key]).payload)

    def recipe(self, name: str) -> dict[str, Any]:
        """Return the recorded recipe of a baseline, a candidate or a finalist with another seed, as plain data."""
        if name in self.reseeded:
            return self.reseeded[name].recipe
        recipe = self.baselines[name].recipe if name in self.baselines else self.proposal(name).recipe
        assert recipe is not None, f"{name} was skipped"
        return recipe

    def _on_started(self, payload: Payload) -> None:
        self.name, self.spec = payload["name"], payload["spec"]
        self.circumstances = Circumstances.from_payload(payload)
        self.suite_file = payload.get("suite_file")
        if self.optimizer is None and "optimizer" in payload:
            self.optimizer = OptimizerRecord.from_payload(payload["optimizer"])
        self._compare_all()  # the suite may have changed, and with it the guards
        self.sessions += 1
        self.stopped = None

    def _on_baseline(self, payload: Payload) -> None:
        baseline = BaselineRecord.from_payload(payload)
        self.baselines[baseline.candidate] = baseline
        if baseline.recipe_id is not None:
            self.recipe_ids[baseline.candidate] = baseline.recipe_id

    def _on_asked(self, payload: Payload) -> None:
        candidate = self._proposed(payload)
        self.answers.clear()
        self.proposed += 1
        self.distinct[candidate.evaluation] += candidate.duplicate_of is None
        self.repeated = 0 if candidate.duplicate_of is None else self.repeated + 1

    def _on_answered(self, payload: Payload) -> None:
        candidate = self._proposed(payload)
        self.answers[candidate.recipe_id] = candidate.candidate
        self._answered.add(candidate.candidate)

    def _proposed(self, payload: Payload) -> CandidateRecord:
        candidate = CandidateRecord.from_payload(payload)
        name = candidate.candidate
        if self.read is None:
            self._proposals[name] = payload
        else:
            self._proposed_at[name] = self.last_seq
        self.candidates[name] = candidate
        self.recipe_ids[name] = candidate.recipe_id
        if not candidate.gradient:
            self.first_with.setdefault((candidate.recipe_id, candidate.evaluation), name)
        self.groups = max(self.groups, candidate.group + 1)
        return candidate

    def _on_scored(self, payload: Payload) -> None:
        card = CardSummary.from_payload(payload)
        name, split, minibatch = card.candidate, card.split, card.minibatch
        if minibatch is None:
            self.cards[name, split] = card
        else:
            self.samples[name, minibatch] = card
        self._settled(name, split, minibatch)
        self.any_scored |= is_candidate(name)
        if split == "search" and minibatch is None:
            self._compare_scored(name)

    def _on_differentiated(self, payload: Payload) -> None:
        kind = GradientRecord if self.read is None else GradientSummary
        found = kind.from_payload(payload)
        key = found.candidate, found.minibatch
        self.gradients[key], self._differentiated_at[key] = found, self.last_seq
        self._settled(found.candidate, found.split, found.minibatch)
        self.any_scored = True

    def _on_trained(self, payload: Payload) -> None:
        found = TrainedRecord.from_payload(payload)
        self.trained[found.candidate] = found

    def _on_failed(self, payload: Payload) -> None:
        failure = FailureRecord.from_payload(payload)
        self.failed.append(failure)
        self._failed_names.add(failure.candidate)
        self._settled(failure.candidate, failure.split, failure.minibatch)

    def _settled(self, candidate: str, split: str, minibatch: int | None) -> None:
        if minibatch is None:
            self.done.add((candidate, split))
        else:
            self.sampled.add((candidate, minibatch))
        on_search = minibatch is not None or split == "search"
        if is_candidate(candidate) and on_search and candidate not in self._answered:
            self.finished.add(candidate)

    def _on_retried(self, payload: Payload) -> None:
        self.retried += 1

    def _on_told(self, payload: Payload) -> None:
        self.reported_groups += 1
        for reported in map(Reported.from_payload, payload["observations"]):
            name = reported.candidate
            self.reported[name] = reported
            if reported.gradient:
                continue
            self._compare_later(name)
            found = self.as_reported(name)
            standing = (found[0], -found[1]) if found else None
            if standing is not None and (self.best_reported is None or standing < self.best_reported):
                self.best_reported, self.reported_since_best = standing, 0
            else:
                self.reported_since_best += 1

    def _on_restarted(self, payload: Payload) -> None:
        self.restarted = RestartRecord.from_payload(payload)
        self.restarted_at, self.proposed_before = self.last_seq, self.proposed
        self.reported_since_best = 0
        self.answers.clear()

    def _on_finalist(self, payload: Payload) -> None:
        finalist = FinalistRecord.from_payload(payload)
        if finalist.rank == 1:  # a new round: the budget was extended and there are new candidates
            self.finalists.clear()
        self.finalists.append(finalist)

    def _on_reseeded(self, payload: Payload) -> None:
        found = ReseededRecord.from_payload(payload)
        self.reseeded[found.candidate] = found

    def _on_test_opened(self, payload: Payload) -> None:
        self.test_openings.append(OpeningRecord.from_payload(payload))

    def _on_gated(self, payload: Payload) -> None:
        self.gated, self.gated_at = GateRecord.from_payload(payload), len(self.candidates)

    def _on_promoted(self, payload: Payload) -> None:
        self.promoted = PromotedRecord.from_payload(payload)

    def _on_winner(self, payload: Payload) -> None:
        self.winner, self.winner_at = WinnerRecord.from_payload(payload), len(self.candidates)

    def _on_teachers(self, payload: Payload) -> None:
        self.teachers = dict(TeachersRecord.from_payload(payload).teachers)

    def _on_warm_started(self, payload: Payload) -> None:
        self.warm_start = WarmStart.from_payload(payload)

    def _on_stopped(self, payload: Payload) -> None:
        self.stopped = payload["reason"]
