"""The controller of a soak, as a process of its own: a real search, ledger, pool and mirror; light workers.

python -m benchmarks._light_workers.driver SETTINGS     (JSON, see `Settings`)
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks._light_workers.light import Light
from benchmarks._simulated.searches import baseline
from benchmarks._simulated.world import World
from evosearch.execution.deadlines import Patience
from evosearch.execution.ray_pool import RayExecutor, RayOptions
from evosearch.search.budget import Budget
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.optimizers.registry import OptimizerConfig
from evosearch.search.protocols import Executor, Tracker
from evosearch.search.recorder import Recorder
from evosearch.tracking.mlflow import MlflowMirror

SEARCH = "soak"  # its id, its name, and the experiment
CATCH_UP_S = 3600.0  # for the mirror, at the end: it lags where the machine is busy
OPTIMIZER = {"name": "cma_es", "seed": 1, "asynchronous": True, "diagonal": True, "population": 12, "start": "init"}


@dataclass(frozen=True)
class Settings:
    """One soak: where things are, how much is searched, what a candidate takes.

    Attributes:
        tracking: MLflow's URI; None: nothing is mirrored.
        count: of workers; None: as many as the cluster gives.
        acts: see `Light`.
        patience: how long a job may take, see `Patience`.
    """

    ledger: str
    tracking: str | None
    address: str
    folder: str
    candidates: int
    seconds: float
    count: int | None = None
    acts: Mapping[str, str] = field(default_factory=dict)
    patience: Mapping[str, float] = field(default_factory=dict)

    @property
    def begun(self) -> Path:
        """A line for each job that a worker began: id and pid."""
        return Path(self.folder) / "begun"

    @property
    def world(self) -> World:
        """24 dimensions, two tasks of 20 items."""
        return World(models=2, layers=4, items=20)


def drive(settings: Settings) -> str:
    """Run the search, or continue it; returns why it stopped."""
    patience = Patience(**settings.patience)
    fill = settings.count is None
    options = RayOptions(settings.count, address=settings.address, fill=fill, patience=patience)
    light = Light(Path(settings.folder), settings.world, settings.seconds, acts=settings.acts, log=settings.begun)
    with Ledger.open(settings.ledger, notice=say) as ledger, ledger.acquire(SEARCH):
        ledger.put_item_sets(settings.world.batch)
        mirrors = [_mirror(settings)] if settings.tracking else []
        executor = RayExecutor(light, options, say)
        try:
            return _search(settings, ledger, executor, mirrors)
        finally:
            executor.close()
            for mirror in mirrors:
                mirror.close(CATCH_UP_S, CATCH_UP_S)


def _mirror(settings: Settings) -> MlflowMirror:
    reader = partial(Ledger.open, settings.ledger, read_only=True)
    return MlflowMirror(settings.tracking, SEARCH, reader, SEARCH, SEARCH, say)


def _search(settings: Settings, ledger: Ledger, executor: Executor, mirrors: list[Tracker]) -> str:
    recorder, config = Recorder(ledger, SEARCH, mirrors), OptimizerConfig.model_validate(OPTIMIZER)
    reason = baseline(recorder, SEARCH, settings.world, executor, config, Budget(settings.candidates))
    recorder.record([("stopped", {"reason": reason})])
    return reason


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(drive(Settings(**json.loads(sys.argv[1]))))
