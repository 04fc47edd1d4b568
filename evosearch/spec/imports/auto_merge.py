"""Reader of auto-merge-llm's configurations (Su & Geiping 2025, arXiv:2502.04030).

A configuration names one of its strategies, each in a file of its own that it `!include`s. Layer-wise fusion (`lfs`,
`lfs_multiobj`) becomes a merge, depth-wise integration (`dis`) a route.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from evosearch.documents import Document, join
from evosearch.errors import SpecError
from evosearch.spec.imports.imported import SPLITS_WHY, Imported, Surroundings, known_part, reference_of, varied
from evosearch.spec.imports.tasks import Task, names, suite_of

TOOL = "auto-merge-llm"
FUSION, MULTI, DEPTH = "lfs", "lfs_multiobj", "dis"
FIXED = ("normal_models", "normal_slices")
INCLUDE = re.compile(r"^(\s*[\w-]+:[ \t]*)!include[ \t]+([\w./-]+)[ \t]*$", re.MULTILINE)
INCLUDED = "include:"  # in place of the tag, which is not YAML's
LEAST_DENSITY, LEAST_SCALE, HIGHEST_SCALE = 0.01, 0.5, 2.0
MOST_OBJECTIVES = 4


class _Strategy(Document):
    """Keys of the strategies that are read."""

    models: Annotated[list[Any], Field(min_length=1)]
    base_model: str | None = None
    merging_method: Any = None
    layer_granularity: int = 0
    filters: list[str] = Field(default_factory=list)
    n_trials: Annotated[int, Field(ge=0)] = 0
    min_budget: Annotated[int, Field(ge=1)] = 20
    max_budget: Annotated[int, Field(ge=1)] = 1000
    repeat: Annotated[int, Field(ge=1)] = 1
    fix_layers: Annotated[int, Field(ge=0)] = 0
    layers: Annotated[int, Field(ge=1)] | None = None
    num_hidden_layers: int | None = None
    remain_base: bool = True
    eta: int | None = None
    n_workers: int | None = None
    random_init_points: int | None = None
    total_budget: int | None = None


def plain(text: str) -> str:
    """Return the text of a configuration without the tag `!include`."""
    return INCLUDE.sub(rf'\1"{INCLUDED}\2"', text)


def matches(data: dict[str, Any]) -> bool:
    """Return whether a document is one of this tool."""
    return "strategies" in data and "strategy" in data


def read(data: dict[str, Any], where: str, name: str, around: Surroundings, include: str | None) -> Imported:
    """Read a document; see `mergekit_evolve.read`.

    Raises:
        SpecError: It is invalid, or its strategy is no search that evosearch has.
        CheckpointError: A model's config cannot be read.
    """
    changes: list[str] = []
    named, place = str(data["strategy"]), join(where, "strategy")
    if named in FIXED:
        what = f"'{named}' is one merge, not a search"
        raise SpecError(place, what, next="Write it as a recipe, and use: evosearch merge")
    if named not in (FUSION, MULTI, DEPTH):
        what = f"'{named}' has no equivalent"
        next_step = "A route may leave layers out: see recipes/dataflow.yaml, and recipes/hybrid.yaml for a merge first"
        raise SpecError(place, what, f"One of: {FUSION}, {MULTI}, {DEPTH}", next_step)
    found = data["strategies"]
    strategy = found.get(named) if isinstance(found, Mapping) else None
    if isinstance(strategy, str) and strategy.startswith(INCLUDED):
        strategy = around.document(strategy.removeprefix(INCLUDED))
    config = known_part(_Strategy, strategy, join(where, "strategies", named), changes)
    settings = data.get("global_params") or {}
    tasks, options = _tasks(settings, join(where, "global_params"), changes)
    models = [reference_of(each, join(where, "models", index)) for index, each in enumerate(config.models)]
    reader = _depth if named == DEPTH else _fusion
    recipe, more = reader(config, models, join(where, "strategies", named), around, changes)
    folder = include or around.task_folder(str(_evaluation(settings).get("include_path") or ""))
    suite = suite_of(name, tasks, config.max_budget, changes, include=[folder] if folder else None, **options)
    optimizer: dict[str, Any] = {"name": "cat_cma", "seed": int(settings.get("random_seed") or 0)}
    if named == MULTI and 1 < len(tasks) <= MOST_OBJECTIVES:
        optimizer["name"] = "nsga2"
        more |= {"objectives": names(tasks)}
    changes += [
        f"optimizer: {optimizer['name']} in place of SMAC; it takes numbers and choices",
        f"min_budget, max_budget: every candidate is scored on {config.max_budget} documents of each task",
        SPLITS_WHY,
    ]
    candidates = config.n_trials or 500
    return Imported(TOOL, name, recipe, optimizer, {"candidates": candidates}, suite, tuple(changes), more)


def _evaluation(settings: Any) -> Mapping[str, Any]:
    found = settings.get("evaluation") if isinstance(settings, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _tasks(settings: Any, where: str, changes: list[str]) -> tuple[list[Task], dict[str, Any]]:
    evaluation = _evaluation(settings)
    listed = evaluation.get("tasks")
    place = join(where, "evaluation", "tasks")
    if not isinstance(listed, list) or not listed:
        raise SpecError(place, f"got {listed!r}", "A list of tasks")
    tasks = []
    for index, each in enumerate(listed):
        if not isinstance(each, Mapping) or not isinstance(each.get("task"), str):
            raise SpecError(join(place, index), f"got {each!r}", "A mapping with the key task")
        tasks.append(Task(each["task"], str(each.get("metric", "acc,none"))))
        if "test_split" in each:
            changes.append(f"{each['task']}.test_split: see the suite's `documents_from`")
    shots = evaluation.get("num_fewshot")
    return tasks, {"num_fewshot": shots if isinstance(shots, int) else None}


def _fusion(
    config: _Strategy, models: list[str], where: str, around: Surroundings, changes: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Layer-wise fusion: a method and its numbers for every run of layers and every filter."""
    if config.base_model is None:
        raise SpecError(join(where, "base_model"), "missing", next="Name the base of the models")
    groups = 1
    if config.layer_granularity > 0:
        layers = around.layers(config.base_model)
        if layers % config.layer_granularity:
            what = f"got {config.layer_granularity}, and '{config.base_model}' has {layers} layers"
            raise SpecError(join(where, "layer_granularity"), what, f"A divisor of {layers}")
        groups = layers // config.layer_granularity
    bounds = config.merging_method if isinstance(config.merging_method, Mapping) else {}
    methods = [name for name in ("linear", "task_arithmetic", "ties") if name in bounds]
    if not methods:
        allowed = "linear, task_arithmetic and ties, with bounds"
        raise SpecError(join(where, "merging_method"), f"got {config.merging_method!r}", allowed)
    if "slerp" in bounds:
        changes.append("slerp: left out; it merges only the two models with the largest numbers there")
    low, high = _bounds(bounds, "linear", "weights", (0.0, 1.0))
    weight = {"low": low, "high": high, "init": min(high, max(low, round(1 / len(models), 4)))}
    parameters: dict[str, Any] = {"weight": varied(weight, groups, config.filters)}
    recipe: dict[str, Any] = {"merge_method": {"choices": methods} if len(methods) > 1 else methods[0]}
    recipe["base_model"] = around.reference(config.base_model)
    recipe["models"] = [{"model": around.reference(model), "parameters": dict(parameters)} for model in models]
    if "ties" in methods:
        least, most = _bounds(bounds, "ties", "param_value_mask_rate", (0.0, 0.99))
        density = {"low": max(LEAST_DENSITY, round(1 - most, 6)), "high": round(1 - least, 6)}
        recipe["parameters"] = {"density": varied(density, groups, config.filters)}
    changes += [
        "merging_method: one method for all layers; there each run of layers has one of its own",
        "scaling_coefficient: task arithmetic and TIES have a weight for each model, instead of one for all",
    ]
    if "ties" in methods:
        changes.append("param_value_mask_rate: `density` is 1 - rate")
    return recipe, {}


def _bounds(methods: Mapping[str, Any], method: str, key: str, default: tuple[float, float]) -> tuple[float, float]:
    own = methods.get(method)
    found = own.get(key) if isinstance(own, Mapping) else None
    low, high = (found.get("min"), found.get("max")) if isinstance(found, Mapping) else default
    return (float(low), float(high)) if isinstance(low, int | float) and isinstance(high, int | float) else default


def _depth(
    config: _Strategy, models: list[str], where: str, around: Surroundings, changes: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Depth-wise integration: a route through the layers of all models."""
    routing: dict[str, Any] = {"search": True, "models": [around.reference(model) for model in models]}
    routing["repeats"] = config.repeat
    if config.fix_layers:
        routing |= {"keep_first": config.fix_layers, "keep_last": config.fix_layers}
    routing["scale"] = {"low": LEAST_SCALE, "high": HIGHEST_SCALE}
    if config.layers is not None:
        routing["max_hops"] = config.layers
    changes += [
        "order: a route passes the layers of each model in turn; there, those of one depth are permuted among models",
        f"scale: {LEAST_SCALE:g} to {HIGHEST_SCALE:g}; there 0 to 2, and a hop scaled by 0 passes nothing on",
    ]
    if config.remain_base and config.base_model is not None:
        changes.append("remain_base: a depth without a layer is skipped; there it has the base's layer")
    if config.layer_granularity > 1:
        changes.append("layer_granularity: every layer is chosen on its own")
    base = {"baselines": {"base_model": around.reference(config.base_model)}} if config.base_model else {}
    return {"routing": routing}, base
