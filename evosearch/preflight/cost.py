"""Cost estimate of a search: GPU time, memory and disk, from configs, tokenizers and documents alone.

| phase of one evaluation | estimate |
|---|---|
| arithmetic | 2 FLOPs per multiplied parameter and token, and 4 · width per attended position and layer |
| reading prompts and choices | that arithmetic at a fraction of the device's peak |
| generating answers | the same, or reading weights and KV cache once per step if that is slower; no early stopping |
| merging | reading every model and writing the result, in device memory or over the link to the host |

Python overhead, kernel launches and data transfers in between are left out: a dry run measures them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from evosearch.checkpoints.disk_space import GIB
from evosearch.checkpoints.families.registry import family_of
from evosearch.checkpoints.model_files import read_json
from evosearch.checkpoints.tensor_files import CONFIG
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.types import SPLITS
from evosearch.materialize.parents import HEADROOM
from evosearch.merging.registry import specs
from evosearch.preflight.asks import Asks, answers_of, asks_of
from evosearch.preflight.counts import counts_of, planned_baselines
from evosearch.preflight.model_size import FLOAT32, ModelSize
from evosearch.preflight.placeholders import same_size
from evosearch.preflight.sizes import Sizes, sizes_of
from evosearch.search.baselines import Baseline
from evosearch.search.progress import Watcher
from evosearch.search.sampling import BACKWARD
from evosearch.search.space.space import SearchSpace
from evosearch.setup.optimizing import choose_optimizer, divided
from evosearch.setup.prompt_tokens import SplitTokens, count_in
from evosearch.setup.sweep import scales_of
from evosearch.spec.spec import SearchSpec, Winner
from evosearch.spec.stages import StagedSpec

USED_FLOPS = 0.4  # fraction of the peak while prompts are read
ACTIVATIONS = 8 * GIB  # kept for backward passes on a GPU that has them; a smaller one recomputes layers
USED_BANDWIDTH = 0.5  # fraction of the peak while answers are generated and weights merged


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet.

    Attributes:
        flops: Dense bfloat16 FLOP/s.
        bandwidth: Memory bandwidth in bytes/s.
        link: Bandwidth to the host, one way, in bytes/s.
        memory: Bytes.
    """

    name: str
    flops: float
    bandwidth: float
    link: float
    memory: float


DEVICES = (
    Device("A100 80GB", 312e12, 2.04e12, 32e9, 80 * GIB),
    Device("H100 80GB", 989e12, 3.35e12, 64e9, 80 * GIB),
)
ASSUMED = (
    f"{USED_FLOPS:.0%} of a GPU's peak bfloat16 FLOP/s while prompts are read, {USED_BANDWIDTH:.0%} of its memory "
    "bandwidth while answers are generated and weights merged; every answer runs to its limit; merge methods that rank "
    "or sample entries take several times as long"
)


def estimate_cost(spec: SearchSpec | StagedSpec, harness: Harness, watcher: Watcher) -> dict[str, Any]:
    """`tokens` and `cost` of a spec, as `check --json` prints them, from configs and tokenizers alone.

    Tokens are counted with the donor's tokenizer; a merged vocabulary would tokenize slightly differently.

    Args:
        spec: The spec.
        harness: The spec's suite.
        watcher: Shows what is being fetched.

    Raises:
        InputError: A model's config or tokenizer cannot be fetched or used, the recipe is invalid, or a prompt does
            not fit.
    """
    if isinstance(spec, SearchSpec):
        sizes = sizes_of(spec, watcher)
        tokens = count_in(harness, sizes.folder)
        return {"tokens": _plain(tokens), "cost": _planned(spec, sizes, tokens, harness)}
    winners: dict[str, Winner] = {}
    found: dict[str, dict[str, Any]] = {}
    for index, config in enumerate(spec.config.stages):
        stage = spec.stage(index, winners)
        sizes = sizes_of(stage, watcher)
        tokens = count_in(harness, sizes.folder)
        found[config.name] = _planned(stage, sizes, tokens, harness)
        winners[config.name] = same_size(stage)
    return {"tokens": _plain(tokens), "cost": total_cost(found)}


def _planned(spec: SearchSpec, sizes: Sizes, tokens: Mapping[str, SplitTokens], harness: Harness) -> dict[str, Any]:
    """Cost of a search whose models are not opened.

    Raises:
        InputError: The search space is invalid, or the optimizer does not support it.
    """
    where, depths = f"{sizes.folder}/{CONFIG}", dict.fromkeys(spec.frame.references(), sizes.output.layers)
    config = read_json(sizes.folder / CONFIG)
    shape = family_of(config, where).shape(config)
    space = SearchSpace.from_template(spec.template, shape, specs(), spec.where, depths)
    chosen = choose_optimizer(spec, space, harness).config
    full = harness.batch("search")
    minibatches = divided(spec, chosen, space.dimensions, full)
    asks, scored = asks_of(chosen, space, minibatches), planned_baselines(spec, scales_of(spec, full, minibatches))
    return cost(spec, sizes, tokens, scored, asks, answers_of(chosen, asks))


def total_cost(stages: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Cost of several stages: the sum of compute and tokens, the maximum of disk and memory."""
    total = dict(list(stages.values())[-1])
    for key in ("parameters", "disk_gib"):
        total[key] = max(stage[key] for stage in stages.values())
    total["device_gib"] = max((stage["device_gib"] for stage in stages.values()), key=lambda found: found["needed"])
    open_ended = any(stage["evaluations"] is None for stage in stages.values())
    for key in ("flops", "tokens"):
        total[key] = None if open_ended else sum(stage[key] for stage in stages.values())
    for key in ("evaluations", "gpu_hours"):
        names = total[key] or {}
        total[key] = None if open_ended else {n: sum(stage[key][n] for stage in stages.values()) for n in names}
    return total | {"stages": dict(stages)}


def _plain(tokens: Mapping[str, SplitTokens]) -> dict[str, dict[str, int]]:
    return {split: found.to_dict() for split, found in tokens.items()}


def cost(
    spec: SearchSpec,
    sizes: Sizes,
    tokens: Mapping[str, SplitTokens],
    scored: Sequence[Baseline],
    asks: Asks | None = None,
    answers: int = 0,
) -> dict[str, Any]:
    """`forecast.cost` of one search, as `check --json` prints it.

    Args:
        spec: The spec.
        sizes: Sizes of its models.
        tokens: Split → tokens of one evaluation.
        scored: The baselines.
        asks: What an optimizer that asks for gradients asks for.
        answers: Candidates that the optimizer recommends at the end.
    """
    use = _Usage(sizes, getattr(torch, spec.frame.output_dtype).itemsize, _options(spec), asks is not None)
    minibatch = minibatch_tokens(tokens["search"], spec.config.search_minibatches or 1)
    counts = counts_of(spec, scored, minibatch.items, asks, answers)
    shard = None if asks is None else _differentiated(minibatch_tokens(tokens["search"], 1.0 / asks.shard))
    found = {
        "parameters": sizes.output.parameters,
        "disk_gib": sum(sizes.stored.values()) / GIB,
        "device_gib": {name: size / GIB for name, size in use.memory().items()},
        "read_gib_per_candidate": sizes.read / GIB,
        "flops_per_candidate": use.flops(shard or minibatch),
        "seconds_per_candidate": {device.name: use.seconds(shard or minibatch, device) for device in DEVICES},
        "assumed": ASSUMED,
        "evaluations": None,
        "tokens": None,
        "flops": None,
        "gpu_hours": None,
    }
    if counts is None:
        return found
    ranked = {**tokens, "search": ranked_tokens(tokens["search"], asks)}
    work = [(getattr(counts, split), ranked[split]) for split in SPLITS]
    candidates = counts.candidates + counts.placebo + counts.training
    if asks is None or shard is None:
        work.append((candidates, minibatch))
    else:
        share = counts.gradients / max(1, counts.candidates)
        work += [(round(candidates * share), shard), (round(candidates * (1 - share)), ranked["search"])]
    return found | {
        "evaluations": asdict(counts),
        "tokens": sum(n * (t.distinct + t.generated_at_most) for n, t in work),
        "flops": sum(n * use.flops(t) for n, t in work),
        "gpu_hours": {d.name: sum(n * use.seconds(t, d) for n, t in work) / 3600 for d in DEVICES},
    }


def _options(spec: SearchSpec) -> ScoreOptions:
    workers = spec.config.workers
    cached = workers.cached_tokens or ScoreOptions.cached_tokens
    return ScoreOptions(batch_tokens=workers.batch_tokens, cached_tokens=cached)


def minibatch_tokens(tokens: SplitTokens, minibatches: float) -> SplitTokens:
    """Tokens of one minibatch, of which `minibatches` make up the split; prefixes shared between them are ignored."""
    shares = {key: math.ceil(value / minibatches) for key, value in asdict(tokens).items() if key != "longest"}
    return SplitTokens(longest=tokens.longest, **shares)


def ranked_tokens(tokens: SplitTokens, asks: Asks | None) -> SplitTokens:
    """Tokens of what models are compared on of the search split."""
    return tokens if asks is None else minibatch_tokens(tokens, 1.0 / asks.ranked)


def _differentiated(tokens: SplitTokens) -> SplitTokens:
    """Tokens of a shard, three times for forward and backward pass; nothing is generated."""
    passes = {key: (1 + BACKWARD) * getattr(tokens, key) for key in ("distinct", "attended")}
    return replace(tokens, prompts=0, generated_at_most=0, attended_at_most=0, **passes)


@dataclass(frozen=True)
class _Usage:
    """Device time and memory of one evaluation.

    Attributes:
        sizes: Sizes of the models.
        itemsize: Bytes per number on the device.
        options: Options of the scorer.
        gradients: Whether candidates are differentiated.
    """

    sizes: Sizes
    itemsize: int
    options: ScoreOptions
    gradients: bool = False

    @property
    def model(self) -> ModelSize:
        return self.sizes.output

    def flops(self, tokens: SplitTokens) -> float:
        return self._flops(tokens.distinct + tokens.generated_at_most, tokens.attended + tokens.attended_at_most)

    def seconds(self, tokens: SplitTokens, device: Device) -> float:
        reading = self._flops(tokens.distinct, tokens.attended) / (USED_FLOPS * device.flops)
        return reading + self._generating(tokens, device) + self._merging(device)

    def memory(self) -> dict[str, float]:
        """Bytes on the device: required ones by kind, and those of the parents, which stay there if they fit."""
        resident = self.sizes.live * self.itemsize
        cache = self.options.cached_tokens * self.model.cached * self.itemsize
        logits = self.options.batch_reads * self.model.vocabulary * FLOAT32
        needed = {"resident": float(resident), "cache": float(cache), "logits": float(logits)}
        if self.gradients:  # one tensor's gradient at a time; layers are recomputed if activations exceed their limit
            needed |= {"activations": float(ACTIVATIONS), "gradient": float(FLOAT32 * self.model.largest)}
        return needed | {"needed": sum(needed.values()), "parents": float(sum(self.sizes.held.values()))}

    def _flops(self, tokens: int, attended: int) -> float:
        return 2.0 * self.model.multiplied * tokens + 4.0 * self.model.layers * self.model.width * attended

    def _generating(self, tokens: SplitTokens, device: Device) -> float:
        """Seconds to generate. Each step adds a token to every row; it reads all weights and every row's KV cache."""
        if not tokens.prompts:
            return 0.0
        fitting = max(1, self.options.cached_tokens // tokens.longest)
        steps = tokens.generated_at_most / min(tokens.prompts, self.options.generation_rows, fitting)
        numbers = steps * self.model.multiplied + tokens.attended_at_most * self.model.cached
        arithmetic = self._flops(tokens.generated_at_most, tokens.attended_at_most)
        return max(
            arithmetic / (USED_FLOPS * device.flops), numbers * self.itemsize / (USED_BANDWIDTH * device.bandwidth)
        )

    def _merging(self, device: Device) -> float:
        """Seconds to read the parents, from device memory if they fit there, and to write the merged weights."""
        resident, parents = self.model.parameters * self.itemsize, sum(self.sizes.held.values())
        inside = device.memory - resident > HEADROOM * parents
        source = USED_BANDWIDTH * device.bandwidth if inside else device.link
        return self.sizes.read / source + resident / (USED_BANDWIDTH * device.bandwidth)
