"""Checks of a spec on the submitting machine that need neither models nor the cluster."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from evosearch.errors import SpecError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.types import SPLITS
from evosearch.execution.ray_jobs import Jobs
from evosearch.jobs.pack import Pack
from evosearch.recipe.schema import Recipe
from evosearch.setup.trackers import JSON_LINES
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.recovery import read
from evosearch.spec.spec import SearchSpec
from evosearch.spec.stages import StagedSpec

SERVERS = ("http", "https", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")


def check_locally(path: Path, diagnostics: Diagnostics) -> SearchSpec | StagedSpec:
    """Check the spec, its suite, tasks and splits, and its storage; return the spec.

    Raises:
        InputError: The spec or its suite cannot be read; contains all problems so far.
    """
    found = read(path, diagnostics)
    if found.suite is not None:
        harness = diagnostics.attempt(lambda: Harness(found.suite))  # type: ignore[arg-type]
        for split in SPLITS if harness else ():
            diagnostics.attempt(lambda: harness.batch(split))  # type: ignore[union-attr] # noqa: B023
    for frame in _frames(found.spec) if found.spec else ():
        diagnostics.attempt(frame)
    if found.spec is None or found.suite is None:
        diagnostics.raise_all(str(path))
    assert found.spec is not None
    _check_storage(found.spec, diagnostics)
    return found.spec


def _frames(spec: SearchSpec | StagedSpec) -> list[Callable[[], Recipe]]:
    """Return a function for each search that builds its recipe without parameters, and raises if that is malformed."""
    if isinstance(spec, SearchSpec):
        return [lambda: spec.frame]
    return [partial(spec.frame, index) for index in range(spec.count)]


def _check_storage(spec: SearchSpec | StagedSpec, diagnostics: Diagnostics) -> None:
    """Check that ledger and tracking store are not in the job's folder, which is removed with the job."""
    config = spec.config
    for key, url in (("ledger", config.ledger), ("tracking.uri", config.tracking.uri)):
        if url and not outlives_job(url):
            what = f"got '{url}', which would be in the job's own folder and lost with it"
            allowed = "A server's URL, sqlite:////ABSOLUTE/FILE, or no value for the head's runs folder"
            diagnostics.add(SpecError(f"{spec.file}: {key}", what, allowed))


def outlives_job(url: str) -> bool:
    """Return whether a database or tracking store is on a server or has an absolute path."""
    scheme, colon, rest = url.partition(":")
    kind = scheme.partition("+")[0].lower()  # without a driver, as in sqlite+pysqlite
    if not colon:
        return url.startswith("/") or url in SERVERS  # `databricks` is a complete URI
    if kind == "sqlite":
        return rest.startswith("////")
    if kind == "file":
        return urlsplit(url).path.startswith("/")
    return kind in SERVERS or url.startswith(JSON_LINES)  # JSON lines are written to the runs folder


def storage_notes(spec: SearchSpec | StagedSpec, packed: Pack, jobs: Jobs) -> list[str]:
    """Return warnings about settings that are valid but risky on a cluster."""
    notes = []
    if not (spec.config.ledger or "").startswith("postgresql"):
        where = spec.config.ledger or "the runs folder of the cluster's head"
        notes.append(f"{spec.file}: ledger: stored in {where} and lost with it; use postgresql://… to avoid that")
    if not (spec.config.tracking.uri or "").startswith(("http://", "https://")):
        notes.append(f"{spec.file}: tracking: stored on the cluster's head; use an MLflow server to see it from here")
    if packed.models:
        notes.append(f"every node must have these models: {', '.join(packed.models)}")
    if jobs.in_the_clear:
        notes.append(f"{jobs.address} is not encrypted: the token can be read on the network; use https or a tunnel")
    return notes
