"""The resident model of routes: each layer of each model is live once, and one route after another is followed."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.errors import CandidateError, RecipeError, did_you_mean
from evosearch.materialize.apply import apply, extremes, not_finite, operations, refuse_infinite
from evosearch.materialize.forward import settings
from evosearch.materialize.layout import Output, output
from evosearch.materialize.parents import hold
from evosearch.materialize.plan import Input, TensorOp, donor_of, output_dtype
from evosearch.materialize.spread import Spread
from evosearch.materialize.stock import Stock
from evosearch.recipe.hops import Routing
from evosearch.recipe.schema import Recipe


class ResidentRoute:
    """A live transformers model that becomes one route after another through some models, all beginning in one.

    After construction nothing is built and no file is opened: a candidate costs a division of the weights that write
    to the residual stream. All other weights are held once, however often a route comes by.

    Args:
        checkpoints: reference → checkpoint, for every model that the example names.
        example: any route through the models of those to come, from the one they begin in; it may be a senseless one.
        device: where the model lives. What is divided is kept there too where it fits, else in mapped host memory.
        compute_dtype: the type the model runs in. Weights are rounded to the recipe's output type first.
        over: devices that the layers are spread over, `device` the first of them; what is divided is then on the host.

    Attributes:
        model: the transformers model, in eval mode, with sdpa attention where its family has it.

    Raises:
        CheckpointError: the checkpoints do not fit each other, or transformers cannot build the first one's model.
        RecipeError: the models' layers cannot change places.
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
        self._shapes = {name: checkpoint.shape for name, checkpoint in self._checkpoints.items()}
        self._of_layers = ("num_hidden_layers", *checkpoints[donor_of(example)].family.of_layers)
        self._stock = Stock(self._checkpoints, self.device, compute_dtype, output_dtype(example), over)
        owned = self._stock.owned
        home = self.device if over is None else torch.device("cpu")
        self._tensors = hold(self._checkpoints, home, lambda model, tensor: Input(model, tensor) in owned)
        self.model = self._stock.routed.model

    def holds(self, laid: Output) -> bool:
        """Whether an output (`layout.output`) is one of a route through these models that begins in the same one."""
        known = (self._stock.owned, self._stock.shared)
        return all(any(source in part for part in known) for source in laid.origins.values())

    @torch.no_grad()
    def materialize(self, recipe: Recipe, laid: Output | None = None) -> float:
        """Make the model that of a route.

        Args:
            laid: the recipe's output, where it is known that this model holds it.

        Returns:
            Seconds it took.

        Raises:
            CandidateError: a tensor is not finite once it is divided and rounded. The model then holds no candidate,
                and the next one overwrites it.
            RecipeError: the recipe is no route, names a model that is not loaded or a layer that is not there, or
                begins in another model.
        """
        started = time.perf_counter()
        routing = self._check(recipe)
        if laid is None:
            laid = output(recipe, self._checkpoints)
            if not self.holds(laid):
                what = f"the route begins in '{routing.hops[0].model}', the loaded ones in another model"
                raise RecipeError("recipe.routing.hops[0].model", what)
        self._stock.round_to(output_dtype(recipe))
        ops = operations(recipe, self._shapes, laid.shape, self._tensor, str)
        self._check_shared(ops, recipe.output_dtype)
        picked = [self._stock.places[hop.model, hop.layer] for hop in routing.hops]
        slots = self._stock.routed.follow(picked, self._settings(laid))
        divided = [op for op in ops if op.parents[0] in self._stock.owned]
        found = []
        for op in divided:
            name, part = self._stock.owned[op.parents[0]]
            slot = laid.shape.by_name[op.tensor].layer
            assert slot is not None
            target = slots[slot][name][part or ...]
            folded = apply(op, partial(self._tensor, device=target.device), self._stock.out_dtype)
            found.append(extremes(folded).to(self.device, non_blocking=True))
            target.copy_(folded)
        refuse_infinite(divided, found, recipe.output_dtype)
        return time.perf_counter() - started

    def _tensor(self, source: Input, device: torch.device | None = None) -> torch.Tensor:
        return self._tensors[source.reference][source.tensor].to(device or self.device, non_blocking=True)

    def _settings(self, laid: Output) -> dict[str, Any]:
        """What transformers makes of the config's keys on single layers."""
        made = settings(laid.config, CONFIG)
        return {key: getattr(made, key) for key in self._of_layers if hasattr(made, key)}

    def _check(self, recipe: Recipe) -> Routing:
        if recipe.routing is None:
            raise RecipeError("recipe", "it is no route, and the loaded model is one", "routing with hops")
        for k, hop in enumerate(recipe.routing.hops):
            if hop.model not in self._checkpoints:
                where, near = f"recipe.routing.hops[{k}].model", did_you_mean(hop.model, self._checkpoints)
                raise RecipeError(where, f"'{hop.model}' is not among the loaded models", ", ".join(self._shapes), near)
        return recipe.routing

    def _check_shared(self, ops: tuple[TensorOp, ...], dtype: str) -> None:
        for op in ops if self._stock.damaged else ():
            if op.parents[0] in self._stock.damaged:
                raise CandidateError("materialize", not_finite(op.tensor, dtype))
