"""Random statistics of parents, for the laws of merge methods."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evosearch.merging.method_parameters import Parameters
from evosearch.recipe.shapes import FISHER, GRAM, INPUTS, PROPAGATED, MethodSpec


def with_statistics(spec: MethodSpec, parents: Sequence[Tensor], p: Parameters) -> Parameters:
    """The parameters with positive statistics of every parent, if the method needs some: a function of its origin."""
    if not spec.statistic:
        return p
    origins = (*filter(None, [p.base]), *p.parents) if spec.takes_base else p.parents
    found = [_random(spec.statistic, parents[0].shape, int(origin.content_sha256, 16)) for origin in origins]
    return replace(p, statistics=tuple(one for one in found if one is not None))


def _random(statistic: str, shape: torch.Size, seed: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(1000 + seed)
    if statistic == FISHER:
        return torch.rand(shape, generator=generator).square() + 0.05
    assert statistic in (GRAM, INPUTS, PROPAGATED), "a statistic without random values for the laws"
    if len(shape) != 2:
        return None
    if statistic == INPUTS:
        return torch.randn(9, shape[1], generator=generator)
    inputs = torch.randn(shape[1] + 7, shape[1], generator=generator)
    return inputs.t() @ inputs / len(inputs)
