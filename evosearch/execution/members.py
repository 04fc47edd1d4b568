"""Members of the pool: actors by state, and the jobs that run on them."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from evosearch.execution.actor import Location
from evosearch.execution.faults import JobHistory, WorkerLoss, loss_of

UNPLACED = Location("", "?")


@dataclass(eq=False)
class Member:
    """One actor, and its location once it is placed."""

    actor: Any
    started: Any  # ref of `start`
    location: Location = UNPLACED
    since: float = field(default_factory=time.monotonic)  # start of its current state

    def kill(self) -> None:
        """Kill the actor's process."""
        import ray

        ray.kill(self.actor)


@dataclass(eq=False)
class Run:
    """A job on a worker."""

    history: JobHistory
    member: Member
    alive: Any = None  # ref of a ping before the job, if the worker may have died unnoticed
    since: float = field(default_factory=time.monotonic)  # start of the job, or of lost contact

    @property
    def begun(self) -> bool:
        """Whether the worker was still alive when it received the job."""
        return self.alive is None or (is_ready(self.alive) and answer(self.alive, "")[1] is None)


@dataclass
class Members:
    """All actors of the pool, each in one state. Actors with a pending call are keyed by its object reference."""

    placing: dict[Any, Member] = field(default_factory=dict)  # ref of `locate`: not scheduled on a node yet
    starting: dict[Any, Member] = field(default_factory=dict)  # ref of `start`
    idle: list[Member] = field(default_factory=list)
    running: dict[Any, Run] = field(default_factory=dict)  # ref of `run`
    unclear: dict[Any, Run] = field(default_factory=dict)  # ref of a ping: contact with the worker was lost
    to_ping: list[Run] = field(default_factory=list)  # like `unclear`, before the next ping

    @property
    def alive(self) -> int:
        """Number of workers that can score now: idle, or with a job."""
        return len(self.idle) + len(self.running)

    @property
    def placed(self) -> int:
        """Number of workers that are placed on a node, including those that are starting."""
        return len(self.all()) - len(self.placing)

    @property
    def jobs(self) -> int:
        """Number of jobs that are assigned to a worker."""
        return len(self.running) + len(self.unclear) + len(self.to_ping)

    @property
    def may_score(self) -> bool:
        """Whether any worker scores, or may do so later; workers that are not placed do not count."""
        return bool(self.alive or self.starting or self.unclear or self.to_ping)

    def all(self) -> list[Member]:
        """Return every actor."""
        runs = [*self.running.values(), *self.unclear.values(), *self.to_ping]
        return [*self.idle, *self.placing.values(), *self.starting.values(), *(run.member for run in runs)]

    def ready(self, timeout_s: float) -> list[Any]:
        """Wait until a pending call has returned; return the references of all that have."""
        import ray

        pending = [*self.running, *self.unclear, *self.starting, *self.placing]
        if not pending:
            time.sleep(timeout_s)
            return []
        if not ray.wait(pending, num_returns=1, timeout=timeout_s)[0]:
            return []
        found: list[Any] = ray.wait(pending, num_returns=len(pending), timeout=0)[0]
        return found

    def free(self, member: Member) -> None:
        """Make a worker idle."""
        member.since = time.monotonic()
        self.idle.append(member)

    def pick(self, bad_nodes: Iterable[str]) -> Member:
        """Remove and return an idle worker, preferably on a node where the job has not lost a worker yet."""
        bad = set(bad_nodes)
        for index in range(len(self.idle) - 1, -1, -1):
            if self.idle[index].location.node not in bad:
                return self.idle.pop(index)
        return self.idle.pop()

    def ping(self, run: Run) -> None:
        """Ping a worker after contact with it was lost."""
        self.unclear[run.member.actor.ping.remote()] = run

    def withdraw(self, count: int) -> None:
        """Kill this many of the actors that are not placed, the latest first."""
        for ref in list(self.placing)[-count:]:
            self.placing.pop(ref).kill()

    def clear(self) -> None:
        """Drop all actors."""
        for known in (self.placing, self.starting, self.running, self.unclear):
            known.clear()
        self.idle.clear()
        self.to_ping.clear()


def answer(ref: Any, node: str) -> tuple[Any, WorkerLoss | None]:
    """Return the value of a reference, or the loss of the worker that should have produced it."""
    import ray

    try:
        return ray.get(ref), None
    except ray.exceptions.RayError as exc:
        return None, loss_of(exc, node)


def is_ready(ref: Any) -> bool:
    """Return whether a reference has a value or an error."""
    import ray

    return bool(ray.wait([ref], timeout=0)[0])
