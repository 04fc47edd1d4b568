"""Description and tags of a registered version: what it is, its scores, the decision, licences and links."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evosearch.evaluation.statistics.intervals import Interval
from evosearch.tracking.view import EXPERIMENT, RUN, leaderboard_path

CHARACTERS = 5000  # MLflow's limit of a description
FORCED, REASON = "forced", "reason"  # tags of a version that was promoted by hand


@dataclass(frozen=True)
class VersionTexts:
    """What people read about a registered version.

    Attributes:
        search: Name of the search.
        search_id: Its id.
        title: Title of the model, such as `#17`.
        decision: The gate's decision, in sentences.
        scores: Split → score with its two-sided 95% interval.
        licences: Model → licence according to its card; None if it states none.
        forced: Why it was promoted by hand; None if the gate promoted it.
        more: Further tags.
    """

    search: str
    search_id: str
    title: str
    decision: Sequence[str] = ()
    scores: Mapping[str, Interval] = field(default_factory=dict)
    licences: Mapping[str, str | None] = field(default_factory=dict)
    forced: str | None = None
    more: Mapping[str, str] = field(default_factory=dict)

    def tags(self) -> dict[str, str]:
        """Return the tags of the version."""
        found = {"search": self.search, "title": self.title, "gate": "promoted" if self.forced is None else "overruled"}
        found |= {f"score/{split}": _score(score) for split, score in self.scores.items()}
        if self.licences:
            found["licences"] = ", ".join(
                f"{model}: {licence or 'none stated'}" for model, licence in self.licences.items()
            )
        if self.forced is not None:
            found |= {FORCED: "true", REASON: self.forced}
        return found | dict(self.more)

    def description(self, experiment: str, run: str) -> str:
        """Return the description in Markdown, with links to the leaderboard and the run.

        Args:
            experiment: Id of the experiment.
            run: Id of the model's run.
        """
        lines = [f"**{self.title}** of the search **{self.search}**."]
        if self.forced is not None:
            lines.insert(0, f"**Promoted by hand against the gate:** {self.forced}")
        lines += [" ".join(self.decision)] if self.decision else []
        lines += [f"- score on {split}: {_score(score)}, {score.n} items" for split, score in self.scores.items()]
        if self.licences:
            lines.append("- licences according to the model cards: " + self.tags()["licences"])
        board = leaderboard_path(EXPERIMENT, self.search_id)
        lines.append(f"[Leaderboard]({board}) · [Run](#/experiments/{EXPERIMENT}/runs/{RUN})")
        text = "\n\n".join(lines).replace(EXPERIMENT, experiment).replace(RUN, run)
        return text[:CHARACTERS]


def _score(score: Interval) -> str:
    return f"{score.value:.2f} [{score.lower:.2f}, {score.upper:.2f}]"
