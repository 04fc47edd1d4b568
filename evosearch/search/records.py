"""Typed records of the payloads of a search's events.

Events enter and leave the ledger as plain JSON data; all other code uses these records. Each record writes its own
payload (`to_payload`) and reads it back (`from_payload`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from evosearch.evaluation.types import Estimate, TaskScore, Tokens
from evosearch.search.space.dimensions import Evaluation, Genome, Observation

Payload = dict[str, Any]  # plain JSON data of one event


def is_candidate(name: str) -> bool:
    """Return whether a name is an ask index: everything else names a baseline or the champion."""
    return name.isdigit()


class Record:
    """Base of records whose fields are the keys of their payload."""

    __slots__ = ()

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """Read an event's payload; keys that are not a field are left out."""
        return cls(**{one.name: payload[one.name] for one in fields(cls) if one.name in payload})  # type: ignore[arg-type]

    def to_payload(self) -> Payload:
        """Return the fields as plain JSON data."""
        return {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Circumstances(Record):
    """Everything outside the spec that scores depend on, as digests; a resume under others is refused."""

    inputs: Mapping[str, str] = field(default_factory=dict)  # reference → content_sha256
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # reference → file → sha256
    suite: Mapping[str, Any] = field(default_factory=dict)  # as read
    tasks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # task → config key → digest
    batches: Mapping[str, str] = field(default_factory=dict)  # split → ItemBatch.digest
    item_sets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # split → task → ItemSet.digest
    recipes: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # reference → recipe


@dataclass(frozen=True)
class OptimizerRecord(Record):
    """The optimizer of a search: the one that its spec names, or the choice of `auto`."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""  # of a choice


@dataclass(frozen=True)
class BaselineRecord(Record):
    """A baseline; without a recipe it does not apply to the search, and `skipped` says why."""

    candidate: str
    kind: str  # base | parent | stage | uniform | scale | trained | placebo
    recipe: dict[str, Any] | None = None  # of a trained baseline: of the model that it starts from
    recipe_id: str | None = None
    skipped: str | None = None
    recipes: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # reference → recipe, of a placebo's models


@dataclass(frozen=True, kw_only=True)
class CandidateRecord(Record):
    """A proposed candidate without its genome and recipe, whose size grows with the search space."""

    candidate: str  # the ask index
    group: int  # candidates of one group are reported together
    recipe_id: str
    duplicate_of: str | None = None  # the first candidate with this recipe on this minibatch
    minibatch: int | None = None  # None: scored on the full split
    gradient: bool = False  # a shard of a gradient step, which is differentiated and not scored

    @property
    def evaluation(self) -> Evaluation:
        """How the candidate is evaluated during the search."""
        return Evaluation(self.minibatch, self.gradient)

    @property
    def original(self) -> str:
        """The candidate whose score card this one has."""
        return self.duplicate_of or self.candidate


@dataclass(frozen=True, kw_only=True)
class Proposal(CandidateRecord):
    """A proposed candidate with its genome and recipe."""

    genome: Genome
    recipe: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CardSummary(Record):
    """The aggregates of a score card, without the scores of single items."""

    candidate: str
    split: str
    minibatch: int | None = None  # None: scored on the full split
    score: float | None  # None if no right answers were read
    fitness: Estimate
    score_stderr: float = 0.0
    tasks: Mapping[str, TaskScore] = field(default_factory=dict)
    task_fitness: Mapping[str, Estimate] = field(default_factory=dict)
    guards: Mapping[str, float] = field(default_factory=dict)  # guarded task → points, 100 (m - c) / (1 - c)
    batch: str = ""  # ItemBatch.digest
    sets: Mapping[str, str] = field(default_factory=dict)  # task → ItemSet.digest
    tokens: Tokens = field(default_factory=Tokens)
    seconds: Mapping[str, float] = field(default_factory=dict)  # load, materialize, score
    modes: Mapping[str, str] = field(default_factory=dict)  # loglikelihood, generation → execution mode
    reported: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)  # task → metric → lm-eval's figure
    recipe_id: str | None = None
    worker: str = ""

    @property
    def merit(self) -> float:
        """The score, or the fitness if no right answers were read: what models are ranked by on a split."""
        return self.fitness.value if self.score is None else self.score

    @property
    def items(self) -> int:
        """Number of items of the fitness."""
        return self.fitness.n

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """Read the payload of a `scored` event."""
        found = {one.name: payload[one.name] for one in fields(cls) if one.name in payload}
        found["fitness"] = Estimate(**payload["fitness"])
        found["tasks"] = {name: TaskScore(**task) for name, task in payload.get("tasks", {}).items()}
        found["task_fitness"] = {name: Estimate(**one) for name, one in payload.get("task_fitness", {}).items()}
        found["tokens"] = Tokens(**payload.get("tokens", {}))
        return cls(**found)


@dataclass(frozen=True, kw_only=True)
class GradientSummary(Record):
    """The result of a candidate that was differentiated, without the gradient, whose size grows with the space."""

    candidate: str
    split: str
    minibatch: int
    fitness: Estimate  # of the minibatch, or the share of it that its shard has
    tasks: Mapping[str, Estimate] = field(default_factory=dict)  # task → mean over items
    batch: str = ""  # ItemBatch.digest
    tokens: Tokens = field(default_factory=Tokens)
    seconds: Mapping[str, float] = field(default_factory=dict)  # materialize, score
    modes: Mapping[str, str] = field(default_factory=dict)  # loglikelihood → execution mode
    worker: str = ""

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """Read the payload of a `differentiated` event."""
        found = {one.name: payload[one.name] for one in fields(cls) if one.name in payload}
        found["fitness"] = Estimate(**payload["fitness"])
        found["tasks"] = {name: Estimate(**one) for name, one in payload.get("tasks", {}).items()}
        found["tokens"] = Tokens(**payload.get("tokens", {}))
        return cls(**found)


@dataclass(frozen=True, kw_only=True)
class GradientRecord(GradientSummary):
    """The result of a candidate that was differentiated."""

    gradient: Sequence[float]  # (dimensions,) derivative of the fitness in the value of each dimension, in order

    def to_payload(self) -> Payload:
        """Return the payload of a `differentiated` event."""
        tasks = {name: vars(one).copy() for name, one in self.tasks.items()}
        plain = {"fitness": vars(self.fitness).copy(), "tasks": tasks, "tokens": vars(self.tokens).copy()}
        sized = {"seconds": dict(self.seconds), "modes": dict(self.modes), "gradient": list(self.gradient)}
        return super().to_payload() | plain | sized


@dataclass(frozen=True, kw_only=True)
class TrainedRecord(Record):
    """Training of a baseline of kind `trained`; see `TrainingCard`."""

    candidate: str
    form: str
    parameters: int
    rate: float
    steps: int
    kept: int
    items: int
    objective: Sequence[float]  # mean log-probability of right answers over the first and over the last epoch
    seconds: float
    worker: str = ""


@dataclass(frozen=True)
class Reported:
    """The result that the optimizer is told for a candidate; without a fitness the candidate failed."""

    candidate: str
    fitness: Estimate | None
    violations: tuple[float, ...] = ()  # points beyond each guard, in the suite's order
    objectives: tuple[Estimate, ...] = ()  # only if there are several
    gradient: bool = False  # a gradient was asked for: the fitness is that of a minibatch, and not for comparison

    @property
    def violation(self) -> float:
        """Points by which guards are broken, in total."""
        return sum(max(0.0, amount) for amount in self.violations)

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """Read one observation of a `told` event."""
        violations = tuple(map(float, payload.get("violations", ())))
        gradient = bool(payload.get("gradient", False))
        if payload["state"] != "scored":
            return cls(payload["candidate"], None, violations, gradient=gradient)
        objectives = tuple(Estimate(**one) for one in payload.get("objectives", ()))
        fitness = Estimate(float(payload["value"]), float(payload["stderr"]), int(payload["n"]))
        return cls(payload["candidate"], fitness, violations, objectives, gradient)

    def to_payload(self) -> Payload:
        """Return one observation of a `told` event."""
        fitness = self.fitness
        return {
            "candidate": self.candidate,
            "state": "failed" if fitness is None else "scored",
            "value": None if fitness is None else fitness.value,
            "stderr": None if fitness is None else fitness.stderr,
            "n": 0 if fitness is None else fitness.n,
            "violations": list(self.violations),
            "objectives": [vars(one).copy() for one in self.objectives],
            "gradient": self.gradient,
        }

    def observation(self, genome: Genome, gradient: Sequence[float] | None = None) -> Observation:
        """Return the observation that the optimizer is told about `genome`.

        Args:
            genome: The proposed genome.
            gradient: (dimensions,) derivatives in the genome's order, if they were asked for and the candidate did not
                fail.
        """
        if self.fitness is None:
            return Observation(self.candidate, genome, (), self.violations, "failed")
        if gradient is not None:
            slopes = dict(zip(genome, gradient, strict=True))
            return Observation(self.candidate, genome, (self.fitness,), self.violations, gradient=slopes)
        if not self.objectives:
            return Observation(self.candidate, genome, (self.fitness,), self.violations)
        return Observation(self.candidate, genome, self.objectives, self.violations, fitness=self.fitness)


@dataclass(frozen=True)
class FailureRecord(Record):
    """Why a candidate has no score card on a split, or on a minibatch of it."""

    candidate: str
    split: str
    stage: str  # materialize | score | worker
    reason: str
    traceback: str = ""
    worker: str = ""
    minibatch: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)  # until the failure; empty if the worker died with it


@dataclass(frozen=True)
class FinalistRecord(Record):
    """A candidate that was validated."""

    candidate: str
    rank: int  # from 1, by score on validation
    score: float  # on validation


@dataclass(frozen=True)
class ReseededRecord(Record):
    """A finalist with another seed of its masks, to be scored on validation."""

    candidate: str
    finalist: str
    seed: int
    recipe: dict[str, Any]


@dataclass(frozen=True)
class OpeningRecord(Record):
    """One opening of a test set."""

    digest: str  # ItemBatch.documents_digest
    candidates: list[str]
    count: int  # openings by all searches, this one included


@dataclass(frozen=True)
class GateRecord:
    """A decision of the gate."""

    winner: str  # judged last: the finalist, or the baseline that took its place
    promoted: str | None  # the winner if it passed
    decision: Payload  # the complete payload; `promotion.gate.GateDecision.from_dict` reads it

    @classmethod
    def from_payload(cls, payload: Payload) -> Self:
        """Read the payload of a `gated` event."""
        return cls(payload["winner"], payload["promoted"], payload)


@dataclass(frozen=True)
class WinnerRecord(Record):
    """The result of a stage, which later stages build on."""

    candidate: str
    recipe_id: str
    score: float  # on validation
    recipe: dict[str, Any]


@dataclass(frozen=True)
class PromotedRecord(Record):
    """A promoted candidate, with the registry's version where it is registered."""

    candidate: str
    recipe_id: str
    registered_as: str | None = None
    version: str | None = None
    exported: Mapping[str, str] = field(default_factory=dict)  # format → path


@dataclass(frozen=True)
class RestartRecord(Record):
    """A new optimizer takes over."""

    start: Genome
    reason: str


@dataclass(frozen=True)
class TeachersRecord(Record):
    """The teachers of a search, whose fitness compares candidates with them."""

    teachers: Mapping[str, str]  # task → reference
    # Task → parent → metric on validation, by which the teacher was chosen; without tasks whose teacher is named
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class KnownCandidate:
    """A candidate of another search whose result is also valid in this one."""

    reported: Reported
    genome: Genome  # in this search's dimensions


@dataclass(frozen=True)
class WarmStart:
    """The start and the known candidates taken from another search."""

    search: str
    search_id: str
    start: Genome
    known: tuple[KnownCandidate, ...]  # best first

    @property
    def observations(self) -> tuple[Observation, ...]:
        """The known candidates as observations for an optimizer."""
        return tuple(one.reported.observation(one.genome) for one in self.known)

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """Read the payload of a `warm_started` event."""
        known = tuple(KnownCandidate(Reported.from_payload(one), dict(one["genome"])) for one in payload["known"])
        return cls(payload["search"], payload["search_id"], dict(payload["start"]), known)

    def to_payload(self) -> Payload:
        """Return the payload of a `warm_started` event."""
        known = [one.reported.to_payload() | {"genome": dict(one.genome)} for one in self.known]
        return {"search": self.search, "search_id": self.search_id, "start": dict(self.start), "known": known}
