"""Reader of mergenetic's configurations.

The file does not name the merge method: mergenetic's scripts merge one model with the base by SLERP, and several by
DARE with TIES, with a task each as an objective.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from evosearch.documents import Document, join
from evosearch.errors import SpecError
from evosearch.spec.imports.imported import SPLITS_WHY, Imported, Surroundings, known_part, reference_of, varied
from evosearch.spec.imports.tasks import Task, names, suite_of

TOOL = "mergenetic"
POINTS = 5  # of the gradients of slerp
MOST_OBJECTIVES = 4
LEAST_POPULATION = 4
LEAST_DENSITY = 0.01
BASE = "base"  # key of the task that the base alone is scored on


class _Config(Document):
    """The file."""

    models: Any
    tasks: Any = None
    base_model: str | None = None
    pop_size: Annotated[int, Field(ge=1)] = 10
    n_iter: Annotated[int, Field(ge=1)] = 10
    run_id: str | None = None
    metric: str = "acc"
    dtype: str = "bfloat16"
    seed: Annotated[int, Field(ge=0)] = 420
    n_samples: Annotated[int, Field(ge=1)] | None = 20
    langs: list[str] | None = None
    additional_templates_folder: str | None = None
    mode: str | None = None
    bench: str | None = None
    task_type: str | None = None
    datasets: Any = None
    device: str | None = None
    eval_batch_size: int | None = None
    load_in_4bit: bool = False
    force_evaluation: bool = False
    path_to_store_config: str | None = None
    path_to_store_merged_model: str | None = None


def matches(data: dict[str, Any]) -> bool:
    """Return whether a document is one of this tool."""
    return "models" in data and {"pop_size", "n_iter"} <= data.keys()


def read(data: dict[str, Any], where: str, name: str, around: Surroundings, include: str | None) -> Imported:
    """Read a document; see `mergekit_evolve.read`.

    Raises:
        SpecError: It is invalid, or has no tasks of lm-eval.
    """
    changes: list[str] = []
    config = known_part(_Config, data, where, changes)
    models = _models(config, where)
    tasks = _tasks(config, where)
    recipe = _recipe(config, models, where, around, changes)
    folder = include or _folder(config, around, changes)
    suite = suite_of(name, tasks, config.n_samples, changes, include=[folder] if folder else None)
    objectives = _objectives(models, tasks, changes)
    optimizer, more = _optimizer(config, objectives, changes)
    population = int(optimizer.get("population", config.pop_size))
    candidates = population * config.n_iter
    changes += [
        f"pop_size, n_iter: {population} × {config.n_iter} = {candidates} candidates",
        SPLITS_WHY,
    ]
    if config.mode:
        changes.append(
            f"mode: {config.mode} estimates scores from {config.n_samples} documents; here the documents are scored"
        )
    if config.load_in_4bit:
        changes.append("load_in_4bit: models are scored as they will be used, not quantized")
    return Imported(TOOL, name, recipe, optimizer, {"candidates": candidates}, suite, tuple(changes), more)


def _models(config: _Config, where: str) -> list[str]:
    listed = config.models
    if isinstance(listed, Mapping):
        order = [lang for lang in config.langs or listed if lang in listed]
        listed = [listed[lang] for lang in order]
    if not isinstance(listed, list) or not listed:
        raise SpecError(join(where, "models"), f"got {config.models!r}", "A list of models, or language → model")
    return [reference_of(each, join(where, "models", index)) for index, each in enumerate(listed)]


def _tasks(config: _Config, where: str) -> list[Task]:
    if isinstance(config.tasks, list) and config.tasks and all(isinstance(each, str) for each in config.tasks):
        return [Task(each, config.metric) for each in config.tasks]
    found = config.tasks if isinstance(config.tasks, Mapping) else {}
    search, test = found.get("search"), found.get("test")
    if not isinstance(search, Mapping) or not all(isinstance(each, str) for each in search.values()):
        what = "no tasks of lm-eval" + (": its own CSV files have no task" if config.datasets else "")
        next_step = "Write each as an lm-eval task (YAML), and list it"
        raise SpecError(join(where, "tasks"), what, "A list of tasks, or {search: {…}, test: {…}}", next_step)
    tested = test if isinstance(test, Mapping) else {}
    every = {key: task for key, task in search.items() if key != BASE}
    distinct = len(set(every.values())) == len(every)
    return [
        Task(task, config.metric, 1.0, tested.get(key), "" if distinct else str(key)) for key, task in every.items()
    ]


def _recipe(config: _Config, models: list[str], where: str, around: Surroundings, changes: list[str]) -> dict[str, Any]:
    if config.base_model is None:
        raise SpecError(join(where, "base_model"), "missing", next="Name the base of the models")
    base = around.reference(config.base_model)
    if len(models) == 1:
        t = {"low": 0.0, "high": 1.0, "init": 0.5}
        setting = [
            *({"filter": each, "value": varied(t, POINTS, smooth=True)} for each in ("self_attn", "mlp")),
            {"value": t},
        ]
        changes.append(
            "method: slerp, as in mergenetic's script for one model; t is a real number, there one of ten steps"
        )
        own = {"models": [{"model": around.reference(models[0])}], "parameters": {"t": setting}}
        return {"merge_method": "slerp", "base_model": base, **own, "dtype": config.dtype}
    if config.base_model in models:
        models = [model for model in models if model != config.base_model]
        changes.append(f"models: without the base '{config.base_model}', whose change from itself is zero")
    changes.append(
        "method: dare_ties, as in mergenetic's scripts for several models; masks come from `seed`, there from the run"
    )
    weight = {"low": 0.0, "high": 1.0, "init": round(1 / len(models), 4)}
    density = {"low": LEAST_DENSITY, "high": 1.0}
    parameters = {"weight": weight, "density": density}
    listed = [{"model": around.reference(model), "parameters": dict(parameters)} for model in models]
    return {"merge_method": "dare_ties", "base_model": base, "models": listed, "dtype": config.dtype}


def _folder(config: _Config, around: Surroundings, changes: list[str]) -> str | None:
    named = config.additional_templates_folder
    if named is None:
        return None
    found = around.task_folder(named)
    if found is None:
        changes.append(f"additional_templates_folder: '{named}' is not here: add its folder with --include")
    return found


def _objectives(models: list[str], tasks: list[Task], changes: list[str]) -> list[str] | None:
    if len(models) < 2 or len(tasks) < 2:
        return None
    if len(tasks) > MOST_OBJECTIVES:
        changes.append(f"objectives: {len(tasks)} tasks are one fitness; a Pareto set of more than four shows little")
        return None
    return names(tasks)


def _optimizer(
    config: _Config, objectives: list[str] | None, changes: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    if objectives is None:
        changes.append("optimizer: CMA-ES in place of a genetic algorithm: all search parameters are real numbers")
        return {"name": "cma_es", "seed": config.seed}, {}
    population = max(LEAST_POPULATION, config.pop_size)
    if population != config.pop_size:
        changes.append(f"pop_size: nsga2 needs at least {LEAST_POPULATION}")
    return {"name": "nsga2", "population": population, "seed": config.seed}, {"objectives": objectives}
