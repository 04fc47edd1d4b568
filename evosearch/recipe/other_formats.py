"""Documents that look like recipes and are for mergekit's other tools: known by their keys, refused by name."""

from collections.abc import Mapping
from typing import Any

from evosearch import documents
from evosearch.errors import InputError

# What the tool is, and what to do here instead, by a key that only its documents have.
OTHERS = {
    "experts": (
        "a mixture-of-experts document of mergekit-moe",
        "Recipes merge models of one architecture into one of the same; make the mixture with that tool, and merge "
        "mixtures as any other models",
    ),
    "genome": (
        "a search of mergekit-evolve",
        "Write it as a search spec: genome becomes recipe, with holes where its numbers were, and tasks become a suite",
    ),
}


def refuse_other_formats(data: Mapping[str, Any], where: str, error: type[InputError]) -> None:
    """Raises:
    error: the document is another tool's.
    """
    for key, (what, next) in OTHERS.items():
        if key in data and "merge_method" not in data:
            raise error(documents.join(where, key), f"this is {what}, and no recipe", next=next)
