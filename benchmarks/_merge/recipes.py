"""The recipes of the merge benchmark: one for each method, with per-layer weights."""

import random
from typing import Any

from evosearch.merging.registry import specs
from evosearch.recipe.schema import Recipe

# Method → its other parameters, shared by all models
METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {},
    "slerp": {},
    "ties": {"density": 0.4},
    "model_stock": {},
    "breadcrumbs": {"density": 0.4, "gamma": 0.01},
    "sce": {"select_topk": 0.4},
    "ram": {},
    "dare_linear": {"density": 0.4},
    "dare_ties": {"density": 0.4},
    "della": {"density": 0.4, "epsilon": 0.1},
}
RESCALED = ("dare_linear", "dare_ties", "della")  # by the density, which mergekit cannot
VARIED = ("density", "select_topk")  # numbers besides weights that differ between candidates


def recipe(method: str, base: str, parents: list[str], layers: int, seed: int, shared_form: bool = False) -> Recipe:
    """Return a candidate: every seed has other weights and densities, as the candidates of a search do.

    Args:
        method: Name of the merge method.
        base: The base.
        parents: The parents; as many are used as the method takes.
        layers: Number of layers, each with weights of its own.
        seed: Number of the candidate.
        shared_form: Rescale by the L1 norm where mergekit has no other rescaling.
    """
    rng, spec = random.Random(seed), specs()[method]
    others = {name: value + rng.uniform(-0.1, 0.1) * (name in VARIED) for name, value in METHODS[method].items()}
    if shared_form and method in RESCALED:
        others["rescale"] = "l1"
    listed: list[dict[str, Any]] = []
    for parent in parents[: spec.models[1]]:
        weights = {"weight": [rng.uniform(0.2, 0.6) for _ in range(layers)]} if "weight" in spec.parameters else {}
        own = {name: value for name, value in others.items() if spec.parameters[name].per_model}
        listed.append({"model": parent, "parameters": weights | own})
    shared = {name: value for name, value in others.items() if not spec.parameters[name].per_model}
    if "t" in spec.parameters:
        shared["t"] = [rng.uniform(0.2, 0.8) for _ in range(layers)]
    made: dict[str, Any] = {"merge_method": method, "models": listed, "parameters": shared}
    if spec.takes_base:
        made["base_model"] = base
    return Recipe.model_validate(made | {"dtype": "float32", "out_dtype": "bfloat16"})
