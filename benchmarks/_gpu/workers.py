"""Several workers on one GPU, and one model on several GPUs."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks._gpu.results import SkipError, require
from benchmarks._gpu.scoring import EXACT
from benchmarks._gpu.world import World
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest, lay_out, score_loglikelihoods
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.types import LOGLIKELIHOODS
from evosearch.execution.ray_pool import RayExecutor, RayOptions
from evosearch.execution.worker import Worker
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.spread import Spread
from evosearch.search.protocols import Job, Outcome

RECIPES, EACH = 3, 4  # number of recipes; minimum number of jobs per worker
TIMEOUT_S = 600.0
PLENTY = 1 << 40


def two_workers(world: World, harness: Harness, device: torch.device) -> Mapping[str, Any]:
    """Run two Ray actors with half a GPU each; both must score, with the same scores for the same recipe."""
    share = 0.5 if device.type == "cuda" else 0.0
    config = replace(world.config(device.type), gpu_share=share or 1.0)
    started = time.monotonic()
    recipes = [world.recipe(weight=0.2 * (1 + index)) for index in range(RECIPES)]
    pool = RayExecutor(Worker, config, RayOptions(count=2, cpus_per_worker=1, gpus_per_worker=share))
    done: list[Outcome] = []
    counts: Counter[str] = Counter()
    submitted = 0
    try:
        while len(counts) < 2 or min(counts.values()) < EACH:
            require(time.monotonic() - started < TIMEOUT_S, f"jobs per worker after {TIMEOUT_S:g} s: {dict(counts)}")
            for _ in range(max(4 - (submitted - len(done)), 0)):  # one running and one queued job per worker
                pool.submit(Job(f"{submitted}@test", recipes[submitted % RECIPES], harness.batch("test")))
                submitted += 1
            found = pool.wait(5.0)
            failures = [outcome.failure.reason for outcome in found if outcome.failure]
            require(not failures, f"a job failed: {failures[:1]}")
            done += found
            counts.update(outcome.worker for outcome in found)
    finally:
        pool.close()
    most = 0.0
    for recipe in recipes:
        values = [_lls(outcome) for outcome in done if outcome.job.recipe == recipe]
        most = max(most, *(float(np.abs(one - values[0]).max()) for one in values))
    require(most <= EXACT, f"scores of the same recipe differ by {most:g} nats", most=most)
    return {"jobs": len(done), "workers": len(counts), "most": most, "seconds": time.monotonic() - started}


def _lls(outcome: Outcome) -> Any:
    assert outcome.card is not None
    return outcome.card.columns["g_choice"][LOGLIKELIHOODS]


def two_cards(world: World, device: torch.device) -> Mapping[str, Any]:
    """Spread a model over two GPUs; its scores must equal those on one."""
    if device.type == "cuda":
        if torch.cuda.device_count() < 2:
            raise SkipError(f"two GPUs are needed, {torch.cuda.device_count()} found")
        over = Spread.over_cards(2)
    else:
        over = Spread((device, device), (PLENTY, PLENTY))
    recipe, checkpoints = world.recipe(weight=0.5), world.checkpoints()
    one = ResidentModel(checkpoints, str(world.models[0]), device, torch.float32, recipe)
    two = ResidentModel(checkpoints, str(world.models[0]), over.devices[0], torch.float32, recipe, over=over)
    draw = np.random.default_rng(3)
    queries = [LoglikelihoodRequest((4, 5, 6, *map(int, draw.integers(4, 14, 20))), (7,)) for _ in range(200)]
    found, seconds = [], []
    for resident in (one, two):
        resident.materialize(recipe)
        plan = lay_out(queries, ScoreOptions(batch_tokens=1024))
        score_loglikelihoods(resident.model, plan)
        started = time.perf_counter()
        found.append(score_loglikelihoods(resident.model, plan)[0])
        seconds.append(time.perf_counter() - started)
    most = float(np.abs(found[0] - found[1]).max())
    require(most <= EXACT, f"scores on two GPUs differ from those on one by {most:g} nats", most=most)
    return {"most": most, "seconds_on_two_over_one": seconds[1] / seconds[0]}
