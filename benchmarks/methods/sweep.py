"""Settings of a merge method, from its registered parameters: its defaults, and draws from its bounds.

Nothing here names a method, so a new one is measured without an entry.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evosearch.errors import RecipeError
from evosearch.merging.registry import specs
from evosearch.recipe.checks import check
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import MethodSpec, Param, Scalar

Setting = dict[str, Scalar]  # parameter → value, the same for every model


def default(spec: MethodSpec) -> Setting:
    """Return the parameters that a recipe must give: 1 for each model's own (weights), else the middle of the range."""
    required = {name: param for name, param in spec.parameters.items() if param.default is None}
    return {name: _clipped(param, 1.0) if param.per_model else _value(param, 0.5) for name, param in required.items()}


def sweep(spec: MethodSpec, count: int) -> list[Setting]:
    """Return the defaults, then distinct draws from the bounds, `count` at most.

    The draws are a Latin hypercube: each parameter takes a value from every one of equally wide parts of its range.
    """
    generator = np.random.default_rng(0)
    names = sorted(name for name, param in spec.parameters.items() if _has_range(param))
    drawn = max(0, count - 1)
    units = {name: (generator.permutation(drawn) + 0.5) / max(1, drawn) for name in names}
    found = [default(spec)]
    for index in range(drawn if names else 0):
        setting = found[0] | {name: _value(spec.parameters[name], float(units[name][index])) for name in names}
        if setting not in found:
            found.append(setting)
    return found


def recipe_of(
    spec: MethodSpec,
    setting: Mapping[str, Scalar],
    base: str,
    experts: Sequence[str],
    seed: int,
    sample: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return the merge of as many experts as the method takes, the first ones if these are fewer.

    Args:
        spec: The method.
        setting: Parameters that all models share.
        base: The base; methods that take differences from it, or may do so, get it.
        experts: The experts.
        seed: Seed of the masks.
        sample: The texts, as in a recipe; methods that need statistics of the models over some get it.

    Raises:
        RecipeError: The method refuses the setting, or needs more experts, or a sample.
    """
    data = {
        "merge_method": spec.name,
        "base_model": base if spec.takes_base else None,
        "models": [{"model": expert} for expert in experts[: spec.models[1]]],
        "parameters": dict(setting),
        "seed": seed if spec.random else 0,
        "sample": sample if spec.statistic else None,
    }
    recipe = Recipe.model_validate(data)
    check(recipe, specs())
    return recipe


def allowed(
    spec: MethodSpec, base: str, experts: Sequence[str], seed: int, count: int, sample: Mapping[str, Any]
) -> list[tuple[Setting, Recipe]]:
    """Return the settings of a sweep that the method does not refuse, with their recipes; see `recipe_of`."""
    found = []
    for setting in sweep(spec, count):
        try:
            found.append((setting, recipe_of(spec, setting, base, experts, seed, sample)))
        except RecipeError:
            continue
    return found


def _has_range(param: Param) -> bool:
    return param.kind in ("bool", "choice") or (param.low is not None and param.high is not None)


def _value(param: Param, unit: float) -> Scalar:
    """Return the value at `unit` in (0, 1) of a parameter's range."""
    choices: tuple[Scalar, ...] = (False, True) if param.kind == "bool" else param.choices
    if choices:
        return choices[int(unit * len(choices))]
    assert param.low is not None
    assert param.high is not None
    number = param.low + unit * (param.high - param.low)
    return round(number) if param.kind == "int" else number


def _clipped(param: Param, value: float) -> float:
    low = value if param.low is None else max(value, param.low)
    return low if param.high is None else min(low, param.high)
