"""Baselines, which are scored before the first candidate.

The base, each parent, their uniform average, and a sweep of one task-arithmetic scale. A search that does not beat the
better of the last two has found nothing that one line of YAML would not give.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from evosearch.recipe.schema import Input, Recipe

# One scale for the sum of all task vectors; 1/K would be the uniform average of K parents.
SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
NO_BASE = "the recipe has no base_model"
NO_BASE_OF_A_ROUTE = "a route has no base_model, and baselines.base_model is not set"


@dataclass(frozen=True)
class Baseline:
    """One baseline; without a recipe it does not apply to the search, and `skipped` says why.

    `weights` are the task-arithmetic weights of the recipe's parents that correspond to the baseline, for the start of
    a search; empty if it is made of other models.
    """

    name: str
    kind: str  # base | parent | stage | uniform | scale
    recipe: Recipe | None
    weights: tuple[float, ...] = ()
    skipped: str | None = None


def averaged(example: Recipe, base: str | None = None, models: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Return the models of the uniform average, without the base; see `baselines` for the arguments."""
    return tuple(model for model in models or example.parents if model != (base or example.base_model))


def baselines(
    example: Recipe,
    scales: tuple[float, ...] = SCALES,
    alike: bool = True,
    base: str | None = None,
    models: tuple[str, ...] | None = None,
) -> list[Baseline]:
    """Return the baselines of a search.

    Args:
        example: The recipe's frame, or any filled recipe with all models; its base, models, vocabulary and dtypes are
            used. A route has no base, and its models are the parents.
        scales: Scales of the sweep.
        alike: Whether base and averaged models have the same layers, so that they can be merged.
        base: Replaces the recipe's base, which becomes a parent if it is different.
        models: Models of the uniform average and the sweep, instead of the recipe's. Each is a parent, too.
    """
    base, own = base or example.base_model, example.parents
    parents, mixed = list(averaged(example, base)), list(averaged(example, base, models))
    further = [*mixed, *filter(None, [example.base_model])]
    parents += [model for model in dict.fromkeys(further) if model not in (base, *parents)]

    def weights(each: Mapping[str, float]) -> tuple[float, ...]:
        """Return the weights of the recipe's own parents; empty if another model has a weight."""
        return tuple(each.get(model, 0.0) for model in own) if each.keys() <= set(own) else ()

    def merge(method: str, models: list[str], weight: float) -> Recipe:
        return Recipe(
            merge_method=method,
            # The vocabulary may be the base's, or extend it
            base_model=base if method == "task_arithmetic" or example.vocabulary is not None else None,
            models=tuple(Input(model=name, parameters={"weight": weight}) for name in models),
            dtype=example.dtype,
            out_dtype=example.out_dtype,
            tokenizer=example.vocabulary,
            chat_template=example.chat_template,
        )

    out = [
        Baseline("base", "base", merge("linear", [base], 1.0), weights({}))
        if base
        else Baseline("base", "base", None, skipped=NO_BASE if example.routing is None else NO_BASE_OF_A_ROUTE)
    ]
    for index, parent in enumerate(parents):
        out.append(Baseline(f"parent:{index}", "parent", merge("linear", [parent], 1.0), weights({parent: 1.0})))
    mismatch = None if alike else "the models have different layers"
    if len(mixed) < 2 or mismatch:
        out.append(Baseline("uniform", "uniform", None, skipped=mismatch or "there is only one parent"))
    else:
        equal = weights(dict.fromkeys(mixed, 1.0 / len(mixed)))
        out.append(Baseline("uniform", "uniform", merge("linear", mixed, 1.0), equal))
    for scale in scales:
        name = scale_name(scale)
        if base and mixed and not mismatch:
            recipe = merge("task_arithmetic", mixed, scale)
            out.append(Baseline(name, "scale", recipe, weights(dict.fromkeys(mixed, scale))))
        else:
            out.append(Baseline(name, "scale", None, skipped=mismatch or "task arithmetic needs a base_model"))
    return out


def scale_name(scale: float) -> str:
    """Return the name of the baseline with a scale: `scale:0.60`."""
    return f"scale:{scale:.2f}"


def single(model: str, dtype: str = "float32") -> Recipe:
    """Return the recipe of one unchanged model."""
    data = {"merge_method": "linear", "models": [{"model": model, "parameters": {"weight": 1.0}}], "dtype": dtype}
    return Recipe.model_validate(data)
