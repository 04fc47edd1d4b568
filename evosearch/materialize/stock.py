"""Stock of layers for routes: all layers of several models, in memory once, in one transformers model.

The model is built from the route that runs every layer of every model in order. The family maps tensors on disk to
parameters, as for any other checkpoint.
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
    """All layers of some models, with the embeddings, final norm and head of the first one.

    Args:
        checkpoints: Reference → checkpoint; the first is the model that routes start in.
        device: Device of the weights.
        compute_dtype: Type of the weights.
        out_dtype: Type that weights are rounded to first.
        over: Devices to spread the layers over, starting with `device`; layers of equal depth share a device.

    Attributes:
        routed: The live model, whose layers are taken from the stock.
        places: (model, layer) → index in the stock.
        owned: Input tensor of which every slot has its own copy → (parameter within the layer, index into it).
        shared: Every other tensor of the layers, and those of the first model around them → live tensor.
        damaged: Tensors in `shared` that are not finite in `out_dtype`.
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
        out = output(through, checkpoints)
        check_fit(through, checkpoints, out)
        origins = out.origins
        model = build(
            generation_folder(first), out.config, origins, lambda name: self._rounded(origins[name]), compute_dtype
        )
        targets(model, out.config, first.family, origins)  # asserts that every parameter has a tensor on disk
        places = {name: first.family.placement(name, out.config) for name in origins}
        owned = _owned(out, places)
        path = path_of_layers(out, first.family)
        within = {name: places[name].parameter.removeprefix(f"{path}.").partition(".")[2] for name in owned}
        self.routed = RoutedModel(model, path, _by_layer(out, within))
        shared = {name: place for name, place in places.items() if name not in owned}
        if over is not None:
            by_depth = sorted(self.places.values(), key=lambda index: layers[index][1])
            slots = {index: compute_dtype.itemsize * numbers for index, numbers in enumerate(self.routed.owned_numbers)}
            spread(model, path, over, slots, by_depth)
        self._share(model, {place.parameter: origins[name] for name, place in shared.items() if not place.index})
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
        """Round the shared weights to another output type."""
        if out_dtype == self.out_dtype:
            return
        self.out_dtype = out_dtype
        for source, target in self.shared.items():
            target.copy_(self._rounded(source))
        self.damaged = self._damaged()

    def _rounded(self, source: Input) -> torch.Tensor:
        return self._checkpoints[source.reference].load(source.tensor).to(self.out_dtype)

    def _share(self, model: torch.nn.Module, sources: Mapping[str, Input]) -> None:
        """Use one parameter per device for tensors that models share, such as a base and its adapted models.

        Args:
            model: The live model.
            sources: Live parameter → its tensor.
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


def _owned(out: Output, places: Mapping[str, Placement]) -> frozenset[str]:
    """Return the tensors of parameters that write to the residual stream, in full or in part."""
    writing = {places[tensor.name].parameter for tensor in out.shape.tensors if tensor.writes_residual}
    return frozenset(name for name, place in places.items() if place.parameter in writing)


def _by_layer(out: Output, within: Mapping[str, str]) -> list[frozenset[str]]:
    """Return the parameters in `within` for each layer of the stock."""
    found: list[set[str]] = [set() for _ in range(out.shape.num_layers)]
    for name, parameter in within.items():
        layer = out.shape.by_name[name].layer
        assert layer is not None
        found[layer].add(parameter)
    return [frozenset(names) for names in found]
