#!/usr/bin/env python3
"""What only a GPU can show, on a machine that has one: as one JSON document, and a table on standard error.

    scripts/gpu_check [--only WORD]

Random models, nothing fetched. Each check says what it holds to:

masks        DARE's random masks are those of a CPU, bit for bit
merges       every merge method gives the CPU's entries, but for one in 100,000
parity       float32 within 0.001 nats of a CPU, bfloat16 within 0.03 on average and 0.25 at most
attention    fused attention under tree masks against the plain one, and the ratio of their seconds
budget       a worker measures what its card holds, and scores at that
halving      memory runs out: less at once, the same candidate again, the scores of a small budget
two_workers  two Ray workers on one card
two_cards    one model spread over two cards; skipped where there is one

Exit code 0 where all that could be checked held, 1 where something did not, 2 where there is no GPU.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks._gpu.findings import FAILED, Finding, judged, table

NO_GPU = "no GPU here: torch sees no CUDA device, so nothing was checked. Run this on a machine that has one."
ELEMENTS = {"cpu": 1 << 12, "cuda": 1 << 22}  # of a mask


def checks(device: torch.device, folder: Path) -> dict[str, Callable[[], Mapping[str, Any]]]:
    """Name → check; the models are made when the first one needs them."""
    from benchmarks._gpu import merges, scoring, workers
    from benchmarks._gpu.world import ON_A_GPU, TINY, WIDE, World, make_world

    made: dict[str, Any] = {}

    def world(name: str = "world") -> World:
        size = WIDE if name == "wide" else ON_A_GPU if device.type == "cuda" else TINY
        if name not in made:
            made[name] = make_world(folder / name, size)
        return made[name]

    def harness(name: str = "world") -> Any:
        key = f"{name}'s harness"
        if key not in made:
            made[key] = world(name).harness()
        return made[key]

    return {
        "masks": lambda: merges.masks(device, ELEMENTS[device.type]),
        "merges": lambda: merges.merges(world(), device),
        "parity": lambda: scoring.parity(world(), harness(), device),
        "attention": lambda: scoring.attention(world(), harness(), device),
        "budget": lambda: scoring.budget(world(), harness(), device),
        "halving": lambda: scoring.halving(world("wide"), harness("wide"), device),
        "two_workers": lambda: workers.two_workers(world(), harness(), device),
        "two_cards": lambda: workers.two_cards(world(), device),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Where this ran."""
    cards = []
    for index in range(torch.cuda.device_count() if device.type == "cuda" else 0):
        own = torch.cuda.get_device_properties(index)
        cards.append({"name": own.name, "gib": own.total_memory / 2**30, "capability": [own.major, own.minor]})
    return {
        "device": device.type,
        "cards": cards,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="the one check of this name")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cpu":
        print("on a CPU: this shows that the checks themselves run, and nothing about a GPU", file=sys.stderr)
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        known = checks(device, Path(folder))
        if options.only and options.only not in known:
            parser.error(f"--only: got {options.only!r}; known are {', '.join(known)}")
        for name, check in known.items():
            if options.only in ("", name):
                findings.append(judged(name, check))
                print(f"{name}: {findings[-1].state} {findings[-1].reason}".rstrip(), file=sys.stderr)
    print(json.dumps({**machine(device), "checks": [asdict(one) for one in findings]}))
    print(table(findings), file=sys.stderr)
    return int(any(one.state == FAILED for one in findings))


if __name__ == "__main__":
    sys.exit(main())
