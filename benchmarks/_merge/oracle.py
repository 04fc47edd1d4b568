"""The same merges by mergekit 0.1.5, in this process; its imports are made beforehand."""

import logging
import time
from pathlib import Path
from typing import Any

import yaml

from evosearch.merging.registry import specs
from evosearch.recipe.mergekit import to_mergekit
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import ModelShape


def prepare() -> None:
    """Import mergekit."""
    import mergekit.merge
    import mergekit.plan  # noqa: F401

    logging.disable(logging.INFO)


def in_memory(recipe: Recipe, shape: ModelShape) -> float:
    """Merge into tensors in memory; return seconds."""
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.graph import Executor
    from mergekit.io.tasks import LoaderCache, ReturnTensor
    from mergekit.merge import MergeOptions, _model_out_config
    from mergekit.plan import MergePlanner

    config = MergeConfiguration.model_validate(_document(recipe, shape))
    started = time.perf_counter()
    options: Any = MergeOptions(random_seed=0, quiet=True)
    architecture = get_architecture_info(config, options)
    LoaderCache().setup(options=options)
    out_config = _model_out_config(config, architecture, trust_remote_code=False)
    planner: Any = MergePlanner(config, architecture, options=options, out_model_config=out_config)
    planner._plan()  # its plan_in_memory fails in our version of pydantic, which validates the type of a task
    targets = [
        ReturnTensor.model_construct(
            weight_info=weight, tensor_task=task, dtype=weight.force_dtype or planner.config.out_dtype
        )
        for weight, task in planner._tensors
    ]
    held = [value for _, value in Executor(targets, math_device="cpu", storage_device="cpu").run(quiet=True)]
    assert len(held) > 1
    return time.perf_counter() - started


def to_disk(recipe: Recipe, shape: ModelShape, out: Path) -> float:
    """Merge into a folder; return seconds."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    config = MergeConfiguration.model_validate(_document(recipe, shape))
    started = time.perf_counter()
    run_merge(config, str(out), MergeOptions(random_seed=0, quiet=True, write_model_card=False))
    return time.perf_counter() - started


def _document(recipe: Recipe, shape: ModelShape) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(to_mergekit(recipe, shape, specs()))
    return found
