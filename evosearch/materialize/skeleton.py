"""The live transformers model that candidates are written into, and where each tensor on disk stands in it."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from evosearch.checkpoints.families.registry import Family
from evosearch.checkpoints.quiet import no_bars
from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.errors import CheckpointError
from evosearch.materialize.forward import GENERATION, settings
from evosearch.materialize.layout import Output


def generation_folder(checkpoint: Checkpoint) -> Path:
    """Where the generation config of a checkpoint lies: beside its tokenizer, whose ids it then has, or its weights."""
    beside = checkpoint.tokenizer_folder
    return beside if (beside / GENERATION).is_file() else checkpoint.folder


def build(
    folder: Path,
    config: Mapping[str, Any],
    names: Iterable[str],
    load: Callable[[str], torch.Tensor],
    compute_dtype: torch.dtype,
) -> torch.nn.Module:
    """The transformers model of a checkpoint, its weights copied: it is written to, the mapped files must not be.

    Args:
        folder: where generation_config.json lies.
        config: config.json of the model to build.
        names: every tensor of it, as the family names them on disk.
        load: name → tensor.

    Raises:
        CheckpointError: transformers cannot build it.
    """
    # Under the names on disk: transformers makes of them what it would make of the exported files, stacked experts too.
    weights = {name: load(name).to(compute_dtype, copy=True) for name in names}
    kind = getattr(transformers, config["architectures"][0])
    attention = "sdpa" if kind._supports_sdpa else "eager"  # Gemma 2 caps its attention scores, which sdpa cannot
    made = settings(config, f"{folder}/{CONFIG}")
    try:
        with no_bars():
            model = kind.from_pretrained(
                None, config=made, state_dict=weights, dtype=compute_dtype, attn_implementation=attention
            )
        if (folder / GENERATION).is_file():  # what the export will carry, as its end tokens
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, StrictDataclassError) as error:
        reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        raise CheckpointError(str(folder), f"transformers cannot build this model: {reason}") from error
    built: torch.nn.Module = model.eval().requires_grad_(False)
    return built


def targets(
    model: torch.nn.Module, config: Mapping[str, Any], family: Family, names: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Name on disk → the live parameter, or the part of one, that it is written into.

    Tied embeddings are one parameter, written once.
    """
    live = dict(model.named_parameters())
    found: dict[str, torch.Tensor] = {}
    written: set[str] = set()
    for name in names:
        place = family.placement(name, config)
        found[name] = live[place.parameter].data[place.index] if place.index else live[place.parameter].data
        written.add(place.parameter)
    assert written == live.keys(), f"parameters without a tensor on disk: {sorted(live.keys() - written)}"
    return found


def path_of_layers(laid: Output, family: Family) -> str:
    """Where the live model has its list of layers, as `model.layers`."""
    name = next(tensor.name for tensor in laid.shape.tensors if tensor.layer == 0)
    return family.placement(name, laid.config).parameter.partition(".0.")[0]
