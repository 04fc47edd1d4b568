"""Llama: pre-norm decoder, RMSNorm, rotary positions, gated MLP; grouped queries, biases, tied embeddings optional."""

from evosearch.checkpoints.families.registry import Config, Family, positive
from evosearch.recipe.shapes import ModelShape, Place, TensorSpec

EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
WRITES_RESIDUAL = ("o_proj", "down_proj")  # h ← h + o_proj(attention), h ← h + down_proj(gate · up)


def _layer(index: int, attention_bias: bool, mlp_bias: bool) -> list[TensorSpec]:
    def tensor(name: str, writes: bool = False) -> TensorSpec:
        return TensorSpec(f"model.layers.{index}.{name}", Place.LAYER, index, writes)

    out = [tensor("input_layernorm.weight"), tensor("post_attention_layernorm.weight")]
    for module, projections, bias in (("self_attn", ATTENTION, attention_bias), ("mlp", MLP, mlp_bias)):
        for projection in projections:
            kinds = ("weight", "bias") if bias else ("weight",)
            out += [tensor(f"{module}.{projection}.{kind}", projection in WRITES_RESIDUAL) for kind in kinds]
    return out


def shape(config: Config) -> ModelShape:
    """Every tensor of a Llama checkpoint.

    Raises:
        CheckpointError: the layer count is missing or absurd.
    """
    depth = positive(config, "num_hidden_layers")
    tied = bool(config.get("tie_word_embeddings", False))
    biases = bool(config.get("attention_bias", False)), bool(config.get("mlp_bias", False))
    tensors = [TensorSpec(EMBEDDINGS, Place.EMBEDDINGS)]
    for index in range(depth):
        tensors += _layer(index, *biases)
    tensors.append(TensorSpec("model.norm.weight", Place.FINAL_NORM))
    if not tied:
        tensors.append(TensorSpec(HEAD, Place.HEAD))
    return ModelShape("LlamaForCausalLM", depth, tuple(tensors), tied)


def skipped(name: str) -> bool:
    """Rotary frequencies, which older exports stored beside the weights: they follow from the config."""
    return name.endswith("rotary_emb.inv_freq")


FAMILY = Family(("LlamaForCausalLM",), shape, tied={HEAD: EMBEDDINGS}, skipped=skipped)
