"""Contraction of gradients of live parameters with the derivative of the merge that made them.

The gradient of a parameter is contracted and freed as soon as a backward pass has made it, so that one is in memory at
a time. Gradients of small models are summed over the passes instead and contracted once.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from evosearch.checkpoints.families.registry import Placement
from evosearch.materialize.apply import arguments
from evosearch.materialize.plan import Input, TensorOp
from evosearch.materialize.slopes import Slopes
from evosearch.merging.registry import method

HELD = 1 << 30  # bytes of gradients that are summed over the passes


class TensorOf(Protocol):
    """Loader of the inputs of a merge."""

    def __call__(self, source: Input, device: torch.device) -> Tensor:
        """Return an input tensor on a device."""
        ...


@dataclass(frozen=True)
class WeightGradients:
    """The live parameters that a gradient needs, with the operations that write into each.

    Attributes:
        parts: Live parameter → its operations, and the slice of the parameter that each computes.
        tensor_of: Loads an input tensor of the merge, on a device.
        slopes: Sums of the derivatives.
    """

    parts: Mapping[nn.Parameter, Sequence[tuple[TensorOp, Placement]]]
    tensor_of: TensorOf
    slopes: Slopes

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Let the parameters require gradients, and contract these in or after the backward passes within."""
        exact = all(parameter.dtype in (torch.float32, torch.float64) for parameter in self.parts)
        hold = exact and sum(parameter.nbytes for parameter in self.parts) <= HELD
        hooks: list[Any] = []
        try:
            for parameter in self.parts:
                parameter.requires_grad_(True)
                if not hold:
                    hooks.append(parameter.register_post_accumulate_grad_hook(self._contract))  # type: ignore[no-untyped-call]
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in self.parts:
                parameter.requires_grad_(False)
                parameter.grad = None

    def finish(self) -> None:
        """Contract the gradients that were summed over the passes."""
        for parameter in self.parts:
            if parameter.grad is not None:
                self._contract(parameter)

    @torch.no_grad()
    def _contract(self, parameter: Tensor) -> None:
        grad, parameter.grad = parameter.grad, None
        assert grad is not None
        for op, place in self.parts[parameter]:  # type: ignore[index]
            base, parents, parameters = arguments(op, partial(self.tensor_of, device=grad.device))
            derivative = method(op.method).derivative
            assert derivative is not None
            own = grad[place.index] if place.index else grad
            self.slopes.add(op, derivative(base, parents, parameters, own.t() if op.transposed else own))
