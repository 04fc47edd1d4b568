"""Construction of live transformers models, and the mapping from tensors on disk to their parameters."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from evosearch.checkpoints.families.registry import Family
from evosearch.checkpoints.model_files import GENERATION
from evosearch.checkpoints.quiet import no_bars
from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.errors import CheckpointError
from evosearch.materialize.forward import generation_config, settings
from evosearch.materialize.layout import Output
from evosearch.untrusted import boundary, present


def generation_folder(checkpoint: Checkpoint) -> Path:
    """Return the folder of a checkpoint's generation config: its tokenizer's if it has one, else its weights'."""
    first = checkpoint.tokenizer_folder
    return first if present(first / GENERATION) else checkpoint.folder


def build(
    folder: Path,
    config: Mapping[str, Any],
    names: Iterable[str],
    load: Callable[[str], torch.Tensor],
    compute_dtype: torch.dtype,
) -> torch.nn.Module:
    """Build a transformers model from a copy of the weights: candidates overwrite it, and files are memory-mapped.

    Args:
        folder: Folder of generation_config.json.
        config: Contents of config.json.
        names: Every tensor of the model, by its name on disk.
        load: Loads a tensor by its name on disk.
        compute_dtype: Type of the model.

    Raises:
        CheckpointError: transformers cannot build the model.
    """
    # Names on disk: transformers then converts them (such as stacked experts) as it would for exported files.
    weights = {name: load(name).to(compute_dtype, copy=True) for name in names}
    kind = getattr(transformers, config["architectures"][0])
    attention = "sdpa" if kind._supports_sdpa else "eager"  # Gemma 2 caps its attention scores, which sdpa cannot
    made, generation = settings(config, f"{folder}/{CONFIG}"), generation_config(folder)
    with boundary(str(folder), CheckpointError, "transformers cannot build this model"), no_bars():
        model = kind.from_pretrained(
            None, config=made, state_dict=weights, dtype=compute_dtype, attn_implementation=attention
        )
    if generation is not None:  # exports have it too
        model.generation_config = generation
    built: torch.nn.Module = model.eval().requires_grad_(False)
    return built


def targets(
    model: torch.nn.Module, config: Mapping[str, Any], family: Family, names: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Map every name on disk to the live tensor that it is written into: a parameter or a part of one.

    Tied embeddings are one parameter and are written once.
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


def path_of_layers(out: Output, family: Family) -> str:
    """Return the path of the live model's list of layers, such as `model.layers`."""
    name = next(tensor.name for tensor in out.shape.tensors if tensor.layer == 0)
    return family.placement(name, out.config).parameter.partition(".0.")[0]
