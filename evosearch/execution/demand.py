"""Resources of one worker, and the number of workers that fit on a cluster's nodes. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evosearch.errors import SpecError

SHOWN = ("GPU", "CPU")
RAMP = 8  # workers requested in addition to the placed ones, at least; otherwise as many as are placed


@dataclass(frozen=True)
class Demand:
    """CPU cores and GPUs of one worker; a fraction of a GPU is shared with other workers."""

    cpus: int
    gpus: float

    def resources(self) -> dict[str, float]:
        """Return the resources by Ray's names, without zeros."""
        wanted = {"CPU": float(self.cpus), "GPU": self.gpus}
        return {name: amount for name, amount in wanted.items() if amount > 0}

    def fits(self, resources: Mapping[str, float]) -> bool:
        """Return whether one worker fits on an empty node with these resources."""
        return all(resources.get(name, 0.0) >= amount for name, amount in self.resources().items())

    def __str__(self) -> str:
        return shown(self.resources())


def wanted(jobs: int, placed: int, count: int | None, fill: bool) -> int:
    """Return how many workers should exist, including pending ones, which are requested but not placed.

    An autoscaler adds nodes for pending workers. Their number is bounded, so that a thousand candidates do not request
    a thousand machines in the first minute.

    Args:
        jobs: Jobs that are not scored yet.
        placed: Workers that are placed on a node.
        count: A fixed number of workers, or None for as many as fit on the cluster.
        fill: Ignore `jobs`, because the caller always submits as many jobs as there are workers.
    """
    if count is not None:
        return count
    most = placed + max(RAMP, placed)
    return most if fill else min(jobs, most)


def capacity(nodes: Iterable[Mapping[str, Any]], demand: Demand) -> int:
    """Return how many workers would fit on the living nodes if these were empty."""
    found = 0
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            found += int(min(has.get(name, 0.0) / amount for name, amount in demand.resources().items()))
    return found


def check_feasible(
    demand: Demand, nodes: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, float]] | None
) -> None:
    """Check that a worker fits on some node.

    Args:
        demand: Resources of one worker.
        nodes: See `ray.nodes`.
        groups: Resources of one node of each kind that an autoscaler could add; None without an autoscaler.

    Raises:
        SpecError: No node has enough resources; names those of the worker and of the nodes.
    """
    has = [node["Resources"] for node in nodes if node["Alive"]]
    if any(demand.fits(one) for one in (*has, *(groups or ()))):
        return
    kinds = sorted({shown(one) for one in (*has, *(groups or ()))})
    key = "workers.gpus_per_worker" if demand.gpus else "workers.threads"
    got = f"got {demand.gpus:g}" if demand.gpus else f"got {demand.cpus}"
    what = f"{got}: a worker needs {demand}, but no node of the cluster has that much"
    allowed = f"Its nodes have: {'; '.join(kinds) or 'nothing'}"
    raise SpecError(key, what, allowed, "Request less, or add a larger node")


def shown(resources: Mapping[str, float]) -> str:
    """Format resources as `2 GPU, 8 CPU`."""
    parts = [f"{resources[name]:g} {name}" for name in SHOWN if resources.get(name)]
    return ", ".join(parts) or "no CPU"
