"""Mixtral: Mistral's attention, and a router over gated MLPs (w1 gate, w3 up, w2 down) in every layer."""

from evosearch.checkpoints.families.moe import ROUTER_TRAINING, expert_count, experts, stacked
from evosearch.checkpoints.families.parts import Part, family, llama_layer, tensors
from evosearch.checkpoints.families.registry import Config, Placement, positive

MOE = "block_sparse_moe"  # on disk; `mlp` in the live model
PROJECTIONS = ("w1", "w3", "w2")  # gate, up, down


def _layer(config: Config, index: int) -> list[Part]:
    router = tensors(f"{MOE}.gate")  # (experts, hidden)
    return llama_layer(mlp=[*router, *experts(MOE, expert_count(config), PROJECTIONS)])


def placement(name: str, config: Config) -> Placement:
    """Return the position of a tensor in the live model."""
    return stacked(name.replace(f".{MOE}.", ".mlp."), positive(config, "intermediate_size"), PROJECTIONS)


FAMILY = family(
    "MixtralForCausalLM", _layer, placement=placement, irrelevant_keys=(*ROUTER_TRAINING, "router_jitter_noise")
)
