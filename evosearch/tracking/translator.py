"""Translation of events into changes of MLflow runs. Pure: events in, changes out.

The search, every candidate and every baseline have one run each. Shards of gradient steps are points of the search's
metric `gradient/fitness`, and have runs only if they fail or are retried.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import MappingProxyType
from typing import Any

from evosearch.documents import dump
from evosearch.evaluation.types import SPLITS
from evosearch.search.ledger.events import Event
from evosearch.search.records import Reported, is_candidate
from evosearch.search.titles import title
from evosearch.tracking.best_fitness import BestFitness
from evosearch.tracking.changes import (
    CONTAMINATION,
    FAILED,
    FINISHED,
    KILLED,
    OPENINGS,
    RUNNING,
    SEARCH,
    UNVERIFIED,
    Changes,
    Plan,
    Point,
)
from evosearch.tracking.generations import Generations
from evosearch.tracking.inputs import items_of, models_of
from evosearch.tracking.metrics import FRACTION, MAX_NAME, SECONDS, points_of, readable, safe_name, seconds_of, step_of
from evosearch.tracking.parameters import parameters
from evosearch.tracking.pareto_runs import ParetoRuns
from evosearch.tracking.rank_agreement import RankAgreement
from evosearch.tracking.recipe_tags import recipe_text
from evosearch.tracking.roles import Roles
from evosearch.tracking.view import METHOD, View, method_of

TRAINING_PARAMS = ("form", "parameters", "rate", "steps", "kept", "items")  # of a fine-tuned baseline


class Translator:
    """Translates all events of a search, in order, into changes.

    The translation of an event depends on earlier ones, so mirrored events are translated again after a restart, and
    their changes discarded.
    """

    def __init__(self, search_id: str, name: str) -> None:
        self._identity = {"search_id": search_id, "evosearch.name": name}
        self._roles, self._view = Roles(), View(search_id, name)
        self._references: tuple[str, ...] = ()  # models of the search
        self._titles: dict[str, str] = {}  # baseline → its title
        self._seconds: dict[str, float] = {}  # model → time on workers
        self._runs: dict[str, tuple[int, dict[str, str]]] = {}  # candidate → start time in ms, identifying tags
        self._best = BestFitness()
        self._proposed = 0  # asks so far
        self._agreement = RankAgreement()
        self._counts: dict[str, int] = {}
        self._disclosed: dict[str, str] = {}  # tags that accompany every test score
        self._name = name
        self._pareto, self._generations = ParetoRuns(), Generations()
        self._suite, self._splits = "", set[str]()  # its name, and the splits that are inputs
        self._recipes: Mapping[str, Mapping[str, Any]] = {}  # reference → recipe, of models that are recipes

    def translate(self, event: Event, plan: Plan) -> None:
        """Add the changes of an event to a plan; event types without a handler change nothing."""
        handler = getattr(self, f"_on_{event.type}", None)
        if handler is not None:
            handler(event.payload, plan, round(event.time * 1000))

    # --- the search ------------------------------------------------------------------------------------------

    def _on_started(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._search(plan, now)
        run.status, run.status_ms = RUNNING, now
        run.tags |= {"sessions": self._count("sessions"), "stopped": ""}
        run.tags |= {f"version/{name}": str(version) for name, version in payload.get("versions", {}).items()}
        spec = payload["spec"]
        if optimizer := payload.get("optimizer"):
            run.tags["optimizer"] = optimizer["name"] + (f", because {optimizer['why']}" if optimizer["why"] else "")
        run.files["spec.yaml"] = dump(spec)
        run.files["inputs.json"] = _json(payload.get("inputs", {}))
        self._recipes, self._references = payload.get("recipes", {}), tuple(payload.get("inputs", {}))
        self._pareto.objectives = tuple(spec.get("objectives") or ())
        self._generations.started(now)
        self._suite = str(payload.get("suite", {}).get("name", ""))
        run.inputs += models_of(payload)
        self._view.started(payload)
        run.experiment |= self._view.tags()
        if payload.get("suite", {}).get("acknowledge_contamination"):
            self._disclosed[CONTAMINATION] = "true"
            run.tags[CONTAMINATION] = "true"

    def _on_teachers(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._search(plan, now)
        run.tags |= {safe_name(f"teacher.{task}"): str(teacher) for task, teacher in payload["teachers"].items()}

    def _on_test_opened(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        self._disclosed[OPENINGS] = str(payload["count"])
        self._search(plan, now).tags |= {"test_set": str(payload["digest"]), OPENINGS: str(payload["count"])}

    def _on_reread(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        self._search(plan, now).tags["test_rereads"] = self._count("rereads")

    def _on_gated(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._search(plan, now)
        run.tags |= {"winner": str(payload["winner"]), "gate": "promoted" if payload["promoted"] else "not promoted"}
        if payload["unverified"]:
            run.tags[UNVERIFIED] = "true"
        run.files["gate.json"] = _json(payload)
        if winner := payload["winner"]:
            self._retag(self._roles.won(str(winner)), plan, now)
            self._view.gated(self._titles.get(str(winner), title(str(winner))), payload)
            run.experiment |= self._view.tags()

    def _on_winner(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        self._search(plan, now).tags["winner"] = str(payload["candidate"])
        self._retag(self._roles.won(str(payload["candidate"])), plan, now)

    def _retag(self, tags: Mapping[str, dict[str, str]], plan: Plan, now: int) -> None:
        for name, own in tags.items():
            self._candidate({"candidate": name}, plan, now).tags |= own

    def _on_promoted(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        self._search(plan, now).tags["champion"] = str(payload["candidate"])
        tags = {"registered_as": payload.get("registered_as"), "registered_version": payload.get("version")}
        self._candidate(payload, plan, now).tags |= {key: str(value) for key, value in tags.items() if value}
        self._retag(self._roles.promoted(str(payload["candidate"])), plan, now)

    def _on_stopped(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._search(plan, now)
        reason = str(payload["reason"])
        run.tags["stopped"] = reason
        if self._pareto.points:
            self._show_front(plan, now)  # including candidates that left the set unchanged
        run.status, run.status_ms = _status_of(reason), now

    # --- candidates ------------------------------------------------------------------------------------------

    def _on_baseline(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        if payload.get("recipe") is None:
            self._search(plan, now).tags[f"skipped/{payload['candidate']}"] = str(payload.get("skipped"))
            return
        run = self._begin(payload, plan, now)
        run.recipe = self._recipe(payload["recipe"], payload.get("recipes") or {})
        run.recipe_file = True

    def _on_reseeded(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._begin(payload, plan, now)
        run.recipe = self._recipe(payload["recipe"])
        run.tags |= {"finalist": str(payload["finalist"]), "mask_seed": str(payload["seed"])}

    def _on_trained(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._candidate(payload, plan, now)
        run.params |= {f"training/{name}": str(payload[name]) for name in TRAINING_PARAMS}
        run.files["training.json"] = _json(payload)

    def _recipe(
        self, recipe: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    ) -> Callable[[], str]:
        """Return what renders a recipe as YAML, with the recipes it refers to, its own or the search's."""
        return cache(partial(recipe_text, recipe, {**self._recipes, **own}))

    def _on_asked(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        self._proposed = max(self._proposed, int(payload["candidate"]) + 1)
        self._generations.asked(payload, now)
        if payload.get("gradient"):
            return
        run = self._begin(payload, plan, now)
        run.recipe = self._recipe(payload["recipe"])
        run.tags["group"] = str(payload.get("group", ""))
        run.params |= parameters(payload.get("genome") or {}, payload["recipe"])
        if payload.get("duplicate_of") is not None:
            run.tags["duplicate_of"] = str(payload["duplicate_of"])
            run.status, run.status_ms = FINISHED, now
            self._settle(str(payload["candidate"]), None, plan, now)

    def _on_restarted(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        """Settle what was proposed and is not reported: it never will be, since a new optimizer takes over."""
        self._generations.restarted()
        for candidate in range(self._best.next, self._proposed):
            self._settle(str(candidate), self._best.waiting.get(candidate), plan, now)

    def _on_answered(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        self._on_asked(payload, plan, now)
        run = self._candidate(payload, plan, now)
        run.tags |= {"answer": "true"} | self._roles.begun(str(payload["candidate"]), payload.get("duplicate_of"), True)
        self._settle(str(payload["candidate"]), None, plan, now)  # `best_fitness` is of proposed candidates

    def _on_scored(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._candidate(payload, plan, now)
        split = payload["split"]
        run.points += points_of(payload, now)
        run.tags |= self._roles.scored(str(payload["candidate"]))
        run.tags[f"items/{split}"] = str(payload.get("batch", ""))
        if payload.get("minibatch") is not None:
            run.tags["sample"] = f"minibatch {payload['minibatch']} of {split}"
        if split == SPLITS[-1]:
            run.tags |= self._disclosed
        seconds = self._worked(payload)
        run.points.append(Point("seconds/total", readable(seconds, SECONDS), step_of(split), now))
        if split == SPLITS[0]:  # later splits are scored long after the proposal
            waited = max(0.0, (now - run.started_ms) / 1000 - seconds)
            run.points.append(Point("seconds/waiting", readable(waited, SECONDS), 0, now))
        # MLflow shows the end minus the start as duration: the time on workers, without the wait for one
        run.status, run.status_ms = FINISHED, run.started_ms + round(1000 * seconds)
        self._correlate(payload, plan, now)
        self._generations.scored(payload)
        if payload.get("minibatch") is None and split not in self._splits:
            self._splits.add(split)
            self._search(plan, now).inputs.append(items_of(self._suite, payload))
        if self._view.scored(payload):
            self._search(plan, now).experiment |= self._view.tags()
        # With minibatches or guards, the fitness counts as it is reported to the optimizer.
        if split == SPLITS[0] and payload.get("minibatch") is None and not payload.get("guards"):
            self._settle(str(payload["candidate"]), float(payload["fitness"]["value"]), plan, now)

    def _worked(self, payload: Mapping[str, Any]) -> float:
        """Return the time that a model took on workers, up to and with this result."""
        name = str(payload["candidate"])
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds_of(payload)
        return self._seconds[name]

    def _correlate(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        """Write the rank correlation of fitness and score, over all models scored on search and on validation."""
        found = self._agreement.scored(payload)
        if found is not None and found.value is not None:
            run = self._search(plan, now)
            run.points.append(Point("rank_correlation", readable(found.value, FRACTION), found.models, now))
            run.tags["rank_correlation_warning"] = found.warning or ""

    def _on_differentiated(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        point = Point("gradient/fitness", float(payload["fitness"]["value"]), int(payload["candidate"]), now)
        self._search(plan, now).points.append(point)
        self._generations.differentiated(payload)
        if str(payload["candidate"]) in self._runs:  # because it was retried
            run = self._candidate(payload, plan, now)
            run.status, run.status_ms = FINISHED, now

    def _on_told(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        """Settle the reported candidates; one that breaks a guard is never the best."""
        observations = [Reported.from_payload(one) for one in payload["observations"]]
        for one in observations:
            counts = one.fitness is not None and one.violation == 0 and not one.gradient
            fitness = one.fitness.value if one.fitness is not None and counts else None
            self._settle(one.candidate, fitness, plan, now)
        if points := self._generations.told(int(payload.get("group", 0)), observations, now):
            self._search(plan, now).points += points
        several = [one for one in observations if one.objectives]
        if several:
            self._compare(several, plan, now)

    def _compare(self, observations: Sequence[Reported], plan: Plan, now: int) -> None:
        """Tag the candidates that enter or leave the Pareto set, and write the values of every objective."""
        changed = False
        for one in observations:
            run = self._candidate({"candidate": one.candidate}, plan, now)
            enters, leaving, points = self._pareto.add(one, self._runs[one.candidate][1]["recipe_id"], now)
            changed |= enters
            for name in leaving:
                self._candidate({"candidate": name}, plan, now).tags["pareto"] = "false"
            run.tags["pareto"] = str(enters).lower()
            run.points += points
        if changed:
            self._show_front(plan, now)

    def _show_front(self, plan: Plan, now: int) -> None:
        run = self._search(plan, now)
        run.tags["pareto"] = ", ".join(self._pareto.members())
        run.files["pareto.html"] = self._pareto.page(self._name)

    def _on_failed(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._candidate(payload, plan, now)
        run.tags["failure"] = f"{payload['stage']}: {payload['reason']}"
        run.tags["failure_split"] = str(payload.get("split", ""))
        run.tags |= self._roles.failed(str(payload["candidate"]))
        self._generations.failed(payload)
        if payload.get("traceback"):
            run.files["traceback.txt"] = str(payload["traceback"])
        worked = payload.get("seconds")  # unknown if the worker died with the candidate
        run.status, run.status_ms = FAILED, run.started_ms + round(1000 * self._worked(payload)) if worked else now
        if payload.get("split", SPLITS[0]) == SPLITS[0]:
            self._settle(str(payload["candidate"]), None, plan, now)

    def _on_retried(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._candidate(payload, plan, now)
        run.tags["retries"] = self._count(f"retries {payload['candidate']}")
        run.tags["retry_reason"] = f"{payload['stage']}: {payload['reason']}"

    def _on_finalist(self, payload: Mapping[str, Any], plan: Plan, now: int) -> None:
        run = self._candidate(payload, plan, now)
        run.tags["finalist_rank"] = str(payload["rank"])
        run.tags |= self._roles.finalist(str(payload["candidate"]))
        run.recipe_file = True

    # --- runs ------------------------------------------------------------------------------------------------

    def _search(self, plan: Plan, now: int) -> Changes:
        return plan.setdefault(SEARCH, Changes(now))

    def _begin(self, payload: Mapping[str, Any], plan: Plan, now: int) -> Changes:
        """Start a candidate's run with its identifying tags."""
        candidate = str(payload["candidate"])
        kind = payload.get("kind") or ("candidate" if is_candidate(candidate) else candidate.partition(":")[0])
        tags = {"candidate_id": candidate, "recipe_id": str(payload.get("recipe_id") or ""), "kind": str(kind)}
        known = candidate in self._runs
        self._runs.setdefault(candidate, (now, self._identity | tags))
        run = self._candidate(payload, plan, now)
        if not known:
            group = f" · gen {payload['group']}" if payload.get("group") is not None else ""
            words = title(candidate, payload.get("recipe"), self._references)
            run.name = f"{self._name} · {words}{group}"[:MAX_NAME]
            if not is_candidate(candidate):
                self._titles[candidate] = words
            if method := method_of(payload.get("recipe") or {}):
                run.tags[METHOD] = method
            run.tags |= self._roles.begun(candidate, payload.get("duplicate_of"))
        return run

    def _candidate(self, payload: Mapping[str, Any], plan: Plan, now: int) -> Changes:
        """Return a candidate's run; the champion of another search is scored without a proposal."""
        candidate = str(payload["candidate"])
        if candidate not in self._runs:
            return self._begin(payload, plan, now)
        began, tags = self._runs[candidate]
        return plan.setdefault(candidate, Changes(began, dict(tags)))

    def _settle(self, candidate: str, fitness: float | None, plan: Plan, now: int) -> None:
        """Write the best fitness so far of the candidates that are settled now."""
        if is_candidate(candidate):
            points = self._best.settle(int(candidate), fitness)
            if points:
                self._search(plan, now).points += [Point("best_fitness", best, index, now) for index, best in points]

    def _count(self, what: str) -> str:
        self._counts[what] = self._counts.get(what, 0) + 1
        return str(self._counts[what])


def _status_of(reason: str) -> str:
    word = re.split(r"[\s:]", reason, maxsplit=1)[0].lower()
    return {"interrupted": KILLED, "killed": KILLED, "failed": FAILED, "error": FAILED}.get(word, FINISHED)


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"
