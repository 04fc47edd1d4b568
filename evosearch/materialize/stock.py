"""The layers of several models, live once, in one transformers model: what routes through them are made of.

The model is built with every layer of every model, one after the other, as if that were a route. Where each tensor on
disk stands in it follows from its family, as for any other checkpoint.
"""

from collections.abc import Mapping

import torch

from evosearch.checkpoints.families.registry import Placement
from evosearch.checkpoints.reader import Checkpoint
from evosearch.materialize.apply import extremes
from evosearch.materialize.fit import check_fit
from evosearch.materialize.layout import Output, output
from evosearch.materialize.plan import Input
from evosearch.materialize.skeleton import build, generation_folder, path_of_layers, targets
from evosearch.materialize.spread import Spread, spread
from evosearch.recipe.hops import Hop, Routing
from evosearch.recipe.schema import Recipe
from evosearch.routing.routed_model import RoutedModel


class Stock:
    """All layers of some models, around them what the first one has.

    Args:
        checkpoints: reference → checkpoint, that of the model which routes begin in first.
        device, compute_dtype: where the weights live, and in which type.
        out_dtype: the type they are rounded to before.
        over: devices that the layers are spread over, `device` the first of them; layers of one depth go together.

    Attributes:
        routed: the live model, whose layers are taken from the stock.
        places: (model, layer) → index in the stock.
        owned: a tensor of a model → its place in the slots' own parameters: the name within the layer, and the part.
        shared: every other tensor of the models' layers, and the first one's around them → where it stands.
        damaged: those of `shared` that hold a value which is no finite number in `out_dtype`.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        device: torch.device,
        compute_dtype: torch.dtype,
        out_dtype: torch.dtype,
        over: Spread | None = None,
    ) -> None:
        self._checkpoints, self.out_dtype = checkpoints, out_dtype
        first = next(iter(checkpoints.values()))
        layers = [(name, layer) for name, model in checkpoints.items() for layer in range(model.shape.num_layers)]
        self.places = {layer: index for index, layer in enumerate(layers)}
        through = Recipe(routing=Routing(hops=tuple(Hop(model=name, layer=layer) for name, layer in layers)))
        laid = output(through, checkpoints)
        check_fit(through, checkpoints, laid)
        origins = laid.origins
        model = build(
            generation_folder(first), laid.config, origins, lambda name: self._rounded(origins[name]), compute_dtype
        )
        targets(model, laid.config, first.family, origins)  # every parameter has its tensors on disk
        places = {name: first.family.placement(name, laid.config) for name in laid.origins}
        owned = _owned(laid, places)
        path = path_of_layers(laid, first.family)
        within = {name: places[name].parameter.removeprefix(f"{path}.").partition(".")[2] for name in owned}
        self.routed = RoutedModel(model, path, _by_layer(laid, within))
        shared = {name: place for name, place in places.items() if name not in owned}
        if over is not None:
            by_depth = sorted(self.places.values(), key=lambda index: layers[index][1])
            slots = {index: compute_dtype.itemsize * numbers for index, numbers in enumerate(self.routed.owned_numbers)}
            spread(model, path, over, slots, by_depth)
        self._hold_once(model, {place.parameter: origins[name] for name, place in shared.items() if not place.index})
        if over is None:
            model.to(device)
        live = dict(model.named_parameters(remove_duplicate=False))
        self.owned = {origins[name]: (within[name], places[name].index) for name in owned}
        self.shared = {
            origins[name]: live[place.parameter].data[place.index] if place.index else live[place.parameter].data
            for name, place in shared.items()
        }
        self.damaged = self._damaged()

    def round_to(self, out_dtype: torch.dtype) -> None:
        """Have the shared weights as an export of this type has them."""
        if out_dtype == self.out_dtype:
            return
        self.out_dtype = out_dtype
        for source, target in self.shared.items():
            target.copy_(self._rounded(source))
        self.damaged = self._damaged()

    def _rounded(self, source: Input) -> torch.Tensor:
        return self._checkpoints[source.reference].load(source.tensor).to(self.out_dtype)

    def _hold_once(self, model: torch.nn.Module, sources: Mapping[str, Input]) -> None:
        """One parameter on a device for what a model takes from another, as an adapted one does from its base.

        Args:
            sources: live parameter → the tensor that it is.
        """
        live, held = dict(model.named_parameters()), dict[tuple[int, str, torch.device], torch.nn.Parameter]()
        for name, source in sources.items():
            module, _, own = name.rpartition(".")
            model.get_submodule(module)._parameters[own] = held.setdefault(
                (*self._origin(source), live[name].device), live[name]
            )

    def _origin(self, source: Input) -> tuple[int, str]:
        checkpoint = self._checkpoints[source.reference]
        while (under := checkpoint.shares(source.tensor)) is not None:
            checkpoint = under
        return id(checkpoint), source.tensor

    def _damaged(self) -> frozenset[Input]:
        found = [extremes(tensor) for tensor in self.shared.values()]
        bounds = torch.stack([each.to(found[0].device) for each in found]).isfinite().all(dim=1).tolist()
        return frozenset(source for source, finite in zip(self.shared, bounds, strict=True) if not finite)


def _owned(laid: Output, places: Mapping[str, Placement]) -> frozenset[str]:
    """The tensors of live parameters that write to the residual stream, or a part of which does."""
    writing = {places[tensor.name].parameter for tensor in laid.shape.tensors if tensor.writes_residual}
    return frozenset(name for name, place in places.items() if place.parameter in writing)


def _by_layer(laid: Output, within: Mapping[str, str]) -> list[frozenset[str]]:
    """For each layer of the stock, the parameters in `within`."""
    found: list[set[str]] = [set() for _ in range(laid.shape.num_layers)]
    for name, parameter in within.items():
        layer = laid.shape.by_name[name].layer
        assert layer is not None
        found[layer].add(parameter)
    return [frozenset(names) for names in found]
