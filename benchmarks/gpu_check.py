"""Checks that need a GPU: merges, scores, memory and workers, compared with the CPU.

    .venv/bin/python -m benchmarks.gpu_check [--only NAME]

Uses random models; nothing is downloaded.

masks        DARE's random masks are bitwise equal to the CPU's
merges       the entries of every merge method equal the CPU's, except for one in 100,000
derivatives  the derivatives of every merge method equal the CPU's, within 1e-5 of the product of the norms
parity       log-likelihoods: float32 within 0.001 nats of the CPU, bfloat16 within 0.03 on average and 0.25 at most
attention    fused attention with tree masks compared with the unfused kernel, and the ratio of their times
budget       a worker measures how many tokens fit on its GPU, and scores with that budget
halving      out of memory: the token budget is halved, and the candidate retried, with the scores of a small budget
two_workers  two Ray workers share one GPU
two_cards    one model is spread over two GPUs; skipped on a machine with one GPU

Prints one JSON document and a table. Exit code 0 if all checks passed or were skipped, 1 if one failed, 2 without a
GPU.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks._gpu.results import FAILED, CheckResult, run_check, table
from benchmarks._report import publish

NO_GPU = "no GPU found: torch sees no CUDA device, so no check was run. Run this on a machine with a GPU."
ELEMENTS = {"cpu": 1 << 12, "cuda": 1 << 22}  # mask entries


def checks(device: torch.device, folder: Path) -> dict[str, Callable[[], Mapping[str, Any]]]:
    """Name → check; models are created on first use."""
    from benchmarks._gpu import merges, scoring, workers
    from benchmarks._gpu.world import ON_A_GPU, TINY, WIDE, World, make_world

    worlds: dict[str, World] = {}
    harnesses: dict[str, Any] = {}

    def world(name: str = "world") -> World:
        size = WIDE if name == "wide" else ON_A_GPU if device.type == "cuda" else TINY
        if name not in worlds:
            worlds[name] = make_world(folder / name, size)
        return worlds[name]

    def harness(name: str = "world") -> Any:
        if name not in harnesses:
            harnesses[name] = world(name).harness()
        return harnesses[name]

    return {
        "masks": lambda: merges.masks(device, ELEMENTS[device.type]),
        "merges": lambda: merges.merges(world(), device),
        "derivatives": lambda: merges.derivatives(world(), device),
        "parity": lambda: scoring.parity(world(), harness(), device),
        "attention": lambda: scoring.attention(world(), harness(), device),
        "budget": lambda: scoring.budget(world(), harness(), device),
        "halving": lambda: scoring.halving(world("wide"), harness("wide"), device),
        "two_workers": lambda: workers.two_workers(world(), harness(), device),
        "two_cards": lambda: workers.two_cards(world(), device),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Device, GPUs and versions of this run."""
    cards: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count() if device.type == "cuda" else 0):
        properties = torch.cuda.get_device_properties(index)
        cards.append(
            {
                "name": properties.name,
                "gib": properties.total_memory / 2**30,
                "capability": [properties.major, properties.minor],
            }
        )
    return {
        "device": device.type,
        "cards": cards,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def main() -> int:
    """Run the checks; return the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="run only the check of this name")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cpu":
        print("running on the CPU: this tests the checks, not a GPU", file=sys.stderr)
    results: list[CheckResult] = []
    with tempfile.TemporaryDirectory() as folder:
        known = checks(device, Path(folder))
        if options.only and options.only not in known:
            parser.error(f"argument --only: unknown check {options.only!r} (choose from {', '.join(known)})")
        for name, check in known.items():
            if options.only in ("", name):
                results.append(run_check(name, check))
                print(f"{name}: {results[-1].state} {results[-1].reason}".rstrip(), file=sys.stderr)
    publish({**machine(device), "checks": [asdict(result) for result in results]}, table(results))
    return int(any(result.state == FAILED for result in results))


if __name__ == "__main__":
    sys.exit(main())
