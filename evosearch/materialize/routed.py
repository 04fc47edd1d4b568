"""Resident model for routes: every layer of every model is live once, and is arranged for each candidate."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.errors import CandidateError, RecipeError, did_you_mean
from evosearch.materialize.apply import apply, check_finite, extremes, not_finite, operations
from evosearch.materialize.forward import settings
from evosearch.materialize.layout import Layouts, Output
from evosearch.materialize.parents import hold
from evosearch.materialize.plan import Input, TensorOp, donor_of, output_dtype
from evosearch.materialize.spread import Spread
from evosearch.materialize.stock import Stock
from evosearch.recipe.hops import Routing
from evosearch.recipe.schema import Recipe


class ResidentRoute:
    """A live transformers model that follows one route after another; all routes start in the same model.

    After construction no module is built and no file is opened: a candidate costs the division of the weights that
    write to the residual stream. All other weights are in memory once, however often a route runs them.

    Args:
        checkpoints: Reference → checkpoint, for every model that the example names.
        example: Any route that starts in the same model as the routes to come and names all of their models.
        device: Device of the model. Weights to divide are kept there too if they fit, else in mapped host memory.
        compute_dtype: Type that the model runs in. Weights are rounded to the recipe's output type first.
        over: Devices to spread the layers over, starting with `device`; weights to divide are then in host memory.

    Attributes:
        model: The transformers model, in eval mode, with sdpa attention if its family supports it.

    Raises:
        CheckpointError: The checkpoints are incompatible, or transformers cannot build the first one's model.
        RecipeError: The models' layers cannot be reordered.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        example: Recipe,
        device: torch.device | str = "cpu",
        compute_dtype: torch.dtype = torch.float32,
        over: Spread | None = None,
    ) -> None:
        self.device = torch.device(device)
        self._checkpoints = {name: checkpoints[name] for name in example.references()}
        self._layouts = Layouts(self._checkpoints)
        self._shapes = {name: checkpoint.shape for name, checkpoint in self._checkpoints.items()}
        self._family = checkpoints[donor_of(example)].family
        self._stock = Stock(self._checkpoints, self.device, compute_dtype, output_dtype(example), over)
        owned = self._stock.owned
        home = self.device if over is None else torch.device("cpu")
        self._tensors = hold(self._checkpoints, home, lambda model, tensor: Input(model, tensor) in owned)
        self.model = self._stock.routed.model

    def takes(self, recipe: Recipe) -> bool:
        """Return whether a recipe is a route through these models that starts in the same model.

        Raises:
            RecipeError: The route names a layer that does not exist.
        """
        if recipe.routing is None or not set(recipe.references()) <= self._checkpoints.keys():
            return False
        known = (self._stock.owned, self._stock.shared)
        return all(any(source in some for some in known) for source in self._layouts.of(recipe).origins.values())

    @torch.no_grad()
    def materialize(self, recipe: Recipe) -> float:
        """Arrange and divide the layers for a route.

        Returns:
            Duration in seconds.

        Raises:
            CandidateError: A tensor is not finite after division and rounding. The model is then left in an undefined
                state, which the next candidate overwrites.
            RecipeError: The recipe is not a route, names a model that is not loaded or a layer that does not exist, or
                starts in another model.
        """
        started = time.perf_counter()
        routing = self._check(recipe)
        if not self.takes(recipe):
            what = f"the route starts in '{routing.hops[0].model}', but the loaded one starts in another model"
            raise RecipeError("recipe.routing.hops[0].model", what)
        out = self._layouts.of(recipe)
        self._stock.round_to(output_dtype(recipe))
        ops = operations(recipe, self._shapes, out.shape, self._tensor, str)
        self._check_shared(ops, recipe.output_dtype)
        picked = [self._stock.places[hop.model, hop.layer] for hop in routing.hops]
        per_layer = self._settings(out)
        slots = self._stock.routed.follow(picked, per_layer, self._family.layer_attributes(per_layer))
        divided = [op for op in ops if op.parents[0] in self._stock.owned]
        found = []
        for op in divided:
            name, index = self._stock.owned[op.parents[0]]
            slot = out.shape.by_name[op.tensor].layer
            assert slot is not None
            target = slots[slot][name][index or ...]
            folded = apply(op, partial(self._tensor, device=target.device), self._stock.out_dtype)
            found.append(extremes(folded).to(self.device, non_blocking=True))
            target.copy_(folded)
        check_finite(divided, found, recipe.output_dtype)
        return time.perf_counter() - started

    def _tensor(self, source: Input, device: torch.device | None = None) -> torch.Tensor:
        return self._tensors[source.reference][source.tensor].to(device or self.device, non_blocking=True)

    def _settings(self, out: Output) -> dict[str, Any]:
        """Return the per-layer settings of transformers' config object."""
        made = settings(out.config, CONFIG)
        keys = ("num_hidden_layers", *self._family.of_layers)
        return {key: getattr(made, key) for key in keys if hasattr(made, key)}

    def _check(self, recipe: Recipe) -> Routing:
        if recipe.routing is None:
            raise RecipeError("recipe", "not a route, but a route is loaded", "A recipe with routing.hops")
        for k, hop in enumerate(recipe.routing.hops):
            if hop.model not in self._checkpoints:
                where, near = f"recipe.routing.hops[{k}].model", did_you_mean(hop.model, self._checkpoints)
                loaded = f"Loaded models: {', '.join(self._shapes)}"
                raise RecipeError(where, f"'{hop.model}' is not loaded", loaded, near)
        return recipe.routing

    def _check_shared(self, ops: tuple[TensorOp, ...], dtype: str) -> None:
        for op in ops if self._stock.damaged else ():
            if op.parents[0] in self._stock.damaged:
                raise CandidateError("materialize", not_finite(op.tensor, dtype))
