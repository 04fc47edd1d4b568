"""Controls: what every search is measured against, scored before the first ask.

The base, each parent, their uniform average, and a sweep of one task-arithmetic scale. A search that cannot beat the
better of the last two has found nothing that one line of YAML would not have given.
"""

from dataclasses import dataclass

from evosearch.recipe.schema import Input, Recipe

# One scale for the sum of all task vectors; 1/K would be the uniform average of K parents.
SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)


@dataclass(frozen=True)
class Control:
    """One control. Without a recipe it does not apply to this search, and `skipped` says why.

    `weights` is what the control means to each parent as a task-arithmetic weight: where a search may start.
    """

    name: str
    kind: str  # base | parent | uniform | scale
    recipe: Recipe | None
    weights: tuple[float, ...] = ()
    skipped: str | None = None


def controls(example: Recipe, scales: tuple[float, ...] = SCALES, alike: bool = True) -> list[Control]:
    """The controls of a search.

    Args:
        example: any filled recipe of the search; its base, models, vocabulary and dtypes are used.
        alike: the models have the same layers, so that they can be merged whole.
    """
    base, parents = example.base_model, list(example.parents)
    count = len(parents)

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
        Control("base", "base", merge("linear", [base], 1.0), (0.0,) * count)
        if base
        else Control("base", "base", None, skipped="the recipe has no base_model")
    ]
    for index, parent in enumerate(parents):
        own = tuple(float(index == other) for other in range(count))
        out.append(Control(f"parent:{index}", "parent", merge("linear", [parent], 1.0), own))
    mixed = None if alike else "the models have different layers"
    if count < 2 or mixed:
        out.append(Control("uniform", "uniform", None, skipped=mixed or "there is only one parent"))
    else:
        out.append(Control("uniform", "uniform", merge("linear", parents, 1.0), (1.0 / count,) * count))
    for scale in scales:
        name = f"scale:{scale:.2f}"
        if base and not mixed:
            out.append(Control(name, "scale", merge("task_arithmetic", parents, scale), (scale,) * count))
        else:
            out.append(Control(name, "scale", None, skipped=mixed or "task arithmetic needs a base_model"))
    return out
