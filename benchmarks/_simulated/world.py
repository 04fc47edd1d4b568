"""Search problem without models: real search space, recipes and ids, with score cards computed from recipes.

A card is a function of the recipe only. Its fitness decreases with the squared distance of the recipe's numbers from a
hidden optimum, and has noise over items.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evosearch.evaluation.statistics.gradient_steps import GradientSteps, gradient_steps
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import (
    GOLD,
    SPLITS,
    Estimate,
    GradientCard,
    ItemBatch,
    ItemSet,
    ScoreCard,
    TaskScore,
    Tokens,
)
from evosearch.recipe.dual import Dual
from evosearch.recipe.identity import recipe_id
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import MethodSpec, ModelShape, Param, Place, TensorSpec
from evosearch.search.protocols import Job
from evosearch.search.space.space import SearchSpace

LAYERS, MODELS = 28, 5  # weight and density of five models, for 28 layers and both ends: 300 dimensions
PARAMETERS = {
    "weight": Param(-1.0, 2.0, per_model=True),
    "density": Param(0.0, 1.0, default=1.0, per_model=True, strict=True, open_low=True),
}
METHODS = {
    name: MethodSpec(name, "", PARAMETERS, needs_base=True, differentiable=("weight",))
    for name in ("ties", "dare_ties")
}
WEIGHT, DENSITY = {"low": 0.0, "high": 1.5}, {"low": 0.1, "high": 1.0}


@dataclass(frozen=True)
class World:
    """One search problem.

    Attributes:
        choices: Allowed values of a weight, so that candidates repeat; empty for a range.
        items: Number of items of each of the two tasks.
        failing: One in `failing` candidates fails; 0 if none fails.
    """

    models: int = MODELS
    layers: int = LAYERS
    per: str | None = "layer"
    densities: bool = True
    methods: bool = False
    choices: tuple[float, ...] = ()
    items: int = 250
    failing: int = 0

    @cached_property
    def space(self) -> SearchSpace:
        """The search space of the template."""
        per = {"per": self.per} if self.per else {}
        weight = {"choices": list(self.choices)} if self.choices else WEIGHT
        parameters = {"weight": weight | per} | ({"density": DENSITY | per} if self.densities else {})
        template: dict[str, Any] = {
            "merge_method": {"choices": sorted(METHODS)} if self.methods else "ties",
            "base_model": "org/base",
            "models": [{"model": f"org/{index}", "parameters": dict(parameters)} for index in range(self.models)],
        }
        return SearchSpace.from_template(template, _shape(self.layers), METHODS)

    @cached_property
    def batch(self) -> ItemBatch:
        """The search split: two tasks."""
        return ItemBatch("search", tuple(_items(task, self.items) for task in ("first", "second")))

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Model → content digest."""
        names = ["org/base", *(f"org/{index}" for index in range(self.models))]
        return {name: hashlib.sha256(name.encode()).hexdigest() for name in names}

    @cached_property
    def suite(self) -> Suite:
        """The suite of the search split."""
        tasks = [
            {"task": items.lm_eval_task, "name": items.task, "metric": "acc", "chance": 0.0}
            for items in self.batch.sets
        ]
        documents = dict.fromkeys(SPLITS, self.items)
        data = {"name": "simulated", "tasks": tasks, "documents": documents, "fitness": "gold_logprob"}
        return Suite.model_validate(data)

    def steps(self, documents: int, shards: int, hold_back: float = 0.2) -> GradientSteps:
        """Minibatches of an optimizer that asks for gradients."""
        return gradient_steps(self.suite, self.batch, documents, shards, hold_back, seed=0)

    def identify(self, recipe: Recipe) -> str:
        """Id of a recipe."""
        return recipe_id(recipe, self.inputs)

    def fails(self, recipe: Recipe) -> bool:
        """Whether scoring this recipe fails."""
        return bool(self.failing) and int(self.identify(recipe), 16) % self.failing == 0

    def card(self, job: Job) -> ScoreCard:
        """Score card of a job."""
        numbers = _all_numbers(job.recipe)
        quality = -float(np.mean((np.array(numbers) - _hidden(len(numbers))) ** 2))
        rng = np.random.default_rng(int(hashlib.sha256(json.dumps(job.recipe.to_dict()).encode()).hexdigest()[:16], 16))
        columns, tasks = {}, {}
        for items in job.batch.sets:
            gold = 4.0 * quality - rng.exponential(1.0, len(items))
            right = (rng.random(len(items)) < math.exp(4.0 * quality)).astype(float)
            columns[items.task] = {"acc": right, GOLD: gold}
            spread = right.std() / math.sqrt(len(items))
            tasks[items.task] = TaskScore("acc", float(right.mean()), float(spread), len(items))
        golds = np.concatenate([columns[items.task][GOLD] for items in job.batch.sets])
        return ScoreCard(
            split=job.batch.split,
            batch_digest=job.batch.digest,
            columns=columns,
            set_digests={items.task: items.digest for items in job.batch.sets},
            tasks=tasks,
            score=100.0 * float(np.mean([task.value for task in tasks.values()])),
            fitness=Estimate(float(golds.mean()), float(golds.std() / math.sqrt(golds.size)), golds.size),
            tokens=Tokens(10_000, 300, 9_900, 60_000),
            seconds={"materialize": 1.0, "score": 59.0},
            reported={items.task: {"acc": tasks[items.task].value} for items in job.batch.sets},
            modes={"loglikelihood": "tree"},
        )

    def gradient_card(self, job: Job) -> GradientCard:
        """Gradient card of a job: that of 4 · quality, each item slightly different."""
        assert job.gradient is not None
        numbers = _all_numbers(job.recipe)
        misses = np.array(numbers) - _hidden(len(numbers))
        slopes = np.zeros(job.gradient)
        for number, miss in zip(numbers, misses, strict=True):
            for index, term in number.terms.items() if isinstance(number, Dual) else ():
                slopes[index] -= 8.0 * miss / len(numbers) * term
        weights = job.weights or {items.task: 0.5 / len(items) for items in job.batch.sets}
        of_items = {
            items.task: [1.0 + 0.3 * math.sin(int(one[:4], 16)) for one in items.doc_hashes] for items in job.batch.sets
        }
        share = sum(weights[task] * math.fsum(each) for task, each in of_items.items())
        quality = -4.0 * float(np.mean(misses**2))
        return GradientCard(
            split=job.batch.split,
            batch_digest=job.batch.digest,
            fitness=Estimate(share * quality, 0.1, len(job.batch)),
            gradient=tuple((share * slopes).tolist()),
            tasks={task: Estimate(quality, 0.1, len(each)) for task, each in of_items.items()},
            seconds={"materialize": 1.0, "score": 177.0},
            modes={"loglikelihood": "tree"},
        )


def _all_numbers(recipe: Recipe) -> list[float]:
    return [number for model in recipe.models for number in _numbers(model.parameters)]


def _hidden(count: int) -> NDArray[np.float64]:
    return np.asarray(0.3 + 0.4 * np.modf(np.arange(count) * 0.618)[0])


def _numbers(node: Any) -> Iterator[float]:
    if isinstance(node, Mapping):
        for key in sorted(node):
            yield from _numbers(node[key])
    elif isinstance(node, list | tuple):
        for item in node:
            yield from _numbers(item)
    elif isinstance(node, Dual):
        yield node
    elif isinstance(node, int | float):
        yield float(node)
    elif hasattr(node, "value"):  # a filtered parameter
        yield from _numbers(node.value)


def _items(task: str, count: int) -> ItemSet:
    hashes = tuple(hashlib.sha256(f"{task} {index}".encode()).hexdigest() for index in range(count))
    return ItemSet(task, f"evo_{task}", tuple(range(count)), hashes)


def _shape(layers: int) -> ModelShape:
    inside = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    tensors = [TensorSpec("model.embed_tokens.weight", Place.EMBEDDINGS)]
    for layer in range(layers):
        tensors += [TensorSpec(f"model.layers.{layer}.{name}.weight", Place.LAYER, layer) for name in inside]
    tensors += [TensorSpec("model.norm.weight", Place.FINAL_NORM), TensorSpec("lm_head.weight", Place.HEAD)]
    return ModelShape("LlamaForCausalLM", layers, tuple(tensors), False)
