"""Phi-1, 1.5 and 2: attention and MLP in parallel after one LayerNorm, and biases everywhere, also on the head."""

from evosearch.checkpoints.families.parts import QKV, Frame, Part, family, option, tensors
from evosearch.checkpoints.families.registry import Config

FINAL_NORM = ("model.final_layernorm.weight", "model.final_layernorm.bias")


def _layer(config: Config, index: int) -> list[Part]:
    norms = ("self_attn.q_layernorm", "self_attn.k_layernorm") if option(config, "qk_layernorm", False) else ()
    return [
        *tensors("input_layernorm", *QKV, *norms, bias=True),
        *tensors("self_attn.dense", bias=True, writes=True),  # h ← h + dense(attention) + fc2(act(fc1))
        *tensors("mlp.fc1", bias=True),
        *tensors("mlp.fc2", bias=True, writes=True),
    ]


FAMILY = family("PhiForCausalLM", _layer, Frame(final_norm=FINAL_NORM, head_bias=("lm_head.bias",)))
