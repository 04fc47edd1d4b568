"""Mixtures of experts: each expert's tensors by themselves on disk, a layer's experts stacked in the live model."""

import re
from collections.abc import Sequence
from typing import Any

from evosearch.checkpoints.families.parts import Part, tensors
from evosearch.checkpoints.families.registry import Config, Placement, WithLayers, positive
from evosearch.errors import CheckpointError

EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight")
OF_LAYERS = ("num_hidden_layers", "layer_types", "mlp_only_layers", "decoder_sparse_step")
QWEN = ("gate_proj", "up_proj", "down_proj")


def experts(module: str, count: int, projections: tuple[str, str, str] = QWEN) -> list[Part]:
    """The tensors of `count` experts: gate and up (size, hidden), and down (hidden, size), which writes."""
    gate, up, down = projections
    found: list[Part] = []
    for expert in (f"{module}.experts.{index}" for index in range(count)):
        found += tensors(f"{expert}.{gate}", f"{expert}.{up}")
        found += tensors(f"{expert}.{down}", writes=True)
    return found


def expert_count(config: Config) -> int:
    """How many experts a sparse layer has; transformers writes the one key for the other in some families.

    Raises:
        CheckpointError: it is missing or absurd.
    """
    return positive(config, "num_experts" if "num_experts" in config else "num_local_experts")


def stacked(name: str, size: int, projections: tuple[str, str, str] = QWEN) -> Placement:
    """An expert's part of the stacked parameters: gate_up_proj (E, 2 · size, hidden) and down_proj (E, hidden, size).

    Args:
        name: a tensor on disk; one that is no expert's stands in the live model under its own name.
        size: rows of an expert's gate.
    """
    found = EXPERT.fullmatch(name)
    if found is None:
        return Placement(name)
    module, expert, projection = found[1], int(found[2]), projections.index(found[3])
    if projection == 2:
        return Placement(f"{module}.down_proj", (expert,))
    return Placement(f"{module}.gate_up_proj", (expert, slice(projection * size, (projection + 1) * size)))


def qwen_place(name: str, config: Config) -> Placement:
    """Where Qwen2-MoE and Qwen3-MoE have a tensor."""
    return stacked(name, positive(config, "moe_intermediate_size"))


def sparse(config: Config, layer: int) -> bool:
    """Whether a layer of Qwen2-MoE or Qwen3-MoE has experts; the others have one MLP.

    Raises:
        CheckpointError: `mlp_only_layers` is no list of layers.
    """
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(index) is int for index in dense):
        raise CheckpointError("config.json: mlp_only_layers", f"got {dense!r}", "A list of layer indices")
    step = positive(config, "decoder_sparse_step") if "decoder_sparse_step" in config else 1
    return layer not in dense and (layer + 1) % step == 0


def with_sparse(changed: WithLayers) -> WithLayers:
    """`with_layers` that keeps each layer's experts with it: which layers are dense is written out by position."""

    def with_layers(config: Config, layers: Sequence[int], sources: Sequence[Config] | None = None) -> dict[str, Any]:
        pairs = zip(sources or [config] * len(layers), layers, strict=True)
        dense = [index for index, pair in enumerate(pairs) if not sparse(*pair)]
        return changed(config, layers, sources) | {"mlp_only_layers": dense, "decoder_sparse_step": 1}

    return with_layers
