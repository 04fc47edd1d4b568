"""Events as changes to runs: what a person sees of a search in MLflow. Pure: events in, changes out.

One run stands for the search, one for every candidate and baseline. A change says what a run holds in the end (tags,
metrics with their own step and time, files, a status), never what to add to it, so applying one twice changes nothing.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from evosearch.documents import dump
from evosearch.evaluation.types import SPLITS
from evosearch.recipe.bundle import bundle
from evosearch.recipe.files import load_reference
from evosearch.recipe.schema import Recipe
from evosearch.search.ledger.events import Event
from evosearch.search.pareto import Front, ordered, reported_values
from evosearch.search.records import Reported
from evosearch.tracking.pareto_page import pareto_page

SEARCH = ""  # the key of the search's own run among the candidates'
MAX_PARAMS = 100  # genome dimensions shown as parameters; all are in recipe.yaml
MAX_NAME = 250  # characters MLflow takes in a name
OPENINGS, CONTAMINATION = "test_openings", "contamination_acknowledged"  # tags of whatever has a test score
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"


@dataclass(frozen=True)
class Point:
    """One value of a metric. Name, step and time make it the same point when it is written again."""

    name: str
    value: float
    step: int
    time_ms: int


@dataclass
class Changes:
    """What becomes of one run."""

    started_ms: int
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)  # path among the run's artifacts → text
    status: str | None = None
    status_ms: int = 0


Plan = dict[str, Changes]  # candidate, or SEARCH → its changes


class Translator:
    """Turns a search's events, all of them and in order, into changes.

    It remembers what a later event needs of earlier ones, so events that are mirrored already are translated too, and
    their changes thrown away.
    """

    def __init__(self, search_id: str, name: str) -> None:
        self._identity = {"search_id": search_id, "evosearch.name": name}
        self._runs: dict[str, tuple[int, dict[str, str]]] = {}  # candidate → when it began, the tags that name it
        self._settled: dict[int, float | None] = {}  # ask index → fitness, None without one
        self._next = 0  # the first ask index that is not settled
        self._best: float | None = None
        self._counts: dict[str, int] = {}
        self._disclosed: dict[str, str] = {}  # what must stand beside every figure of the test set
        self._name = name
        self._objectives: tuple[str, ...] = ()  # where there are several
        self._front = Front()
        self._told: dict[str, dict[str, Any]] = {}  # candidate → its row of the Pareto page
        self._recipes: Mapping[str, Mapping[str, Any]] = {}  # reference → recipe, of models that are recipes

    def translate(self, event: Event, plan: Plan) -> None:
        """Add what an event changes to a plan. Types this version does not know change nothing."""
        handler = getattr(self, f"_on_{event.type}", None)
        if handler is not None:
            handler(event.payload, plan, round(event.time * 1000))

    # --- the search ------------------------------------------------------------------------------------------

    def _on_started(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._search(plan, now)
        run.status, run.status_ms = RUNNING, now
        run.tags |= {"sessions": self._count("sessions"), "stopped": ""}
        run.tags |= {f"version/{name}": str(version) for name, version in payload.get("versions", {}).items()}
        spec = payload.get("spec", {})
        run.files["spec.yaml"] = spec if isinstance(spec, str) else dump(spec)
        run.files["inputs.json"] = _json(payload.get("inputs", {}))
        self._recipes = payload.get("recipes", {})
        self._objectives = tuple(spec.get("objectives") or ()) if isinstance(spec, Mapping) else ()
        if payload.get("suite", {}).get("acknowledge_contamination"):
            self._disclosed[CONTAMINATION] = "true"
            run.tags[CONTAMINATION] = "true"

    def _on_test_opened(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        self._disclosed[OPENINGS] = str(payload["count"])
        self._search(plan, now).tags |= {"test_set": str(payload["digest"]), OPENINGS: str(payload["count"])}

    def _on_reread(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        self._search(plan, now).tags["test_rereads"] = self._count("rereads")

    def _on_gated(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._search(plan, now)
        run.tags |= {"winner": str(payload["winner"]), "gate": "promoted" if payload["promoted"] else "not promoted"}
        run.files["gate.json"] = _json(payload)

    def _on_promoted(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        self._search(plan, now).tags["champion"] = str(payload["candidate"])
        tags = {"registered_as": payload.get("registered_as"), "registered_version": payload.get("version")}
        self._candidate(payload, plan, now).tags |= {key: str(value) for key, value in tags.items() if value}

    def _on_stopped(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._search(plan, now)
        reason = str(payload["reason"])
        run.tags["stopped"] = reason
        if self._told:
            self._show_front(plan, now)  # with those that changed nothing since
        run.status, run.status_ms = _status_of(reason), now

    # --- candidates ------------------------------------------------------------------------------------------

    def _on_baseline(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        if payload.get("recipe") is None:
            self._search(plan, now).tags[f"skipped/{payload['candidate']}"] = str(payload.get("skipped"))
            return
        run = self._begin(payload, plan, now)
        run.files["recipe.yaml"] = self._recipe_file(payload["recipe"])

    def _recipe_file(self, recipe: Mapping[str, Any]) -> str:
        """A recipe as YAML; the recipes that it is made of stand in the same file."""
        if not self._recipes:
            return dump(recipe)
        return bundle(Recipe.model_validate(recipe), partial(load_reference, known=self._recipes)).to_yaml()

    def _on_asked(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._begin(payload, plan, now)
        run.files["recipe.yaml"] = self._recipe_file(payload["recipe"])
        run.tags["group"] = str(payload.get("group", ""))
        genome = payload.get("genome") or {}
        run.params |= {safe_name(name): str(value) for name, value in list(genome.items())[:MAX_PARAMS]}
        if payload.get("duplicate_of") is not None:
            run.tags["duplicate_of"] = str(payload["duplicate_of"])
            run.status, run.status_ms = FINISHED, now
            self._settle(payload, None, plan, now)

    def _on_scored(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._candidate(payload, plan, now)
        split = payload["split"]
        for name, value in _metrics(payload).items():
            if math.isfinite(value):  # MLflow sorts infinity before every number
                run.points.append(Point(safe_name(name), value, _step(split), now))
        run.tags[f"items/{split}"] = str(payload.get("batch", ""))
        if payload.get("minibatch") is not None:
            run.tags["sample"] = f"minibatch {payload['minibatch']} of {split}"
        if split == SPLITS[-1]:
            run.tags |= self._disclosed
        run.status, run.status_ms = FINISHED, now
        # Of a part, or where there are guards, what the optimizer is told of the candidate decides.
        if split == SPLITS[0] and payload.get("minibatch") is None and not payload.get("guards"):
            self._settle(payload, float(payload["fitness"]["value"]), plan, now)

    def _on_told(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        """Candidates that are settled already stay so; one that breaks a guard is never the best."""
        for told in payload["observations"]:
            kept = told["state"] == "scored" and not any(amount > 0 for amount in told.get("violations", ()))
            self._settle(told, float(told["value"]) if kept else None, plan, now)
        several = [told for told in payload["observations"] if told.get("objectives")]
        if several:
            self._compare(several, plan, now)

    def _compare(self, observations: Sequence[Mapping[str, Any]], plan: Plan, now: int) -> None:
        """The tag `pareto` of whoever is in the set or leaves it, and the values of every objective."""
        changed = False
        for told in observations:
            candidate, values = str(told["candidate"]), reported_values(Reported.from_payload(told))
            enters, leaving = self._front.add(candidate, values) if values is not None else (False, [])
            changed |= enters
            for name in leaving:
                self._candidate({"candidate": name}, plan, now).tags["pareto"] = "false"
            run = self._candidate(told, plan, now)
            run.tags["pareto"] = str(enters).lower()
            objectives = dict(zip(self._objectives, told["objectives"], strict=True))
            run.points += [
                Point(safe_name(f"search/objective/{name}"), float(one["value"]), 0, now)
                for name, one in objectives.items()
            ]
            recipe_id = self._runs[candidate][1]["recipe_id"]
            self._told[candidate] = {"candidate": candidate, "recipe_id": recipe_id, "objectives": objectives}
        if changed:
            self._show_front(plan, now)

    def _show_front(self, plan: Plan, now: int) -> None:
        members = ordered(self._front.members)
        rest = [name for name in self._told if name not in self._front.members]
        rows = [self._told[name] | {"pareto": name in self._front.members} for name in (*members, *rest)]
        run = self._search(plan, now)
        run.tags["pareto"] = ", ".join(members)
        run.files["pareto.html"] = pareto_page(self._name, self._objectives, rows)

    def _on_failed(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._candidate(payload, plan, now)
        run.tags["failure"] = f"{payload['stage']}: {payload['reason']}"
        run.tags["failure_split"] = str(payload.get("split", ""))
        if payload.get("traceback"):
            run.files["traceback.txt"] = str(payload["traceback"])
        run.status, run.status_ms = FAILED, now
        if payload.get("split", SPLITS[0]) == SPLITS[0]:
            self._settle(payload, None, plan, now)

    def _on_retried(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._candidate(payload, plan, now)
        run.tags["retries"] = self._count(f"retries {payload['candidate']}")
        run.tags["retry_reason"] = f"{payload['stage']}: {payload['reason']}"

    def _on_finalist(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        self._candidate(payload, plan, now).tags["finalist_rank"] = str(payload["rank"])

    # --- runs ------------------------------------------------------------------------------------------------

    def _search(self, plan: Plan, now: int) -> Changes:
        return plan.setdefault(SEARCH, Changes(now))

    def _begin(self, payload: Mapping[str, Any], plan: Plan, now: int) -> Changes:
        """A candidate's first event: what it is from now on."""
        candidate = str(payload["candidate"])
        kind = payload.get("kind") or ("candidate" if candidate.isdigit() else candidate.partition(":")[0])
        tags = {"candidate_id": candidate, "recipe_id": str(payload.get("recipe_id") or ""), "kind": str(kind)}
        self._runs.setdefault(candidate, (now, self._identity | tags))
        return self._candidate(payload, plan, now)

    def _candidate(self, payload: Mapping[str, Any], plan: Plan, now: int) -> Changes:
        """A candidate's run. The champion of another search is scored here without having been asked."""
        candidate = str(payload["candidate"])
        if candidate not in self._runs:
            return self._begin(payload, plan, now)
        began, tags = self._runs[candidate]
        return plan.setdefault(candidate, Changes(began, dict(tags)))

    def _settle(self, payload: Mapping[str, Any], fitness: float | None, plan: Plan, now: int) -> None:
        """Best fitness so far, over candidates in the order they were asked, however they come back.

        A point is written once every candidate up to it is settled: then it never changes again.
        """
        candidate = str(payload["candidate"])
        if not candidate.isdigit() or int(candidate) < self._next:
            return
        self._settled[int(candidate)] = fitness
        while self._next in self._settled:
            value = self._settled.pop(self._next)
            if value is not None and math.isfinite(value):
                self._best = value if self._best is None else max(self._best, value)
            if self._best is not None:
                self._search(plan, now).points.append(Point("best_fitness", self._best, self._next, now))
            self._next += 1

    def _count(self, what: str) -> str:
        self._counts[what] = self._counts.get(what, 0) + 1
        return str(self._counts[what])


def safe_name(name: str) -> str:
    """A name as MLflow takes it: `acc,none` is `acc`, other characters it refuses are underscores."""
    parts = [re.sub(r"[^\w.\- ]", "_", part.removesuffix(",none")) for part in name.split("/")]
    return "/".join(part if part.strip(".") else "_" for part in parts)[:MAX_NAME]


def _metrics(card: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a score card's summary, under the name it is shown by."""
    split = card["split"]
    out = {
        f"{split}/score": float(card["score"]),
        f"{split}/fitness": float(card["fitness"]["value"]),
        f"{split}/fitness_stderr": float(card["fitness"]["stderr"]),
    }
    for task, result in card["tasks"].items():
        name = f"{split}/{task}/{result['metric'].removesuffix(',none')}"
        out |= {name: float(result["value"]), f"{name}_stderr": float(result["stderr"])}
    for task, metrics in card.get("reported", {}).items():  # beside the score; what overflowed has no value
        named = {f"{split}/{task}/{metric.removesuffix(',none')}": value for metric, value in metrics.items()}
        out |= {name: float(value) for name, value in named.items() if value is not None and name not in out}
    out |= {f"{split}/{task}/points": float(points) for task, points in card.get("guards", {}).items()}
    out |= {f"seconds/{stage}": float(seconds) for stage, seconds in card.get("seconds", {}).items()}
    return out | {f"tokens/{kind}": float(count) for kind, count in card.get("tokens", {}).items()}


def _step(split: str) -> int:
    """Seconds and tokens are one series over the splits a candidate was scored on."""
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


def _status_of(reason: str) -> str:
    word = re.split(r"[\s:]", reason, maxsplit=1)[0].lower()
    return {"interrupted": KILLED, "killed": KILLED, "failed": FAILED, "error": FAILED}.get(word, FINISHED)


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"
