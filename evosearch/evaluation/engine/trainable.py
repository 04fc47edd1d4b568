"""Parameters that fine-tuning changes: all weights of a small model, LoRA factors of a larger one's linear layers.

A LoRA adds  s · B·(A·x)  to the output of a linear layer by a hook (Hu et al. 2021, eq. 3); the model's own weights
stay as they are. A is uniform in ±1/√in, B starts at zero. In both forms the trained numbers are float32, whatever type
the model runs in.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Form = Literal["full", "lora"]

SMALL = 20_000_000  # parameters; below this, all weights are trained
RANK = 16
SCALE = 2.0  # s, or α/r with α = 32


class Trainable(Protocol):
    """The trained parameters of a model."""

    form: Form
    parameters: list[Tensor]  # float32, with the gradients to step along after `collect`

    def collect(self) -> None:
        """Take over the gradients of a backward pass."""

    def publish(self) -> None:
        """Let the model run with the current values of `parameters`."""


@contextmanager
def trainable(model: Any, seed: int) -> Iterator[Trainable]:
    """Make a model trainable within this context, and restore it at the end, except for weights trained in full.

    Args:
        model: A transformers model in evaluation mode, whose parameters require no gradients.
        seed: Seed of a LoRA's initial values.
    """
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    linear = [] if small else _linear_layers(model)
    if not linear:
        with _whole(model) as whole:
            yield whole
        return
    generator = torch.Generator().manual_seed(seed)
    layers = [_Lora.on(module, generator) for module in linear]
    hooks = [module.register_forward_hook(layer) for module, layer in zip(linear, layers, strict=True)]
    try:
        yield _Factors([tensor for layer in layers for tensor in (layer.a, layer.b)])
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _whole(model: Any) -> Iterator["_Whole"]:
    live = list(model.parameters())
    try:
        for parameter in live:
            parameter.requires_grad_(True)
        yield _Whole(live)
    finally:
        for parameter in live:
            parameter.requires_grad_(False)
            parameter.grad = None


class _Whole:
    """All weights, as float32 copies that the model's own are set to after each step."""

    form: Form = "full"

    def __init__(self, live: list[nn.Parameter]) -> None:
        self._live = live
        self.parameters = [parameter.detach().to(torch.float32, copy=True) for parameter in live]

    def collect(self) -> None:
        for copy, parameter in zip(self.parameters, self._live, strict=True):
            copy.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    def publish(self) -> None:
        for copy, parameter in zip(self.parameters, self._live, strict=True):
            parameter.data.copy_(copy)


@dataclass
class _Factors:
    """The A and B of all linear layers, which hooks read directly."""

    parameters: list[Tensor]
    form: Form = "lora"

    def collect(self) -> None:
        """Do nothing: the factors have the gradients."""

    def publish(self) -> None:
        """Do nothing: the hooks use the factors."""


@dataclass
class _Lora:
    """The LoRA of one linear layer, as a forward hook."""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r)

    @classmethod
    def on(cls, module: Any, generator: torch.Generator) -> "_Lora":
        weight = module.weight
        inside, outside = _sizes(module)
        start = (2.0 * torch.rand((RANK, inside), generator=generator) - 1.0) / math.sqrt(inside)
        a, b = start.to(weight.device), torch.zeros((outside, RANK), device=weight.device)
        return cls(a.requires_grad_(), b.requires_grad_())

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        change = (inputs[0].float() @ self.a.T) @ self.b.T  # B·(A·x), (..., out)
        return output + (SCALE * change).to(output.dtype)


def _linear_layers(model: Any) -> list[nn.Module]:
    """All linear layers except the head, in order."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [one for one in model.modules() if isinstance(one, nn.Linear | Conv1D) and one is not head]


def _sizes(module: Any) -> tuple[int, int]:
    """Numbers of inputs and outputs; Conv1D stores its weight as (in, out)."""
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)
