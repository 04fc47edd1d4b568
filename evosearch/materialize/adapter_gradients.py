"""Gradient of the factors of merged LoRA adapters, from activations: no weight has a gradient, and no change is dense.

A linear layer whose merged weight is W + Σ fᵢ sᵢBᵢAᵢ maps x to y. With g = dL/dy at T tokens,

    dL/dfᵢ = ⟨gᵀx, sᵢBᵢAᵢ⟩ = Σ_tokens (sᵢBᵢᵀ g) · (Aᵢ x)

The forward pass is that of the merged weights, as when a candidate is scored.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evosearch.checkpoints.overlay import Factors
from evosearch.materialize.plan import TensorOp
from evosearch.materialize.slopes import Slopes
from evosearch.merging.registry import method


@dataclass(frozen=True)
class AdaptedLayer:
    """A linear layer and the adapters of all parents that change it, as matrices of their R ranks in total."""

    op: TensorOp
    module: nn.Module
    a: Tensor  # (R, in)
    b: Tensor  # (out, R)
    owner: Tensor  # (R,) parent of each rank
    factors: Tensor  # (parents,) float64 leaf, whose gradient is dL/dfᵢ; its value does not matter

    @classmethod
    def of(cls, op: TensorOp, module: nn.Module, loads: Sequence[Factors | None]) -> "AdaptedLayer | None":
        """Return the layer, or None if the ranks are so large that the dense gradient costs less.

        Args:
            op: The operation of the layer's weight.
            module: The layer.
            loads: One per parent; None for a parent that does not change the weight.
        """
        weight: Any = module.weight
        pairs = [(index, *load()) for index, load in enumerate(loads) if load is not None]
        ranks = sum(len(a) for _, a, _ in pairs)
        if 2 * ranks * sum(weight.shape) > weight.numel():
            return None
        a = torch.cat([a for _, a, _ in pairs]).to(weight.device, torch.float32)
        b = torch.cat([b for _, _, b in pairs], dim=1).to(weight.device, torch.float32)
        owner = torch.cat([torch.full((len(a),), index) for index, a, _ in pairs]).to(weight.device)
        factors = torch.zeros(len(loads), dtype=torch.float64, device=weight.device, requires_grad=True)
        return cls(op, module, a, b, owner, factors)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the output unchanged; its gradient also gives that of the factors (a forward hook)."""
        ax = inputs[0].float() @ self.a.T  # (..., R)
        tapped: Tensor = _Tap.apply(self.factors, output, ax, self.b, self.owner)  # type: ignore[no-untyped-call]
        return tapped


@dataclass(frozen=True)
class AdapterGradients:
    """The adapted layers of a model, and the sums of the derivatives in their factors."""

    layers: Sequence[AdaptedLayer]
    slopes: Slopes

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect the gradients of the factors in the backward passes of forwards within."""
        hooks = [layer.module.register_forward_hook(layer) for layer in self.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self) -> None:
        """Add the derivatives in the parameters that the factors are made of."""
        for layer in self.layers:
            factors = method(layer.op.method).factors
            assert factors is not None
            if layer.factors.grad is not None:
                slopes = factors.chain(layer.op.parameters, layer.factors.grad.tolist())
                self.slopes.add(layer.op, slopes)


class _Tap(torch.autograd.Function):
    """The identity of a layer's output y, which collects dL/dfᵢ from dL/dy."""

    @staticmethod
    def forward(ctx: Any, factors: Tensor, y: Tensor, ax: Tensor, b: Tensor, owner: Tensor) -> Tensor:
        ctx.save_for_backward(ax, b, owner)
        ctx.count = len(factors)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        ax, b, owner = ctx.saved_tensors  # (..., R), (out, R), (R,)
        of_ranks = ((grad.float() @ b) * ax).flatten(0, -2).sum(dim=0, dtype=torch.float64)  # Σ (sBᵀg)ᵣ (Ax)ᵣ
        found = of_ranks.new_zeros(ctx.count).index_add_(0, owner, of_ranks)
        return found, grad, None, None, None
