"""Who is in the pool: actors with their places, jobs with their actors; and how it is heard what became of either."""

import time
from dataclasses import dataclass, field
from typing import Any

from evosearch.execution.actor import Place
from evosearch.execution.faults import JobHistory, WorkerLoss, death_of

UNPLACED = Place("", "?")


@dataclass(eq=False)
class Member:
    """One actor; where it is, once it has a place."""

    actor: Any
    started: Any  # ref of its start
    place: Place = UNPLACED
    since: float = field(default_factory=time.monotonic)  # when it came to its present state

    def kill(self) -> None:
        import ray

        ray.kill(self.actor)


@dataclass(eq=False)
class Run:
    """A job with a worker."""

    history: JobHistory
    member: Member
    alive: Any = None  # ref of a ping before the job, where the worker may have died unseen
    since: float = field(default_factory=time.monotonic)  # when it began, or contact was lost

    @property
    def begun(self) -> bool:
        """Whether the worker was still there when the job came to it."""
        return self.alive is None or (has_come(self.alive) and answer(self.alive, "")[1] is None)


def answer(ref: Any, node: str) -> tuple[Any, WorkerLoss | None]:
    """What a reference holds, or how the worker that owed it was lost."""
    import ray

    try:
        return ray.get(ref), None
    except ray.exceptions.RayError as exc:
        return None, death_of(exc, node)


def has_come(ref: Any) -> bool:
    """Whether a reference holds something: an answer, or a loss."""
    import ray

    return bool(ray.wait([ref], timeout=0)[0])
