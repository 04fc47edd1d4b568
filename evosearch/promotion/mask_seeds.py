"""Finalists with random masks (DARE, DELLA), merged once more with other seeds.

A merge of small models may differ by many points between seeds of its masks, and a finalist is the best of many draws.
So each finalist whose method draws masks is also scored on `validation` with the seeds that follow its own. These
scores are reported, and nothing is chosen by them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import MethodSpec
from evosearch.search.records import ReseededRecord

RESEEDED = "reseeded"  # prefix of the names of finalists with another seed
LARGEST = 2**63  # seeds are below it


@dataclass(frozen=True)
class MaskSeeds:
    """Which finalists are scored with other seeds.

    Attributes:
        methods: Names of the methods that draw masks.
        count: Number of seeds of a finalist, its own included.
    """

    methods: frozenset[str] = frozenset()
    count: int = 1

    def of(self, finalist: str, recipe: Mapping[str, Any]) -> list[ReseededRecord]:
        """Return a finalist's recipe with the seeds that follow its own; none if it draws no masks."""
        if recipe.get("merge_method") not in self.methods:
            return []
        own = Recipe.model_validate(recipe)
        seeds = [(own.seed + step) % LARGEST for step in range(1, self.count)]
        return [
            ReseededRecord(f"{RESEEDED}:{finalist}:{seed}", finalist, seed, {**recipe, "seed": seed}) for seed in seeds
        ]


def drawing(methods: Mapping[str, MethodSpec]) -> frozenset[str]:
    """Return the names of the methods that draw masks."""
    return frozenset(name for name, spec in methods.items() if spec.random)


def may_draw(template: Mapping[str, Any], methods: Collection[str]) -> bool:
    """Return whether a candidate of a recipe with holes may draw masks.

    Args:
        template: The recipe with holes.
        methods: Names of the methods that draw masks.
    """
    named = template.get("merge_method")
    choices = named.get("choices", ()) if isinstance(named, Mapping) else (named,)
    return any(choice in methods for choice in choices)
