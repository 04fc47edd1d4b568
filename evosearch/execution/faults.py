"""What became of a job whose worker was lost: whose fault it is, and when it is not tried again.

A candidate can kill workers (a kernel that crashes, memory that no limit holds), and so can a machine. Two different
workers that died under one job are taken as the candidate's doing, and it is quarantined: a third would die, too. A
node that goes (removed, drained, preempted, switched off) says nothing about the candidate; only its own, larger cap
ends that.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from evosearch.search.protocols import Failure, Job

WORKERS = 2  # workers that may die under a job
NODES = 5  # nodes that may be lost under a job
TRIES = 2  # times a job is scored again after a worker that is alive said that it could not, by its own fault


@dataclass(frozen=True)
class WorkerLoss:
    """How a worker was lost.

    Attributes:
        reason: one line.
        detail: all that is known.
        node: id of the node that it was on; empty where it is not known.
        of_node: the whole node was lost, or contact with it.
        unclear: contact was lost, and Ray does not say yet with whom.
    """

    reason: str
    detail: str = ""
    node: str = ""
    of_node: bool = False
    unclear: bool = False

    def failure(self) -> Failure:
        return Failure("worker", self.reason, self.detail, "worker")


@dataclass
class JobHistory:
    """One job on its way through the pool: what it met so far."""

    job: Job
    attempts: list[WorkerLoss | Failure] = field(default_factory=list)
    handed_back: int = 0  # times that a worker that is alive said that it could not

    @property
    def deaths(self) -> list[WorkerLoss]:
        return [one for one in self.attempts if isinstance(one, WorkerLoss)]

    @property
    def retries(self) -> tuple[Failure, ...]:
        return tuple(one.failure() if isinstance(one, WorkerLoss) else one for one in self.attempts)

    @property
    def bad_nodes(self) -> set[str]:
        """Nodes where a worker was lost under this job."""
        return {death.node for death in self.deaths if death.node}

    def learn(self, lost: Mapping[str, str]) -> None:
        """Take deaths as their nodes', where it came out later that these were lost.

        Args:
            lost: node id → why it was lost.
        """
        self.attempts = [reread(one, lost) if isinstance(one, WorkerLoss) else one for one in self.attempts]

    def verdict(self) -> str | None:
        """Why this job is not tried again, or None."""
        deaths = self.deaths
        of_node = [death for death in deaths if death.of_node]
        own = [death for death in deaths if not death.of_node]
        if len(own) >= WORKERS:
            return f"quarantined: {len(own)} workers were lost under it; the last: {own[-1].reason}"
        if len(of_node) >= NODES:
            return f"given up: {len(of_node)} nodes were lost under it; the last: {of_node[-1].reason}"
        return None


def reread(death: WorkerLoss, lost: Mapping[str, str]) -> WorkerLoss:
    """A death as it looks once it is known which nodes were lost."""
    if death.of_node or death.node not in lost:
        return death
    reason = f"its node was lost: {lost[death.node] or 'no reason given'}"
    return replace(death, reason=reason, of_node=True, detail=f"{death.reason}\n{death.detail}")


def death_of(exc: Exception, node: str = "") -> WorkerLoss:
    """What an error of Ray's says about the worker that it came from.

    Ray tells most in its text alone: its classes (`ActorDiedError`, `NodeDiedError`, `OutOfMemoryError`, …) do not keep
    whether a process or a node was lost.
    """
    import ray

    text = str(exc)
    if isinstance(exc, ray.exceptions.RayTaskError):
        return WorkerLoss(f"the worker raised {_last_line(text)}", text, node)
    if getattr(exc, "actor_init_failed", False):
        return WorkerLoss(f"the worker could not be made: {_last_line(text)}", text, node)
    if isinstance(exc, ray.exceptions.OutOfMemoryError) or "low on memory" in text:
        return WorkerLoss(f"the worker was killed: its node ran out of memory ({_usage(text)})", text, node)
    if getattr(exc, "preempted", False):
        return WorkerLoss("its node was preempted", text, node, of_node=True)
    if isinstance(exc, ray.exceptions.NodeDiedError) or "its node has died" in text:
        found = re.search(r"node was terminated \w+: (.+)", text)
        return WorkerLoss(f"its node was lost: {found[1] if found else first_line(text)}", text, node, of_node=True)
    if isinstance(exc, ray.exceptions.ActorUnavailableError):
        return WorkerLoss("contact with the worker was lost", text, node, of_node=True, unclear=True)
    found = re.search(r"Worker exit detail: (.+?\.)(?: |$)(?:End of file\.)?", text)
    return WorkerLoss(f"the worker died: {found[1] if found else first_line(text)}", text, node)


def quarantined(history: JobHistory, reason: str) -> tuple[Failure, tuple[Failure, ...]]:
    """The failure that ends a job, with the last death's detail, and the retries before it."""
    last = history.attempts[-1]
    detail = last.detail if isinstance(last, WorkerLoss) else last.traceback
    return Failure("worker", reason, detail, "candidate"), history.retries[:-1]


def first_line(text: object) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0] if lines else type(text).__name__


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "an error"


def _usage(text: str) -> str:
    found = re.search(r"was (\S+ used / \S+ limit)", text)
    return found[1] if found else first_line(text)
