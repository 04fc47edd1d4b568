"""A submission and its outcome."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evosearch.errors import ClusterError, InputError
from evosearch.execution.ray_jobs import Job
from evosearch.jobs.pack import Pack
from evosearch.recipe.identity import digest
from evosearch.spec.spec import SearchSpec
from evosearch.spec.stages import StagedSpec


@dataclass
class Submitted:
    """Outcome of a submission. Nothing is queued if there are problems."""

    name: str
    search_id: str
    notes: list[str]
    problems: list[InputError] = field(default_factory=list)
    forecast: dict[str, Any] = field(default_factory=dict)
    job: str | None = None
    state: str | None = None  # pending | running | … of the job
    position: int | None = None  # in the queue, from 1
    already: bool = False  # an earlier submission of the same search is active

    def to_json(self) -> dict[str, Any]:
        """Return the document of `submit --json`."""
        data: dict[str, Any] = {"ok": not self.problems, "problems": [one.to_dict() for one in self.problems]}
        keys = ("notes", "name", "search_id", "job", "state", "position", "already", "forecast")
        return data | {key: getattr(self, key) for key in keys}

    def about(self, packed: Pack) -> dict[str, str]:
        """Return the metadata of a job of this search."""
        return {"name": self.name, "search_id": self.search_id, "spec": packed.digest}


def search_id_of(spec: SearchSpec | StagedSpec) -> str:
    """Return the id by which submissions are compared: the search's, or one over all stages without their budgets."""
    if isinstance(spec, SearchSpec):
        return spec.search_id()
    data = spec.config.model_dump(mode="json", exclude={"workers", "tracking", "ledger"}, exclude_unset=True)
    for stage in data["stages"]:
        del stage["budget"]
    return digest(data | {"suite": {"name": spec.suite.name, "digest": spec.suite.digest()}})


def next_id(stem: str, earlier: Sequence[Job]) -> str:
    """Return the id of the next job after earlier ones with the same stem."""
    return f"{stem}-{1 + max((job.number for job in earlier), default=0)}"


def listed_job(listed: Sequence[Job], id: str) -> Job:
    """Return the job with an id.

    Raises:
        ClusterError: It is not listed.
    """
    found = next((job for job in listed if job.id == id), None)
    if found is None:
        what = f"the cluster lost job {id}"
        raise ClusterError("--address", what, next="Its head may have been restarted. Submit again")
    return found
