"""Activation matching: the permutation of a model whose units correlate best with another's on a sample.

    max_P Σ_units corr(x₀, P(x))        for each group alone, by a linear assignment

Source: Li et al. 2015 (arXiv:1511.07543); Ainsworth et al. 2023 (arXiv:2209.04836). Activations are the
inputs of linear layers: those of `down` are the hidden units of an MLP, those of `o` the heads, and those of all others
the residual stream, normed. A key-value head has the correlation of its query heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evosearch.merging.symmetries import RESIDUAL, Axes, Permutation, of_heads
from evosearch.merging.weight_matching import assigned, by_head, heads_of


@dataclass(frozen=True)
class Inputs:
    """The inputs of one linear layer (out, in) in both models.

    Attributes:
        axes: Groups of its weight's dimensions.
        reference: Loads x₀ (n, in).
        model: Loads x (n, in), of the same n tokens.
    """

    axes: Axes
    reference: Callable[[], Tensor]
    model: Callable[[], Tensor]


def match(inputs: Sequence[Inputs], head_size: int, keys: int) -> Permutation:
    """Return the permutation of the model that brings its activations close to the reference's.

    Args:
        inputs: Every linear layer of both models.
        head_size: Dimensions of an attention head.
        keys: Number of key-value heads.
    """
    sums: dict[str, Tensor] = {}
    for one in inputs:
        group = one.axes[1]
        if group is not None:
            own = correlation(one.reference(), one.model())
            sums[group] = sums[group] + own if group in sums else own
    found: dict[str, Tensor] = {}
    for group, total in sums.items():
        kind, _, layer = group.partition(".")
        if kind != "queries":
            found[group] = assigned(total)
            continue
        chosen, within = heads_of(by_head(total, head_size), torch.zeros(keys, keys, dtype=torch.float64))
        found |= {f"keys.{layer}": of_heads(chosen, head_size), group: of_heads(within, head_size)}
    assert RESIDUAL in found, "a model without linear layers"
    return Permutation(found)


def correlation(reference: Tensor, model: Tensor) -> Tensor:
    """Return the correlations of all units (in, in), float64; 0 for units that do not vary."""
    one, other = (_standardized(x) for x in (reference, model))
    return (one.t() @ other).double().cpu() / len(one)


def _standardized(x: Tensor) -> Tensor:
    centred = x.float() - x.float().mean(dim=0)
    deviation = centred.square().mean(dim=0).sqrt()
    return centred / torch.where(deviation > 0, deviation, 1.0)
