"""Configuration of a worker: names and plain data, so that it is small when pickled and does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evosearch.evaluation.engine.score_options import ScoreOptions


@dataclass(frozen=True)
class WorkerConfig:
    """Everything that a worker is built from on any node, except weights.

    Attributes:
        recipe: An example recipe of the search, which determines the models and how layers are stacked. In a search of
            routes, any route that names every model.
        suite: The suite as plain data.
        cache: Folder of files that are prepared once per machine.
        out_dtype: Dtype that merged weights are rounded to.
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads of one worker; 0 for torch's default.
        options: Batch size limits.
        gpu_share: Below 1 a fraction of one GPU; from 2 on the number of GPUs that the model is spread over.
        allow_pickle: Read pickled weights of models that have no safetensors.
        also: Models that only baselines use.
        recipes: Reference → recipe, for models that are recipes themselves.
        inputs: Reference → expected content_sha256; empty for no check.
        samples: Key of a sample → tokens of its documents, for statistics of the models.
        files: Reference → file that accompanies the weights → expected sha256.
        resolvers: Modules whose `register()` adds reference schemes.
    """

    recipe: dict[str, Any]
    suite: dict[str, Any]
    cache: Path
    out_dtype: str = "float32"
    device: str = "auto"
    threads: int = 0
    options: ScoreOptions = field(default_factory=ScoreOptions)
    gpu_share: float = 1.0
    allow_pickle: bool = False
    also: tuple[str, ...] = ()
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    samples: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    resolvers: tuple[str, ...] = ("evosearch.zoo",)

    def with_gpus(self, gpus: float) -> "WorkerConfig":
        """Return the configuration for workers with GPUs, which fail instead of using the CPU if torch sees no GPU."""
        return replace(self, device="cuda") if gpus and self.device == "auto" else self
