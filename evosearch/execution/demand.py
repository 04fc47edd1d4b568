"""Resources of one worker, and how many workers a cluster's nodes could hold. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evosearch.errors import SpecError

SHOWN = ("GPU", "CPU")
RAMP = 8  # minimum number of workers requested beyond those that have a place; at most the number is doubled


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
        """Return whether an empty node with these resources could hold one worker."""
        return all(resources.get(name, 0.0) >= amount for name, amount in self.resources().items())

    def __str__(self) -> str:
        return shown(self.resources())


def wanted(jobs: int, placed: int, count: int | None, fill: bool) -> int:
    """Return how many workers should exist, including requested ones without a place.

    An autoscaler adds nodes for workers that wait for a place. Their number is bounded, so that a thousand candidates
    do not request a thousand machines in the first minute.

    Args:
        jobs: Jobs that are not scored yet.
        placed: Workers that have a place.
        count: A fixed number of workers, or None for as many as the cluster gives.
        fill: The caller submits as many jobs as there are workers, so `jobs` says nothing about how many are useful.
    """
    if count is not None:
        return count
    most = placed + max(RAMP, placed)
    return most if fill else min(jobs, most)


def capacity(nodes: Iterable[Mapping[str, Any]], demand: Demand) -> int:
    """Return how many workers the living nodes would hold if they were empty."""
    found = 0
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            found += int(min(has.get(name, 0.0) / amount for name, amount in demand.resources().items()))
    return found


def refuse_what_never_fits(
    demand: Demand, nodes: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, float]] | None
) -> None:
    """Raise if no node could ever hold one worker.

    Args:
        demand: Resources of one worker.
        nodes: See `ray.nodes`.
        groups: Resources of one node of each kind that an autoscaler could add; None without an autoscaler.

    Raises:
        SpecError: Names what a worker needs and what the nodes have.
    """
    has = [node["Resources"] for node in nodes if node["Alive"]]
    if any(demand.fits(one) for one in (*has, *(groups or ()))):
        return
    kinds = sorted({shown(one) for one in (*has, *(groups or ()))})
    key = "workers.gpus_per_worker" if demand.gpus else "workers.threads"
    got = f"got {demand.gpus:g}" if demand.gpus else f"got {demand.cpus}"
    what = f"{got}: a worker needs {demand}, and no node of the cluster has that"
    allowed = f"Its nodes have: {'; '.join(kinds) or 'nothing'}"
    raise SpecError(key, what, allowed, "Ask for less, or add a larger node")


def shown(resources: Mapping[str, float]) -> str:
    """Format resources as `2 GPU, 8 CPU`."""
    parts = [f"{resources[name]:g} {name}" for name in SHOWN if resources.get(name)]
    return ", ".join(parts) or "no CPU"
