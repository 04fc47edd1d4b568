"""Lost workers: classify Ray's errors, and decide whether a job is retried or quarantined.

A candidate can kill workers (a crashing kernel, unbounded memory), and so can a machine. If two different workers died
under one job, the candidate is taken to be the cause and is quarantined, since a third would die too. A node that goes
away (removed, drained, preempted, switched off) says nothing about the candidate; a separate, larger cap applies.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from evosearch.search.protocols import Failure, Job

WORKERS = 2  # workers that may die under a job
NODES = 5  # nodes that may be lost under a job
TRIES = 2  # times that a job is scored again after a live worker failed by its own fault


@dataclass(frozen=True)
class WorkerLoss:
    """How a worker was lost.

    Attributes:
        reason: One line.
        detail: The full error.
        node: Id of the worker's node; empty if unknown.
        of_node: Whether the node was lost, or contact with it, rather than the worker's process alone.
        unclear: Contact was lost, and Ray does not report yet whether with the process or the node.
    """

    reason: str
    detail: str = ""
    node: str = ""
    of_node: bool = False
    unclear: bool = False

    def failure(self) -> Failure:
        """Return the loss as a failure that is the worker's fault."""
        return Failure("worker", self.reason, self.detail, "worker")


@dataclass
class JobHistory:
    """A job in the pool and its failed attempts so far."""

    job: Job
    attempts: list[WorkerLoss | Failure] = field(default_factory=list)
    handed_back: int = 0  # times that a live worker failed by its own fault

    @property
    def losses(self) -> list[WorkerLoss]:
        """Attempts that ended with the loss of a worker."""
        return [one for one in self.attempts if isinstance(one, WorkerLoss)]

    @property
    def retries(self) -> tuple[Failure, ...]:
        """All attempts as failures."""
        return tuple(one.failure() if isinstance(one, WorkerLoss) else one for one in self.attempts)

    @property
    def bad_nodes(self) -> set[str]:
        """Nodes where a worker was lost under this job."""
        return {loss.node for loss in self.losses if loss.node}

    def blame_nodes(self, lost: Mapping[str, str]) -> None:
        """Attribute earlier losses to their nodes where these turned out to be lost.

        Args:
            lost: Node id → why it was lost.
        """
        self.attempts = [blame_node(one, lost) if isinstance(one, WorkerLoss) else one for one in self.attempts]

    def verdict(self) -> str | None:
        """Return why this job is not tried again, or None if it is."""
        of_node = [loss for loss in self.losses if loss.of_node]
        own = [loss for loss in self.losses if not loss.of_node]
        if len(own) >= WORKERS:
            return f"quarantined: {len(own)} workers were lost while scoring it; the last: {own[-1].reason}"
        if len(of_node) >= NODES:
            return f"given up: {len(of_node)} nodes were lost while scoring it; the last: {of_node[-1].reason}"
        return None


def blame_node(loss: WorkerLoss, lost: Mapping[str, str]) -> WorkerLoss:
    """Return a loss attributed to its node if that is among the lost nodes (node id → reason)."""
    if loss.of_node or loss.node not in lost:
        return loss
    reason = f"its node was lost: {lost[loss.node] or 'no reason given'}"
    return replace(loss, reason=reason, of_node=True, detail=f"{loss.reason}\n{loss.detail}")


def loss_of(exc: Exception, node: str = "") -> WorkerLoss:
    """Classify an error of Ray's about a worker.

    Ray's classes (`ActorDiedError`, `NodeDiedError`, `OutOfMemoryError`, …) do not record whether a process or a node
    was lost, so most of this is read from the error's text.
    """
    import ray

    text = str(exc)
    if isinstance(exc, ray.exceptions.RayTaskError):
        return WorkerLoss(f"the worker raised {_last_line(text)}", text, node)
    if getattr(exc, "actor_init_failed", False):
        return WorkerLoss(f"the worker could not be created: {_last_line(text)}", text, node)
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
    """Return the failure that ends a job, with the last attempt's detail, and the retries before it."""
    last = history.attempts[-1]
    detail = last.detail if isinstance(last, WorkerLoss) else last.traceback
    return Failure("worker", reason, detail, "candidate"), history.retries[:-1]


def first_line(text: object) -> str:
    """Return the first line that is not blank; the type's name if there is none."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0] if lines else type(text).__name__


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "an error"


def _usage(text: str) -> str:
    found = re.search(r"was (\S+ used / \S+ limit)", text)
    return found[1] if found else first_line(text)
