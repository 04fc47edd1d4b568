"""The tiny zoo, trained from three seeds, with 2,000 unseen documents a task."""

import functools
import shutil
import sys
from pathlib import Path

from benchmarks._paths import EVALS
from benchmarks.board.entries import Given, Problem
from benchmarks.board.problems._tiny import documents
from evosearch.checkpoints.references import default_cache
from evosearch.documents import read
from evosearch.errors import SuiteError
from evosearch.zoo.tiny_models import TINY, ensure
from evosearch.zoo.tiny_training import Setting

TEST = 2000  # documents per task


def make(seed: int, folder: Path) -> Given:
    """Train the models of one seed unless they are in the cache, and write the tasks with more documents.

    Args:
        seed: Seed of the training.
        folder: For the task files.
    """
    setting, cache = Setting(seed=seed), default_cache()
    base, *experts = [str(ensure(name, cache, _shown, setting)) for name in TINY]
    tasks = folder / "tiny"
    tasks.mkdir(parents=True, exist_ok=True)
    for file in (EVALS / "tiny").glob("*.yaml"):
        shutil.copyfile(file, tasks / file.name)
    shutil.copyfile(documents.__file__, tasks / "documents.py")
    suite = dict(read(EVALS / "quickstart.yaml", SuiteError)) | {"include": [str(tasks)], "fitness": "expected_score"}
    suite["documents"] = {**suite["documents"], "test": TEST}
    return Given(base, tuple(experts), suite)


def _shown(what: str, fraction: float) -> None:
    if fraction in (0.0, 1.0):
        print(f"{what}: {fraction:.0%}", file=sys.stderr)


PROBLEMS = [
    Problem(
        name=f"zoo-{seed}",
        family="zoo",
        text="four experts of the tiny zoo, 1.1M parameters, trained from three seeds",
        items=23_040,
        groups=3,
        scales=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        finalists=6,
        item_seconds=0.0015,
        make=functools.partial(make, seed),
    )
    for seed in range(3)
]
