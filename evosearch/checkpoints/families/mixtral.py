"""Mixtral: Mistral's attention, and in every layer a router over gated MLPs (w1 gate, w3 up, w2 down)."""

from evosearch.checkpoints.families.moe import expert_count, experts, stacked
from evosearch.checkpoints.families.parts import (
    O_PROJ,
    PRE_NORMS,
    QKV,
    TIED,
    Part,
    decoder,
    rotary_tables,
    tensors,
)
from evosearch.checkpoints.families.registry import Config, Family, Placement, positive
from evosearch.recipe.shapes import ModelShape

MOE = "block_sparse_moe"  # on disk; `mlp` in the live model
PROJECTIONS = ("w1", "w3", "w2")  # gate, up, down


def shape(config: Config) -> ModelShape:
    """Every tensor of a Mixtral checkpoint.

    Raises:
        CheckpointError: the count of layers or experts, or a switch, is missing or absurd.
    """
    count = expert_count(config)

    def layer(index: int) -> list[Part]:
        return [
            *tensors(*PRE_NORMS, *QKV),
            *tensors(O_PROJ, writes=True),
            *tensors(f"{MOE}.gate"),  # the router (experts, hidden)
            *experts(MOE, count, PROJECTIONS),
        ]

    return decoder("MixtralForCausalLM", config, layer)


def placement(name: str, config: Config) -> Placement:
    """Where the live model has a tensor."""
    return stacked(name.replace(f".{MOE}.", ".mlp."), positive(config, "intermediate_size"), PROJECTIONS)


FAMILY = Family(("MixtralForCausalLM",), shape, tied=TIED, skipped=rotary_tables, placement=placement)
