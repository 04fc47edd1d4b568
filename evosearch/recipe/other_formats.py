"""Detection of documents for mergekit's other tools, which look like recipes."""

from collections.abc import Mapping
from typing import Any

from evosearch import documents
from evosearch.errors import InputError

# A key that only the tool's documents have → (what the document is, what to do instead).
OTHERS = {
    "experts": (
        "a mixture-of-experts document of mergekit-moe",
        "Recipes merge models of one architecture into the same architecture. Build the mixture with mergekit-moe; "
        "mixtures can then be merged like any other models",
    ),
    "genome": (
        "a search of mergekit-evolve",
        "Write it as a search spec: evosearch import FILE",
    ),
}


def refuse_other_formats(data: Mapping[str, Any], where: str, error: type[InputError]) -> None:
    """Check that a document is not for another tool.

    Raises:
        error: It is; the message names the tool.
    """
    for key, (what, next) in OTHERS.items():
        if key in data and "merge_method" not in data:
            raise error(documents.join(where, key), f"this is {what}, not a recipe", next=next)
