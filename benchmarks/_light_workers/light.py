"""Workers that weigh nothing: score cards are computed from recipes, and what goes wrong is told in advance.

They run behind Ray as the real ones do, without torch and without models, so that a cluster on one machine can have
many of them. `Light` takes the place of `WorkerConfig`.
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
SWELL = "EVOSEARCH_LIGHT_SWELL"  # in a node's environment: a file that makes one worker there take memory, see `_swell`
STEP_MIB = 64
HELD_S = 20.0  # that memory is held, for somebody to see it


@dataclass(frozen=True)
class Light:
    """Builds light workers.

    Attributes:
        cache: where a Ray of our own keeps its token.
        world: what the recipes are of, and says what card each has.
        seconds: that a job takes, by sleeping.
        acts: job id → what it does to its worker: `die` (SIGKILL), `hang`, `raise`, `refuse` (a fault of the worker's);
            with ` once` behind it, only the first time that the log sees it.
        log: a file to which each worker writes a line for each job that it begins: id and pid.
        weak: a folder; each file in it makes one worker die while it starts, and is taken away.
    """

    cache: Path
    world: World
    seconds: float = 0.0
    threads: int = 1
    acts: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    weak: Path | None = None

    def with_gpus(self, gpus: float) -> "Light":
        return self  # those of a cluster on one machine are none

    def worker(self) -> "LightWorker":
        if self.weak is not None:
            for file in sorted(self.weak.iterdir()):
                try:
                    file.unlink()
                except FileNotFoundError:
                    continue  # another worker was first
                os.kill(os.getpid(), signal.SIGKILL)
        return LightWorker(self)


class LightWorker:
    """Scores a job by arithmetic on its recipe's numbers: the same card wherever it is made."""

    def __init__(self, config: Light) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._config = config

    def run(self, job: Job) -> Outcome:
        config = self._config
        act = self._act(job.id)
        if config.log is not None:
            with config.log.open("a") as file:
                file.write(f"{job.id} {os.getpid()}\n")
        if act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "raise":
            raise RuntimeError("told to raise")
        if act == "refuse":
            return Outcome(job, self.name, failure=Failure("score", "told to refuse", fault="worker"))
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
    """Take the MiB that a file says, where the node's environment names one that nobody has taken yet; hold them."""
    try:
        file = Path(os.environ[SWELL])
        most = int(file.read_text())
        file.unlink()
    except (KeyError, FileNotFoundError):
        return
    taken = []
    for _ in range(most // STEP_MIB):
        taken.append(b"\1" * (STEP_MIB * 2**20))
        time.sleep(0.05)  # no faster than who watches can see
    time.sleep(HELD_S)
