"""What families have in common: the names of a decoder's tensors, the two usual layers, kinds of attention.

No family by itself. A family file says what its layers hold, by `llama_layer`, `normed_after_layer` or from `tensors`,
and `family` puts the rest around them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from evosearch.checkpoints.families.registry import Config, Family, WithLayers, positive, with_layers
from evosearch.errors import CheckpointError
from evosearch.recipe.shapes import ModelShape, Place, TensorSpec

Part = tuple[str, bool]  # a tensor's name within its layer, and whether it writes to the residual stream
Layer = Callable[[Config, int], Iterable[Part]]  # (config, index) → that layer's tensors

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
O_PROJ = "self_attn.o_proj"
QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
DOWN_PROJ = "mlp.down_proj"
PRE_NORMS = ("input_layernorm", "post_attention_layernorm")  # before attention, before the MLP
BEFORE_NORMS = ("input_layernorm", "pre_feedforward_layernorm")  # the same, where there are norms after them, too
AFTER_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")  # after attention, after the MLP

OF_KINDS = ("layer_types", "mlp_only_layers")  # keys of config.json that tell single layers apart
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Frame:
    """What stands around the layers, by name on disk.

    Attributes:
        layers: what the layers' names start with, before the index.
        tied: whether the head repeats the embeddings where config.json does not say.
        head_bias: stays the head's own where the weight is tied.
        depth: the key of config.json with the number of layers.
    """

    layers: str = "model.layers"
    embeddings: tuple[str, ...] = ("model.embed_tokens.weight",)
    final_norm: tuple[str, ...] = ("model.norm.weight",)
    head: str = "lm_head.weight"
    head_bias: tuple[str, ...] = ()
    tied: bool = False
    depth: str = "num_hidden_layers"


FRAME = Frame()


def tensors(*modules: str, bias: bool = False, writes: bool = False) -> list[Part]:
    """The weight of each module, and its bias."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return [(f"{module}.{kind}", writes) for module in modules for kind in kinds]


def gated_mlp(gate_up: Sequence[str] = GATE_UP, bias: bool = False) -> list[Part]:
    """H ← h + down_proj(act(gate) · up)"""
    return [*tensors(*gate_up, bias=bias), *tensors(DOWN_PROJ, bias=bias, writes=True)]


def llama_layer(
    qkv: Sequence[str] = QKV,
    qkv_bias: bool = False,
    o_bias: bool = False,
    qk_norms: Sequence[str] = (),
    mlp: Sequence[Part] | None = None,
) -> list[Part]:
    """Llama's layer: a norm before attention and one before the MLP.

    Args:
        qk_norms: norms on queries and keys.
        mlp: what stands in place of a gated MLP without biases.
    """
    return [
        *tensors(*PRE_NORMS),
        *tensors(*qkv, bias=qkv_bias),
        *tensors(*qk_norms),
        *tensors(O_PROJ, bias=o_bias, writes=True),  # h ← h + o_proj(attention)
        *(gated_mlp() if mlp is None else mlp),
    ]


def normed_after_layer(before: Sequence[str] = (), bias: bool = False, qk_norms: Sequence[str] = ()) -> list[Part]:
    """A layer with a norm after attention and one after the MLP: h ← h + norm(o_proj(…)) · g.

    The gain g scales what is added to the residual stream; o_proj, whose scale the norm takes out again, does not.

    Args:
        before: norms before the two.
        qk_norms: norms on queries and keys.
    """
    return [
        *tensors(*before),
        *tensors(*QKV, O_PROJ, bias=bias),
        *tensors(*qk_norms),
        *tensors(*GATE_UP, DOWN_PROJ),
        *tensors(*AFTER_NORMS, writes=True),
    ]


def family(architecture: str, layer: Layer, frame: Frame = FRAME, writer_offset: float = 0.0, **more: Any) -> Family:
    """The family of an architecture: the layers as `layer` has them, the rest as `frame` has it.

    Args:
        writer_offset: see `Family`.
        more: what else is not as in most families, by `Family`'s names.
    """
    usual: dict[str, Any] = {"tied": {frame.head: frame.embeddings[0]}, "skipped": rotary_tables}
    shape = partial(_shape, architecture, layer, frame, writer_offset)
    return Family((architecture,), shape, writer_offset=writer_offset, **(usual | more))


def _shape(architecture: str, layer: Layer, frame: Frame, writer_offset: float, config: Config) -> ModelShape:
    """Every tensor of a checkpoint.

    Raises:
        CheckpointError: a count of the config is missing or absurd, or a switch is none.
    """
    depth, tied = positive(config, frame.depth), option(config, "tie_word_embeddings", frame.tied)
    found = [TensorSpec(name, Place.EMBEDDINGS) for name in frame.embeddings]
    for index in range(depth):
        parts = layer(config, index)
        found += [TensorSpec(f"{frame.layers}.{index}.{name}", Place.LAYER, index, writes) for name, writes in parts]
    found += [TensorSpec(name, Place.FINAL_NORM) for name in frame.final_norm]
    head = frame.head_bias if tied else (frame.head, *frame.head_bias)
    found += [TensorSpec(name, Place.HEAD) for name in head]
    kinds = any(isinstance(config.get(key), list) for key in OF_KINDS)
    return ModelShape(architecture, depth, tuple(found), tied, writer_offset, kinds)


def option(config: Config, key: str, default: bool) -> bool:
    """A switch of a config; `default` is what transformers takes where the key is missing, while null is no.

    Raises:
        CheckpointError: it is neither true, false nor null.
    """
    value = config.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key}", f"got {value!r}", "true or false")
    return bool(value)


def rotary_tables(name: str) -> bool:
    """Rotary frequencies, which older exports stored beside the weights: they follow from the config."""
    return name.endswith("rotary_emb.inv_freq")


def with_attention_of(kind: Callable[[Config, int], str]) -> WithLayers:
    """`with_layers` for a family whose layers differ in attention by position where config.json has no `layer_types`.

    The kinds are written out, as they would otherwise follow the layers' new positions.
    """

    def of_one(config: Config, layer: int) -> str:
        known = config.get("layer_types")
        return str(known[layer]) if isinstance(known, list) else kind(config, layer)

    def changed(config: Config, layers: Sequence[int], sources: Sequence[Config] | None = None) -> dict[str, Any]:
        pairs = zip(sources or [config] * len(layers), layers, strict=True)
        return with_layers(config, layers, sources) | {"layer_types": [of_one(*pair) for pair in pairs]}

    return changed


def after_max_window_layers(config: Config, layer: int) -> str:
    """Qwen2 and Qwen3: a sliding window, where one is used, in the layers from `max_window_layers` on."""
    slides = config.get("use_sliding_window") and config.get("sliding_window", 4096) is not None
    return SLIDING if slides and layer >= config.get("max_window_layers", 28) else FULL
