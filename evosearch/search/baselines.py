"""Baselines: what every search is measured against, scored before the first ask.

The base, each parent, their uniform average, and a sweep of one task-arithmetic scale. A search that cannot beat the
better of the last two has found nothing that one line of YAML would not have given.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from evosearch.recipe.schema import Input, Recipe

# One scale for the sum of all task vectors; 1/K would be the uniform average of K parents.
SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
NO_BASE = "the recipe has no base_model"
NO_BASE_OF_A_ROUTE = "a route has no base_model, and baselines.base_model names none"


@dataclass(frozen=True)
class Baseline:
    """One baseline. Without a recipe it does not apply to this search, and `skipped` says why.

    `weights` is what the baseline means to each parent of the recipe as a task-arithmetic weight: where a search may
    start. One that is made of other models has none.
    """

    name: str
    kind: str  # base | parent | uniform | scale
    recipe: Recipe | None
    weights: tuple[float, ...] = ()
    skipped: str | None = None


def averaged(example: Recipe, base: str | None = None, models: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """What the uniform average is made of; the base is not counted. The arguments are those of `baselines`."""
    return tuple(model for model in models or example.parents if model != (base or example.base_model))


def baselines(
    example: Recipe,
    scales: tuple[float, ...] = SCALES,
    alike: bool = True,
    base: str | None = None,
    models: tuple[str, ...] | None = None,
) -> list[Baseline]:
    """The baselines of a search.

    Args:
        example: the recipe's frame, or any filled recipe that names all its models; its base, models, vocabulary and
            dtypes are used. A route has no base, and its models are the parents.
        alike: base and averaged models have the same layers, so that they can be merged whole.
        base: in place of the recipe's, which then is a parent where it is another.
        models: what uniform average and sweep are made of in place of the recipe's models. Each is a parent, too.
    """
    base, own = base or example.base_model, example.parents
    parents, mixed = list(averaged(example, base)), list(averaged(example, base, models))
    further = [*mixed, *filter(None, [example.base_model])]
    parents += [model for model in dict.fromkeys(further) if model not in (base, *parents)]

    def weights(each: Mapping[str, float]) -> tuple[float, ...]:
        """As weights of the recipe's own parents, where no other model has one."""
        return tuple(each.get(model, 0.0) for model in own) if each.keys() <= set(own) else ()

    def merge(method: str, models: list[str], weight: float) -> Recipe:
        return Recipe(
            merge_method=method,
            # A vocabulary may be the base's, or have its tokens first.
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
    apart = None if alike else "the models have different layers"
    if len(mixed) < 2 or apart:
        out.append(Baseline("uniform", "uniform", None, skipped=apart or "there is only one parent"))
    else:
        equal = weights(dict.fromkeys(mixed, 1.0 / len(mixed)))
        out.append(Baseline("uniform", "uniform", merge("linear", mixed, 1.0), equal))
    for scale in scales:
        name = f"scale:{scale:.2f}"
        if base and mixed and not apart:
            recipe = merge("task_arithmetic", mixed, scale)
            out.append(Baseline(name, "scale", recipe, weights(dict.fromkeys(mixed, scale))))
        else:
            out.append(Baseline(name, "scale", None, skipped=apart or "task arithmetic needs a base_model"))
    return out
