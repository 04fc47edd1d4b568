"""Building blocks of mixtures of experts: separate experts on disk, stacked experts in the live model."""

import re
from collections.abc import Sequence
from typing import Any

from evosearch.checkpoints.families.parts import Part, tensors
from evosearch.checkpoints.families.registry import Config, Placement, WithLayers, positive
from evosearch.errors import CheckpointError

EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight")
OF_LAYERS = ("num_hidden_layers", "layer_types", "mlp_only_layers", "decoder_sparse_step")
MAX_EXPERTS = 4096  # of a layer; the largest models have hundreds
QWEN = ("gate_proj", "up_proj", "down_proj")
ROUTER_TRAINING = ("output_router_logits", "router_aux_loss_coef")  # config keys that only training uses


def experts(module: str, count: int, projections: tuple[str, str, str] = QWEN) -> list[Part]:
    """Return the tensors of `count` experts: gate and up (size, hidden), down (hidden, size) to the residual stream."""
    gate, up, down = projections
    found: list[Part] = []
    for expert in (f"{module}.experts.{index}" for index in range(count)):
        found += tensors(f"{expert}.{gate}", f"{expert}.{up}")
        found += tensors(f"{expert}.{down}", writes=True)
    return found


def expert_count(config: Config) -> int:
    """Return the number of experts of a sparse layer; the key differs between families.

    Raises:
        CheckpointError: The key is missing or not a positive whole number.
    """
    return positive(config, "num_experts" if "num_experts" in config else "num_local_experts", MAX_EXPERTS)


def stacked(name: str, size: int, projections: tuple[str, str, str] = QWEN) -> Placement:
    """Return the slice of an expert in the stacked gate_up_proj (E, 2 · size, hidden) or down_proj (E, hidden, size).

    Args:
        name: Name of a tensor on disk; a tensor that is not an expert's has the same name in the live model.
        size: Number of rows of an expert's gate.
        projections: Names of gate, up and down on disk.
    """
    found = EXPERT.fullmatch(name)
    if found is None:
        return Placement(name)
    module, expert, projection = found[1], int(found[2]), projections.index(found[3])
    if projection == 2:
        return Placement(f"{module}.down_proj", (expert,))
    return Placement(f"{module}.gate_up_proj", (expert, slice(projection * size, (projection + 1) * size)))


def qwen_place(name: str, config: Config) -> Placement:
    """Return the position of a tensor in the live model of Qwen2-MoE or Qwen3-MoE."""
    return stacked(name, positive(config, "moe_intermediate_size"))


def sparse(config: Config, layer: int) -> bool:
    """Return whether a layer of Qwen2-MoE or Qwen3-MoE has experts instead of a single MLP.

    Raises:
        CheckpointError: `mlp_only_layers` is not a list of layer indices, or `decoder_sparse_step` is invalid.
    """
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(index) is int for index in dense):
        raise CheckpointError("config.json: mlp_only_layers", f"got {dense!r}", "A list of layer indices")
    step = positive(config, "decoder_sparse_step") if "decoder_sparse_step" in config else 1
    return layer not in dense and (layer + 1) % step == 0


def with_sparse(inner: WithLayers) -> WithLayers:
    """Wrap a `with_layers` so that it also lists the dense layers: each layer then keeps its experts or its MLP."""

    def with_layers(config: Config, layers: Sequence[int], sources: Sequence[Config] | None = None) -> dict[str, Any]:
        pairs = zip(sources or [config] * len(layers), layers, strict=True)
        dense = [index for index, pair in enumerate(pairs) if not sparse(*pair)]
        return inner(config, layers, sources) | {"mlp_only_layers": dense, "decoder_sparse_step": 1}

    return with_layers
