"""Reader of mergekit-evolve's searches: `genome` and `tasks`.

| genome | here |
|---|---|
| a number for each model, run of layers, filter and parameter | a hole with `per: group`, in a list of filters |
| `smooth` | `per: gradient` |
| |w| without `allow_negative_weights` | a hole from 0 on |
| |d| cut at 1 | a hole up to 1 |
| slerp of the two models with the largest numbers | slerp with one `t`; of three models or more, `multislerp` |
"""

from typing import Annotated, Any

from pydantic import Field

from evosearch.documents import Document, join
from evosearch.errors import SpecError, did_you_mean
from evosearch.spec.imports.imported import SPLITS_WHY, Imported, Surroundings, known_part, reference_of, varied
from evosearch.spec.imports.tasks import Task, suite_of

TOOL = "mergekit-evolve"
METHODS = {
    "linear": ("weight",),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare_ties": ("weight", "density"),
    "slerp": ("t",),
}
ON_TASK_VECTORS = ("task_arithmetic", "ties", "dare_ties")
NORMALIZED = ("linear", "ties", "dare_ties")  # by default
EVALUATIONS = 100  # its default on the command line
HIGHEST, LEAST_DENSITY = 1.5, 0.01


class _Genome(Document):
    """The genome's definition."""

    models: Annotated[list[Any], Field(min_length=1)]
    merge_method: str
    base_model: Any = None
    tokenizer_source: str | None = None
    layer_granularity: int = 0
    normalize: bool | None = None
    allow_negative_weights: bool = False
    filters: list[str] | None = None
    smooth: bool = False


class _Evolution(Document):
    """The file."""

    genome: dict[str, Any]
    tasks: Annotated[list[Any], Field(min_length=1)]
    limit: Annotated[int, Field(ge=1)] | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    shuffle: bool = False
    random_init: bool = False
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True


class _Task(Document):
    """One task."""

    name: str
    weight: float = 1.0
    metric: str = "acc,none"


def matches(data: dict[str, Any]) -> bool:
    """Return whether a document is one of this tool."""
    return "genome" in data


def read(data: dict[str, Any], where: str, name: str, around: Surroundings, include: str | None) -> Imported:
    """Read a document.

    Args:
        data: The document.
        where: The file, for errors.
        name: Name of the search.
        around: The files and models that it names.
        include: Folder of its own task files, which are not named in the document.

    Raises:
        SpecError: It is invalid.
        CheckpointError: A model's config cannot be read.
    """
    changes: list[str] = []
    file = known_part(_Evolution, data, where, changes)
    place = join(where, "genome")
    genome = known_part(_Genome, file.genome, place, changes)
    if genome.merge_method not in METHODS:
        near = did_you_mean(genome.merge_method, METHODS)
        raise SpecError(
            join(place, "merge_method"), f"got '{genome.merge_method}'", f"One of: {', '.join(METHODS)}", near
        )
    recipe = _recipe(genome, place, around, changes)
    suite = suite_of(
        name,
        [_task(each, join(where, "tasks", index)) for index, each in enumerate(file.tasks)],
        file.limit,
        changes,
        include=[include] if include else None,
        num_fewshot=file.num_fewshot,
        apply_chat_template=file.apply_chat_template,
        fewshot_as_multiturn=file.fewshot_as_multiturn if file.apply_chat_template else None,
    )
    start = "a random point" if file.random_init else "equal weights"
    changes += [
        f"start: from the best baseline instead of {start}, since baselines are scored anyway (`optimizer.start`)",
        f"budget: {EVALUATIONS} candidates, {TOOL}'s default; its file has none",
        "optimizer: CMA-ES as there; remove the line, and one that uses the gradient is taken where there is one",
        SPLITS_WHY,
    ]
    if file.shuffle:
        changes.append("shuffle: documents are drawn by their hash, in the same order on every machine")
    optimizer = {"name": "cma_es", "seed": 0}
    return Imported(TOOL, name, recipe, optimizer, {"candidates": EVALUATIONS}, suite, tuple(changes))


def _task(value: Any, where: str) -> Task:
    made = known_part(_Task, {"name": value} if isinstance(value, str) else value, where, [])
    return Task(made.name, made.metric, made.weight)


def _recipe(genome: _Genome, where: str, around: Surroundings, changes: list[str]) -> dict[str, Any]:
    models = [reference_of(each, join(where, "models", index)) for index, each in enumerate(genome.models)]
    groups = _groups(genome, models[0], where, around)
    if genome.merge_method == "slerp":
        recipe = _slerp(genome, models, groups, where, around, changes)
    else:
        recipe = _merge(genome, models, groups, where, around, changes)
    changes.append("int8_mask: left out, it only saves memory there")
    changes.append("dtype: computed in float32 and rounded to bfloat16 once; there, every step is rounded to bfloat16")
    recipe |= {"dtype": "float32", "out_dtype": "bfloat16"}
    if genome.smooth and groups > 1:
        changes.append("smooth: final norm and head have the last layer's number; there, the first layer's")
    if genome.tokenizer_source is not None:
        recipe["tokenizer_source"] = genome.tokenizer_source
    return recipe


def _groups(genome: _Genome, first: str, where: str, around: Surroundings) -> int:
    """Return the number of runs of layers."""
    step = genome.layer_granularity
    if step < 1:
        return 1
    layers = around.layers(first)
    if layers % step:
        what = f"got {step}, and '{first}' has {layers} layers"
        raise SpecError(join(where, "layer_granularity"), what, f"A divisor of {layers}")
    return layers // step


def _merge(
    genome: _Genome, models: list[str], groups: int, where: str, around: Surroundings, changes: list[str]
) -> dict[str, Any]:
    method, count = genome.merge_method, len(models)
    normalize = genome.normalize if genome.normalize is not None else method in NORMALIZED
    recipe: dict[str, Any] = {"merge_method": method}
    if method in ON_TASK_VECTORS:
        if genome.base_model is None:
            raise SpecError(join(where, "base_model"), "missing", next=f"{method} needs it")
        base = reference_of(genome.base_model, join(where, "base_model"))
        recipe["base_model"] = around.reference(base)
        if base in models:
            models = [model for model in models if model != base]
            changes.append(f"models: without the base '{base}', whose change from itself is zero")
    elif genome.base_model is not None:
        changes.append(f"base_model: left out, {method} uses none")
    high = 1.0 if normalize else HIGHEST
    low = -high if genome.allow_negative_weights else 0.0
    holes = {"weight": {"low": low, "high": high, "init": min(high, round(1 / count, 4))}}
    if "density" in METHODS[method]:
        holes["density"] = {"low": LEAST_DENSITY, "high": 1.0, "init": 1.0}
    changes.append(
        f"weight: bounded to [{low:g}, {high:g}]; there it is unbounded"
        + (", and only the ratio of weights counts" if normalize else "")
    )
    filters = tuple(genome.filters or ())
    recipe["models"] = [
        {
            "model": around.reference(model),
            "parameters": {key: varied(hole, groups, filters, genome.smooth) for key, hole in holes.items()},
        }
        for model in models
    ]
    if normalize != (method in NORMALIZED) or method in NORMALIZED:
        recipe["parameters"] = {"normalize": normalize}
    if method == "dare_ties":
        changes.append("dare_ties: masks come from `seed`; there they differ from run to run")
    return recipe


def _slerp(
    genome: _Genome, models: list[str], groups: int, where: str, around: Surroundings, changes: list[str]
) -> dict[str, Any]:
    if genome.smooth or genome.filters:
        key = "smooth" if genome.smooth else "filters"
        raise SpecError(join(where, key), "not valid with slerp", next="Remove it, as in mergekit-evolve")
    if len(models) < 2:
        raise SpecError(join(where, "models"), f"got {len(models)}", "At least two")
    if len(models) == 2:
        changes.append(
            "slerp: one number t per run of layers, the way from the first model to the second; there, two numbers "
            "give it by a softmax, and the model with the larger one comes first"
        )
        t = varied({"low": 0.0, "high": 1.0, "init": 0.5}, groups)
        base, other = map(around.reference, models)
        return {"merge_method": "slerp", "base_model": base, "models": [{"model": other}], "parameters": {"t": t}}
    changes.append(
        f"slerp: of {len(models)} models only the two with the largest numbers are merged there, so a small change of "
        "a number may exchange a model; multislerp merges all of them"
    )
    weight = {"low": 0.0, "high": 1.0, "init": round(1 / len(models), 4)}
    listed = [{"model": around.reference(each), "parameters": {"weight": varied(weight, groups)}} for each in models]
    return {"merge_method": "multislerp", "models": listed}
