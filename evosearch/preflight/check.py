"""`evosearch check`: find everything that could stop a run before it starts, and estimate its cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.durations import duration
from evosearch.errors import InputError, SpecError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import load_suite
from evosearch.evaluation.types import SPLITS
from evosearch.merging.registry import specs
from evosearch.preflight.config_checks import check_configs
from evosearch.preflight.cost import estimate_cost, total_cost
from evosearch.preflight.forecast import end_of, forecast
from evosearch.preflight.line_numbers import number_lines
from evosearch.preflight.memory_needs import memory_of
from evosearch.preflight.placeholders import merged_start, temporary_folder
from evosearch.preflight.power import power_warnings
from evosearch.preflight.preflight import preflight
from evosearch.preflight.statistics_needs import statistics_needs
from evosearch.recipe import checks, files
from evosearch.recipe.files import STAGE
from evosearch.reporting.answers_read import statements, task_answers
from evosearch.reporting.columns import Column
from evosearch.reporting.notebook import html_list, html_paragraph, html_table
from evosearch.search.progress import Watcher
from evosearch.setup.lineage import check_lineage
from evosearch.setup.models import open_models
from evosearch.setup.prepare import Prepared
from evosearch.setup.prompt_tokens import count_for
from evosearch.setup.recorded_inputs import check_recorded
from evosearch.setup.teachers import named_teachers
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.kinds import Kind, kind_of
from evosearch.spec.recovery import Recovered, recover
from evosearch.spec.spec import SearchSpec, Winner
from evosearch.spec.stages import StagedSpec

UNVERIFIED_ONLY = "the suite has no right answers, so nothing is tested, and nothing is promoted without --unverified"
TOKENS_TITLE = "Tokens of one candidate"

TokenCounts = Mapping[str, int]  # of one split: items, requested, …


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """Result of a check, as `evosearch check --json` prints it.

    Attributes:
        ok: Whether there are no problems.
        problems: Errors that would stop a run.
        notes: Warnings and further information.
        memory: Host memory in GiB by purpose; `device` is a GPU's, `worker` was measured.
        licences: Model → licence; None if it states none.
        forecast: Tokens, cost, duration and price, as far as known.
    """

    ok: bool
    problems: tuple[InputError, ...]
    notes: tuple[str, ...]
    memory: Mapping[str, Any]
    licences: Mapping[str, str | None]
    forecast: Mapping[str, Any]

    def _repr_html_(self) -> str:
        found = "No problems found" if self.ok else f"{len(self.problems)} problem(s)"
        parts = [html_paragraph(found), html_list(map(str, self.problems)), html_list(self.notes)]
        if tokens := self.forecast.get("tokens"):
            parts.append(html_table(TOKENS_TITLE, token_columns(tokens), list(tokens.items())))
        if total := self.forecast.get("total_hours"):
            parts.append(html_paragraph(f"The run takes about {duration(3600 * total)}"))
        return "".join(parts)


def token_columns(tokens: Mapping[str, TokenCounts]) -> list[Column[tuple[str, TokenCounts]]]:
    """Return the columns of the tokens of one candidate by split; without a tokenizer only its items."""
    counted = any("requested" in row for row in tokens.values())
    keys = ("items", *(("requested", "distinct", "generated_at_most") if counted else ()))
    return [Column("split", lambda row: row[0], left=True), *map(_count_column, keys)]


def _count_column(key: str) -> Column[tuple[str, TokenCounts]]:
    return Column(key.replace("_", " "), lambda row: f"{row[1][key]:,}")


def check(
    path: Path,
    dry_run: bool,
    watcher: Watcher,
    allow_pickle: bool = False,
    model: str | None = None,
    weights: bool = True,
    allow_unrelated: bool = False,
) -> CheckReport:
    """Check a spec, a recipe or a suite.

    Args:
        path: The YAML file.
        dry_run: For a spec: score one candidate, to measure time and memory.
        watcher: Shows what is being prepared.
        allow_pickle: Read pickled weights of models without safetensors.
        model: For a suite: the model whose tokenizer counts its tokens.
        weights: For a spec: False fetches only configs and tokenizers, which is enough to estimate its cost.
        allow_unrelated: Merge models that share no base, which are refused otherwise.
    """
    report = _check(path, dry_run, watcher, model, weights, _Allowed(allow_pickle, allow_unrelated))
    number_lines(report.problems)
    return report


def _check(
    path: Path, dry_run: bool, watcher: Watcher, model: str | None, weights: bool, allowed: "_Allowed"
) -> CheckReport:
    diagnostics = Diagnostics()
    found = diagnostics.attempt(lambda: documents.read_all(path, SpecError))
    if found is None:
        return _report(diagnostics)
    kind = kind_of(found)
    if kind is Kind.SUITE:
        return _check_suite(path, model, watcher, diagnostics)
    if model is not None:
        what = f"is only valid with a suite; {path} is a {'search spec' if kind is Kind.SPEC else kind.value}"
        diagnostics.add(SpecError("--model", what, next="Remove it"))
    if kind is Kind.RECIPE:
        return _check_recipe(path, watcher, diagnostics, allowed)
    data = diagnostics.attempt(lambda: documents.single(found, str(path), SpecError))
    recovered = Recovered(None, None) if data is None else recover(path, data, diagnostics)
    if not weights:
        return _check_cost(recovered, watcher, diagnostics)
    return _check_spec(recovered, dry_run, watcher, diagnostics, allowed)


def _report(
    diagnostics: Diagnostics,
    memory: Mapping[str, Any] | None = None,
    forecast: Mapping[str, Any] | None = None,
    licences: Mapping[str, str | None] | None = None,
) -> CheckReport:
    return CheckReport(
        ok=not diagnostics.problems,
        problems=tuple(diagnostics.problems),
        notes=(*diagnostics.warnings, *diagnostics.notes),
        memory=memory or {},
        licences=licences or {},
        forecast=forecast or {},
    )


def _check_suite(path: Path, model: str | None, watcher: Watcher, diagnostics: Diagnostics) -> CheckReport:
    """Check tasks, metrics and splits; with a model also its prompts, and count the tokens of a candidate."""
    suite = diagnostics.attempt(lambda: load_suite(path))
    harness = diagnostics.attempt(lambda: Harness(suite)) if suite is not None else None
    if harness is None:
        return _report(diagnostics)
    items = {split: len(harness.batch(split)) for split in SPLITS}
    diagnostics.notes += power_warnings(harness.suite, harness.batch("test"))
    diagnostics.passes(harness.check_answers)
    if model is None:
        diagnostics.note("the number of tokens depends on the tokenizer: count them with --model REFERENCE")
        return _report(diagnostics, None, {"tokens": {split: {"items": count} for split, count in items.items()}})
    tokens = diagnostics.attempt(lambda: count_for(harness, model, watcher))
    return _report(diagnostics, None, {"tokens": {split: found.to_dict() for split, found in (tokens or {}).items()}})


def _check_recipe(path: Path, watcher: Watcher, diagnostics: Diagnostics, allowed: "_Allowed") -> CheckReport:
    recipe = diagnostics.attempt(lambda: files.load(path))
    if recipe is None:
        return _report(diagnostics)
    notes = diagnostics.attempt(lambda: checks.check(recipe, specs(), f"{path}: "))
    diagnostics.notes += notes or []
    models = diagnostics.attempt(lambda: open_models(recipe, str(path), watcher, allowed.pickle))
    if models is None:
        return _report(diagnostics)
    if not allowed.unrelated:
        diagnostics.attempt(lambda: check_lineage(models, str(path)))
    if notes is not None:  # otherwise the plan would repeat the same problem
        diagnostics.attempt(lambda: models.plan(recipe, f"{path}: recipe"))
    sound = diagnostics.attempt(lambda: models.inputs)  # reads every weight, and so finds damaged files
    recorded = diagnostics.attempt(lambda: files.load_provenance(path))
    if sound is not None and recorded is not None:
        diagnostics.attempt(lambda: check_recorded(recorded, models, models.identify(recipe), str(path)))
    if sound is not None and (text := statistics_needs(models, filter(None, [recipe.merge_method])).note):
        diagnostics.note(f"statistics: {text}")
    return _report(diagnostics, memory_of(models))


def _check_cost(found: Recovered, watcher: Watcher, diagnostics: Diagnostics) -> CheckReport:
    """Estimate the cost of a spec without fetching anything large."""
    spec, suite = found.spec, found.suite
    harness = diagnostics.attempt(lambda: Harness(suite)) if suite is not None else None
    if isinstance(spec, SearchSpec):
        check_configs(spec, harness, watcher, diagnostics)
    if spec is None or harness is None or diagnostics.problems:
        return _report(diagnostics)
    estimate = diagnostics.attempt(lambda: estimate_cost(spec, harness, watcher))
    diagnostics.note("no weights were fetched or read, so it was not checked whether the models can be merged")
    return _report(diagnostics, None, estimate)


def _check_spec(
    found: Recovered, dry_run: bool, watcher: Watcher, diagnostics: Diagnostics, allowed: "_Allowed"
) -> CheckReport:
    spec, suite = found.spec, found.suite
    harness = diagnostics.attempt(lambda: Harness(suite)) if suite is not None else None
    if spec is None:
        return _report(diagnostics)
    if isinstance(spec, StagedSpec):
        return check_stages(spec, diagnostics, watcher, harness, dry_run, allowed.pickle, allowed.unrelated)
    one = _check_one(spec, diagnostics, watcher, harness, dry_run, allowed)
    return _report(diagnostics, one.memory, one.forecast, one.licences)


@dataclass(frozen=True)
class _Allowed:
    """Exceptions that the user allows."""

    pickle: bool = False  # pickled weights
    unrelated: bool = False  # models that share no base


@dataclass
class _Checked:
    """Results for one search."""

    prepared: Prepared | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    forecast: dict[str, Any] = field(default_factory=dict)
    licences: dict[str, str | None] = field(default_factory=dict)


def _check_one(
    spec: SearchSpec,
    diagnostics: Diagnostics,
    watcher: Watcher,
    harness: Harness | None,
    dry_run: bool,
    allowed: "_Allowed",
) -> _Checked:
    loaded = (lambda: harness) if harness is not None else None
    ready = preflight(spec, diagnostics, watcher, allowed.pickle, loaded, allowed.unrelated)
    found = _Checked(ready.prepared, ready.memory or {}, {}, ready.licences or {})
    prepared = ready.prepared
    if prepared is None:
        return found
    diagnostics.note(prepared.share_of_baselines)
    for text in power_warnings(prepared.suite, prepared.batches["test"]):
        diagnostics.note(text)
    for text in statements(task_answers(prepared.suite, named_teachers(spec))):
        diagnostics.note(text)
    if not prepared.suite.scoring:
        diagnostics.note(UNVERIFIED_ONLY)
    found.forecast = {
        "tokens": {split: tokens.to_dict() for split, tokens in prepared.tokens.items()},
        "cost": ready.cost,
    }
    if dry_run and not diagnostics.problems:
        measured = diagnostics.attempt(lambda: forecast(prepared, watcher, diagnostics.note, ready.done)) or {}
        found.memory |= {"worker": measured.pop("worker")} if "worker" in measured else {}
        found.forecast |= measured
    return found


def check_stages(
    spec: StagedSpec,
    diagnostics: Diagnostics,
    watcher: Watcher,
    harness: Harness | None,
    dry_run: bool,
    allow_pickle: bool = False,
    allow_unrelated: bool = False,
) -> CheckReport:
    """Check every stage, with the merged start of each earlier stage in place of its winner.

    Returns:
        As `check` does. Memory is that of the largest stage. In the forecast, amounts are summed over stages, figures
        of one candidate are those of the last stage, and `stages` has the forecast of each.
    """
    winners: dict[str, Winner] = {}
    allowed = _Allowed(allow_pickle, allow_unrelated)
    checked: dict[str, _Checked] = {}
    with temporary_folder() as folder:
        for index, config in enumerate(spec.config.stages):
            stage = diagnostics.attempt(partial(spec.stage, index, winners))
            if stage is None:
                break
            checked[config.name] = one = _check_one(stage, diagnostics, watcher, harness, dry_run, allowed)
            if one.prepared is None or index == spec.count - 1:
                break
            winner = diagnostics.attempt(partial(merged_start, config.name, one.prepared, folder, watcher))
            if winner is None:
                break
            winners[config.name] = winner
        diagnostics.rename({winner.reference(name): f"{STAGE}{name}" for name, winner in winners.items()})
    memory = max((one.memory for one in checked.values()), key=lambda found: found.get("needed_gib", 0.0), default={})
    licences = {name: licence for one in checked.values() for name, licence in one.licences.items()}
    forecasts = {name: one.forecast for name, one in checked.items() if one.prepared is not None}
    total = _total(spec, forecasts) if len(forecasts) == spec.count else {}
    return _report(diagnostics, memory, total, licences)


def _total(spec: StagedSpec, forecasts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The forecast of a multi-stage run."""
    total = dict(list(forecasts.values())[-1]) | {"stages": dict(forecasts)}
    total["cost"] = total_cost({name: one["cost"] for name, one in forecasts.items()})
    for key in ("search_hours", "total_hours", "price"):
        if all(key in one for one in forecasts.values()):
            total[key] = sum(one[key] for one in forecasts.values())
        else:
            total.pop(key, None)
    total.pop("ends", None)
    if "total_hours" in total:
        total["ends"] = end_of(total["total_hours"], total["workers"], spec.config.workers)["ends"]
    return total
