"""The three SmolLM2 experts of `recipes/smollm2.yaml`: sentiment, subjectivity, question type."""

import functools

from benchmarks._paths import EVALS
from benchmarks.board.entries import Problem
from benchmarks.board.prepared import from_recipe

DOCUMENTS = {"search": 800, "validation": 120, "test": 600}  # per task


PROBLEMS = [
    Problem(
        name="sentences",
        family="sentences",
        text="three LoRA experts of SmolLM2-135M: sentiment, subjectivity, question type",
        items=4_800,
        groups=4,
        scales=(0.8, 1.0, 1.2),
        finalists=3,
        item_seconds=0.06,
        make=functools.partial(from_recipe, "smollm2", EVALS / "sentences.yaml", DOCUMENTS, "examples.smollm2.prepare"),
    )
]
