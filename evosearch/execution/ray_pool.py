"""The Ray executor: a pool of actors, one a worker, on this machine or on a cluster.

Actors are made with `max_restarts=0, max_task_retries=0`: a restarted actor hides a death behind an "unavailable" error
and has lost its state. Here a lost worker is replaced by a new one and its job goes to whoever is free; `faults` says
when it is not tried again. An actor that no node has room for is pending: it is the demand that an autoscaler sees, and
the one that moves in when a node comes. Nothing is asked of the cluster while its head node does not answer.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from evosearch.errors import InputError, SearchError
from evosearch.execution.actor import Batches, Config, Place, Scores, actor_maker
from evosearch.execution.cluster import address_of, connect, secure_environment, start_local
from evosearch.execution.deadlines import Deadlines, Patience
from evosearch.execution.demand import Demand, free, wanted
from evosearch.execution.faults import TRIES, Death, Fate, death_of, quarantined
from evosearch.execution.outlook import Outlook
from evosearch.search.ports import Job, Outcome

__all__ = ["Config", "RayExecutor", "RayOptions", "Scores", "secure_environment", "start_local"]

TURN_S = 1.0  # how often deadlines, the number of workers and the head node are looked at
START_DEATHS = 3  # in a row, with no other worker left, until the search stops
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 600.0  # before the next is started where workers keep dying while they start
UNCLEAR_S = 120.0  # until a worker that contact was lost with is given up; Ray decides on a node within a minute
SPARE_S = 120.0  # until workers that have no place, and no job would go to, are not asked for any longer
UNPLACED = Place("", "?")
GONE_S = 90.0  # that the head node may be silent: one that restarts from its store is back by then


@dataclass(frozen=True)
class RayOptions:
    """How the pool is laid out.

    Attributes:
        count: of workers; None: as many as the cluster gives, as its nodes come and go.
        gpus_per_worker: fractions share a card, whole numbers from 2 on are for models larger than one; None: one where
            any node has GPUs, else none.
        address: of a cluster; None: that of `$RAY_ADDRESS`, else Ray is started on this machine, for this process only.
        fill: with count None: take all the room there is, not just for the jobs submitted. For whoever submits as many
            jobs as there are slots.
        patience: how long a job may take.
    """

    count: int | None
    cpus_per_worker: int = 1
    gpus_per_worker: float | None = 0.0
    address: str | None = None
    fill: bool = False
    patience: Patience = field(default_factory=Patience)


@dataclass(eq=False)
class _Member:
    """One actor; where it is, once it has a place."""

    actor: Any
    started: Any  # ref of its start
    place: Place = UNPLACED
    since: float = field(default_factory=time.monotonic)  # when it came to its present state


@dataclass(eq=False)
class _Run:
    """A job with a worker."""

    fate: Fate
    member: _Member
    alive: Any = None  # ref of a ping before the job, where the worker may have died unseen
    since: float = field(default_factory=time.monotonic)


class RayExecutor:
    """Scores jobs on a pool of Ray actors.

    Raises (also from `submit` and `wait`):
        SpecError: the cluster cannot be reached or does not let us in, or no node of it could ever hold a worker.
        InputError: what is wrong with models or suite, where no worker could be built.
        SearchError: workers die while they start, or the cluster is gone.
    """

    def __init__(self, config: Config, options: RayOptions, notice: Callable[[str], None] = lambda text: None) -> None:
        self._options, self._notice = options, notice
        self._queue: deque[Fate] = deque()
        self._placing: dict[Any, _Member] = {}  # ref of `place` → no node has room for it yet, or it is on its way
        self._starting: dict[Any, _Member] = {}  # ref of `start`
        self._idle: list[_Member] = []
        self._running: dict[Any, _Run] = {}  # ref of `run`
        self._unclear: dict[Any, _Run] = {}  # ref of a ping → contact with its worker was lost
        self._unasked: list[_Run] = []  # the same, to be pinged again
        self._start_deaths, self._not_before = 0, 0.0
        self._spare_since: float | None = None
        self._turned = 0.0
        self._deadlines = Deadlines(options.patience)
        address = address_of(options.address)
        cpus = None if options.count is None else options.count * options.cpus_per_worker
        self._cluster = connect(config.cache / "ray_token", address, cpus)
        self._demand = self._demanded()
        self._outlook = Outlook(self._cluster, self._demand, notice, fixed=options.count is not None)
        self._make_actor = actor_maker(config, self._demand)
        self._batches = Batches()
        self._fill()

    @property
    def slots(self) -> int:
        """Workers that are alive: idle, or with a job. One that starts is none yet, and may have to wait for a node."""
        return len(self._idle) + len(self._running)

    def room(self) -> int:
        """How many workers the cluster's nodes hold, were they empty."""
        return free(self._cluster.nodes(), self._demand)

    def submit(self, job: Job) -> None:
        self._queue.append(Fate(job))
        self._dispatch()
        self._fill()

    def wait(self, timeout_s: float) -> list[Outcome]:
        deadline = time.monotonic() + timeout_s
        done: list[Outcome] = []
        while not done and self._jobs:
            left = max(0.0, deadline - time.monotonic())
            ready = self._ready(min(left, TURN_S))
            slots = len(self._idle)
            for ref in ready:
                done += self._take(ref)
                self._dispatch()  # whoever is free works on while the rest is read, and recorded
            done += self._turn()
            if (len(self._idle) > slots and not self._queue) or (not ready and left <= 0):
                break  # there is room that whoever waits may not know of: a worker has started
        return done

    def close(self) -> None:
        self._queue.clear()
        reachable = not self._cluster.silent_for()
        for member in self._members():
            if reachable:
                _kill(member)
        for known in (self._placing, self._starting, self._running, self._unclear):
            known.clear()
        self._idle.clear()
        self._unasked.clear()
        self._cluster.leave()

    def _demanded(self) -> Demand:
        gpus = self._options.gpus_per_worker
        if gpus is None:
            has = [node["Resources"] for node in self._cluster.nodes() if node["Alive"]]
            gpus = float(any(one.get("GPU") for one in (*has, *(self._cluster.groups() or ()))))
        return Demand(self._options.cpus_per_worker, gpus)

    @property
    def _jobs(self) -> int:
        """How many are not scored yet."""
        return len(self._queue) + len(self._running) + len(self._unclear) + len(self._unasked)

    def _members(self) -> list[_Member]:
        runs = [*self._running.values(), *self._unclear.values(), *self._unasked]
        return [*self._idle, *self._placing.values(), *self._starting.values(), *(run.member for run in runs)]

    # --- what comes in ---

    def _ready(self, timeout_s: float) -> list[Any]:
        """References with an answer, after waiting for the first."""
        import ray

        pending = [*self._running, *self._unclear, *self._starting, *self._placing]
        if not pending:
            time.sleep(timeout_s)
            return []
        if not ray.wait(pending, num_returns=1, timeout=timeout_s)[0]:
            return []
        ready: list[Any] = ray.wait(pending, num_returns=len(pending), timeout=0)[0]
        return ready

    def _take(self, ref: Any) -> list[Outcome]:
        if ref in self._running:
            return self._finished(ref)
        if ref in self._unclear:
            return self._cleared(ref)
        if ref in self._starting:
            self._started(ref)
        elif ref in self._placing:
            self._placed(ref)
        return []

    def _placed(self, ref: Any) -> None:
        member = self._placing.pop(ref)
        place, death = _answer(ref, "")
        if death is not None:
            self._died_at_start(member, death)
            return
        member.place, member.since = place, time.monotonic()
        self._starting[member.started] = member
        self._outlook.placed()

    def _started(self, ref: Any) -> None:
        member = self._starting.pop(ref)
        problem, death = _answer(ref, member.place.node)
        if death is not None:
            self._died_at_start(member, death)
        elif problem is not None:
            self._unfit(member, problem)
        else:
            self._start_deaths = 0
            self._free(member)

    def _finished(self, ref: Any) -> list[Outcome]:
        run = self._running.pop(ref)
        outcome, death = _answer(ref, run.member.place.node)
        if death is not None:
            return self._lost(run, death)
        self._deadlines.observe(len(run.fate.job.batch), time.monotonic() - run.since)
        self._free(run.member)
        fate, failure = run.fate, outcome.failure
        fate.met += outcome.retries
        if failure is not None and failure.fault == "worker" and fate.given_back < TRIES:
            fate.given_back += 1
            fate.met.append(failure)
            self._queue.append(fate)  # last, so that most likely another worker has it next
            return []
        return [replace(outcome, job=fate.job, retries=self._reread(fate).retries)]

    def _cleared(self, ref: Any) -> list[Outcome]:
        """It is known now what became of a worker that contact was lost with."""
        run = self._unclear.pop(ref)
        _, death = _answer(ref, run.member.place.node)
        if death is None:
            self._notice(f"{run.fate.job.id}: its answer was lost on the way; it is scored again")
            run.fate.met.append(Death("the answer was lost on the way", "", run.member.place.node, of_node=True))
            self._free(run.member)
            return self._again(run)
        if death.unclear and time.monotonic() - run.since < UNCLEAR_S:
            self._unasked.append(run)  # Ray has not decided yet
            return []
        return self._bury(run, death)

    # --- what goes wrong ---

    def _lost(self, run: _Run, death: Death) -> list[Outcome]:
        """A worker was lost with a job, or contact with it."""
        if not death.unclear:
            return self._bury(run, death)
        run.since = time.monotonic()
        self._unclear[run.member.actor.ping.remote()] = run
        return []

    def _bury(self, run: _Run, death: Death) -> list[Outcome]:
        _kill(run.member)
        begun = run.alive is None or _has_come(run.alive)
        run.fate.met.append(death if begun else death.failure())  # which counts for nothing: the worker was gone before
        self._reread(run.fate)
        return self._again(run)

    def _again(self, run: _Run) -> list[Outcome]:
        """What becomes of a job whose worker was lost: it is tried elsewhere, or quarantined."""
        fate = run.fate
        self._fill()
        reason = fate.verdict()
        if reason is None:
            last = fate.met[-1]
            self._notice(f"{fate.job.id}: {last.reason}; a new worker takes its place, and it is scored again")
            self._queue.appendleft(fate)
            self._dispatch()
            return []
        failure, retries = quarantined(fate, reason)
        return [Outcome(fate.job, run.member.place.name, failure=failure, retries=retries)]

    def _reread(self, fate: Fate) -> Fate:
        """With deaths taken as their nodes', where these are known to be lost by now."""
        if fate.deaths:
            fate.learn(self._cluster.lost_nodes())
        return fate

    def _died_at_start(self, member: _Member, death: Death) -> None:
        _kill(member)
        lost = self._cluster.lost_nodes()
        if death.of_node or member.place.node in lost:
            self._notice(f"a worker that was starting is lost with its node: {death.reason}")
        else:
            what = f"a worker was lost while it started: {death.reason}"
            self._give_pause(what, SearchError(f"workers die while they start: {death.reason}"))
        self._fill()

    def _unfit(self, member: _Member, problem: InputError) -> None:
        """A worker could not be built. Where others could, the trouble is its node's."""
        _kill(member)
        if not self.slots and not self._unclear:
            raise problem
        self._start_deaths = max(self._start_deaths, START_DEATHS - 1)
        self._give_pause(f"{member.place.name} cannot score: {problem}", problem)

    def _give_pause(self, what: str, final: Exception) -> None:
        """Wait the longer before the next is started, the more have failed; stop where nobody is left."""
        self._start_deaths += 1
        others = self.slots or self._starting or self._unclear
        if self._start_deaths >= START_DEATHS and not others:
            raise final
        if self._start_deaths < START_DEATHS:
            self._notice(f"{what}; starting another")
            return
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (self._start_deaths - START_DEATHS))
        self._not_before = time.monotonic() + pause
        self._notice(f"{what}; the next is started in {pause:.0f} s")

    # --- what goes out ---

    def _free(self, member: _Member) -> None:
        member.since = time.monotonic()
        self._idle.append(member)

    def _dispatch(self) -> None:
        while self._queue and self._idle:
            fate = self._queue.popleft()
            member = self._pick(fate.bad_nodes)
            unseen = time.monotonic() - member.since > TURN_S
            run = _Run(fate, member, member.actor.ping.remote() if unseen else None)
            self._running[member.actor.run.remote(*self._batches.packed(fate.job))] = run

    def _pick(self, bad_nodes: Iterable[str]) -> _Member:
        """Who is free, if possible where no worker was lost under this job."""
        bad = set(bad_nodes)
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index].place.node not in bad:
                return self._idle.pop(index)
        return self._idle.pop()

    def _fill(self) -> None:
        """Ask for workers that are wanted and not there."""
        options, now = self._options, time.monotonic()
        there = len(self._members()) - len(self._placing)
        more = wanted(self._jobs, there, options.count, options.fill) - there - len(self._placing)
        if more < 0 and self._placing and not self._queue:
            self._spare_since = self._spare_since or now
            if now - self._spare_since > SPARE_S:
                self._withdraw(-more)
            return
        self._spare_since = None
        if now < self._not_before:
            return
        for _ in range(more):
            actor = self._make_actor()
            self._placing[actor.place.remote()] = _Member(actor, actor.start.remote())

    def _withdraw(self, count: int) -> None:
        for ref in list(self._placing)[-count:]:
            _kill(self._placing.pop(ref))

    def _turn(self) -> list[Outcome]:
        """Look at the clock: deadlines, the head node, workers that are wanted."""
        now = time.monotonic()
        if now - self._turned < TURN_S:
            return []
        self._turned = now
        silent = self._cluster.silent_for()
        if silent > GONE_S:
            what = f"the cluster is gone: its head node has not answered for {silent:.0f} s"
            raise SearchError(f"{what}. The ledger has all that was scored; the same command goes on from there")
        if silent:
            return []
        self._fill()
        for run in self._unasked:
            self._unclear[run.member.actor.ping.remote()] = run
        self._unasked.clear()
        self._outlook.look(len(self._placing), len(self._members()) - len(self._placing))
        return self._give_up_the_silent()

    def _give_up_the_silent(self) -> list[Outcome]:
        import ray

        done: list[Outcome] = []
        for ref, run in list(self._running.items()):
            items, took = len(run.fate.job.batch), time.monotonic() - run.since
            if took <= self._deadlines.limit(items) or ray.wait([ref], timeout=0)[0]:
                continue
            del self._running[ref]
            typical = self._deadlines.typical(items)
            known = "" if typical is None else f" (typical: {typical:.3g} s)"
            node = run.member.place
            done += self._bury(run, Death(f"no answer after {took:.0f} s{known}", f"from {node.name}", node.node))
        return done


def _answer(ref: Any, node: str) -> tuple[Any, Death | None]:
    """What a reference holds, or how the worker that owed it was lost."""
    import ray

    try:
        return ray.get(ref), None
    except ray.exceptions.RayError as exc:
        return None, death_of(exc, node)


def _has_come(ref: Any) -> bool:
    """Whether a reference holds an answer, and no loss."""
    import ray

    return bool(ray.wait([ref], timeout=0)[0]) and _answer(ref, "")[1] is None


def _kill(member: _Member) -> None:
    import ray

    ray.kill(member.actor)
