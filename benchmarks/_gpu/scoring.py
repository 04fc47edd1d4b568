"""Scores on a device: compared with float32 on the CPU, fused compared with unfused attention, and out of memory."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._gpu.results import require
from benchmarks._gpu.world import World
from evosearch.checkpoints.tokenizers.loading import load_tokenizer
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.types import LOGLIKELIHOODS
from evosearch.execution.worker import Worker
from evosearch.materialize.in_memory import ResidentModel
from evosearch.search.protocols import Job, Outcome

EXACT = 1e-3  # nats per continuation, float32 on both
ROUGH_MEAN, ROUGH_MOST = 0.03, 0.25  # nats per continuation: every layer rounds to bfloat16's 8 bits
LIMIT = 250 << 20  # bytes available to forward passes in the out-of-memory check
TOKENS = 600  # batch size in tokens above which the CPU simulates out of memory


def parity(world: World, harness: Harness, device: torch.device) -> Mapping[str, Any]:
    """Compare scores of bfloat16 weights, computed in float32 and in bfloat16, with float32 on the CPU."""
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
    require(figures["float32_most"] <= EXACT, f"float32 differs from the CPU by more than {EXACT} nats", **figures)
    require(
        figures["bfloat16_mean"] <= ROUGH_MEAN,
        f"bfloat16 differs from the CPU by more than {ROUGH_MEAN} nats on average",
        **figures,
    )
    require(
        figures["bfloat16_most"] <= ROUGH_MOST,
        f"bfloat16 differs from the CPU by more than {ROUGH_MOST} nats",
        **figures,
    )
    return figures


def attention(world: World, harness: Harness, device: torch.device) -> Mapping[str, Any]:
    """Compare torch's fused attention under tree masks with its unfused kernel, and time both."""
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
            unfused, unfused_seconds = _timed(score, device)
        figures[f"{name}_most"] = float(np.abs(fused - unfused).max())
        figures[f"{name}_unfused_seconds_over_fused"] = unfused_seconds / fused_seconds
        require(
            figures[f"{name}_most"] <= limit,
            f"fused attention differs from unfused by more than {limit} nats",
            **figures,
        )
    return figures


def budget(world: World, harness: Harness, device: torch.device) -> Mapping[str, Any]:
    """Let a worker measure its token budget; its scores must equal those with 2048 tokens per batch."""
    worker = Worker(world.config(str(device)), harness=harness)
    job = Job("0@test", world.recipe(weight=0.5), harness.batch("test"))
    outcome, found = worker.run(job), worker.measured()
    require(
        found["measured"] == (device.type == "cuda"), "the budget must be measured on a GPU and not on a CPU", **found
    )
    require(not outcome.retries, "the measured budget ran out of memory", **found)
    plain = Worker(world.config(str(device), options=ScoreOptions(batch_tokens=2048)), harness=harness).run(job)
    return found | {"most": _most(outcome, plain, EXACT)}


def halving(world: World, harness: Harness, device: torch.device) -> Mapping[str, Any]:
    """Run out of memory at 8192 tokens per batch: the budget is halved, and the scores equal those of a small one."""
    job = Job("0@test", world.recipe(weight=0.5), harness.batch("test"))
    config = world.config(str(device), options=ScoreOptions(batch_tokens=8192))
    worker = Worker(config, harness=harness)
    Worker(replace(config, options=ScoreOptions(batch_tokens=256)), harness=harness).run(job)  # lazy loading
    with _little(worker, device):
        outcome = worker.run(job)
    reasons = [fault.reason for fault in outcome.retries]
    require(outcome.card is not None, f"the job failed: {outcome.failure and outcome.failure.reason}", reasons=reasons)
    require(bool(reasons), "memory did not run out, so nothing was checked")
    small = Worker(replace(config, options=worker.options), harness=harness).run(job)
    most = _most(outcome, small, 0.0 if device.type == "cpu" else EXACT)
    return {"tokens": worker.options.batch_tokens, "halvings": len(reasons), "most": most, "reasons": reasons}


@contextmanager
def _little(worker: Worker, device: torch.device) -> Iterator[None]:
    """Limit the device's memory; on a CPU, large batches raise a simulated error."""
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
            raise torch.OutOfMemoryError("simulated")

    base: Any = worker.resident.model.base_model
    hook = base.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _most(one: Outcome, other: Outcome, limit: float) -> float:
    """Largest difference between two outcomes' log-likelihoods, which must not exceed the limit."""
    assert one.card is not None, one.failure
    assert other.card is not None, other.failure
    mine, theirs = (card.columns["g_choice"][LOGLIKELIHOODS] for card in (one.card, other.card))
    most = float(np.abs(mine - theirs).max())
    require(most <= limit, f"scores differ from those of the smaller budget by more than {limit} nats", most=most)
    return most


def _scorer(world: World, harness: Harness, model: Any) -> Scorer:
    tokenizer = load_tokenizer(world.models[0])
    return Scorer(world.suite, tokenizer, max_length_of(model.config, tokenizer), harness=harness)


def _lls(world: World, harness: Harness, model: Any) -> Any:
    """Log-likelihoods in nats, (documents × choices)."""
    card = _scorer(world, harness, model).score(model, harness.batch("test"))
    return card.columns["g_choice"][LOGLIKELIHOODS]


def _timed(score: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """A score and its seconds, measured on the second run."""
    score()
    started = time.perf_counter()
    found = score()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return found, time.perf_counter() - started
