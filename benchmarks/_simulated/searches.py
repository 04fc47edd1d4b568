"""Searches with the real controller and a real ledger, on any executor."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._simulated.world import World
from evosearch.evaluation.statistics.gradient_steps import GradientSteps
from evosearch.search.budget import Budget
from evosearch.search.controller import Controller
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.optimizer import Optimizer
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.protocols import Executor, Job
from evosearch.search.recorder import Recorder
from evosearch.search.space.dimensions import Genome

SEARCH = "schedule"
Make = Callable[[OptimizerConfig, World, Genome], Optimizer]
MEAN_S, SIGMA = 60.0, 1.0  # lognormal duration of an evaluation: one in a hundred takes more than six times the mean


def heavy_tailed(seed: int = 0, mean_s: float = MEAN_S, sigma: float = SIGMA) -> Callable[[Job], float]:
    """Job → duration in seconds, a function of seed and candidate:  exp(ln mean - σ²/2 + σ z)."""

    def duration(job: Job) -> float:
        candidate = job.id.split("@")[0]
        draw = np.random.default_rng([seed, int(candidate) if candidate.isdigit() else 2**31])
        return math.exp(math.log(mean_s) - sigma**2 / 2 + sigma * float(draw.standard_normal()))

    return duration


def search(
    folder: Path,
    world: World,
    executor: Executor,
    config: Mapping[str, Any],
    budget: Budget,
    make: Make | None = None,
    steps: GradientSteps | None = None,
) -> tuple[str, Recorder]:
    """Run or resume a search; return the reason why it stopped, and its recorder, whose ledger is still open.

    Args:
        config: The optimizer section of a spec.
        make: Factory of the optimizer; default: `create` of `optimizer_config.py`.
        steps: Minibatches of an optimizer that asks for gradients.
    """
    ledger = Ledger.open(f"sqlite:///{folder / 'ledger.db'}")
    for batch in (world.batch, *((steps.ranked, *steps.batches) if steps else ())):
        ledger.put_item_sets(batch)
    recorder = Recorder(ledger, SEARCH)
    chosen = OptimizerConfig(start="init", **config)
    return run_search(recorder, SEARCH, world, executor, chosen, budget, make, steps), recorder


def run_search(
    recorder: Recorder,
    name: str,
    world: World,
    executor: Executor,
    config: OptimizerConfig,
    budget: Budget,
    make: Make | None = None,
    steps: GradientSteps | None = None,
) -> str:
    """Record the start of a search and run it with the real controller; return the reason why it stopped."""
    recorder.record([("started", {"name": name, "spec": {}, "resumed": recorder.state.sessions > 0})])

    def optimizer(start: Genome) -> Optimizer:
        if make:
            return make(config, world, start)
        count, held_back = (steps.count, steps.held_back is not None) if steps else (1, False)
        return create(config, world.space.dimensions, start, minibatches=count, held_back=held_back)

    controller = Controller(
        recorder=recorder,
        executor=executor,
        space=world.space,
        batch=steps.ranked if steps else world.batch,
        baselines=(),
        identify=world.identify,
        make_optimizer=optimizer,
        minibatches=steps,
        start=config.start,
        budget=budget,
        asynchronous=config.asynchronous,
    )
    return controller.run()


def score(world: World) -> Callable[[Job], Any]:
    """Job → score card or gradient card, or None if the candidate fails."""

    def found(job: Job) -> Any:
        if world.fails(job.recipe):
            return None
        return world.card(job) if job.gradient is None else world.gradient_card(job)

    return found
