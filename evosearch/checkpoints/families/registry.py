"""The families: which tensors a checkpoint of an architecture has, and where in the model each stands.

A family is one file in this folder with a module-level `FAMILY`. The file exists, the family exists.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from evosearch.checkpoints import families
from evosearch.errors import CheckpointError
from evosearch.recipe.shapes import ModelShape

Config = Mapping[str, Any]

OTHER_INPUTS = ("vision_config", "audio_config", "encoder", "speech_config")  # keys of models that see or hear


@dataclass(frozen=True)
class Placement:
    """Where a tensor on disk stands in the live transformers model: a parameter, or a part of one.

    `index` picks the part, as `(3, slice(0, 64))` the upper half of the fourth expert in a stacked parameter.
    """

    parameter: str
    index: tuple[int | slice, ...] = ()


def same_name(name: str) -> str:
    """Tensors are stored under the names of the family's shape."""
    return name


def same_place(name: str, config: Config) -> Placement:
    """The names on disk are the live model's, and so are the tensors."""
    return Placement(name)


def with_layers(config: Config, layers: Sequence[int], sources: Sequence[Config] | None = None) -> dict[str, Any]:
    """The config of a model whose layer k is layer `layers[k]` of `sources[k]`, and without sources of this one."""
    changed = dict(config) | {"num_hidden_layers": len(layers)}
    kinds = [source.get("layer_types") for source in sources or [config] * len(layers)]
    if all(isinstance(known, list) for known in kinds):
        changed["layer_types"] = [known[layer] for known, layer in zip(kinds, layers, strict=True) if known]
    elif isinstance(changed.get("layer_types"), list):
        del changed["layer_types"]
    return changed


class WithLayers(Protocol):
    def __call__(
        self, config: Config, layers: Sequence[int], sources: Sequence[Config] | None = None
    ) -> dict[str, Any]: ...


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
        canonical: name as it is stored → name in `shape`, where older files leave out or add a prefix.
        placement: (name in `shape`, config) → where the live transformers model has it.
        with_layers: (config, layers, sources) → the config of a model with these layers of it, in this order; with
            sources: each layer of its own config, of which nothing but what speaks of single layers is taken.
        of_layers: the keys of config.json that `with_layers` sets: what speaks of single layers, or counts them.
        writer_offset: what the model adds to a stored weight that writes to the residual stream before it multiplies
            by it: 1 where those are gains of norms that multiply by 1 + weight.
        transposed: whether its layers' linear weights are stored (in, out), as transformers' Conv1D has them.
    """

    architectures: tuple[str, ...]
    shape: Callable[[Config], ModelShape]
    tied: Mapping[str, str]
    skipped: Callable[[str], bool] = no_extras
    canonical: Callable[[str], str] = same_name
    placement: Callable[[str, Config], Placement] = same_place
    with_layers: WithLayers = with_layers
    of_layers: tuple[str, ...] = ("num_hidden_layers", "layer_types")
    writer_offset: float = 0.0
    transposed: bool = False


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
    if family is None and not _decoder_only(config, names[0]):
        raise CheckpointError(
            f"{where}: architectures",
            f"'{names[0]}' is no decoder-only language model",
            f"Only decoder-only language models can be merged: {', '.join(sorted(all_families()))}",
            "Their names end in ForCausalLM or LMHeadModel, and they have no encoder, vision or audio part",
        )
    if family is None:
        raise CheckpointError(
            f"{where}: architectures",
            f"'{names[0]}' is not supported",
            f"Supported: {', '.join(sorted(all_families()))}",
            "A family is one file in evosearch/checkpoints/families with a FAMILY: its architecture names, its tensors "
            "(name, place, layer, whether it writes to the residual stream), and which copies of tied weights it knows",
        )
    return family


def _decoder_only(config: Config, architecture: str) -> bool:
    """Whether a model without a family file could have one: it continues text, and has no other input."""
    other = config.get("is_encoder_decoder") or any(key in config for key in OTHER_INPUTS)
    return not other and architecture.endswith(("ForCausalLM", "LMHeadModel"))


def positive(config: Config, key: str) -> int:
    """A count from a config.

    Raises:
        CheckpointError: it is missing or no positive whole number.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"config.json: {key}", f"got {value!r}", "A positive whole number")
    return value
