"""The leaderboard as one address of MLflow's UI: a shared view of the experiment, and the experiment's description.

MLflow opens an experiment on an empty page for another kind of work, and nests runs only if they are sorted by time. A
view state that is shared (as by its own button) is a tag of the experiment; the address names it, and the workflow.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evosearch.evaluation.types import SPLITS
from evosearch.search.space.labels import labels
from evosearch.tracking.metrics import safe_name
from evosearch.tracking.roles import ROLE, STATE

METHOD = "method"  # tag of a run
VIEW = "mlflow.sharedViewState."  # start of the tag of a view; its key follows
NOTE = "mlflow.note.content"  # tag with a description in Markdown
CHARTS = "model-metrics"  # tab of a run
PRIMARY = "mlflow.experiment.primaryMetric."
WORKFLOW = "workflowType=machine_learning"  # MLflow's pages for training; by default they are those for agents
EXPERIMENT, RUN = "{experiment}", "{run}"  # stand for ids in texts, which only the store knows
MOST_TASKS = 20  # columns of single tasks
NOTE_CHARACTERS = 8000  # of a description


def leaderboard_path(experiment: str, search_id: str) -> str:
    """Return the address of a search's leaderboard below that of its MLflow server.

    >>> leaderboard_path("1", "5ea2c4" * 10)
    '#/experiments/1/runs?viewStateShareKey=5ea2c45ea2c45ea2&workflowType=machine_learning'
    """
    return f"#/experiments/{experiment}/runs?viewStateShareKey={search_id[:16]}&{WORKFLOW}"


def run_path(experiment: str, run: str, tab: str = "") -> str:
    """Return the address of a run below that of its MLflow server.

    Args:
        experiment: Id of the experiment.
        run: Id of the run.
        tab: Tab of the page, or `artifacts/` with the name of a file.

    >>> run_path("1", "5ea2c4", "artifacts/report.html")
    '#/experiments/1/runs/5ea2c4/artifacts/report.html?workflowType=machine_learning'
    """
    return f"#/experiments/{experiment}/runs/{run}{'/' if tab else ''}{tab}?{WORKFLOW}"


@dataclass
class View:
    """What the leaderboard of a search shows, as far as known.

    Attributes:
        search_id: The search.
        name: Its name.
        merit: Metric that candidates are sorted by: the score, or the fitness where no right answers are read.
        tasks: Metrics of single tasks on the search split.
        recipe: The recipe that is searched, as plain data of the spec.
        models: References of the models.
        suite: Suite as read.
        verdict: What has come out so far, in Markdown.
    """

    search_id: str
    name: str
    merit: str = "score"
    tasks: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    suite: Mapping[str, Any] = field(default_factory=dict)
    verdict: str = "The search runs."

    def started(self, payload: Mapping[str, Any]) -> None:
        """Take what is searched from the payload of a `started` event."""
        recipe = payload["spec"].get("recipe")
        self.recipe = recipe if isinstance(recipe, Mapping) else {}
        self.models, self.suite = tuple(payload.get("inputs", {})), payload.get("suite", {})
        self.verdict = "The search runs."

    def scored(self, card: Mapping[str, Any]) -> bool:
        """Take the columns from the first card on the search split; return whether they are new."""
        if self.tasks or card["split"] != SPLITS[0] or not card["tasks"]:
            return False
        self.merit = "fitness" if card["score"] is None else "score"
        metrics = {task: result["metric"].removesuffix(",none") for task, result in sorted(card["tasks"].items())}
        self.tasks = tuple(safe_name(f"task/{task}/{metric}/{SPLITS[0]}") for task, metric in metrics.items())
        return True

    def gated(self, winner: str, payload: Mapping[str, Any]) -> None:
        """Take the verdict of the gate.

        Args:
            winner: Title of the winner.
            payload: Payload of the `gated` event.
        """
        unverified = ", unverified: no right answers were read" if payload["unverified"] else ""
        verdict = f"{winner} is promoted{unverified}" if payload["promoted"] else f"{winner} wins, and is not promoted"
        self.verdict = f"**{verdict}.** {' '.join(map(str, payload['reasons']))}"

    def tags(self) -> dict[str, str]:
        """Return the tags of the experiment."""
        merit = f"{self.merit}/{SPLITS[0]}"
        return {
            f"{VIEW}{self.search_id[:16]}": json.dumps(self._state(merit), sort_keys=True),
            NOTE: self._description()[:NOTE_CHARACTERS],
            f"{PRIMARY}name": merit,
            f"{PRIMARY}greaterIsBetter": "True",
        }

    def _state(self, merit: str) -> dict[str, Any]:
        """Return the view state: runs flat, best first, without the search's own run."""
        splits = [f"{self.merit}/{split}" for split in SPLITS]
        metrics = [*splits, *self.tasks[:MOST_TASKS], "seconds/total"]
        columns = [f"metrics.`{name}`" for name in metrics]
        columns += [f"tags.`{name}`" for name in (ROLE, STATE, METHOD)]
        return {
            "orderByKey": f"metrics.`{merit}`",
            "orderByAsc": False,
            "selectedColumns": columns,
            "searchFilter": f"tags.search_id = '{self.search_id}'",
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "runsExpanded": {},
            "runsPinned": [],
            "runsHidden": [],
            "viewMaximized": True,
        }

    def _description(self) -> str:
        tasks = _names([task["name"] for task in self.suite.get("tasks", ())])
        suite = f" on suite {self.suite['name']} ({tasks})" if self.suite.get("name") else ""
        method = method_of(self.recipe)
        what = f"a search for the best {f'`{method}` ' if method else ''}merge of {_names(self._model_names())}{suite}"
        path = leaderboard_path(EXPERIMENT, self.search_id)
        charts, own = run_path(EXPERIMENT, RUN, CHARTS), run_path(EXPERIMENT, RUN, "artifacts")
        links = f"[Leaderboard]({path}) · [Charts]({charts}) · [Report, spec and decision]({own})"
        return f"**{self.name}**: {what}.\n\n{self.verdict}\n\n{links}\n"

    def _model_names(self) -> list[str]:
        """Return hub ids as they are, and the labels of folders, whose full paths are the searching machine's."""
        known = labels(self.models)
        return [known[model] if model.startswith("/") else model for model in self.models]


def method_of(recipe: Mapping[str, Any]) -> str | None:
    """Return the merge method of a recipe or of a spec's recipe; None where it is searched."""
    if recipe.get("routing"):
        return "route"
    found = recipe.get("merge_method")
    return found if isinstance(found, str) else None


def _names(names: Sequence[str]) -> str:
    """Return names as Markdown code, in which no character has a meaning."""
    shown = [f"`{name.replace('`', '')}`" for name in names[:MOST_TASKS]]
    more = [f"{len(names) - MOST_TASKS} more"] if len(names) > MOST_TASKS else []
    return ", ".join([*shown, *more])
