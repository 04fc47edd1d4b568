"""A spec onto a cluster: looked at here, looked at there, and only then put into the queue.

Here: the spec, its suite, tasks and splits, and whether what it names means the same elsewhere. There: models, disk and
devices, ledger and tracking, and one candidate, which is scored. The same spec submitted twice is one job while that
waits or runs, whoever submitted it; after it ended, submitting it continues the search from its ledger.
"""

import json
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from evosearch.errors import ClusterError, InputError, SpecError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.types import SPLITS
from evosearch.execution.ray_jobs import CHECK, QUEUE, RUN, SETTINGS, Job, Jobs
from evosearch.jobs.pack import Pack, pack, problem_here, renamed
from evosearch.jobs.queue import position
from evosearch.recipe.identity import digest
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Watcher
from evosearch.setup.trackers import JSON_LINES
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.recovery import read
from evosearch.spec.spec import SearchSpec
from evosearch.spec.stages import StagedSpec

# In place of the shell, so that signals reach it. Where a machine has several clusters, Ray may tell a job of another's
# address than its own: a head's environment can say which is right
PROGRAM = (
    'export RAY_ADDRESS="${EVOSEARCH_RAY_ADDRESS:-$RAY_ADDRESS}"; '
    'exec "${EVOSEARCH_PYTHON:-python}" -m evosearch.cli.main'
)
POLL_S = 1.0
TELL_EVERY_S = 60.0
START_TIMEOUT_S = 900  # Ray's own for RAY_JOB_START_TIMEOUT_SECONDS
STOP_WAIT_S, ENOUGH_S = 3, 30  # and for RAY_JOB_STOP_WAIT_TIME_S; what a search needs to end in good order
WITHDRAWN_S = 90.0  # within which a withdrawn job ends, once its turn has come
RUNS = "EVOSEARCH_RUNS"
SERVERS = ("http", "https", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")


@dataclass(frozen=True)
class Options:
    """What the commands on the cluster are told beyond the spec; `evosearch run` says what each means."""

    continue_from_best: bool = False
    allow_pickle: bool = False

    def of(self, kind: str) -> str:
        """As a command line has them; a check continues nothing."""
        given = {"--continue-from-best": self.continue_from_best and kind == RUN, "--allow-pickle": self.allow_pickle}
        return " ".join(option for option, wanted in given.items() if wanted)


@dataclass
class Submitted:
    """What became of it; nothing is queued where there are problems."""

    name: str
    search_id: str
    notes: list[str]
    problems: list[InputError] = field(default_factory=list)
    forecast: dict[str, Any] = field(default_factory=dict)
    job: str | None = None
    state: str | None = None  # pending | running | … of the job
    position: int | None = None  # among those that wait, from 1
    already: bool = False  # it was submitted before

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"ok": not self.problems, "problems": [one.to_dict() for one in self.problems]}
        keys = ("notes", "name", "search_id", "job", "state", "position", "already", "forecast")
        return data | {key: getattr(self, key) for key in keys}


def submit(path: Path, address: str, watcher: Watcher, options: Options) -> Submitted:
    """Check a spec here and on the cluster, and queue it there.

    Raises:
        ClusterError: the cluster cannot be reached, lets anybody in or nobody, or runs another search of this name.
        InputError: the file is no spec, or holds several mistakes (`Problems`).
    """
    jobs = Jobs(address)
    jobs.refuse_open_cluster()
    diagnostics = Diagnostics()
    spec = _look(path, diagnostics)
    with TemporaryDirectory(prefix="evosearch-") as folder:
        packed = pack(path, spec.name, spec.suite, Path(folder), diagnostics)
        diagnostics.raise_all(str(path))
        for text in (*packed.notes, *_notes(spec, packed, jobs)):
            diagnostics.note(text)
        submitted = Submitted(spec.name, search_id_of(spec), diagnostics.notes)
        listed = _listed(jobs)
        if (known := _active(listed, submitted)) is not None:
            _same(submitted, listed, known, packed, options)
        elif _passes(submitted, spec, packed, jobs, watcher, options):
            _queue(submitted, packed, jobs, options)
    return submitted


def search_id_of(spec: SearchSpec | StagedSpec) -> str:
    """What makes two submissions one: of one search its own id, of stages the same over all of them."""
    if isinstance(spec, SearchSpec):
        return spec.search_id()
    data = spec.config.model_dump(mode="json", exclude={"workers", "tracking", "ledger"}, exclude_unset=True)
    for stage in data["stages"]:
        del stage["budget"]
    return digest(data | {"suite": {"name": spec.suite.name, "digest": spec.suite.digest()}})


# --- here -----------------------------------------------------------------------------------------------------------


def _look(path: Path, diagnostics: Diagnostics) -> SearchSpec | StagedSpec:
    """Raises:
    InputError: whatever keeps the spec from being packed, with all else that was found.
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
    _check_places(found.spec, diagnostics)
    return found.spec


def _frames(spec: SearchSpec | StagedSpec) -> list[Callable[[], Recipe]]:
    """The recipe of each search without its parameters, which can only be had if it is well-formed."""
    if isinstance(spec, SearchSpec):
        return [lambda: spec.frame]
    return [partial(spec.frame, index) for index in range(spec.count)]


def _check_places(spec: SearchSpec | StagedSpec, diagnostics: Diagnostics) -> None:
    """A relative database would lie in the folder of the job, which goes with it."""
    config = spec.config
    for key, url in (("ledger", config.ledger), ("tracking.uri", config.tracking.uri)):
        if url and not _outlives(url):
            what = f"got '{url}', which is in the job's own folder there, and lost with it"
            allowed = "A server's URL, sqlite:////ABSOLUTE/FILE, or nothing: then it lies in the head's folder of runs"
            diagnostics.add(SpecError(f"{spec.file}: {key}", what, allowed))


def _outlives(url: str) -> bool:
    """Whether a database or tracking store lies on a server, or has an absolute path."""
    scheme, colon, rest = url.partition(":")
    kind = scheme.partition("+")[0].lower()  # with a driver, as sqlite+pysqlite
    if not colon:
        return url.startswith("/") or url in SERVERS  # `databricks` is a whole URI
    if kind == "sqlite":
        return rest.startswith("////")
    if kind == "file":
        return urlsplit(url).path.startswith("/")
    return kind in SERVERS or url.startswith(JSON_LINES)  # those lie in the search's folder of runs


def _notes(spec: SearchSpec | StagedSpec, packed: Pack, jobs: Jobs) -> list[str]:
    """What is no mistake, and may cost a night."""
    notes = []
    if not (spec.config.ledger or "").startswith("postgresql"):
        where = spec.config.ledger or "the folder of runs of the cluster's head"
        notes.append(
            f"{spec.file}: ledger: it lies in {where}: if that is lost, so is the search; postgresql://… outlives it"
        )
    if not (spec.config.tracking.uri or "").startswith(("http://", "https://")):
        notes.append(f"{spec.file}: tracking: it lies on the cluster's head; an MLflow server's URL is seen from here")
    if packed.models:
        notes.append(f"every node must have these models: {', '.join(packed.models)}")
    if jobs.in_the_clear:
        notes.append(f"{jobs.address} is not encrypted: who listens on the way reads the token; use https or a tunnel")
    return notes


# --- there ----------------------------------------------------------------------------------------------------------


def _active(listed: Sequence[Job], submitted: Submitted) -> Job | None:
    """The job of the same search that waits or runs.

    Raises:
        ClusterError: another search of this name does.
    """
    found = [job for job in listed if job.kind == RUN and job.active and job.name == submitted.name]
    for job in found:
        if job.search_id != submitted.search_id:
            what = f"another search of this name {'waits' if job.state == 'pending' else 'runs'} there ({job.id})"
            raise ClusterError(submitted.name, what, "One search a name", "Stop it, or choose another name")
    return found[-1] if found else None


def _listed(jobs: Jobs) -> list[Job]:
    """All jobs; those that were withdrawn when their turn came have ended."""
    listed, deadline = jobs.all(), time.monotonic() + WITHDRAWN_S
    while any(job.withdrawn and job.active for job in listed) and time.monotonic() < deadline:
        time.sleep(POLL_S)
        listed = jobs.all()
    return listed


def _same(submitted: Submitted, listed: Sequence[Job], job: Job, packed: Pack, options: Options) -> None:
    submitted.job, submitted.state, submitted.already = job.id, job.state, True
    submitted.position = position(job, listed)
    if job.spec != packed.digest:
        what = "the file was changed since it was submitted, and that job goes on as it was submitted"
        submitted.notes.append(f"{what}: stop it and submit again for the change to take effect")
    if job.options != options.of(RUN):  # the same search all the same
        then, now = (given or "no options" for given in (job.options, options.of(RUN)))
        what = f"it was submitted with {then}, not with {now}, and that job goes on as it was submitted"
        submitted.notes.append(f"{what}: stop it and submit again for the change to take effect")


def _passes(
    submitted: Submitted,
    spec: SearchSpec | StagedSpec,
    packed: Pack,
    jobs: Jobs,
    watcher: Watcher,
    options: Options,
) -> bool:
    """Whether the cluster finds nothing wrong; what it says goes on record either way.

    Raises:
        ClusterError: the check ended without saying anything.
    """
    job, said = _checked(submitted, packed, jobs, watcher, options)
    found = _document(said)
    if found is not None and "error" in found:  # the check itself came to grief
        error = found["error"]
        raise ClusterError(submitted.name, f"the check on the cluster failed (job {job.id}): {error['what']}")
    if found is None:
        last = "\n".join(said.strip().splitlines()[-10:]) or job.message
        what = f"the check on the cluster ended without an answer (job {job.id}, {job.state}):\n{last}\n"
        raise ClusterError(submitted.name, what, next="Does EVOSEARCH_PYTHON there name a Python that has evosearch?")
    for text in (*found.get("notes", ()), *_of_head(said)):
        if (here := renamed(text, packed.shown)) not in submitted.notes:
            submitted.notes.append(here)
    submitted.forecast = found.get("forecast", {})
    submitted.problems = [problem_here(problem, packed.shown) for problem in found["problems"]]
    _check_runs_folder(submitted, spec, said)
    return not submitted.problems


def _checked(submitted: Submitted, packed: Pack, jobs: Jobs, watcher: Watcher, options: Options) -> tuple[Job, str]:
    """The job that checked, ended, and all that it said. One that another submit ended with itself is begun anew."""
    while True:
        id, own = _begin_check(submitted, packed, jobs, options)
        try:
            watcher.note(f"checked here; the cluster checks it now (job {id})")
            job = _ended(jobs, id, watcher)
        except KeyboardInterrupt:
            if own:  # another's goes on: it is waited for there
                jobs.stop(_find(jobs.all(), id))
            raise
        if own or job.state not in ("stopped", "withdrawn"):
            return job, jobs.log(id)


def _begin_check(submitted: Submitted, packed: Pack, jobs: Jobs, options: Options) -> tuple[str, bool]:
    """The id of the job that checks, and whether it was begun here: who submits the same as another waits for its."""
    stem = f"{submitted.name}-{submitted.search_id[:12]}-{CHECK}"
    about = _about(submitted, packed) | {"options": options.of(CHECK)}
    told = " ".join(f"{name}=${{{name}:-}}" for name in SETTINGS)
    command = f"{PROGRAM} check {shlex.quote(packed.spec)} --json {options.of(CHECK)}".rstrip()
    while True:
        earlier = [job for job in jobs.all() if job.kind == CHECK and job.id.startswith(f"{stem}-")]
        for job in earlier:
            if job.active and (job.spec, job.options) == (packed.digest, about["options"]):
                return job.id, False
        id = _next_id(stem, earlier)
        if jobs.submit(id, CHECK, f'echo "{told}"; echo "{RUNS}=${{{RUNS}:-}}"; {command}', packed.folder, about):
            return id, True
        _find(jobs.all(), id)  # so that the next id is another


def _ended(jobs: Jobs, id: str, watcher: Watcher) -> Job:
    began = told_at = time.monotonic()
    while (job := _find(jobs.all(), id)).active:
        time.sleep(POLL_S)
        if time.monotonic() - told_at > TELL_EVERY_S:
            told_at = time.monotonic()
            watcher.note(f"the cluster still checks it, for {(told_at - began) / 60:.0f} min: {_last_of(jobs, id)}")
    return job


def _next_id(stem: str, earlier: Sequence[Job]) -> str:
    return f"{stem}-{1 + max((job.number for job in earlier), default=0)}"


def _find(listed: Sequence[Job], id: str) -> Job:
    found = next((job for job in listed if job.id == id), None)
    if found is None:
        raise ClusterError("--address", f"the cluster lost job {id}", next="Was its head started anew? Submit again")
    return found


def _last_of(jobs: Jobs, id: str) -> str:
    lines = [line for line in jobs.log(id).splitlines() if line.strip()]
    return lines[-1] if lines else "it has not begun"


def _queue(submitted: Submitted, packed: Pack, jobs: Jobs, options: Options) -> None:
    """Queue it, unless another submit of the same has by now: the check took its time.

    Whether one is there and which id is next come from one listing, and Ray takes an id once: of two who submit the
    same at the same time, one is refused, and finds the other's job when it looks again.
    """
    places = jobs.places()
    about = _about(submitted, packed) | {"options": options.of(RUN)}
    entrypoint = f"{PROGRAM} run {shlex.quote(packed.spec)} --progress json {options.of(RUN)}".rstrip()
    while True:
        listed = _listed(jobs)
        if (known := _active(listed, submitted)) is not None:
            _same(submitted, listed, known, packed, options)
            return
        earlier = [job for job in listed if job.kind == RUN and job.search_id == submitted.search_id]
        id = _next_id(f"{submitted.name}-{submitted.search_id[:12]}", earlier)
        if jobs.submit(id, RUN, entrypoint, packed.folder, about, queue=places is not None):
            break
        _find(jobs.all(), id)  # so that the next id is another
    listed = jobs.all()
    job = _find(listed, id)
    submitted.job, submitted.state, submitted.position = id, job.state, position(job, listed)
    if places is None:
        submitted.notes.append(
            f"the cluster declares no {QUEUE}: searches do not wait for each other, they share workers"
        )


def _about(submitted: Submitted, packed: Pack) -> dict[str, str]:
    return {"name": submitted.name, "search_id": submitted.search_id, "spec": packed.digest}


def _of_head(said: str) -> list[str]:
    """What the settings of the cluster's head mean for searches that wait."""
    found = re.search(rf"^{SETTINGS[0]}=(\S*) {SETTINGS[1]}=(\S*)$", said, re.MULTILINE)
    if found is None:
        return []
    notes = []
    if not found[1]:
        what = f"a search that waits for its turn longer than {START_TIMEOUT_S // 60} min is dropped by this cluster"
        notes.append(f"{what}: start its head with {SETTINGS[0]}=604800 in its environment")
    if (wait_s := int(found[2]) if found[2].isdecimal() else STOP_WAIT_S) < ENOUGH_S:
        what = f"a search that is told to stop is killed by this cluster {wait_s} s later, on record or not"
        notes.append(f"{what}: start its head with {SETTINGS[1]}=60 in its environment")
    return notes


def _check_runs_folder(submitted: Submitted, spec: SearchSpec | StagedSpec, said: str) -> None:
    """Where the head names no folder of runs, they lie in the job's own, which goes with the job."""
    found = re.search(rf"^{RUNS}=(.*)$", said, re.MULTILINE)
    if found is None or found[1].startswith("/"):
        return
    what = f"the cluster's head {f'has {RUNS}={found[1]}' if found[1] else f'has no {RUNS}'}: what is put into the "
    what += "folder of runs is lost with the job"
    next = f"Start its head with {RUNS}=/FOLDER in its environment"
    if spec.config.ledger is None:
        where = f"{spec.file}: ledger"
        submitted.problems.append(SpecError(where, what, "A ledger that outlives the job", f"Name one here. {next}"))
    else:
        submitted.notes.append(f"{what}, as the exported winner is. {next}")


def _document(said: str) -> dict[str, Any] | None:
    """The JSON document of `check --json` in a log that holds other lines too."""
    for start in (found.start() for found in re.finditer(r"^\{$", said, re.MULTILINE)):
        try:
            data, _ = json.JSONDecoder().raw_decode(said, start)
        except ValueError:
            continue
        if isinstance(data, dict) and "ok" in data and {"problems", "error"} & data.keys():
            return data
    return None
