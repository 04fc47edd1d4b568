"""Scoring on a device: against float32 on a CPU, fused attention against plain, and when memory runs out."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._gpu.findings import hold
from benchmarks._gpu.world import World
from evosearch.evaluation.engine.loglikelihood import ScoreOptions
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.types import LOGLIKELIHOODS
from evosearch.execution.worker import Worker, load_tokenizer
from evosearch.materialize.in_memory import ResidentModel
from evosearch.search.protocols import Job, Outcome

EXACT = 1e-3  # nats of one continuation: float32 on both
ROUGH_MEAN, ROUGH_MOST = 0.03, 0.25  # nats: bfloat16 keeps 8 bits, and every layer rounds to them
LIMIT = 250 << 20  # bytes that are left for runs when memory is to run out
TOKENS = 600  # that the stand-in for a full device refuses to run at once


def parity(world: World, harness: Harness, device: torch.device) -> Mapping[str, Any]:
    """The same weights, rounded to bfloat16, run in float32 and in bfloat16: against float32 on the CPU."""
    recipe, checkpoints = world.recipe(dtype="bfloat16", weight=0.5), world.checkpoints()
    found = {}
    for name, place, dtype in (
        ("here", torch.device("cpu"), torch.float32),
        ("float32", device, torch.float32),
        ("bfloat16", device, torch.bfloat16),
    ):
        resident = ResidentModel(checkpoints, str(world.models[0]), place, dtype, recipe)
        resident.materialize(recipe)
        found[name] = _lls(world, harness, resident.model)
    exact = np.abs(found["float32"] - found["here"])
    rough = np.abs(found["bfloat16"] - found["here"])
    figures = {
        "continuations": len(exact),
        "float32_most": float(exact.max()),
        "bfloat16_mean": float(rough.mean()),
        "bfloat16_most": float(rough.max()),
    }
    hold(figures["float32_most"] <= EXACT, f"float32 is further than {EXACT} nats from the CPU's", **figures)
    hold(figures["bfloat16_mean"] <= ROUGH_MEAN, f"bfloat16 is further than {ROUGH_MEAN} nats on average", **figures)
    hold(figures["bfloat16_most"] <= ROUGH_MOST, f"bfloat16 is further than {ROUGH_MOST} nats somewhere", **figures)
    return figures


def attention(world: World, harness: Harness, device: torch.device) -> Mapping[str, Any]:
    """Torch's fused attention under our tree masks against its plain one, which writes every score to memory."""
    recipe = world.recipe(weight=0.5)
    figures: dict[str, float] = {}
    for name, dtype, limit in (("float32", torch.float32, EXACT), ("bfloat16", torch.bfloat16, ROUGH_MOST)):
        resident = ResidentModel(world.checkpoints(), str(world.models[0]), device, dtype, recipe)
        resident.materialize(recipe)
        scorer = _scorer(world, harness, resident.model)

        def score(model: Any = resident.model, scorer: Scorer = scorer) -> Any:
            return scorer.score(model, harness.batch("test")).columns["g_choice"][LOGLIKELIHOODS]

        fused, fused_seconds = _timed(score, device)
        with sdpa_kernel(SDPBackend.MATH):
            plain, plain_seconds = _timed(score, device)
        figures[f"{name}_most"] = float(np.abs(fused - plain).max())
        figures[f"{name}_plain_seconds_over_fused"] = plain_seconds / fused_seconds
        hold(figures[f"{name}_most"] <= limit, f"fused attention is further than {limit} nats from plain", **figures)
    return figures


def budget(world: World, harness: Harness, device: torch.device) -> Mapping[str, Any]:
    """What a worker finds that its device holds: scores at that are those of 2048 tokens at once."""
    worker = Worker(world.config(str(device)), harness=harness)
    job = Job("0@test", world.recipe(weight=0.5), harness.batch("test"))
    outcome, found = worker.run(job), worker.measured()
    hold(found["measured"] == (device.type == "cuda"), "a GPU is measured, a CPU is not", **found)
    hold(not outcome.retries, "what was measured did not fit", **found)
    plain = Worker(world.config(str(device), options=ScoreOptions(batch_tokens=2048)), harness=harness).run(job)
    return found | {"most": _most(outcome, plain, EXACT)}


def halving(world: World, harness: Harness, device: torch.device) -> Mapping[str, Any]:
    """Memory runs out at 8192 tokens a batch: less at once, the same job again, the scores of a small budget."""
    job = Job("0@test", world.recipe(weight=0.5), harness.batch("test"))
    config = world.config(str(device), options=ScoreOptions(batch_tokens=8192))
    worker = Worker(config, harness=harness)
    Worker(replace(config, options=ScoreOptions(batch_tokens=256)), harness=harness).run(job)  # loads what is late
    with _little(worker, device):
        outcome = worker.run(job)
    reasons = [fault.reason for fault in outcome.retries]
    hold(outcome.card is not None, f"no score: {outcome.failure and outcome.failure.reason}", reasons=reasons)
    hold(bool(reasons), "memory did not run out: nothing was checked")
    small = Worker(replace(config, options=worker.options), harness=harness).run(job)
    most = _most(outcome, small, 0.0 if device.type == "cpu" else EXACT)
    return {"tokens": worker.options.batch_tokens, "halvings": len(reasons), "most": most, "reasons": reasons}


@contextmanager
def _little(worker: Worker, device: torch.device) -> Iterator[None]:
    """A device with little memory left; on a CPU a stand-in for one, which refuses to run many tokens at once."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + LIMIT) / total, device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return

    def refuse(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].numel() > TOKENS:
            raise torch.OutOfMemoryError("a stand-in for a device that is full")

    hook = worker.resident.model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _most(one: Outcome, other: Outcome, limit: float) -> float:
    """How far two outcomes' log-likelihoods are apart."""
    assert one.card is not None, one.failure
    assert other.card is not None, other.failure
    mine, theirs = (outcome.card.columns["g_choice"][LOGLIKELIHOODS] for outcome in (one, other))
    most = float(np.abs(mine - theirs).max())
    hold(most <= limit, f"scores are further than {limit} nats from those of the smaller budget", most=most)
    return most


def _scorer(world: World, harness: Harness, model: Any) -> Scorer:
    tokenizer = load_tokenizer(world.models[0])
    return Scorer(world.suite, tokenizer, max_length_of(model.config, tokenizer), harness=harness)


def _lls(world: World, harness: Harness, model: Any) -> Any:
    """Log-likelihoods (documents × choices, nats)."""
    card = _scorer(world, harness, model).score(model, harness.batch("test"))
    return card.columns["g_choice"][LOGLIKELIHOODS]


def _timed(score: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """A score and its seconds, the second time it is made."""
    score()
    started = time.perf_counter()
    found = score()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return found, time.perf_counter() - started
