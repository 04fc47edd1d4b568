"""Light workers, which compute score cards from recipes and fail on request.

They run in Ray actors like real workers, but without torch and models, so that many of them fit on one machine. `Light`
replaces `WorkerConfig`.
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
# Variable in a node's environment: a file that makes one of its workers allocate memory, see `_swell`
SWELL = "EVOSEARCH_LIGHT_SWELL"
STEP_MIB = 64
HELD_S = 20.0  # time before the memory is released, for the monitor to detect it


@dataclass(frozen=True)
class Light:
    """Configuration of light workers.

    Attributes:
        cache: Folder where a locally started Ray keeps its token.
        world: Search problem, which computes the score cards.
        seconds: Duration of a job, in which the worker sleeps.
        threads: Threads of a worker.
        acts: Job id → behaviour of its worker: `die` (SIGKILL), `hang`, `raise` or `refuse` (fails with fault
            `worker`). With the suffix ` once`, only the first attempt is affected.
        log: File to which a worker appends a line, id and pid, for each job that it starts.
        weak: Folder; each file in it makes one worker die during start and is then deleted.
    """

    cache: Path
    world: World
    seconds: float = 0.0
    threads: int = 1
    acts: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    weak: Path | None = None

    def with_gpus(self, gpus: float) -> "Light":
        """Return the same configuration: light workers do not use GPUs."""
        return self

    def worker(self) -> "LightWorker":
        """Create the worker; die if there is a file in `weak`."""
        if self.weak is not None:
            for file in sorted(self.weak.iterdir()):
                try:
                    file.unlink()
                except FileNotFoundError:
                    continue  # taken by another worker
                os.kill(os.getpid(), signal.SIGKILL)
        return LightWorker(self)


class LightWorker:
    """Worker that computes score cards from the numbers in a recipe, identically on every node."""

    def __init__(self, config: Light) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._config = config

    def run(self, job: Job) -> Outcome:
        """Score a job, or fail as configured."""
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
    """Allocate memory if the node's environment names a file, with the MiB; only one worker can take the file."""
    try:
        file = Path(os.environ[SWELL])
        most = int(file.read_text())
        file.unlink()
    except (KeyError, FileNotFoundError):
        return
    taken = []
    for _ in range(most // STEP_MIB):
        taken.append(b"\1" * (STEP_MIB * 2**20))
        time.sleep(0.05)  # gives the memory monitor time
    time.sleep(HELD_S)
