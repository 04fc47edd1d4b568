"""Models of a search, compared by broken guards, then by fitness, as far as they are scored."""

from dataclasses import dataclass, field

from evosearch.evaluation.types import Estimate
from evosearch.search import guards
from evosearch.search.records import BaselineRecord, CandidateRecord, CardSummary, Circumstances, Reported


@dataclass
class RankedModels:
    """Scores of baselines and candidates, and the guards that they break.

    `cards` are scores on a full split, keyed by (candidate or baseline, split). `best` takes constant time
    per new score, however many candidates there are.
    """

    circumstances: Circumstances = field(default_factory=Circumstances)
    baselines: dict[str, BaselineRecord] = field(default_factory=dict)
    candidates: dict[str, CandidateRecord] = field(default_factory=dict)  # in ask order
    cards: dict[tuple[str, str], CardSummary] = field(default_factory=dict)
    reported: dict[str, Reported] = field(default_factory=dict)  # candidate → result that the optimizer was told
    _leader: tuple[float, float] | None = None  # (violation, -fitness) of the best candidate not in `_news`
    _news: dict[str, None] = field(default_factory=dict)  # candidates with new scores since the leader was found
    _recount: bool = False  # guards or their reference points changed: compare all candidates again

    def original(self, name: str) -> str:
        """Return the candidate or baseline whose score cards `name` has: the first with its recipe."""
        return self.candidates[name].original if name in self.candidates else name

    def fitness(self, candidate: str, split: str = "search") -> Estimate | None:
        """Return the fitness on a full split, None without a score card."""
        card = self.cards.get((candidate, split))
        return card.fitness if card else None

    def score(self, candidate: str, split: str) -> float | None:
        """Return the score on a full split, None without a score card."""
        card = self.cards.get((candidate, split))
        return card.score if card else None

    @property
    def limits(self) -> dict[str, float]:
        """Guarded task → allowed drop in points."""
        return guards.limits(self.circumstances.suite)

    def references(self) -> dict[str, str]:
        """Return guarded task → the baseline it is compared with on every split, for tasks that have a scored one."""
        points = {name: self._guards(name, "search") for name in self.baselines}
        kinds = {name: baseline.kind for name, baseline in self.baselines.items()}
        found = {task: guards.reference(task, points, kinds) for task in self.limits}
        return {task: name for task, name in found.items() if name is not None}

    def violations(self, candidate: str, split: str = "search") -> dict[str, float]:
        """Return guarded task → points lost beyond the allowed drop on a full split, as far as known."""
        return self._broken(candidate, split, self.limits, self._reference_points(split))

    def _guards(self, name: str, split: str) -> guards.Points:
        card = self.cards.get((name, split))
        return card.guards if card else {}

    def _reference_points(self, split: str) -> dict[str, float]:
        """Return guarded task → points of its reference on a full split, where that was scored."""
        return {
            task: self.cards[name, split].guards[task]
            for task, name in self.references().items()
            if (name, split) in self.cards
        }

    def _broken(self, candidate: str, split: str, limits: guards.Points, reference: guards.Points) -> dict[str, float]:
        return guards.amounts(limits, reference, self._guards(candidate, split))

    def violation(self, candidate: str, split: str = "search") -> float:
        """Return the points by which a candidate breaks guards, in total."""
        return sum(self.violations(candidate, split).values())

    def evidence(self, candidate: str) -> tuple[float, float] | None:
        """Return (violation, fitness) on the full search split, or else as reported on a minibatch."""
        return self._evidence(candidate, self.limits, self._reference_points("search"))

    def _evidence(self, candidate: str, limits: guards.Points, reference: guards.Points) -> tuple[float, float] | None:
        card = self.cards.get((candidate, "search"))
        if card is None:
            return self.as_reported(candidate)
        violation = sum(self._broken(candidate, "search", limits, reference).values()) if limits else 0.0
        return violation, card.fitness.value

    def as_reported(self, candidate: str) -> tuple[float, float] | None:
        """Return (violation, fitness) as reported to the optimizer.

        None for a failure, an unreported candidate and a gradient, whose fitness is not comparable.
        """
        reported = self.reported.get(candidate)
        if reported is None or reported.fitness is None or reported.gradient:
            return None
        return reported.violation, reported.fitness.value

    def best(self) -> float | None:
        """Return the fitness of the best candidate, None before the first; candidates that break no guard come first.

        Looks only at candidates with new scores since the last call, unless a baseline's score changed the reference
        points of the guards.
        """
        names = self.candidates if self._recount else self._news
        if names:
            limits, reference = self.limits, self._reference_points("search")  # computed once for all candidates
            known = [found for name in names if (found := self._evidence(name, limits, reference)) is not None]
            ranked = [(violation, -fitness) for violation, fitness in known]
            if self._leader is not None and not self._recount:
                ranked.append(self._leader)
            self._leader = min(ranked, default=None)
            self._news, self._recount = {}, False
        return -self._leader[1] if self._leader else None

    def _compare_all(self) -> None:
        """Compare all candidates again for the next `best`."""
        self._recount = True

    def _compare_later(self, candidate: str) -> None:
        """Compare a candidate, which has a new result, with the leader for the next `best`."""
        self._news[candidate] = None

    def _compare_scored(self, name: str) -> None:
        """Note that a model was scored on the full search split.

        The reference points of the guards change with a baseline; the score of a reported candidate may be better or
        worse than the reported one.
        """
        if name in self.candidates and name not in self.reported:
            self._compare_later(name)
        else:
            self._compare_all()
