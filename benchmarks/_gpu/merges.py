"""Merges on a device compared with the CPU: DARE's masks bitwise, every method by entry, and every derivative."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks._gpu.results import require
from benchmarks._gpu.world import SAMPLE, World, settings
from evosearch.materialize.apply import arguments, with_statistics
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.plan import plan
from evosearch.merging import philox
from evosearch.merging.registry import method, specs

DENSITIES = (0.01, 0.3, 0.5, 0.999, 1.0)
STARTS = (0, 3, 12345, (1 << 32) + 5)  # index of the first element, also within a block and beyond 32 bits
RELATIVE = 1e-5  # tolerance of an entry, relative to the largest entry of the tensor
OTHERS = 1e-5  # share of entries that may differ, because rounding decides ties between signs or magnitudes


def masks(device: torch.device, elements: int) -> Mapping[str, Any]:
    """Compare random bits and masks of numpy on the CPU with those of torch's integer arithmetic on the device."""
    compared = 0
    key = philox.key_of(7, "ab" * 32, "model.layers.0.mlp.up_proj.weight")
    for start in STARTS:
        block = start // philox.LANES
        there = philox.torch_lanes(key, block, elements // philox.LANES, device).cpu()
        here = philox.lanes(key, block * philox.LANES, len(there), "cpu")
        require(torch.equal(there, here), f"random bits from element {start} on differ from the CPU's")
        for density in DENSITIES:
            there = philox.kept(key, density, start, elements, device).cpu()
            here = philox.kept(key, density, start, elements, "cpu")
            compared += elements
            differ = int((there != here).sum())
            require(differ == 0, f"{differ} of {elements} mask entries at density {density} differ", differ=differ)
    return {"entries": compared, "differ": 0}


def merges(world: World, device: torch.device) -> Mapping[str, Any]:
    """Compare every method tensor by tensor, and time it."""
    checkpoints = world.checkpoints()
    example = world.recipe(weight=0.5)
    here = ResidentModel(checkpoints, str(world.models[0]), "cpu", torch.float32, example)
    there = ResidentModel(checkpoints, str(world.models[0]), device, torch.float32, example)
    figures: dict[str, Any] = {}
    for name, spec in specs().items():
        recipe = world.recipe(name, **settings(spec))
        seconds = [_seconds(model, recipe, device) for model in (here, there)]
        entries = others = 0
        for (key, mine), theirs in zip(here.model.state_dict().items(), there.model.state_dict().values(), strict=True):
            away = (mine - theirs.cpu()).abs() > RELATIVE * mine.abs().max()
            entries, others = entries + away.numel(), others + int(away.sum())
            require(bool(theirs.isfinite().all()), f"{name}: {key} is not finite")
        require(others <= OTHERS * entries, f"{name}: {others} of {entries} entries differ", method=name, others=others)
        figures[f"{name}_cpu_seconds_over_device"] = seconds[0] / seconds[1]
        figures[f"{name}_others"] = others
    return figures


def derivatives(world: World, device: torch.device) -> Mapping[str, Any]:
    """Compare the derivative of every method that has one, summed over all tensors with a random gradient."""
    checkpoints = world.checkpoints()
    shapes = {name: checkpoint.shape for name, checkpoint in checkpoints.items()}
    contents = {name: checkpoint.content_sha256() for name, checkpoint in checkpoints.items()}
    figures: dict[str, Any] = {}
    for name, spec in specs().items():
        derivative = method(name).derivative
        if derivative is None:
            continue
        recipe, most = world.recipe(name, **settings(spec)), 0.0
        for op in plan(recipe, shapes, shapes[str(world.models[0])], specs(), contents):
            if spec.statistic:
                op = with_statistics(op, (SAMPLE.key, spec.statistic), checkpoints)
            base, parents, own = arguments(op, lambda source: checkpoints[source.reference].load(source.tensor))
            grad = torch.randn(parents[0].shape, generator=torch.Generator().manual_seed(1))
            here = derivative(base, parents, own, grad)
            there = derivative(
                None if base is None else base.to(device),
                [one.to(device) for one in parents],
                replace(own, statistics=tuple(one.to(device) for one in own.statistics)),
                grad.to(device),
            )
            size = float(grad.norm()) * max(float(one.norm()) for one in parents)
            for key in spec.differentiable:
                ends = [torch.tensor(one[key], dtype=torch.float64) for one in (here, there)]
                most = max(most, float((ends[0] - ends[1]).abs().max()) / size)
        require(most <= RELATIVE, f"{name}: derivatives differ by {most:.1e} of the product of norms", method=name)
        figures[f"{name}_most"] = most
    return figures


def _seconds(model: ResidentModel, recipe: Any, device: torch.device) -> float:
    """Seconds of the second merge; the first one includes lazy loading."""
    model.materialize(recipe)
    started = time.perf_counter()
    model.materialize(recipe)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
