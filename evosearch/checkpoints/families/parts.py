"""Building blocks of family files: tensor names of decoders, the two common layers, attention types.

A family file lists the tensors of one layer with `llama_layer`, `normed_after_layer` or `tensors`; `family` adds the
rest.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from evosearch.checkpoints.families.registry import (
    Config,
    Family,
    LogitRescaling,
    WithLayers,
    positive,
    with_layers,
)
from evosearch.errors import CheckpointError
from evosearch.recipe.shapes import ModelShape, Place, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

Part = tuple[str, bool]  # (name of a tensor within its layer, whether it writes to the residual stream)
Layer = Callable[[Config, int], Iterable[Part]]  # (config, index) → tensors of that layer

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
O_PROJ = "self_attn.o_proj"
QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
DOWN_PROJ = "mlp.down_proj"
PRE_NORMS = ("input_layernorm", "post_attention_layernorm")  # before attention, before the MLP
BEFORE_NORMS = ("input_layernorm", "pre_feedforward_layernorm")  # the same, in layers that also have norms after both
AFTER_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")  # after attention, after the MLP

OF_KINDS = ("layer_types", "mlp_only_layers")  # keys of config.json that list layer types
MAX_LAYERS = 1024  # the deepest merges of merges have hundreds
MAX_TENSORS = 300_000  # of a model; the largest mixtures of experts have 100,000
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Frame:
    """Names on disk of the tensors outside of the layers.

    Attributes:
        layers: Prefix of the layers' tensors, before the layer index.
        embeddings: Embedding tensors; a tied head repeats the first one.
        final_norm: Tensors of the final norm.
        head: Weight of the output head.
        head_bias: Bias of the output head, which is stored even if the weight is tied.
        tied: Whether the head repeats the embeddings by default.
        depth: Key of the number of layers in config.json.
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
    """Return the weight of each module, and its bias if `bias`."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return [(f"{module}.{kind}", writes) for module in modules for kind in kinds]


def gated_mlp(gate_up: Sequence[str] = GATE_UP, bias: bool = False) -> list[Part]:
    """Return the tensors of a gated MLP: h ← h + down_proj(act(gate) · up)."""
    return [*tensors(*gate_up, bias=bias), *tensors(DOWN_PROJ, bias=bias, writes=True)]


def llama_layer(
    qkv: Sequence[str] = QKV,
    qkv_bias: bool = False,
    o_bias: bool = False,
    qk_norms: Sequence[str] = (),
    mlp: Sequence[Part] | None = None,
) -> list[Part]:
    """Return the tensors of Llama's layer: one norm before attention and one before the MLP.

    Args:
        qkv: Modules of queries, keys and values.
        qkv_bias: Whether these have biases.
        o_bias: Whether the output projection has a bias.
        qk_norms: Norms of queries and keys.
        mlp: Tensors of the MLP; default: a gated MLP without biases.
    """
    return [
        *tensors(*PRE_NORMS),
        *tensors(*qkv, bias=qkv_bias),
        *tensors(*qk_norms),
        *tensors(O_PROJ, bias=o_bias, writes=True),  # h ← h + o_proj(attention)
        *(gated_mlp() if mlp is None else mlp),
    ]


def normed_after_layer(before: Sequence[str] = (), bias: bool = False, qk_norms: Sequence[str] = ()) -> list[Part]:
    """Return the tensors of a layer with a norm after attention and one after the MLP: h ← h + norm(o_proj(…)) · g.

    Only the gain g scales the residual update; the norm removes the scale of o_proj.

    Args:
        before: Norms before attention and MLP.
        bias: Whether the projections of attention have biases.
        qk_norms: Norms of queries and keys.
    """
    return [
        *tensors(*before),
        *tensors(*QKV, O_PROJ, bias=bias),
        *tensors(*qk_norms),
        *tensors(*GATE_UP, DOWN_PROJ),
        *tensors(*AFTER_NORMS, writes=True),
    ]


def family(architecture: str, layer: Layer, frame: Frame = FRAME, **more: Any) -> Family:
    """Return the family of an architecture.

    Args:
        architecture: Name in `config.json: architectures`.
        layer: Tensors of a layer.
        frame: Tensors outside of the layers.
        more: Further fields of `Family`.
    """
    usual: dict[str, Any] = {"tied": {frame.head: frame.embeddings[0]}, "skipped": rotary_tables}
    offset, biases = more.get("writer_offset", 0.0), more.get("mergekit_biases", True)
    shape = partial(_shape, architecture, layer, frame, writer_offset=offset, mergekit_biases=biases)
    return Family((architecture,), shape, **(usual | more))


def _shape(architecture: str, layer: Layer, frame: Frame, config: Config, **of_family: Any) -> ModelShape:
    """Return every tensor of a checkpoint.

    Raises:
        CheckpointError: A key of the config is missing or has an invalid value.
    """
    depth, tied = positive(config, frame.depth, MAX_LAYERS), option(config, "tie_word_embeddings", frame.tied)
    found = [TensorSpec(name, Place.EMBEDDINGS) for name in frame.embeddings]
    for index in range(depth):
        parts = layer(config, index)
        found += [TensorSpec(f"{frame.layers}.{index}.{name}", Place.LAYER, index, writes) for name, writes in parts]
        if len(found) > MAX_TENSORS:
            what = f"more than {MAX_TENSORS} tensors in its first {index + 1} layers"
            raise CheckpointError("config.json", what, next="Check the counts of layers and experts")
    found += [TensorSpec(name, Place.FINAL_NORM) for name in frame.final_norm]
    head = frame.head_bias if tied else (frame.head, *frame.head_bias)
    found += [TensorSpec(name, Place.HEAD) for name in head]
    kinds = any(isinstance(config.get(key), list) for key in OF_KINDS)
    size = _head_size(config)
    return ModelShape(architecture, depth, tuple(found), tied, kinds=kinds, head_size=size, **of_family)


def _head_size(config: Config) -> int:
    """Return the dimensions of an attention head; 0 if the config does not tell."""
    own, width, heads = (config.get(key) for key in ("head_dim", "hidden_size", "num_attention_heads"))
    if isinstance(own, int) and own > 0:
        return own
    if isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % heads == 0:
        return width // heads
    return 0


def option(config: Config, key: str, default: bool) -> bool:
    """Return a boolean of a config; `default` is transformers' value for a missing key, and null is false.

    Raises:
        CheckpointError: The value is not true, false or null.
    """
    value = config.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key}", f"got {value!r}", "true or false")
    return bool(value)


def rotary_tables(name: str) -> bool:
    """Return whether a tensor is a rotary table, which older exports store; the config determines it."""
    return name.endswith("rotary_emb.inv_freq")


def with_attention_of(kind: Callable[[Config, int], str]) -> WithLayers:
    """Return `with_layers` for a family whose attention type depends on the layer index.

    The types are written to `layer_types`; otherwise they would follow the new layer indices.

    Args:
        kind: (config, layer) → attention type, for configs without `layer_types`.
    """

    def of_one(config: Config, layer: int) -> str:
        known = config.get("layer_types")
        return str(known[layer]) if isinstance(known, list) else kind(config, layer)

    def changed(config: Config, layers: Sequence[int], sources: Sequence[Config] | None = None) -> dict[str, Any]:
        pairs = zip(sources or [config] * len(layers), layers, strict=True)
        return with_layers(config, layers, sources) | {"layer_types": [of_one(*pair) for pair in pairs]}

    return changed


def after_max_window_layers(config: Config, layer: int) -> str:
    """Return the attention type in Qwen2 and Qwen3: sliding windows, if used, from layer `max_window_layers` on."""
    slides = config.get("use_sliding_window") and config.get("sliding_window", 4096) is not None
    return SLIDING if slides and layer >= config.get("max_window_layers", 28) else FULL


def sliding_flag(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `has_sliding_layers`, which Qwen2 and Qwen3 derive from `layer_types` at construction."""
    return {"has_sliding_layers": SLIDING in (settings.get("layer_types") or ())}


def _capped(logits: "Tensor", cap: float) -> "Tensor":
    return (logits / cap).tanh() * cap  # cap · tanh(logits / cap)   (Gemma 2, arXiv:2408.00118, section 2)


SOFT_CAP = LogitRescaling("final_logit_softcapping", _capped)
