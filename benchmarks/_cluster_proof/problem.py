"""The submitted search: a merge of two built-in tiny experts, on few documents."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from benchmarks._paths import EVALS
from evosearch.checkpoints.references import default_cache
from evosearch.zoo.tiny_models import ensure

NAME = "cluster-proof"
EXPERTS = ("reverse", "sort")
CANDIDATES, POPULATION = 24, 4
DOCUMENTS = {"search": 24, "validation": 30, "test": 60}  # per task
WEIGHT = {"low": 0.0, "high": 1.5, "per": "group", "groups": 2, "ends": "shared"}


def prepare() -> None:
    """Train the models that are not in the cache yet, outside of the measured time."""
    for name in ("base", *EXPERTS):
        ensure(name, default_cache())


def write_spec(folder: Path, ledger: str, tracking: str) -> Path:
    """Write suite and spec of a search in which merges beat each expert, so that the gate promotes one."""
    tasks: list[dict[str, Any]] = [
        {"task": f"tiny_{name}", "name": name, "metric": "exact_match", "chance": 0.0} for name in EXPERTS
    ]
    suite = {"name": NAME, "include": ["tiny"], "tasks": tasks, "documents": DOCUMENTS}
    spec = {
        "name": NAME,
        "recipe": {
            "merge_method": "task_arithmetic",
            "base_model": "zoo:tiny/base",
            "models": [{"model": f"zoo:tiny/{name}", "parameters": {"weight": WEIGHT}} for name in EXPERTS],
        },
        "optimizer": {"name": "cma_es", "population": POPULATION, "sigma": 0.2, "seed": 0, "start": "best_baseline"},
        "suite": "suite.yaml",
        "budget": {"candidates": CANDIDATES},
        "workers": {"count": "auto", "threads": 1, "device": "cpu", "gpus_per_worker": 0},
        "ledger": ledger,
        "tracking": {"uri": tracking},
        "baselines": {"scales": [0.4, 0.7]},
        "promotion": {"register_as": NAME, "finalists": 2},
    }
    # Task code is trusted only in the suite's folder (evosearch/evaluation/suites/suite.py)
    shutil.copytree(EVALS / "tiny", folder / "tiny", dirs_exist_ok=True)
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path
