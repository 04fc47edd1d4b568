"""Lost workers: classification of Ray's errors, and the decision whether a job is retried or quarantined.

Both a candidate (a crashing kernel, unbounded memory) and a machine can kill a worker. If two different workers died
while scoring the same job, the candidate is assumed to be the cause and is quarantined. The loss of a node (removed,
drained, preempted, switched off) is not evidence against the candidate; a separate, larger limit applies.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from evosearch.search.protocols import Failure, Job

MAX_WORKERS = 2  # workers that may die while scoring a job
MAX_NODES = 5  # nodes that may be lost while scoring a job
MAX_HANDED_BACK = 2  # times that a job is scored again after a live worker failed by its own fault


@dataclass(frozen=True)
class WorkerLoss:
    """The loss of a worker.

    Attributes:
        reason: One line.
        detail: The full error.
        node: Id of the worker's node; empty if unknown.
        node_lost: The node was lost, or contact with it, and not only the worker's process.
        unclear: Contact was lost, and Ray has not reported yet whether the process or the node is the cause.
    """

    reason: str
    detail: str = ""
    node: str = ""
    node_lost: bool = False
    unclear: bool = False

    def failure(self) -> Failure:
        """Return the loss as a failure with fault `worker`."""
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
        """All failed attempts as failures."""
        return tuple(one.failure() if isinstance(one, WorkerLoss) else one for one in self.attempts)

    @property
    def bad_nodes(self) -> set[str]:
        """Nodes where a worker was lost while scoring this job."""
        return {loss.node for loss in self.losses if loss.node}

    def blame_nodes(self, lost: Mapping[str, str]) -> None:
        """Attribute earlier losses to their nodes if these have turned out to be lost.

        Args:
            lost: Node id → reason of its loss.
        """
        self.attempts = [blame_node(one, lost) if isinstance(one, WorkerLoss) else one for one in self.attempts]

    def give_up_reason(self) -> str | None:
        """Return why this job is not retried, or None if it is."""
        nodes = [loss for loss in self.losses if loss.node_lost]
        workers = [loss for loss in self.losses if not loss.node_lost]
        if len(workers) >= MAX_WORKERS:
            return f"quarantined: {len(workers)} workers were lost while scoring it; the last: {workers[-1].reason}"
        if len(nodes) >= MAX_NODES:
            return f"given up: {len(nodes)} nodes were lost while scoring it; the last: {nodes[-1].reason}"
        return None


def blame_node(loss: WorkerLoss, lost: Mapping[str, str]) -> WorkerLoss:
    """Return a loss, attributed to its node if that is among the lost nodes (node id → reason)."""
    if loss.node_lost or loss.node not in lost:
        return loss
    reason = f"its node was lost: {lost[loss.node] or 'no reason given'}"
    return replace(loss, reason=reason, node_lost=True, detail=f"{loss.reason}\n{loss.detail}")


def loss_of(exc: Exception, node: str = "") -> WorkerLoss:
    """Classify a Ray error about a worker.

    Ray's exceptions (`ActorDiedError`, `NodeDiedError`, `OutOfMemoryError`, …) do not record whether a process or a
    node was lost, so most of this is read from their text.
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
        return WorkerLoss("its node was preempted", text, node, node_lost=True)
    if isinstance(exc, ray.exceptions.NodeDiedError) or "its node has died" in text:
        found = re.search(r"node was terminated \w+: (.+)", text)
        return WorkerLoss(f"its node was lost: {found[1] if found else first_line(text)}", text, node, node_lost=True)
    if isinstance(exc, ray.exceptions.ActorUnavailableError):
        return WorkerLoss("contact with the worker was lost", text, node, node_lost=True, unclear=True)
    found = re.search(r"Worker exit detail: (.+?\.)(?: |$)(?:End of file\.)?", text)
    return WorkerLoss(f"the worker died: {found[1] if found else first_line(text)}", text, node)


def quarantined(history: JobHistory, reason: str) -> tuple[Failure, tuple[Failure, ...]]:
    """Return the final failure of a job, with the detail of its last attempt, and the retries before it."""
    last = history.attempts[-1]
    detail = last.detail if isinstance(last, WorkerLoss) else last.traceback
    return Failure("worker", reason, detail, "candidate"), history.retries[:-1]


def first_line(text: object) -> str:
    """Return the first non-blank line; the type's name if there is none."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0] if lines else type(text).__name__


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "an error"


def _usage(text: str) -> str:
    found = re.search(r"was (\S+ used / \S+ limit)", text)
    return found[1] if found else first_line(text)
