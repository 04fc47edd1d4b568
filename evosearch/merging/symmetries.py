"""Permutations of a decoder's units that leave its function as it is: groups of tensor axes that are permuted together.

| group | axes |
|---|---|
| residual stream | columns of embeddings, head, q, k, v, gate, up; rows of o and down; gains of norms |
| hidden units of an MLP | rows of gate and up, columns of down |
| heads of an attention | rows of q, k, v and columns of o: key-value heads with their queries, and queries within |

Dimensions within a head stay, because rotary positions pair them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import Site

RESIDUAL = "residual"
Axes = tuple[str | None, ...]  # group of each dimension: RESIDUAL, or hidden.N, queries.N, keys.N of layer N

_OUTSIDE: Mapping[str, Axes] = {
    "model.embed_tokens.weight": (None, RESIDUAL),
    "model.norm.weight": (RESIDUAL,),
    "lm_head.weight": (None, RESIDUAL),
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
_MODULES = {  # module → groups of its outputs and inputs
    "self_attn.q_proj": ("queries", RESIDUAL),
    "self_attn.k_proj": ("keys", RESIDUAL),
    "self_attn.v_proj": ("keys", RESIDUAL),
    "self_attn.o_proj": (RESIDUAL, "queries"),
    "mlp.gate_proj": ("hidden", RESIDUAL),
    "mlp.up_proj": ("hidden", RESIDUAL),
    "mlp.down_proj": (RESIDUAL, "hidden"),
}
_WITHIN_HEADS = ("self_attn.q_norm", "self_attn.k_norm")


def axes_of(name: str, shape: Sequence[int], head_size: int) -> Axes | None:
    """Return the group of each dimension of a tensor; None if its symmetries are not known.

    Args:
        name: Name on disk.
        shape: Its shape.
        head_size: Dimensions of an attention head.
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    found = _LAYER.fullmatch(name)
    if found is None:
        return None
    layer, module, kind = found.groups()
    if module in _NORMS:
        return (RESIDUAL,)
    if module in _WITHIN_HEADS:
        return (None,) if tuple(shape) == (head_size,) else None
    if module not in _MODULES:
        return None
    groups = tuple(group if group == RESIDUAL else f"{group}.{layer}" for group in _MODULES[module])
    return groups if kind == "weight" else groups[:1]


def layer_of(name: str) -> int | None:
    """Return the layer of a tensor by its name on disk; None outside of the layers."""
    found = _LAYER.fullmatch(name)
    return None if found is None else int(found.group(1))


@dataclass(frozen=True)
class Permutation:
    """Unit i of a group is unit `indices[group][i]` of the model; groups that are not listed stay.

    Attributes:
        indices: Group → indices of single rows, by which heads move as a whole.
    """

    indices: Mapping[str, Tensor]

    def apply(self, tensor: Tensor, axes: Axes, leave: str | None = None) -> Tensor:
        """Return a tensor in the new order, except along the group `leave`."""
        for dim, group in enumerate(axes):
            if group is not None and group != leave and group in self.indices:
                tensor = tensor.index_select(dim, self.indices[group].to(tensor.device))
        return tensor

    def with_groups(self, indices: Mapping[str, Tensor]) -> "Permutation":
        """Return the permutation with other indices for some groups."""
        return Permutation({**self.indices, **indices})


Fact = tuple[Axes, Permutation]  # groups of a tensor's dimensions, and the permutation of its model


def of_heads(heads: Tensor, size: int) -> Tensor:
    """Return the indices of rows (heads · size,) for indices of heads (heads,)."""
    return (heads.unsqueeze(1) * size + torch.arange(size)).reshape(-1)


def groups_at(site: Site) -> Axes:
    """Return the group of each dimension of a site's tensor.

    Raises:
        CandidateError: The symmetries of the architecture are not known.
    """
    name, size = site.parameters.parents[0].tensor, site.parameters.head_size
    axes = axes_of(name, site.parents[0]().shape, size) if size else None
    if axes is None:
        known = "decoders with the tensors of Llama, Mistral, Qwen2, Qwen3 or Gemma"
        reason = f"the symmetries of '{name}' are not known, so its model cannot be reordered; supported: {known}"
        raise CandidateError("materialize", reason)
    return axes


def reordered(tensor: Tensor, p: Parameters) -> Tensor:
    """Return a tensor in the order of the survey's permutation; in its own order without a survey."""
    if p.survey is None:
        return tensor.to(p.dtype, copy=True)
    axes, permutation = p.survey
    moved: Tensor = permutation.apply(tensor, axes)
    return moved.to(p.dtype, copy=True)
