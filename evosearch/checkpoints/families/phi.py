"""Phi-1, 1.5 and 2: attention and MLP in parallel behind one LayerNorm, biases everywhere, on the head too."""

from evosearch.checkpoints.families.parts import QKV, TIED, Frame, Part, decoder, option, rotary_tables, tensors
from evosearch.checkpoints.families.registry import Config, Family
from evosearch.recipe.shapes import ModelShape

FINAL_NORM = ("model.final_layernorm.weight", "model.final_layernorm.bias")


def shape(config: Config) -> ModelShape:
    """Every tensor of a Phi checkpoint.

    Raises:
        CheckpointError: the layer count or a switch is missing or absurd.
    """
    norms = ("self_attn.q_layernorm", "self_attn.k_layernorm") if option(config, "qk_layernorm", False) else ()

    def layer(index: int) -> list[Part]:
        return [
            *tensors("input_layernorm", *QKV, *norms, bias=True),
            *tensors("self_attn.dense", bias=True, writes=True),  # h ← h + dense(attention) + fc2(act(fc1))
            *tensors("mlp.fc1", bias=True),
            *tensors("mlp.fc2", bias=True, writes=True),
        ]

    return decoder("PhiForCausalLM", config, layer, Frame(final_norm=FINAL_NORM, head_bias=("lm_head.bias",)))


FAMILY = Family(("PhiForCausalLM",), shape, tied=TIED, skipped=rotary_tables)
