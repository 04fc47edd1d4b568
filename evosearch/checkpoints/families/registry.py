"""Registry of model families: the tensors of an architecture and how transformers runs it.

A family is a file in this folder with a module-level `FAMILY`, or an entry point of the group `evosearch.families`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from evosearch.checkpoints import families
from evosearch.errors import CheckpointError
from evosearch.plugins import load_entry_points
from evosearch.recipe.shapes import ModelShape
from evosearch.untrusted import quoted

if TYPE_CHECKING:
    from torch import Tensor

Config = Mapping[str, Any]

GROUP = "evosearch.families"  # of entry points
OTHER_INPUTS = ("vision_config", "audio_config", "encoder", "speech_config")  # config keys of multimodal models


@dataclass(frozen=True)
class Placement:
    """Position of a stored tensor in the live transformers model: a parameter, or a slice of one.

    `index` selects the slice: `(3, slice(0, 64))` is the upper half of the fourth expert in a stacked parameter.
    """

    parameter: str
    index: tuple[int | slice, ...] = ()


@dataclass(frozen=True)
class LogitRescaling:
    """Rescaling of a model's logits after the output head.

    Attributes:
        key: Key of config.json with the factor or cap; null means no rescaling.
        apply: (logits, value of the key) → the rescaled logits.
    """

    key: str
    apply: "Callable[[Tensor, float], Tensor]"


class WithLayers(Protocol):
    """Signature of `with_layers`."""

    def __call__(
        self, config: Config, layers: Sequence[int], sources: Sequence[Config] | None = None
    ) -> dict[str, Any]:
        """Return the config of a model with other layers."""
        ...


def no_extras(name: str) -> bool:
    """Accept no tensors beyond those of the shape."""
    return False


def same_name(name: str) -> str:
    """Return the stored name unchanged."""
    return name


def same_place(name: str, config: Config) -> Placement:
    """Return the parameter of the same name."""
    return Placement(name)


def with_layers(config: Config, layers: Sequence[int], sources: Sequence[Config] | None = None) -> dict[str, Any]:
    """Return the config of a model whose layer k is layer `layers[k]` of `sources[k]`; default source: `config`."""
    changed = dict(config) | {"num_hidden_layers": len(layers)}
    kinds = [source.get("layer_types") for source in sources or [config] * len(layers)]
    if all(isinstance(known, list) for known in kinds):
        changed["layer_types"] = [known[layer] for known, layer in zip(kinds, layers, strict=True) if known]
    elif isinstance(changed.get("layer_types"), list):
        del changed["layer_types"]
    return changed


def no_attributes(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an empty mapping: the model derives no attributes from per-layer settings."""
    return {}


@dataclass(frozen=True)
class Family:
    """Everything that evosearch knows about a model family.

    Attributes:
        architectures: Names in `config.json: architectures`.
        shape: config.json → every tensor of a checkpoint, under its name on disk. Optional tensors (biases, an untied
            head) are listed exactly when this config has them.
        tied: Name on disk → original, for copies of tied weights that some tools write. A copy is ignored if it equals
            the original.
        skipped: Whether a stored tensor is not a weight (such as a rotary table) and is ignored.
        canonical: Stored name → name in `shape`, for older files that omit or add a prefix.
        placement: (name in `shape`, config) → its position in the live transformers model.
        with_layers: (config, layers, sources) → the config of a model with these layers, in this order. `sources` has
            the config of each layer's own model, from which only per-layer settings are taken.
        of_layers: Per-layer keys of config.json, which `with_layers` sets, and the key of the number of layers.
        layer_attributes: Per-layer settings → attributes that transformers derives from them when it builds the model.
        writer_offset: Constant that the model adds to a stored weight that writes to the residual stream before
            multiplying by it: 1 for norms that multiply by 1 + weight.
        transposed: Whether linear weights of layers are stored as (in, out), as by transformers' Conv1D.
        logits: Rescaling of the logits; None if the output of the head is final.
        recomputes_cache: Whether transformers' `generate` recomputes keys and values once a sequence exceeds
            `original_max_position_embeddings`, where rotary positions change.
        irrelevant_keys: Keys of config.json that do not affect a forward pass, in addition to those of all families.
        mergekit_biases: Whether mergekit's definition of the family includes its biases.
    """

    architectures: tuple[str, ...]
    shape: Callable[[Config], ModelShape]
    tied: Mapping[str, str]
    skipped: Callable[[str], bool] = no_extras
    canonical: Callable[[str], str] = same_name
    placement: Callable[[str, Config], Placement] = same_place
    with_layers: WithLayers = with_layers
    of_layers: tuple[str, ...] = ("num_hidden_layers", "layer_types")
    layer_attributes: Callable[[Mapping[str, Any]], Mapping[str, Any]] = no_attributes
    writer_offset: float = 0.0
    transposed: bool = False
    logits: LogitRescaling | None = None
    recomputes_cache: bool = False
    irrelevant_keys: tuple[str, ...] = ()
    mergekit_biases: bool = True


@cache
def all_families() -> Mapping[str, Family]:
    """Return architecture name → family, for every file of this folder and every entry point.

    Raises:
        CheckpointError: An entry point cannot be imported, is not a Family, or names an architecture that is taken.
    """
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(families.__path__, families.__name__ + "."):
        family = getattr(importlib.import_module(module.name), "FAMILY", None)
        if family is not None:
            found |= dict.fromkeys(family.architectures, family)
    sources = dict.fromkeys(found, "evosearch")
    for source, family in load_entry_points(GROUP, CheckpointError):
        if not isinstance(family, Family):
            raise CheckpointError(source, f"got a {type(family).__name__}", "A Family of evosearch.checkpoints")
        for name in family.architectures:
            if name in found:
                raise CheckpointError(source, f"{name} is already registered by {sources[name]}", next="Uninstall one")
            found[name], sources[name] = family, source
    return found


def family_of(config: Config, where: str) -> Family:
    """Return the family of a config.json.

    Args:
        config: Content of config.json.
        where: Path of the file, for the error.

    Raises:
        CheckpointError: The config does not have exactly one architecture, or it is not registered.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise CheckpointError(f"{where}: architectures", f"got {names!r}", "A list with one architecture name")
    family = all_families().get(names[0])
    if family is None and not _decoder_only(config, names[0]):
        raise CheckpointError(
            f"{where}: architectures",
            f"'{names[0]}' is not a decoder-only language model",
            f"Only decoder-only language models can be merged: {', '.join(sorted(all_families()))}",
            "Their names end in ForCausalLM or LMHeadModel, and they have no encoder, vision or audio part",
        )
    if family is None:
        raise CheckpointError(
            f"{where}: architectures",
            f"'{names[0]}' is not supported",
            f"Supported: {', '.join(sorted(all_families()))}",
            f"To add it, write a file in evosearch/checkpoints/families or an entry point of the group {GROUP}: a "
            "Family with its architecture names, its tensors (name, place, layer, whether it writes to the residual "
            "stream) and its copies of tied weights",
        )
    return family


def family_of_model(model: object) -> Family | None:
    """Return the family of a live transformers model; None for an unregistered class or one outside of transformers."""
    kind = type(model)
    return all_families().get(kind.__name__) if kind.__module__.startswith("transformers.") else None


def _decoder_only(config: Config, architecture: str) -> bool:
    """Return whether an unregistered architecture could be added: it generates text, and its only input is text."""
    other = config.get("is_encoder_decoder") or any(key in config for key in OTHER_INPUTS)
    return not other and architecture.endswith(("ForCausalLM", "LMHeadModel"))


def positive(config: Config, key: str, limit: int | None = None) -> int:
    """Return a positive integer from a config.

    Args:
        config: Content of config.json.
        key: The key.
        limit: The largest valid value, for counts of which something is listed.

    Raises:
        CheckpointError: The key is missing, not a positive whole number, or larger than `limit`.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (limit is not None and value > limit):
        allowed = "A positive whole number" + (f" up to {limit}" if limit is not None else "")
        raise CheckpointError(f"config.json: {key}", f"got {quoted(value)}", allowed)
    return value
