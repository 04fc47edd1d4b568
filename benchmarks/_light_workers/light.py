"""Light workers: they compute score cards from recipes and misbehave on request.

They run behind Ray like real workers, without torch and without models, so that a cluster on one machine can have many
of them. `Light` replaces `WorkerConfig`.
"""

import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._simulated.world import World
from evosearch.search.protocols import Failure, Job, Outcome

FOREVER_S = 3600.0
SWELL = (
    "EVOSEARCH_LIGHT_SWELL"  # in a node's environment: a file that makes one of its workers take memory, see `_swell`
)
STEP_MIB = 64
HELD_S = 20.0  # time that the memory is held, for the monitor to notice


@dataclass(frozen=True)
class Light:
    """Configuration of light workers.

    Attributes:
        cache: Folder where a locally started Ray keeps its token.
        world: Search problem, which computes the score cards.
        seconds: Duration of a job, spent sleeping.
        threads: Threads of a worker.
        acts: Job id → misbehaviour of its worker: `die` (SIGKILL), `hang`, `raise` or `refuse` (fails with a fault of
            the worker); followed by ` once`, it happens only the first time that the job is logged.
        log: File to which a worker appends one line, id and pid, for each job that it starts.
        weak: Folder; each file in it makes one worker die during startup and is then deleted.
    """

    cache: Path
    world: World
    seconds: float = 0.0
    threads: int = 1
    acts: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    weak: Path | None = None

    def with_gpus(self, gpus: float) -> "Light":
        """Ignore the GPU share: light workers use none."""
        return self

    def worker(self) -> "LightWorker":
        """Create the worker, or die if `weak` says so."""
        if self.weak is not None:
            for file in sorted(self.weak.iterdir()):
                try:
                    file.unlink()
                except FileNotFoundError:
                    continue  # taken by another worker
                os.kill(os.getpid(), signal.SIGKILL)
        return LightWorker(self)


class LightWorker:
    """Worker that computes score cards from the numbers of a recipe, the same on every node."""

    def __init__(self, config: Light) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._config = config

    def run(self, job: Job) -> Outcome:
        """Score a job, or misbehave as configured."""
        config = self._config
        act = self._act(job.id)
        if config.log is not None:
            with config.log.open("a") as file:
                file.write(f"{job.id} {os.getpid()}\n")
        if act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "raise":
            raise RuntimeError("configured to raise")
        if act == "refuse":
            return Outcome(job, self.name, failure=Failure("score", "configured to refuse", fault="worker"))
        _swell()
        time.sleep(FOREVER_S if act == "hang" else config.seconds)
        return Outcome(job, self.name, card=config.world.card(job), seconds={"score": config.seconds})

    def _act(self, job: str) -> str | None:
        act, once, _ = self._config.acts.get(job, "").partition(" once")
        log = self._config.log
        if once and log is not None and log.exists() and any(line.split()[0] == job for line in log.open()):
            return None
        return act or None


def _swell() -> None:
    """Allocate and hold the MiB given in the file that the node's environment names, if no other worker took it."""
    try:
        file = Path(os.environ[SWELL])
        most = int(file.read_text())
        file.unlink()
    except (KeyError, FileNotFoundError):
        return
    taken = []
    for _ in range(most // STEP_MIB):
        taken.append(b"\1" * (STEP_MIB * 2**20))
        time.sleep(0.05)  # slow enough for the memory monitor
    time.sleep(HELD_S)
