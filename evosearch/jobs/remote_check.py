"""Check of a spec on the cluster, as a job: models, disk space, devices, ledger and tracking, and a dry run."""

import json
import re
import time
from dataclasses import dataclass
from typing import Any

from evosearch.errors import ClusterError, SpecError
from evosearch.execution.ray_jobs import CHECK, SETTINGS, Job, Jobs
from evosearch.jobs.commands import RUNS, Options, check_command
from evosearch.jobs.pack import Pack, local_names, local_problem
from evosearch.jobs.submission import Submitted, listed_job, next_id
from evosearch.search.progress import Watcher
from evosearch.spec.spec import SearchSpec
from evosearch.spec.stages import StagedSpec

POLL_S = 1.0
NOTE_EVERY_S = 60.0
START_TIMEOUT_S = 900  # Ray's default of RAY_JOB_START_TIMEOUT_SECONDS
STOP_WAIT_S, ENOUGH_S = 3, 30  # Ray's default of RAY_JOB_STOP_WAIT_TIME_S; time that a search needs to shut down


@dataclass
class RemoteCheck:
    """The check of one submission.

    Args:
        submitted: Receives the problems, notes and forecast.
        packed: The files to check.
        jobs: The cluster's jobs.
        options: Command-line options.
    """

    submitted: Submitted
    packed: Pack
    jobs: Jobs
    options: Options

    def passes(self, spec: SearchSpec | StagedSpec, watcher: Watcher) -> bool:
        """Check the spec; return whether there are no problems.

        Raises:
            ClusterError: The check itself failed, or ended without an answer.
        """
        submitted, shown = self.submitted, self.packed.shown
        job, log = self.run(watcher)
        answer = json_answer(log)
        if answer is not None and "error" in answer:
            what = f"the check on the cluster failed (job {job.id}): {answer['error']['what']}"
            raise ClusterError(submitted.name, what)
        if answer is None:
            last = "\n".join(log.strip().splitlines()[-10:]) or job.message
            what = f"the check on the cluster ended without an answer (job {job.id}, {job.state}):\n{last}\n"
            next = "Check that EVOSEARCH_PYTHON on the cluster names a Python with evosearch"
            raise ClusterError(submitted.name, what, next=next)
        for text in (*answer.get("notes", ()), *head_notes(log)):
            if (note := local_names(text, shown)) not in submitted.notes:
                submitted.notes.append(note)
        submitted.forecast = answer.get("forecast", {})
        submitted.problems = [local_problem(problem, shown) for problem in answer["problems"]]
        check_runs_folder(submitted, spec, log)
        return not submitted.problems

    def run(self, watcher: Watcher) -> tuple[Job, str]:
        """Return the ended job and its log. If another submission that shared the job stopped it, start a new one."""
        while True:
            id, own = self._begin()
            try:
                watcher.note(f"checked here; now checking on the cluster (job {id})")
                job = self._wait(id, watcher)
            except KeyboardInterrupt:
                if own:  # a shared job continues, because another submission waits for it
                    self.jobs.stop(listed_job(self.jobs.all(), id))
                raise
            if own or job.state not in ("stopped", "withdrawn"):
                return job, self.jobs.log(id)

    def _begin(self) -> tuple[str, bool]:
        """Return the id of the job, and whether it is a new one; simultaneous identical submissions share a job."""
        submitted, packed = self.submitted, self.packed
        stem = f"{submitted.name}-{submitted.search_id[:12]}-{CHECK}"
        about = submitted.about(packed) | {"options": self.options.of(CHECK)}
        while True:
            earlier = [job for job in self.jobs.all() if job.kind == CHECK and job.id.startswith(f"{stem}-")]
            for job in earlier:
                if job.active and (job.spec, job.options) == (packed.digest, about["options"]):
                    return job.id, False
            id = next_id(stem, earlier)
            if self.jobs.submit(id, CHECK, check_command(packed.spec, self.options), packed.folder, about):
                return id, True
            listed_job(self.jobs.all(), id)  # the id is taken and must be listed now, so the next one differs

    def _wait(self, id: str, watcher: Watcher) -> Job:
        began = noted = time.monotonic()
        while (job := listed_job(self.jobs.all(), id)).active:
            time.sleep(POLL_S)
            if time.monotonic() - noted > NOTE_EVERY_S:
                noted = time.monotonic()
                minutes = (noted - began) / 60
                watcher.note(f"the cluster has been checking for {minutes:.0f} min: {self._latest_line(id)}")
        return job

    def _latest_line(self, id: str) -> str:
        lines = [line for line in self.jobs.log(id).splitlines() if line.strip()]
        return lines[-1] if lines else "not started yet"


def head_notes(log: str) -> list[str]:
    """Return warnings about settings of the cluster's head that are unsuitable for searches."""
    found = re.search(rf"^{SETTINGS[0]}=(\S*) {SETTINGS[1]}=(\S*)$", log, re.MULTILINE)
    if found is None:
        return []
    notes = []
    if not found[1]:
        what = f"this cluster drops a search that waits for its turn longer than {START_TIMEOUT_S // 60} min"
        notes.append(f"{what}: start its head with {SETTINGS[0]}=604800 in its environment")
    if (wait_s := int(found[2]) if found[2].isdecimal() else STOP_WAIT_S) < ENOUGH_S:
        what = f"this cluster kills a stopped job after {wait_s} s, possibly before it has checkpointed"
        notes.append(f"{what}: start its head with {SETTINGS[1]}=60 in its environment")
    return notes


def check_runs_folder(submitted: Submitted, spec: SearchSpec | StagedSpec, log: str) -> None:
    """Check that the cluster's head has a runs folder; without one, runs are in the job's folder and lost with it."""
    found = re.search(rf"^{RUNS}=(.*)$", log, re.MULTILINE)
    if found is None or found[1].startswith("/"):
        return
    given = f"has {RUNS}={found[1]}" if found[1] else f"has no {RUNS}"
    what = f"the cluster's head {given}: files in the runs folder are lost with the job"
    next = f"Start its head with {RUNS}=/FOLDER in its environment"
    if spec.config.ledger is None:
        where = f"{spec.file}: ledger"
        submitted.problems.append(SpecError(where, what, "A ledger that outlives the job", f"Name one here. {next}"))
    else:
        submitted.notes.append(f"{what}, such as the exported winner. {next}")


def json_answer(log: str) -> dict[str, Any] | None:
    """Return the JSON document of `check --json` from a log with other lines, or None."""
    for start in (found.start() for found in re.finditer(r"^\{$", log, re.MULTILINE)):
        try:
            data, _ = json.JSONDecoder().raw_decode(log, start)
        except ValueError:
            continue
        if isinstance(data, dict) and "ok" in data and {"problems", "error"} & data.keys():
            return data
    return None
