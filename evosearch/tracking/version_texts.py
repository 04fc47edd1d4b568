"""Description and tags of a registered version: what it is, its scores, the decision, licences and links."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evosearch.evaluation.statistics.intervals import Interval
from evosearch.tracking.report_file import REPORT_FILE
from evosearch.tracking.view import leaderboard_path, run_path

CHARACTERS = 5000  # MLflow's limit of a description
FOLDER = "model"  # artifact folder of the model's run
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

    def description(self, experiment: str, run: str, own: str) -> str:
        """Return the description in Markdown, with links to the leaderboard, the report, the run and its files.

        Args:
            experiment: Id of the experiment.
            run: Id of the model's run.
            own: Id of the search's own run.
        """
        lines = [f"**{self.title}** of the search **{self.search}**."]
        if self.forced is not None:
            lines.insert(0, f"**Promoted by hand against the gate:** {self.forced}")
        lines += [" ".join(self.decision)] if self.decision else []
        lines += [f"- score on {split}: {_score(score)}, {score.n} items" for split, score in self.scores.items()]
        if self.licences:
            lines.append("- licences according to the model cards: " + self.tags()["licences"])
        links = {
            "Leaderboard": leaderboard_path(experiment, self.search_id),
            "Report": run_path(experiment, own, f"artifacts/{REPORT_FILE}"),
            "Run": run_path(experiment, run),
            "Recipe and card": run_path(experiment, run, f"artifacts/{FOLDER}"),
        }
        ending = " · ".join(f"[{name}]({path})" for name, path in links.items())
        return "\n\n".join(lines)[: CHARACTERS - len(ending) - 2] + f"\n\n{ending}"


def _score(score: Interval) -> str:
    return f"{score.value:.2f} [{score.lower:.2f}, {score.upper:.2f}]"
