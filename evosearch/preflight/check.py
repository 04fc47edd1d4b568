"""`evosearch check`: everything that could stop a run, found before it starts; and what a run would take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from evosearch.errors import SpecError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import load_suite
from evosearch.evaluation.types import SPLITS
from evosearch.merging.registry import specs
from evosearch.preflight.cost import reckoned, summed
from evosearch.preflight.forecast import end_of, forecast
from evosearch.preflight.placeholders import kept_for_now, merged
from evosearch.preflight.power import hardly_decided
from evosearch.preflight.preflight import look
from evosearch.preflight.resources import memory_of
from evosearch.recipe import checks, files
from evosearch.recipe.files import STAGE
from evosearch.search.progress import Watcher
from evosearch.setup.models import open_models
from evosearch.setup.prepare import Prepared
from evosearch.setup.prompt_tokens import count_for
from evosearch.spec.diagnostics import Findings
from evosearch.spec.recovery import read
from evosearch.spec.spec import SearchSpec, Winner, is_spec, is_suite
from evosearch.spec.stages import StagedSpec


def check(
    path: Path,
    trial: bool,
    watcher: Watcher,
    allow_pickle: bool = False,
    model: str | None = None,
    weights: bool = True,
) -> dict[str, Any]:
    """All problems of a spec, a recipe or a suite, in one list; what `evosearch check --json` prints.

    Args:
        trial: score one candidate of a spec, for time and memory.
        allow_pickle: read pickled weights where a model has no others.
        model: for a suite, whose tokenizer counts its tokens.
        weights: without them only configs and tokenizers of a spec's models are fetched, which is enough for its cost.
    """
    findings = Findings()
    suite = findings.attempt(lambda: is_suite(path))
    kind = findings.attempt(lambda: is_spec(path))
    if suite is None or kind is None:
        return _result(findings)
    if suite:
        return _check_suite(path, model, watcher, findings)
    if model is not None:
        findings.attempt(lambda: _refuse_model(path))
    if kind and not weights:
        return _check_cost(path, watcher, findings)
    if kind:
        return _check_spec(path, trial, watcher, findings, allow_pickle)
    return _check_recipe(path, watcher, findings, allow_pickle)


def _result(
    findings: Findings,
    memory: Mapping[str, Any] | None = None,
    forecast: Mapping[str, Any] | None = None,
    licences: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    return {
        "ok": not findings.problems,
        "problems": [problem.to_dict() for problem in findings.problems],
        "notes": [*findings.warnings, *findings.notes],
        "memory": dict(memory or {}),
        "licences": dict(licences or {}),
        "forecast": dict(forecast or {}),
    }


def _refuse_model(path: Path) -> None:
    what = f"goes with a suite, and {path} is none: it names its own models"
    raise SpecError("--model", what, next="Leave it out")


def _check_suite(path: Path, model: str | None, watcher: Watcher, findings: Findings) -> dict[str, Any]:
    """Tasks, metrics, splits; with a model also what only its tokenizer can tell, and the tokens of a candidate."""
    suite = findings.attempt(lambda: load_suite(path))
    harness = findings.attempt(lambda: Harness(suite)) if suite is not None else None
    if harness is None:
        return _result(findings)
    items = {split: len(harness.batch(split)) for split in SPLITS}
    findings.notes += hardly_decided(harness.suite, harness.batch("test"))
    if model is None:
        findings.note("how many tokens a candidate takes depends on the tokenizer: --model REFERENCE counts them")
        return _result(findings, None, {"tokens": {split: {"items": count} for split, count in items.items()}})
    tokens = findings.attempt(lambda: count_for(harness, model, watcher))
    return _result(findings, None, {"tokens": {split: found.to_dict() for split, found in (tokens or {}).items()}})


def _check_cost(path: Path, watcher: Watcher, findings: Findings) -> dict[str, Any]:
    """What a spec would take, before anything large is fetched."""
    spec, suite = (found := read(path, findings)).spec, found.suite
    harness = findings.attempt(lambda: Harness(suite)) if suite is not None else None
    if spec is None or harness is None or findings.problems:
        return _result(findings)
    reckoning = findings.attempt(lambda: reckoned(spec, harness, watcher))
    findings.note("no weights were fetched or read: whether the models can be merged is not known yet")
    return _result(findings, None, reckoning)


def _check_recipe(path: Path, watcher: Watcher, findings: Findings, allow_pickle: bool) -> dict[str, Any]:
    recipe = findings.attempt(lambda: files.load(path))
    if recipe is None:
        return _result(findings)
    notes = findings.attempt(lambda: checks.check(recipe, specs(), f"{path}: "))
    findings.notes += notes or []
    models = findings.attempt(lambda: open_models(recipe, str(path), watcher, allow_pickle))
    if models is None:
        return _result(findings)
    if notes is not None:  # else the plan would say the same again
        findings.attempt(lambda: models.plan(recipe, f"{path}: recipe"))
    findings.attempt(lambda: models.inputs)  # reads every weight: a damaged one is named here
    return _result(findings, memory_of(models))


def _check_spec(path: Path, trial: bool, watcher: Watcher, findings: Findings, allow_pickle: bool) -> dict[str, Any]:
    found = read(path, findings)
    spec, suite = found.spec, found.suite
    harness = findings.attempt(lambda: Harness(suite)) if suite is not None else None
    if spec is None:
        return _result(findings)
    if isinstance(spec, StagedSpec):
        return check_stages(spec, findings, watcher, harness, trial, allow_pickle)
    one = _check_one(spec, findings, watcher, harness, trial, allow_pickle)
    return _result(findings, one.memory, one.forecast, one.licences)


@dataclass
class _Checked:
    """What is known of one search, or of the stages up to one."""

    prepared: Prepared | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    forecast: dict[str, Any] = field(default_factory=dict)
    licences: dict[str, str | None] = field(default_factory=dict)


def _check_one(
    spec: SearchSpec, findings: Findings, watcher: Watcher, harness: Harness | None, trial: bool, allow_pickle: bool
) -> _Checked:
    ready = look(spec, findings, watcher, allow_pickle, (lambda: harness) if harness is not None else None)
    found = _Checked(ready.prepared, ready.memory or {}, {}, ready.licences or {})
    prepared = ready.prepared
    if prepared is None:
        return found
    for text in hardly_decided(prepared.suite, prepared.batches["test"]):
        findings.note(text)
    gate = spec.stage is None or spec.stage.last
    found.forecast = {
        "tokens": {split: tokens.to_dict() for split, tokens in prepared.tokens.items()},
        "cost": ready.cost,
    }
    if trial and not findings.problems:
        taken = findings.attempt(lambda: forecast(prepared, watcher, findings.note, gate, ready.done)) or {}
        found.memory |= {"worker": taken.pop("worker")} if "worker" in taken else {}
        found.forecast |= taken
    return found


def check_stages(
    spec: StagedSpec,
    findings: Findings,
    watcher: Watcher,
    harness: Harness | None,
    trial: bool,
    allow_pickle: bool = False,
) -> dict[str, Any]:
    """Every stage, with the start of an earlier one in place of its winner.

    Returns:
        As `check`: memory of the largest stage, and the forecast, in which what is used up is added, figures of one
        candidate are the last stage's, and `stages` has those of each.
    """
    winners: dict[str, Winner] = {}
    checked: dict[str, _Checked] = {}
    with kept_for_now() as folder:
        for index, config in enumerate(spec.config.stages):
            stage = findings.attempt(partial(spec.stage, index, winners))
            if stage is None:
                break
            checked[config.name] = one = _check_one(stage, findings, watcher, harness, trial, allow_pickle)
            if one.prepared is None or index == spec.count - 1:  # nothing that later ones could build on, or none
                break
            winner = findings.attempt(partial(merged, config.name, one.prepared, folder, watcher))
            if winner is None:
                break
            winners[config.name] = winner
        findings.rename({winner.reference(name): f"{STAGE}{name}" for name, winner in winners.items()})
    memory = max((one.memory for one in checked.values()), key=lambda found: found.get("needed_gib", 0.0), default={})
    licences = {name: licence for one in checked.values() for name, licence in one.licences.items()}
    forecasts = {name: one.forecast for name, one in checked.items() if one.prepared is not None}
    total = _added(spec, forecasts) if len(forecasts) == spec.count else {}
    return _result(findings, memory, total, licences)


def _added(spec: StagedSpec, forecasts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    total = dict(list(forecasts.values())[-1]) | {"stages": dict(forecasts)}
    total["cost"] = summed({name: one["cost"] for name, one in forecasts.items()})
    for key in ("search_hours", "total_hours", "price"):
        if all(key in one for one in forecasts.values()):
            total[key] = sum(one[key] for one in forecasts.values())
        else:  # of one stage it is not known
            total.pop(key, None)
    total.pop("ends", None)
    if "total_hours" in total:
        total["ends"] = end_of(total["total_hours"], total["workers"], spec.config.workers)["ends"]
    return total
