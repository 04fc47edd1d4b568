"""GPT-NeoX and Pythia: LayerNorm, partial rotary positions, biases, attention and MLP in parallel or in sequence.

The head is `embed_out` on disk and `lm_head` in the live model.
"""

from evosearch.checkpoints.families.parts import Frame, Part, family, option, rotary_tables, tensors
from evosearch.checkpoints.families.registry import Config, Placement

FRAME = Frame(
    layers="gpt_neox.layers",
    embeddings=("gpt_neox.embed_in.weight",),
    final_norm=("gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias"),
    head="embed_out.weight",
)
LIVE_HEAD = "lm_head.weight"


def _layer(config: Config, index: int) -> list[Part]:
    bias = option(config, "attention_bias", True)
    return [
        *tensors("input_layernorm", "post_attention_layernorm", bias=True),
        *tensors("attention.query_key_value", bias=bias),
        *tensors("attention.dense", bias=bias, writes=True),
        *tensors("mlp.dense_h_to_4h", bias=True),
        *tensors("mlp.dense_4h_to_h", bias=True, writes=True),
    ]


def canonical(name: str) -> str:
    """Return the name on disk; some exports store the head under its live name."""
    return FRAME.head if name == LIVE_HEAD else name


def is_mask_or_table(name: str) -> bool:
    """Return whether a tensor is a causal mask or a rotary table, which older exports store."""
    return rotary_tables(name) or name.endswith((".attention.bias", ".attention.masked_bias"))


def placement(name: str, config: Config) -> Placement:
    """Return the position of a tensor in the live model."""
    return Placement(LIVE_HEAD if name == FRAME.head else name)


FAMILY = family("GPTNeoXForCausalLM", _layer, FRAME, skipped=is_mask_or_table, canonical=canonical, placement=placement)
