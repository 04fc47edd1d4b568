"""Models without weights, on torch's meta device: the parameters that transformers builds, and their sizes.

Building one takes a fraction of a second and no memory, whatever the sizes are.
"""

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from evosearch.checkpoints.families.registry import Family
from evosearch.checkpoints.tensor_files import TensorInfo
from evosearch.errors import CheckpointError
from evosearch.materialize.config_keys import blamed, deciding
from evosearch.materialize.forward import parsed, settings
from evosearch.untrusted import reason

Config = Mapping[str, Any]


def meta_model(config: Config, where: str) -> torch.nn.Module:
    """Build a model without weights.

    Args:
        config: Contents of config.json.
        where: The file, for errors.

    Raises:
        CheckpointError: transformers rejects the config, or cannot build its model. The error names the key if it is
            a single one.
    """
    settings(config, where)
    try:
        return _built(config)
    except Exception as error:  # whatever a model's constructor stumbles over
        key = blamed(config, _built)
        what = f"transformers cannot build this model: {reason(error)}"
        if key is None:
            raise CheckpointError(where, what, next="Fix the config") from error
        raise CheckpointError(f"{where}: {key}", f"got {config[key]!r}; {what}", next="Fix the config") from error


def check_weights(
    model: torch.nn.Module, config: Config, family: Family, tensors: Mapping[str, TensorInfo], where: str
) -> None:
    """Check that the weights of a checkpoint are all parameters of its model, each in its size.

    Args:
        model: The model of `config`, see `meta_model`.
        config: Contents of config.json.
        family: The model's family.
        tensors: Name on disk → header.
        where: The config's file, for errors.

    Raises:
        CheckpointError: A tensor has another size than the config requires, or one is missing or not a parameter.
    """
    live, filled = _tensors(model), dict.fromkeys(_tensors(model), 0)
    wrong: dict[str, list[int]] = {}  # parameter → its axes of another size
    named: dict[str, str] = {}  # wrong parameter → name on disk
    for name, info in tensors.items():
        place = family.placement(name, config)
        if place.parameter not in live:
            what = f"the model of this config has no parameter for the tensor '{name}'"
            raise CheckpointError(where, what, next="Check that it belongs to these weights")
        part = live[place.parameter][place.index] if place.index else live[place.parameter]
        if part.shape != info.shape:
            wrong.setdefault(place.parameter, _other_axes(place.index, tuple(part.shape), info.shape))
            named.setdefault(place.parameter, name)
        filled[place.parameter] += torch.Size(info.shape).numel()
    if wrong:
        raise _wrong_size(config, family, wrong, tensors, named, where)
    for parameter, count in filled.items():
        if count != live[parameter].numel():
            what = f"the model of this config has the parameter '{parameter}', which is not complete in these weights"
            raise CheckpointError(where, what, next="Check that it belongs to these weights")


def _wrong_size(
    config: Config,
    family: Family,
    wrong: Mapping[str, list[int]],
    tensors: Mapping[str, TensorInfo],
    named: Mapping[str, str],
    where: str,
) -> CheckpointError:
    """Return the error for parameters of another size, with the keys that decide it."""
    explicit = {key: value for key, value in config.items() if key not in family.of_layers}
    keys = deciding(config, wrong, _shapes, family.of_layers)
    if not keys:  # a default of transformers
        complete = settings(config, where).to_dict() | {"architectures": config["architectures"]}
        keys = deciding(complete, wrong, _shapes, (*family.of_layers, *explicit))
    parameter, name = next(iter(named.items()))
    size = " × ".join(map(str, tensors[name].shape))
    built = " × ".join(map(str, _shapes(config)[parameter]))
    given = ", ".join(f"{key} {config[key]!r}" if key in config else f"the default of {key}" for key in keys)
    what = f"'{name}' is {size}, but {built} by {given or 'this config'}"
    next_step = "Check that the config belongs to these weights"
    return CheckpointError(f"{where}: {', '.join(keys)}" if keys else where, what, next=next_step)


def _built(config: Config) -> torch.nn.Module:
    kind = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        model: torch.nn.Module = kind(parsed(config))
    return model


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and stored buffers of a model; tied ones under their first name only."""
    found: dict[str, torch.Tensor] = {}
    known: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in known:
            found[name] = tensor
            known.add(id(tensor))
    return found


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in _tensors(_built(config)).items()}


def _other_axes(index: tuple[int | slice, ...], built: tuple[int, ...], stored: tuple[int, ...]) -> list[int]:
    """Return the axes of a parameter in which a part of it, at `index`, has another size than the stored tensor."""
    picked = sum(isinstance(at, int) for at in index)  # axes that the part lacks; they come first
    if len(built) != len(stored):
        return list(range(picked, picked + len(built)))
    return [picked + axis for axis, sizes in enumerate(zip(built, stored, strict=True)) if sizes[0] != sizes[1]]
