"""Process of a search with light workers, in which controller, ledger, pool and MLflow mirror are real.

python -m benchmarks._light_workers.driver SETTINGS     (JSON, see `Settings`)
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks._light_workers.light import Light
from benchmarks._simulated.searches import run_search
from benchmarks._simulated.world import World
from evosearch.execution.deadlines import Timeouts
from evosearch.execution.ray_pool import RayExecutor, RayOptions
from evosearch.origins import Secret, name_by_hand
from evosearch.search.budget import Budget
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.optimizer_config import OptimizerConfig
from evosearch.search.protocols import Executor, Tracker
from evosearch.search.recorder import Recorder
from evosearch.tracking.mlflow import MlflowMirror

SEARCH = "soak"  # id and name of the search, and name of its MLflow experiment
CATCH_UP_S = 3600.0  # time limit for the mirror to catch up at the end; it lags on a busy machine
OPTIMIZER = {"name": "cma_es", "seed": 1, "asynchronous": True, "diagonal": True, "population": 12, "start": "init"}


@dataclass(frozen=True)
class Settings:
    """Settings of one search with light workers.

    Attributes:
        ledger: URL of the ledger.
        tracking: URI of MLflow; None for no mirror.
        address: Address of the Ray head.
        folder: Folder for the log of started jobs.
        candidates: Budget.
        seconds: Duration of a job.
        count: Number of workers; None for as many as fit on the cluster.
        acts: Misbehaviour by job, see `Light`.
        timeouts: Fields of `Timeouts`.
    """

    ledger: str
    tracking: str | None
    address: str
    folder: str
    candidates: int
    seconds: float
    count: int | None = None
    acts: Mapping[str, str] = field(default_factory=dict)
    timeouts: Mapping[str, float] = field(default_factory=dict)

    @property
    def begun(self) -> Path:
        """Log with one line, id and pid, for each job that a worker started."""
        return Path(self.folder) / "begun"

    @property
    def world(self) -> World:
        """The search problem: 24 dimensions, two tasks of 20 items."""
        return World(models=2, layers=4, items=20)


def drive(settings: Settings) -> str:
    """Run or resume the search; return the reason why it stopped."""
    timeouts = Timeouts(**settings.timeouts)
    name_by_hand(Secret.RAY, settings.address)
    fill = settings.count is None
    options = RayOptions(settings.count, address=settings.address, fill=fill, timeouts=timeouts)
    light = Light(Path(settings.folder), settings.world, settings.seconds, acts=settings.acts, log=settings.begun)
    with Ledger.open(settings.ledger, notice=say) as ledger, ledger.acquire(SEARCH):
        ledger.put_item_sets(settings.world.batch)
        mirrors = [_mirror(settings.ledger, settings.tracking)] if settings.tracking else []
        executor = RayExecutor(Light.worker, light, options, say)
        try:
            return _search(settings, ledger, executor, mirrors)
        finally:
            executor.close()
            for mirror in mirrors:
                mirror.close(CATCH_UP_S, CATCH_UP_S)


def _mirror(ledger: str, tracking: str) -> MlflowMirror:
    reader = partial(Ledger.open, ledger, read_only=True)
    return MlflowMirror(tracking, SEARCH, reader, SEARCH, SEARCH, say)


def _search(settings: Settings, ledger: Ledger, executor: Executor, mirrors: Sequence[Tracker]) -> str:
    recorder, config = Recorder(ledger, SEARCH, mirrors), OptimizerConfig.model_validate(OPTIMIZER)
    reason = run_search(recorder, SEARCH, settings.world, executor, config, Budget(settings.candidates))
    recorder.record([("stopped", {"reason": reason})])
    return reason


def say(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(drive(Settings(**json.loads(sys.argv[1]))))
