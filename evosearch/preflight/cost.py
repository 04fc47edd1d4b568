"""What a search takes of GPUs, memory and disk, reckoned before anything runs from configs, tokenizers and documents.

| of one evaluation | reckoned as |
|---|---|
| arithmetic | 2 FLOPs for each number that a token is multiplied with, 4 · width for each position seen in a layer |
| reading prompts and choices | that arithmetic, at a part of the device's peak |
| writing answers | the same, or reading weights, keys and values once a step, if that takes longer; none ends early |
| merging | reading every model and writing the result, from the device's memory or over its link to the host |

What it leaves out (Python, starts of kernels, data between them) a trial candidate shows, on the machine itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from evosearch.checkpoints.disk_space import GIB
from evosearch.evaluation.engine.loglikelihood import ScoreOptions
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.types import SPLITS
from evosearch.materialize.parents import HEADROOM
from evosearch.preflight.placeholders import described
from evosearch.preflight.sizes import FLOAT32, ModelSize, Sizes, sizes_of
from evosearch.promotion.validate import RESCORED, SCALES_TO_VALIDATE
from evosearch.search.baselines import Baseline, baselines
from evosearch.search.progress import Watcher
from evosearch.search.space.template import frame
from evosearch.setup.prompt_tokens import SplitTokens, count_in
from evosearch.spec.spec import SearchSpec, Winner
from evosearch.spec.stages import StagedSpec

USED_FLOPS = 0.4  # of the peak, while prompts are read
USED_BANDWIDTH = 0.5  # of the peak, while answers are written and weights merged


@dataclass(frozen=True)
class Device:
    """A GPU by its maker's data sheet."""

    name: str
    flops: float  # dense bfloat16, a second
    bandwidth: float  # of its memory, bytes a second
    link: float  # to the host, one way, bytes a second
    memory: float  # bytes


DEVICES = (
    Device("A100 80GB", 312e12, 2.04e12, 32e9, 80 * GIB),
    Device("H100 80GB", 989e12, 3.35e12, 64e9, 80 * GIB),
)
ASSUMED = (
    f"{USED_FLOPS:.0%} of a GPU's peak bfloat16 FLOP/s while prompts are read, {USED_BANDWIDTH:.0%} of its memory "
    "bandwidth while answers are written and weights merged; no answer ends before its limit; a method that ranks or "
    "draws entries takes a merge several times as long"
)


@dataclass(frozen=True)
class Counts:
    """How many evaluations of each split a search has at most; of `search`, those of candidates are on one part."""

    candidates: int
    search: int
    validation: int
    test: int


def counts_of(spec: SearchSpec, scored: Sequence[Baseline], items: int, gate: bool = True) -> Counts | None:
    """Candidates by the budget, and what is scored beside them; None where only hours end the search.

    Args:
        scored: the baselines; those without a recipe are not.
        items: that one candidate is scored on.
        gate: `test` opens; it does not for a stage that another builds on.
    """
    budget = spec.config.budget
    ends = [budget.candidates] if budget.candidates else []
    ends += [budget.items // items] if budget.items else []
    return counts_with(spec, scored, min(ends), gate) if ends else None


def counts_with(spec: SearchSpec, scored: Sequence[Baseline], candidates: int, gate: bool = True) -> Counts:
    """What is scored beside so many candidates: baselines, finalists on `validation`, contenders on `test`."""
    kinds = [baseline.kind for baseline in scored if baseline.recipe is not None]
    scales, finalists = kinds.count("scale"), min(spec.config.promotion.finalists, candidates)
    plain = len(kinds) - scales
    return Counts(
        candidates=candidates,
        search=len(kinds) + (RESCORED * finalists if spec.config.search_minibatches else 0),
        validation=finalists + plain + min(scales, SCALES_TO_VALIDATE),
        test=1 + plain + min(scales, 1) if gate else 0,
    )


def reckoned(spec: SearchSpec | StagedSpec, harness: Harness, watcher: Watcher) -> dict[str, Any]:
    """`tokens` and `cost` of a spec, as `check --json` has them, by configs and tokenizers alone; see `sizes_of`.

    The tokenizer is the one of the model whose config the output has: a vocabulary that is made of several splits texts
    a little otherwise.

    Args:
        harness: of the spec's suite.

    Raises:
        InputError: a model cannot be had, or its config or tokenizer cannot be used; the recipe is not well-formed; a
            prompt does not fit.
    """
    if isinstance(spec, SearchSpec):
        sizes = sizes_of(spec, watcher)
        tokens = count_in(harness, sizes.folder)
        return {"tokens": _plain(tokens), "cost": cost(spec, sizes, tokens, planned(spec))}
    winners: dict[str, Winner] = {}
    found: dict[str, dict[str, Any]] = {}
    for index, config in enumerate(spec.config.stages):
        stage = spec.stage(index, winners)
        sizes = sizes_of(stage, watcher)
        tokens = count_in(harness, sizes.folder)
        found[config.name] = cost(stage, sizes, tokens, planned(stage), gate=index == spec.count - 1)
        winners[config.name] = described(stage)
    return {"tokens": _plain(tokens), "cost": summed(found)}


def planned(spec: SearchSpec) -> Sequence[Baseline]:
    """The baselines of a spec, of models that are taken to have the same layers."""
    own = spec.baselines
    return baselines(frame(spec.template, spec.where), own.scales, True, own.base_model, own.models)


def summed(stages: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The cost of several stages, one after the other: what is used up is added, what is held is the largest."""
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
    gate: bool = True,
) -> dict[str, Any]:
    """What `check --json` prints as `forecast.cost`.

    Args:
        tokens: split → what one evaluation takes.
        scored, gate: see `counts_of`.
    """
    out_dtype = frame(spec.template, spec.where).output_dtype
    use = _Use(sizes, getattr(torch, out_dtype).itemsize, _options(spec))
    part = minibatch_of(tokens["search"], spec.config.search_minibatches or 1)
    counts = counts_of(spec, scored, part.items, gate)
    found = {
        "parameters": sizes.output.parameters,
        "disk_gib": sum(sizes.stored.values()) / GIB,
        "device_gib": {name: size / GIB for name, size in use.memory().items()},
        "read_gib_per_candidate": sizes.read / GIB,
        "flops_per_candidate": use.flops(part),
        "seconds_per_candidate": {device.name: use.seconds(part, device) for device in DEVICES},
        "assumed": ASSUMED,
        "evaluations": None,
        "tokens": None,
        "flops": None,
        "gpu_hours": None,
    }
    if counts is None:
        return found
    work = [(counts.candidates, part), *((getattr(counts, split), tokens[split]) for split in SPLITS)]
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


def minibatch_of(tokens: SplitTokens, parts: int) -> SplitTokens:
    """One of so many equal parts; what its prompts share is little beside what they do not."""
    shares = {key: math.ceil(value / parts) for key, value in asdict(tokens).items() if key != "longest"}
    return SplitTokens(longest=tokens.longest, **shares)


@dataclass(frozen=True)
class _Use:
    """What one evaluation takes of a device.

    Attributes:
        itemsize: bytes of a number that the device computes with.
    """

    sizes: Sizes
    itemsize: int
    options: ScoreOptions

    @property
    def model(self) -> ModelSize:
        return self.sizes.output

    def flops(self, tokens: SplitTokens) -> float:
        return self._flops(tokens.distinct + tokens.generated_at_most, tokens.attended + tokens.attended_at_most)

    def seconds(self, tokens: SplitTokens, device: Device) -> float:
        reading = self._flops(tokens.distinct, tokens.attended) / (USED_FLOPS * device.flops)
        return reading + self._writing(tokens, device) + self._merging(device)

    def memory(self) -> dict[str, float]:
        """Bytes on the device: what must be there, and the parents, which are kept there where there is room."""
        resident = self.sizes.live * self.itemsize
        cache = self.options.cached_tokens * self.model.cached * self.itemsize
        logits = self.options.batch_reads * self.model.vocabulary * FLOAT32
        needed = {"resident": float(resident), "cache": float(cache), "logits": float(logits)}
        return needed | {"needed": resident + cache + logits, "parents": float(sum(self.sizes.held.values()))}

    def _flops(self, tokens: int, attended: int) -> float:
        return 2.0 * self.model.multiplied * tokens + 4.0 * self.model.layers * self.model.width * attended

    def _writing(self, tokens: SplitTokens, device: Device) -> float:
        """A step writes one token of every row; each reads all weights, and every row its own keys and values."""
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
        resident, parents = self.model.parameters * self.itemsize, sum(self.sizes.held.values())
        inside = device.memory - resident > HEADROOM * parents
        source = USED_BANDWIDTH * device.bandwidth if inside else device.link
        return self.sizes.read / source + resident / (USED_BANDWIDTH * device.bandwidth)
