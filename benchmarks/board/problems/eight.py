"""The eight SmolLM2 experts of `recipes/eight_experts.yaml`, which disturb each other."""

import functools

from benchmarks._paths import EVALS
from benchmarks.board.entries import Problem
from benchmarks.board.prepared import from_recipe

DOCUMENTS = {"search": 800, "validation": 24, "test": 80}  # per task


PROBLEMS = [
    Problem(
        name="eight",
        family="eight",
        text="eight LoRA experts of SmolLM2-135M that disturb each other",
        items=4_800,
        groups=2,
        scales=(0.2, 0.25, 0.3),
        finalists=3,
        item_seconds=0.1,
        make=functools.partial(
            from_recipe, "eight_experts", EVALS / "eight.yaml", DOCUMENTS, "examples.eight_experts.prepare"
        ),
    )
]
