"""Kinds of YAML files: search spec, suite or recipe."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any


class Kind(Enum):
    """What a YAML file describes."""

    SPEC = "spec"
    SUITE = "suite"
    RECIPE = "recipe"


def kind_of(found: Sequence[Mapping[str, Any]]) -> Kind:
    """The kind of a file by the keys of its YAML documents: a suite has `tasks`, a spec has `recipe` or `stages`."""
    if len(found) == 1 and "tasks" in found[0] and not {"recipe", "merge_method", "models"} & found[0].keys():
        return Kind.SUITE
    return Kind.SPEC if any({"recipe", "stages"} & data.keys() for data in found) else Kind.RECIPE
