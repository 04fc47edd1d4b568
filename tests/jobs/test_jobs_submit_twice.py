"""Simultaneous identical submissions, with an in-memory cluster."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import ClusterError
from evosearch.execution.ray_jobs import CHECK, RUN, Job
from evosearch.jobs import remote_check, submit
from evosearch.jobs.commands import Options
from evosearch.jobs.pack import Pack
from evosearch.jobs.remote_check import RemoteCheck
from evosearch.jobs.submission import Submitted
from evosearch.jobs.submit import enqueue
from evosearch.search.progress import Silent

ID = "0" * 64
STEM = f"night-{ID[:12]}"
PACKED = Pack(Path("pack"), "packed/night.yaml", {}, (), (), "digest")
PICKLES, ALL = Options(allow_pickle=True), Options(True, True, True)


class Cluster:
    """Jobs in memory; `meanwhile` maps a call to an action of another user, which is run once just before the call."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.entrypoints: dict[str, str] = {}
        self.stopped: list[str] = []
        self.meanwhile: dict[str, Callable[[], Any]] = {}

    def _answer(self, call: str) -> None:
        self.meanwhile.pop(call, lambda: None)()

    def all(self) -> list[Job]:
        self._answer("all")
        return list(self.jobs.values())

    def capacity(self) -> float:
        self._answer("capacity")
        return 1.0

    def submit(
        self, id: str, kind: str, entrypoint: str, folder: Path, about: Mapping[str, str], queue: bool = False
    ) -> bool:
        self._answer("submit")
        if id in self.jobs:
            return False
        self.jobs[id] = Job(
            id, kind=kind, state="pending", submitted=0.0, ended=None, exit_code=None, message="", **about
        )
        self.entrypoints[id] = entrypoint
        return True

    def end(self, id: str, state: str) -> None:
        self.jobs[id] = replace(self.jobs[id], state=state)

    def log(self, id: str) -> str:
        return f"log of {id}"

    def stop(self, job: Job) -> None:
        self.stopped.append(job.id)


class Watcher(Silent):
    """Watcher that calls `act` with the job id of every note about a check."""

    def __init__(self, act: Callable[[str], None]) -> None:
        self.act = act

    def note(self, text: str) -> None:
        self.act(text.rpartition("job ")[2].rstrip(")"))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(remote_check, "POLL_S", 0.001)
    monkeypatch.setattr(submit, "POLL_S", 0.001)
    return Cluster()


def queued(cluster: Any, options: Options = PICKLES, search_id: str = ID) -> Submitted:
    submitted = Submitted("night", search_id, [])
    enqueue(submitted, PACKED, cluster, options)
    return submitted


def checked(cluster: Any, act: Callable[[str], None], options: Options = PICKLES) -> tuple[Job, str]:
    return RemoteCheck(Submitted("night", ID, []), PACKED, cluster, options).run(Watcher(act))


@pytest.mark.parametrize("call", ["capacity", "all", "submit"])
def test_of_two_simultaneous_submissions_one_adopts_the_others_job(cluster: Any, call: str) -> None:
    others: list[Submitted] = []
    cluster.meanwhile[call] = lambda: others.append(queued(cluster))
    mine = queued(cluster)
    assert list(cluster.jobs) == [f"{STEM}-1"]
    assert (mine.job, mine.state, mine.position, mine.already) == (f"{STEM}-1", "pending", 1, True)
    assert [other.already for other in others] == [False]
    assert mine.notes == []


def test_if_the_others_job_has_ended_a_new_job_is_queued(cluster: Any) -> None:
    cluster.meanwhile["submit"] = lambda: (queued(cluster), cluster.end(f"{STEM}-1", "failed"))
    mine = queued(cluster)
    assert (mine.job, mine.already) == (f"{STEM}-2", False)


def test_a_search_with_the_same_name_queued_during_the_check_is_an_error(cluster: Any) -> None:
    cluster.meanwhile["capacity"] = lambda: queued(cluster, search_id="1" * 64)
    with pytest.raises(ClusterError, match="night: another search with this name is waiting on the cluster"):
        queued(cluster)
    assert len(cluster.jobs) == 1


def test_a_rejected_id_without_a_job_is_an_error(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "submit", lambda *given, **named: False)
    with pytest.raises(ClusterError, match=f"the cluster lost job {STEM}-1"):
        queued(cluster)


def test_options_are_passed_to_the_jobs_and_not_part_of_the_search_id(cluster: Any) -> None:
    checked(cluster, lambda job: cluster.end(job, "succeeded"), ALL)
    queued(cluster, ALL)
    for id, end in (
        (f"{STEM}-{CHECK}-1", "check packed/night.yaml --json --allow-pickle"),
        (f"{STEM}-1", "run packed/night.yaml --progress json --continue-from-best --allow-pickle --unverified"),
    ):
        assert cluster.entrypoints[id].endswith(f" -m evosearch.cli.main {end}")
    assert cluster.jobs[f"{STEM}-1"].options == ALL.of(RUN)
    again = queued(cluster, Options())
    assert (again.job, again.already) == (f"{STEM}-1", True)
    (note,) = again.notes
    assert note.startswith("it was submitted with --continue-from-best --allow-pickle --unverified, not with")
    assert queued(cluster, ALL).notes == []


def test_without_options_the_commands_have_none(cluster: Any) -> None:
    checked(cluster, lambda job: cluster.end(job, "succeeded"), Options())
    queued(cluster, Options())
    assert cluster.entrypoints[f"{STEM}-{CHECK}-1"].endswith(" --json")
    assert cluster.entrypoints[f"{STEM}-1"].endswith(" --progress json")


def interrupt(id: str) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("own", [True, False])
def test_an_interrupt_stops_only_the_submissions_own_check(cluster: Any, own: bool) -> None:
    if not own:
        with pytest.raises(KeyboardInterrupt):
            checked(cluster, interrupt)
        cluster.stopped.clear()  # the stopped job is still active
    with pytest.raises(KeyboardInterrupt):
        checked(cluster, interrupt)
    assert list(cluster.jobs) == [f"{STEM}-{CHECK}-1"]
    assert cluster.stopped == ([f"{STEM}-{CHECK}-1"] if own else [])


def test_a_stopped_shared_check_is_repeated(cluster: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        checked(cluster, interrupt)
    waited: list[str] = []

    def act(id: str) -> None:
        cluster.end(id, "succeeded" if waited else "stopped")
        waited.append(id)

    job, said = checked(cluster, act)
    assert waited == [f"{STEM}-{CHECK}-1", f"{STEM}-{CHECK}-2"]
    assert (job.id, job.state, said) == (waited[1], "succeeded", f"log of {waited[1]}")


def test_checks_with_different_options_are_not_shared(cluster: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        checked(cluster, interrupt)
    job, _ = checked(cluster, lambda job: cluster.end(job, "succeeded"), Options())
    assert job.id == f"{STEM}-{CHECK}-2"
    with pytest.raises(KeyboardInterrupt):
        checked(cluster, interrupt, ALL)  # options that do not apply to checks are ignored
    assert len(cluster.jobs) == 2


def test_simultaneous_identical_checks_are_shared(cluster: Any) -> None:
    def other() -> None:
        with pytest.raises(KeyboardInterrupt):
            checked(cluster, interrupt)

    cluster.meanwhile["submit"] = other
    job, _ = checked(cluster, lambda job: cluster.end(job, "succeeded"))
    assert list(cluster.jobs) == [job.id] == [f"{STEM}-{CHECK}-1"]


def test_command_line_options_reach_the_submission(
    evosearch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Options] = []

    def fake(path: Path, address: str, watcher: Any, options: Options) -> Submitted:
        given.append(options)
        return Submitted("night", ID, [], job=f"{STEM}-1", state="pending")

    monkeypatch.setattr(submit, "submit", fake)
    for options in ((), ("--allow-pickle",), ("--continue-from-best",), ("--unverified",)):
        assert evosearch("submit", "night.yaml", "--address", "http://head:8265", *options)[0] == 0
    named = ({}, {"allow_pickle": True}, {"continue_from_best": True}, {"unverified": True})
    assert given == [Options(**options) for options in named]
