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
from evosearch.execution.actor import Batches, Config, Scores, actor_maker
from evosearch.execution.cluster import address_of, connect, secure_environment, start_local
from evosearch.execution.deadlines import Deadlines, Patience
from evosearch.execution.demand import Demand, free, wanted
from evosearch.execution.faults import TRIES, JobHistory, WorkerLoss, quarantined
from evosearch.execution.members import Member, Run, answer, has_come
from evosearch.execution.placement import Outlook
from evosearch.execution.starts import Starts
from evosearch.search.protocols import Job, Outcome

__all__ = ["Config", "RayExecutor", "RayOptions", "Scores", "secure_environment", "start_local"]

TURN_S = 1.0  # how often deadlines, the number of workers and the head node are looked at
UNCLEAR_S = 120.0  # until a worker that contact was lost with is given up; Ray decides on a node within a minute
SPARE_S = 120.0  # until workers that have no place, and no job would go to, are not asked for any longer
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
        patience: how long a start and a job may take.
    """

    count: int | None
    cpus_per_worker: int = 1
    gpus_per_worker: float | None = 0.0
    address: str | None = None
    fill: bool = False
    patience: Patience = field(default_factory=Patience)


class RayExecutor:
    """Scores jobs on a pool of Ray actors.

    Raises (also from `submit` and `wait`):
        SpecError: the cluster cannot be reached or does not let us in, or no node of it could ever hold a worker.
        InputError: what is wrong with models or suite, where no worker could be built.
        SearchError: workers die while they start, or the cluster is gone.
    """

    def __init__(self, config: Config, options: RayOptions, notice: Callable[[str], None] = lambda text: None) -> None:
        self._options, self._notice = options, notice
        self._queue: deque[JobHistory] = deque()
        self._placing: dict[Any, Member] = {}  # ref of `place` → no node has room for it yet, or it is on its way
        self._starting: dict[Any, Member] = {}  # ref of `start`
        self._idle: list[Member] = []
        self._running: dict[Any, Run] = {}  # ref of `run`
        self._unclear: dict[Any, Run] = {}  # ref of a ping → contact with its worker was lost
        self._unasked: list[Run] = []  # the same, to be pinged again
        self._done: list[Outcome] = []  # not handed out yet
        self._trouble: Exception | None = None  # that ends the search, once what is done is handed out
        self._starts = Starts(notice)
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
        """How many workers the cluster's nodes hold, were they empty; 0 while its head node does not answer."""
        return free(self._cluster.nodes(), self._demand) if self._cluster.silent_for() is None else 0

    @property
    def placed(self) -> int:
        """Workers that have a place on a node; those that still start, too."""
        return len(self._members()) - len(self._placing)

    def busy(self) -> bool:
        """Whether nodes that could hold a worker are there, and others have taken all of them.

        False while the head node does not answer.
        """
        return self.room() > 0 and not any(self._demand.fits(free) for free in self._cluster.free())

    def submit(self, job: Job) -> None:
        self._queue.append(JobHistory(job))
        if self._trouble is None:
            self._dispatch()
            self._fill()

    def wait(self, timeout_s: float) -> list[Outcome]:
        if self._trouble is not None:
            raise self._trouble
        try:
            self._listen(timeout_s)
        except Exception as exc:
            if not self._done:
                raise
            self._trouble = exc  # of the next call: what is scored goes on record first
        done, self._done = self._done, []
        return done

    def _listen(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._done and self._jobs:
            left = max(0.0, deadline - time.monotonic())
            ready = self._ready(min(left, TURN_S))
            slots = len(self._idle)
            for ref in ready:
                self._take(ref)
                self._dispatch()  # whoever is free works on while the rest is read, and recorded
            self._turn()
            if (len(self._idle) > slots and not self._queue) or (not ready and left <= 0):
                break  # there is room that whoever waits may not know of: a worker has started

    def close(self) -> None:
        self._queue.clear()
        reachable = self._cluster.silent_for() is None
        for member in self._members():
            if reachable:
                member.kill()
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

    @property
    def _others(self) -> bool:
        """Whether there are workers that score, or that may yet; those without a place are nobody's hope."""
        return bool(self.slots or self._starting or self._unclear or self._unasked)

    def _members(self) -> list[Member]:
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

    def _take(self, ref: Any) -> None:
        if ref in self._running:
            self._finished(ref)
        elif ref in self._unclear:
            self._cleared(ref)
        elif ref in self._starting:
            self._started(ref)
        elif ref in self._placing:
            self._placed(ref)

    def _placed(self, ref: Any) -> None:
        member = self._placing.pop(ref)
        place, death = answer(ref, "")
        if death is not None:
            self._died_at_start(member, death)
            return
        member.place, member.since = place, time.monotonic()
        self._starting[member.started] = member
        self._outlook.placed()

    def _started(self, ref: Any) -> None:
        member = self._starting.pop(ref)
        problem, death = answer(ref, member.place.node)
        if death is not None:
            self._died_at_start(member, death)
        elif problem is not None:
            self._unfit(member, problem)
        else:
            self._starts.succeeded()
            self._free(member)

    def _finished(self, ref: Any) -> None:
        run = self._running.pop(ref)
        outcome, death = answer(ref, run.member.place.node)
        if death is not None:
            self._lost(run, death)
            return
        if outcome.card is not None:  # a failure within seconds would leave honest workers hardly any time
            self._deadlines.observe(len(run.history.job.batch), time.monotonic() - run.since)
        self._free(run.member)
        history, failure = run.history, outcome.failure
        history.attempts += outcome.retries
        if failure is not None and failure.fault == "worker" and history.handed_back < TRIES:
            history.handed_back += 1
            history.attempts.append(failure)
            self._queue.append(history)  # last, so that most likely another worker has it next
        else:
            self._done.append(replace(outcome, job=history.job, retries=self._reread(history).retries))

    def _cleared(self, ref: Any) -> None:
        """It is known now what became of a worker that contact was lost with."""
        run = self._unclear.pop(ref)
        _, death = answer(ref, run.member.place.node)
        if death is None:
            self._notice(f"{run.history.job.id}: its answer was lost on the way; it is scored again")
            run.history.attempts.append(
                WorkerLoss("the answer was lost on the way", "", run.member.place.node, of_node=True)
            )
            self._free(run.member)
            self._again(run)
        elif death.unclear and time.monotonic() - run.since < UNCLEAR_S:
            self._unasked.append(run)  # Ray has not decided yet
        else:
            self._bury(run, death)

    # --- what goes wrong ---

    def _lost(self, run: Run, death: WorkerLoss) -> None:
        """A worker was lost with a job, or contact with it."""
        if not death.unclear:
            self._bury(run, death)
            return
        run.since = time.monotonic()
        self._unclear[run.member.actor.ping.remote()] = run

    def _bury(self, run: Run, death: WorkerLoss) -> None:
        run.member.kill()
        run.history.attempts.append(
            death if run.begun else death.failure()
        )  # which counts for nothing: it was gone before
        self._reread(run.history)
        self._again(run)

    def _again(self, run: Run) -> None:
        """What becomes of a job whose worker was lost: it is tried elsewhere, or quarantined."""
        history = run.history
        self._fill()
        reason = history.verdict()
        if reason is None:
            last = history.attempts[-1]
            self._notice(f"{history.job.id}: {last.reason}; a new worker takes its place, and it is scored again")
            self._queue.appendleft(history)
            self._dispatch()
            return
        failure, retries = quarantined(history, reason)
        self._done.append(Outcome(history.job, run.member.place.name, failure=failure, retries=retries))

    def _reread(self, history: JobHistory) -> JobHistory:
        """With deaths taken as their nodes', where these are known to be lost by now."""
        if history.deaths:
            history.learn(self._cluster.lost_nodes())
        return history

    def _died_at_start(self, member: Member, death: WorkerLoss) -> None:
        member.kill()
        lost = self._cluster.lost_nodes()
        if death.of_node or member.place.node in lost:
            self._notice(f"a worker that was starting is lost with its node: {death.reason}")
        else:
            self._starts.died(death.reason, self._others)
        self._fill()

    def _unfit(self, member: Member, problem: InputError) -> None:
        member.kill()
        self._starts.unfit(member.place.name, problem, self._others)

    # --- what goes out ---

    def _free(self, member: Member) -> None:
        member.since = time.monotonic()
        self._idle.append(member)

    def _dispatch(self) -> None:
        while self._queue and self._idle:
            history = self._queue.popleft()
            member = self._pick(history.bad_nodes)
            unseen = time.monotonic() - member.since > TURN_S
            run = Run(history, member, member.actor.ping.remote() if unseen else None)
            self._running[member.actor.run.remote(*self._batches.packed(history.job))] = run

    def _pick(self, bad_nodes: Iterable[str]) -> Member:
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
        if not self._starts.may_go_on:
            return
        for _ in range(more):
            actor = self._make_actor()
            self._placing[actor.place.remote()] = Member(actor, actor.start.remote())

    def _withdraw(self, count: int) -> None:
        for ref in list(self._placing)[-count:]:
            self._placing.pop(ref).kill()

    def _turn(self) -> None:
        """Look at the clock: deadlines, the head node, workers that are wanted."""
        now = time.monotonic()
        if now - self._turned < TURN_S:
            return
        self._turned = now
        silent = self._cluster.silent_for()
        if silent is not None and silent > GONE_S:
            what = f"the cluster is gone: its head node has not answered for {silent:.0f} s"
            raise SearchError(f"{what}. The ledger has all that was scored; the same command goes on from there")
        if silent is not None:
            return
        self._fill()
        for run in self._unasked:
            self._unclear[run.member.actor.ping.remote()] = run
        self._unasked.clear()
        self._outlook.look(len(self._placing), len(self._members()) - len(self._placing))
        self._outlook.look_at_starts({one.place.name: one.since for one in self._starting.values()}, self.slots)
        self._give_up_the_silent()

    def _give_up_the_silent(self) -> None:
        """End workers that have owed an answer for too long: to a job, to whether they are there, to their start."""
        now, start_s = time.monotonic(), self._options.patience.start
        for ref, run in list(self._running.items()):
            items, took = len(run.history.job.batch), now - run.since
            if took > self._deadlines.limit(items) and not has_come(ref):
                del self._running[ref]
                typical = self._deadlines.typical(items)
                known = "" if typical is None else f" (typical: {typical:.3g} s)"
                self._bury(run, _silence(run.member, f"no answer after {took:.0f} s{known}"))
        for ref, run in list(self._unclear.items()):
            took = now - run.since
            if took > UNCLEAR_S and not has_come(ref):
                del self._unclear[ref]
                reason = f"contact with the worker was lost, and it has not answered for {took:.0f} s"
                self._bury(run, replace(_silence(run.member, reason), of_node=True))
        for ref, member in list(self._starting.items()):
            took = now - member.since
            if took > start_s and not has_come(ref):
                del self._starting[ref]
                self._died_at_start(member, _silence(member, f"{member.place.name} is not ready after {took:.0f} s"))


def _silence(member: Member, reason: str) -> WorkerLoss:
    return WorkerLoss(reason, f"from {member.place.name}", member.place.node)
