"""What one worker asks of a node, and whether the cluster has, or could ever have, such a node. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evosearch.errors import SpecError

SHOWN = ("GPU", "CPU")
RAMP = 8  # workers asked for beyond those that are there, at least; as many as there are, where these are more


@dataclass(frozen=True)
class Demand:
    """CPU cores and GPUs of one worker. A fraction of a GPU is shared with others; 2 or more are its own."""

    cpus: int
    gpus: float

    def resources(self) -> dict[str, float]:
        asked = {"CPU": float(self.cpus), "GPU": self.gpus}
        return {name: amount for name, amount in asked.items() if amount > 0}

    def fits(self, resources: Mapping[str, float]) -> bool:
        """Whether a node with these could hold one, were it empty."""
        return all(resources.get(name, 0.0) >= amount for name, amount in self.resources().items())

    def __str__(self) -> str:
        return shown(self.resources())


def wanted(jobs: int, there: int, count: int | None, fill: bool) -> int:
    """How many workers there should be, those that are asked for included.

    Args:
        jobs: not scored yet.
        there: workers that have a place.
        count: a fixed number of workers, or None: as many as the cluster gives.
        fill: whoever submits follows the number of workers, so that jobs say nothing of how many are of use.

    What is asked for and has no place yet is what an autoscaler adds nodes for, and who moves in when one comes. It is
    bounded, so that a thousand candidates do not ask for a thousand machines in the first minute.
    """
    if count is not None:
        return count
    most = there + max(RAMP, there)
    return most if fill else min(jobs, most)


def free(nodes: Iterable[Mapping[str, Any]], demand: Demand) -> int:
    """How many workers the nodes hold, were they empty."""
    found = 0
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            found += int(min(has.get(name, 0.0) / amount for name, amount in demand.resources().items()))
    return found


def refuse_what_never_fits(
    demand: Demand, nodes: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, float]] | None
) -> None:
    """Stop where no node could ever hold one worker.

    Args:
        nodes: see `ray.nodes`.
        groups: resources of one node of each kind that an autoscaler could add; None: there is no autoscaler.

    Raises:
        SpecError: names what a worker asks, and what the nodes have.
    """
    has = [node["Resources"] for node in nodes if node["Alive"]]
    if any(demand.fits(one) for one in (*has, *(groups or ()))):
        return
    kinds = sorted({shown(one) for one in (*has, *(groups or ()))})
    key = "workers.gpus_per_worker" if demand.gpus else "workers.threads"
    got = f"got {demand.gpus:g}" if demand.gpus else f"got {demand.cpus}"
    what = f"{got}: a worker takes {demand}, and no node of the cluster has that"
    raise SpecError(key, what, f"Its nodes have: {'; '.join(kinds) or 'nothing'}", "Ask for less, or add such a node")


def shown(resources: Mapping[str, float]) -> str:
    """`2 GPU, 8 CPU`, as people read it."""
    parts = [f"{resources[name]:g} {name}" for name in SHOWN if resources.get(name)]
    return ", ".join(parts) or "no CPU"
