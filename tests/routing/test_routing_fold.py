"""Folding of scales into weights, and sharing between slots and stock layers."""

import pytest
import torch
from torch import nn

from evosearch.recipe.hops import Routing
from evosearch.routing.fold import Fold
from evosearch.routing.routed_model import RoutedModel

torch.set_num_threads(1)


def test_a_writing_weight_is_divided_in_float32():
    weight = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    folded = Fold(1.7)(weight)
    assert folded.dtype == torch.float32
    assert torch.equal(folded, weight.float() / 1.7)  # not rounded here; the output type is applied last


def test_a_gain_with_offset_one_is_folded_exactly():
    gain = torch.randn(16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(1 + Fold(0.6, 1.0)(gain), (1 + gain) / 0.6)


@pytest.mark.parametrize("fold", [Fold(), Fold(1.0, 1.0)])
def test_tensors_without_a_divisor_are_bit_identical(fold):
    weight = torch.randn(8, generator=torch.Generator().manual_seed(2)).half()
    assert fold(weight) is weight


def test_divisors_are_the_products_of_the_scales():
    hops = [{"model": "a", "layer": 0, "scale": scale} for scale in (2.0, 0.5, 3.0)]
    assert Routing.model_validate({"hops": hops}).divisors() == (2.0, 1.0, 3.0)


class Attention(nn.Module):
    def __init__(self, index: int, width: int) -> None:
        super().__init__()
        self.layer_idx = index
        self.q, self.o = nn.Linear(width, width), nn.Linear(width, width)
        self.register_buffer("table", torch.ones(3))


class Body(nn.Module):
    """The part of a transformers model that a route needs: a list of layers, and a config."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"attn": Attention(index, 4)}) for index in range(3))
        self.config = type("Config", (), {})()


OWNED = frozenset({"attn.o.weight", "attn.o.bias"})


@pytest.fixture
def routed() -> RoutedModel:
    return RoutedModel(Body().requires_grad_(False), "layers", [OWNED] * 3)


def layer(routed: RoutedModel, slot: int) -> Attention:
    found = routed.model.get_submodule(f"layers.{slot}.attn")
    assert isinstance(found, Attention)
    return found


def test_slots_share_all_parameters_except_their_own(routed):
    own = routed.follow([2, 0, 0], {"num_hidden_layers": 3})
    assert [layer(routed, slot).layer_idx for slot in range(3)] == [0, 1, 2]
    assert routed.model.config.num_hidden_layers == 3
    first, second = layer(routed, 1), layer(routed, 2)
    assert first is not second
    assert first.q.weight is second.q.weight
    assert first.table is second.table
    assert layer(routed, 0).q.weight is not first.q.weight
    for slot in range(3):
        assert own[slot].keys() == OWNED
        own[slot]["attn.o.weight"].fill_(float(slot))
    assert [float(layer(routed, slot).o.weight.mean()) for slot in range(3)] == [0.0, 1.0, 2.0]


def test_another_route_leaves_no_trace_of_the_one_before(routed):
    routed.follow([0, 1, 2, 1, 0], {"num_hidden_layers": 5})
    before = layer(routed, 0).o.weight
    routed.follow([1, 2], {"num_hidden_layers": 2})
    assert len(routed.model.get_submodule("layers")) == 2
    assert layer(routed, 0).o.weight is before  # the slot's own memory, for any layer
    assert {name for name, _ in routed.model.named_parameters()} == {
        f"layers.{slot}.attn.{name}.{kind}" for slot in (0, 1) for name in "qo" for kind in ("weight", "bias")
    }
    held = sum(parameter.numel() for parameter in routed.model.parameters())
    assert held == 2 * 2 * (16 + 4)  # two layers' queries, and the slots' own parameters


def test_the_stock_releases_the_parameters_that_slots_own():
    body = Body().requires_grad_(False)
    stock = list(body.layers)
    RoutedModel(body, "layers", [OWNED] * 3).follow([0], {})
    sizes = {name: parameter.numel() for name, parameter in stock[1].named_parameters()}
    assert sizes == {"attn.q.weight": 16, "attn.q.bias": 4, "attn.o.weight": 0, "attn.o.bias": 0}


def test_attributes_of_a_family_follow_the_route(routed):
    routed.model.has_sliding_layers = True
    routed.follow([0], {}, {"has_sliding_layers": False})
    assert routed.model.has_sliding_layers is False
