"""The families: which tensors a checkpoint of an architecture has, and where in the model each stands.

A family is one file in this folder with a module-level `FAMILY`. The file exists, the family exists.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from evosearch.checkpoints import families
from evosearch.errors import CheckpointError
from evosearch.recipe.shapes import ModelShape

Config = Mapping[str, Any]


def same_name(disk_name: str) -> str:
    """The family's disk names are its module names."""
    return disk_name


def no_extras(name: str) -> bool:
    """No tensor beyond the shape's is tolerated."""
    return False


@dataclass(frozen=True)
class Family:
    """What the other rooms must know of one model family.

    Attributes:
        architectures: the names it answers to in `config.json: architectures`.
        shape: config.json as a mapping → every tensor of a checkpoint, under its name on disk. Tensors that only some
            configurations have (biases, an untied head) are in it exactly when this configuration has them.
        tied: disk name → the tensor it repeats, for copies that some tools write of tied weights. A copy is read past
            when its bytes are the original's.
        skipped: says whether a tensor carries no weights of its own (a stored rotary table) and is read past.
        to_module_name: disk name → parameter name of the live transformers model.
    """

    architectures: tuple[str, ...]
    shape: Callable[[Config], ModelShape]
    tied: Mapping[str, str]
    skipped: Callable[[str], bool] = no_extras
    to_module_name: Callable[[str], str] = same_name


@cache
def all_families() -> Mapping[str, Family]:
    """Architecture name → family, for every file of this folder."""
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(families.__path__, families.__name__ + "."):
        family = getattr(importlib.import_module(module.name), "FAMILY", None)
        if family is not None:
            found |= dict.fromkeys(family.architectures, family)
    return found


def family_of(config: Config, where: str) -> Family:
    """The family of a config.json.

    Args:
        where: the file the config was read from, for the error.

    Raises:
        CheckpointError: it names no architecture, more than one, or one without a family file.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise CheckpointError(f"{where}: architectures", f"got {names!r}", "A list with one architecture name")
    family = all_families().get(names[0])
    if family is None:
        raise CheckpointError(
            f"{where}: architectures",
            f"'{names[0]}' is not supported",
            f"Supported: {', '.join(sorted(all_families()))}",
            "A family is one file in evosearch/checkpoints/families with a FAMILY: its architecture names, its tensors "
            "(name, place, layer, whether it writes to the residual stream), and which copies of tied weights it knows",
        )
    return family


def positive(config: Config, key: str) -> int:
    """A count from a config.

    Raises:
        CheckpointError: it is missing or no positive whole number.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"config.json: {key}", f"got {value!r}", "A positive whole number")
    return value
