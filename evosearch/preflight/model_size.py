"""Size of a model from its config alone: no weights are fetched or read.

transformers builds the model on the meta device, which gives the shapes of its parameters.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from evosearch.checkpoints.families.registry import family_of
from evosearch.checkpoints.model_files import read_json
from evosearch.checkpoints.tensor_files import CONFIG
from evosearch.errors import CheckpointError
from evosearch.materialize.forward import settings
from evosearch.untrusted import boundary

FLOAT32 = 4  # bytes
_EXPERTS = re.compile(r"\.experts\.")


@dataclass(frozen=True)
class ModelSize:
    """Parameter counts of a model.

    Attributes:
        parameters: All parameters; tied ones once.
        body: Parameters of the layers that one token is multiplied with, of experts only the active ones.
        head: Parameters of the output head, tied or not.
        layers: Number of layers.
        width: Attention heads × size of a head.
        cached: Numbers in the KV cache per token, over all layers.
        vocabulary: Size of the output vocabulary.
        largest: Parameters of the largest tensor.
    """

    parameters: int
    body: int
    head: int
    layers: int
    width: int
    cached: int
    vocabulary: int
    largest: int = 0

    @property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied with; embeddings are looked up."""
        return self.body + self.head

    def with_layers(self, layers: int) -> "ModelSize":
        """The same model with another number of layers."""
        more = (layers - self.layers) / self.layers
        grown = round(more * self.body)
        return replace(
            self,
            parameters=self.parameters + grown,
            body=self.body + grown,
            layers=layers,
            cached=round(self.cached * layers / self.layers),
        )


def size_of(folder: Path) -> ModelSize:
    """Size of the model that the config.json in `folder` describes.

    Raises:
        CheckpointError: There is none, or transformers rejects it.
    """
    model = _built(folder)
    with boundary(f"{folder}/{CONFIG}", CheckpointError, "the size of this model is undefined"):
        return _size(model)


def _size(model: Any) -> ModelSize:
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    parameters = sum(weight.numel() for weight in model.parameters())
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    tied = embeddings is head
    body = parameters - embeddings.numel() - (0 if tied else head.numel())
    experts = sum(weight.numel() for name, weight in model.named_parameters() if _EXPERTS.search(name))
    return ModelSize(
        parameters=parameters,
        body=body - round(experts * (1 - _active_share(config))),
        head=head.numel(),
        layers=config.num_hidden_layers,
        width=heads * size,
        cached=2 * groups * size * config.num_hidden_layers,
        vocabulary=head.shape[0],
        largest=max(weight.numel() for weight in model.parameters()),
    )


def _active_share(config: Any) -> float:
    """Fraction of a layer's experts that a token is routed to."""
    count = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 1
    return min(1.0, getattr(config, "num_experts_per_tok", count) / count)


def linear(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Module → weight matrix on the meta device, for every module that has one."""
    for name, weight in _built(folder).named_parameters():
        if weight.ndim == 2 and name.endswith(".weight"):
            yield name.removesuffix(".weight"), weight


def residual_writers(folder: Path) -> int:
    """Number of parameters that write to the residual stream."""
    config = read_json(folder / CONFIG)
    family = family_of(config, f"{folder}/{CONFIG}")
    writing = (tensor.name for tensor in family.shape(config).tensors if tensor.writes_residual)
    parameters = dict(_built(folder).named_parameters())
    return sum(parameters[name].numel() for name in {family.placement(name, config).parameter for name in writing})


def itemsize(folder: Path) -> int:
    """Bytes per stored parameter, by the config's dtype; float32 without one."""
    config = read_json(folder / CONFIG)
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return int(getattr(getattr(torch, named, torch.float32), "itemsize", FLOAT32))


@cache
def _built(folder: Path) -> Any:
    """The transformers model on the meta device."""
    where, config = f"{folder}/{CONFIG}", read_json(folder / CONFIG)
    family_of(config, where).shape(config)  # bounds the counts of layers and experts
    made = settings(config, where)
    kind = getattr(transformers, made.architectures[0])
    with boundary(where, CheckpointError, "transformers cannot build this model"), torch.device("meta"):
        return kind(made)
