"""The Ray executor: a pool of actors with one worker each, on this machine or on a cluster.

Actors are created with `max_restarts=0, max_task_retries=0`: Ray would hide a death behind an "unavailable" error, and
a restarted actor has lost its state. Instead, a lost worker is replaced by a new one and its job goes to the next free
worker; `faults` says when it is not tried again. An actor that no node has room for stays pending: it is the demand
that an autoscaler sees. Nothing is requested from the cluster while its head node does not answer.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from evosearch.errors import InputError, SearchError
from evosearch.execution.actor import Batches, Build, Config, actor_maker
from evosearch.execution.deadlines import Deadlines, Timeouts
from evosearch.execution.demand import Demand, capacity, wanted
from evosearch.execution.faults import TRIES, JobHistory, WorkerLoss, quarantined
from evosearch.execution.members import Member, Members, Run, answer, is_ready
from evosearch.execution.placement import Placement
from evosearch.execution.ray_cluster import address_of, connect
from evosearch.execution.starts import Starts
from evosearch.search.protocols import Job, Outcome

TURN_S = 1.0  # between two looks at deadlines, the number of workers and the head node
UNCLEAR_S = 120.0  # until a worker without contact is given up; Ray decides about a node within a minute
SPARE_S = 120.0  # until requests for workers that no job needs are withdrawn
GONE_S = 90.0  # for which the head node may be silent; one that restarts from its store is back by then


@dataclass(frozen=True)
class RayOptions:
    """Size of the pool.

    Attributes:
        count: Number of workers; None for as many as the cluster gives, as its nodes come and go.
        cpus_per_worker: CPU cores of each worker.
        gpus_per_worker: A fraction shares a card; 2 and more are for models larger than one card; None means one if any
            node has GPUs, else none.
        address: Address of a cluster; None for `$RAY_ADDRESS`, or else a local Ray of this process.
        fill: With count None, request as many workers as fit, not only as many as there are jobs. For callers that
            submit as many jobs as there are slots.
        timeouts: Time limits of starts and jobs.
    """

    count: int | None
    cpus_per_worker: int = 1
    gpus_per_worker: float | None = 0.0
    address: str | None = None
    fill: bool = False
    timeouts: Timeouts = field(default_factory=Timeouts)


class RayExecutor:
    """Executor that scores jobs on a pool of Ray actors.

    Args:
        build: Builds a worker from the configuration, in the actor's process.
        config: The workers' configuration.
        options: Size of the pool.
        notice: Called with a sentence for the user.

    Raises (also from `submit` and `wait`):
        SpecError: The cluster cannot be reached or refuses us, or no node of it could ever hold a worker.
        InputError: A problem with models or suite, if no worker could be built.
        SearchError: Workers die during start, or the cluster is gone.
    """

    def __init__(
        self, build: Build, config: Config, options: RayOptions, notice: Callable[[str], None] = lambda text: None
    ) -> None:
        self._options, self._notice = options, notice
        self._queue: deque[JobHistory] = deque()
        self._members = Members()
        self._done: list[Outcome] = []  # not returned yet
        self._pending_error: Exception | None = None  # raised once everything scored has been returned
        self._starts = Starts(notice)
        self._spare_since: float | None = None
        self._turned = 0.0
        self._deadlines = Deadlines(options.timeouts)
        address = address_of(options.address)
        cpus = None if options.count is None else options.count * options.cpus_per_worker
        self._cluster = connect(config.cache / "ray_token", address, cpus)
        self._demand = self._resolve_demand()
        self._placement = Placement(self._cluster, self._demand, notice, fixed=options.count is not None)
        self._make_actor = actor_maker(build, config, self._demand)
        self._batches = Batches()
        self._fill()

    @property
    def slots(self) -> int:
        """Workers that can score now. One that is starting does not count, since it may have to wait for a node."""
        return self._members.alive

    @property
    def placed(self) -> int:
        """Workers that have a place on a node, including those that still start."""
        return self._members.placed

    def capacity(self) -> int:
        """Return how many workers the cluster's nodes would hold if they were empty; 0 while the head is silent."""
        return capacity(self._cluster.nodes(), self._demand) if self._cluster.silent_for() is None else 0

    def busy(self) -> bool:
        """Return whether nodes could hold a worker but are all in use; False while the head is silent."""
        return self.capacity() > 0 and not any(self._demand.fits(free) for free in self._cluster.free())

    def submit(self, job: Job) -> None:
        """Queue a job, and give it to a worker if one is idle."""
        self._queue.append(JobHistory(job))
        if self._pending_error is None:
            self._dispatch()
            self._fill()

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return finished jobs; see `Executor.wait`."""
        if self._pending_error is not None:
            raise self._pending_error
        try:
            self._listen(timeout_s)
        except Exception as exc:
            if not self._done:
                raise
            self._pending_error = exc  # raised by the next call, so that what is scored is recorded first
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Drop queued jobs, kill the workers, and stop Ray if it was started here."""
        self._queue.clear()
        if self._cluster.silent_for() is None:
            for member in self._members.all():
                member.kill()
        self._members.clear()
        self._cluster.leave()

    def _resolve_demand(self) -> Demand:
        gpus = self._options.gpus_per_worker
        if gpus is None:
            has = [node["Resources"] for node in self._cluster.nodes() if node["Alive"]]
            gpus = float(any(one.get("GPU") for one in (*has, *(self._cluster.groups() or ()))))
        return Demand(self._options.cpus_per_worker, gpus)

    @property
    def _jobs(self) -> int:
        """Number of jobs that are not scored yet."""
        return len(self._queue) + self._members.jobs

    # --- answers ---

    def _listen(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._done and self._jobs:
            left = max(0.0, deadline - time.monotonic())
            ready = self._members.ready(min(left, TURN_S))
            idle = len(self._members.idle)
            for ref in ready:
                self._take(ref)
                self._dispatch()  # so that idle workers go on while the rest is read and recorded
            self._turn()
            if (len(self._members.idle) > idle and not self._queue) or (not ready and left <= 0):
                break  # a worker has started, and the caller may submit more

    def _take(self, ref: Any) -> None:
        if ref in self._members.running:
            self._finished(ref)
        elif ref in self._members.unclear:
            self._cleared(ref)
        elif ref in self._members.starting:
            self._started(ref)
        elif ref in self._members.placing:
            self._placed(ref)

    def _placed(self, ref: Any) -> None:
        member = self._members.placing.pop(ref)
        place, loss = answer(ref, "")
        if loss is not None:
            self._died_at_start(member, loss)
            return
        member.place, member.since = place, time.monotonic()
        self._members.starting[member.started] = member
        self._placement.placed()

    def _started(self, ref: Any) -> None:
        member = self._members.starting.pop(ref)
        problem, loss = answer(ref, member.place.node)
        if loss is not None:
            self._died_at_start(member, loss)
        elif problem is not None:
            self._unfit(member, problem)
        else:
            self._starts.succeeded()
            self._members.free(member)

    def _finished(self, ref: Any) -> None:
        run = self._members.running.pop(ref)
        outcome, loss = answer(ref, run.member.place.node)
        if loss is not None:
            self._lost(run, loss)
            return
        if outcome.card is not None:  # a failure within seconds would make the deadlines of good candidates too short
            self._deadlines.observe(len(run.history.job.batch), time.monotonic() - run.since)
        self._members.free(run.member)
        history, failure = run.history, outcome.failure
        history.attempts += outcome.retries
        if failure is not None and failure.fault == "worker" and history.handed_back < TRIES:
            history.handed_back += 1
            history.attempts.append(failure)
            self._queue.append(history)  # at the end, so that another worker is likely to take it
        else:
            self._done.append(replace(outcome, job=history.job, retries=self._updated(history).retries))

    def _cleared(self, ref: Any) -> None:
        """Act on the answer to a ping of a worker that contact was lost with."""
        run = self._members.unclear.pop(ref)
        _, loss = answer(ref, run.member.place.node)
        if loss is None:
            self._notice(f"{run.history.job.id}: its answer was lost on the way; scoring it again")
            lost_answer = WorkerLoss("the answer was lost on the way", "", run.member.place.node, of_node=True)
            run.history.attempts.append(lost_answer)
            self._members.free(run.member)
            self._retry(run)
        elif loss.unclear and time.monotonic() - run.since < UNCLEAR_S:
            self._members.to_ping.append(run)  # Ray has not decided yet
        else:
            self._bury(run, loss)

    # --- losses ---

    def _lost(self, run: Run, loss: WorkerLoss) -> None:
        """Handle the loss of a worker with a job, or of contact with it."""
        if not loss.unclear:
            self._bury(run, loss)
            return
        run.since = time.monotonic()
        self._members.ping(run)

    def _bury(self, run: Run, loss: WorkerLoss) -> None:
        run.member.kill()
        # A worker that was dead before the job came says nothing about the job: a failure is not counted as a loss
        run.history.attempts.append(loss if run.begun else loss.failure())
        self._updated(run.history)
        self._retry(run)

    def _retry(self, run: Run) -> None:
        """Try a job elsewhere after the loss of its worker, or quarantine it."""
        history = run.history
        self._fill()
        reason = history.verdict()
        if reason is None:
            last = history.attempts[-1]
            self._notice(f"{history.job.id}: {last.reason}; scoring it again on another worker")
            self._queue.appendleft(history)
            self._dispatch()
            return
        failure, retries = quarantined(history, reason)
        self._done.append(Outcome(history.job, run.member.place.name, failure=failure, retries=retries))

    def _updated(self, history: JobHistory) -> JobHistory:
        """Attribute losses to nodes that are known to be lost by now."""
        if history.losses:
            history.blame_nodes(self._cluster.lost_nodes())
        return history

    def _died_at_start(self, member: Member, loss: WorkerLoss) -> None:
        member.kill()
        lost = self._cluster.lost_nodes()
        if loss.of_node or member.place.node in lost:
            self._notice(f"a worker that was starting is lost with its node: {loss.reason}")
        else:
            self._starts.died(loss.reason, self._members.may_score)
        self._fill()

    def _unfit(self, member: Member, problem: InputError) -> None:
        member.kill()
        self._starts.unfit(member.place.name, problem, self._members.may_score)

    # --- requests ---

    def _dispatch(self) -> None:
        """Give queued jobs to idle workers."""
        while self._queue and self._members.idle:
            history = self._queue.popleft()
            member = self._members.pick(history.bad_nodes)
            unseen = time.monotonic() - member.since > TURN_S
            run = Run(history, member, member.actor.ping.remote() if unseen else None)
            self._members.running[member.actor.run.remote(*self._batches.packed(history.job))] = run

    def _fill(self) -> None:
        """Request missing workers, and withdraw requests that no job needs."""
        options, now, members = self._options, time.monotonic(), self._members
        placed, pending = members.placed, len(members.placing)
        more = wanted(self._jobs, placed, options.count, options.fill) - placed - pending
        if more < 0 and pending and not self._queue:
            self._spare_since = self._spare_since or now
            if now - self._spare_since > SPARE_S:
                members.withdraw(-more)
            return
        self._spare_since = None
        if not self._starts.may_go_on:
            return
        for _ in range(more):
            actor = self._make_actor()
            members.placing[actor.place.remote()] = Member(actor, actor.start.remote())

    # --- the clock ---

    def _turn(self) -> None:
        """Check deadlines, the head node and the number of workers, once in TURN_S."""
        now, members = time.monotonic(), self._members
        if now - self._turned < TURN_S:
            return
        self._turned = now
        silent = self._cluster.silent_for()
        if silent is not None and silent > GONE_S:
            what = f"the cluster is gone: its head node has not answered for {silent:.0f} s"
            raise SearchError(f"{what}. Everything scored is in the ledger. Run the same command to resume")
        if silent is not None:
            return
        self._fill()
        for run in members.to_ping:
            members.ping(run)
        members.to_ping.clear()
        self._placement.check(len(members.placing), members.placed)
        self._placement.check_starts({one.place.name: one.since for one in members.starting.values()}, self.slots)
        self._give_up_running(now)
        self._give_up_unclear(now)
        self._give_up_starting(now)

    def _give_up_running(self, now: float) -> None:
        """Kill workers whose job is past its deadline."""
        for ref, run in list(self._members.running.items()):
            items, took = len(run.history.job.batch), now - run.since
            if took > self._deadlines.limit(items) and not is_ready(ref):
                del self._members.running[ref]
                typical = self._deadlines.typical(items)
                known = "" if typical is None else f" (typical: {typical:.3g} s)"
                self._bury(run, _timed_out(run.member, f"no answer after {took:.0f} s{known}"))

    def _give_up_unclear(self, now: float) -> None:
        """Kill workers that contact was lost with for too long."""
        for ref, run in list(self._members.unclear.items()):
            took = now - run.since
            if took > UNCLEAR_S and not is_ready(ref):
                del self._members.unclear[ref]
                reason = f"contact with the worker was lost, and it has not answered for {took:.0f} s"
                self._bury(run, replace(_timed_out(run.member, reason), of_node=True))

    def _give_up_starting(self, now: float) -> None:
        """Kill workers whose start takes too long."""
        for ref, member in list(self._members.starting.items()):
            took = now - member.since
            if took > self._options.timeouts.start and not is_ready(ref):
                del self._members.starting[ref]
                self._died_at_start(member, _timed_out(member, f"{member.place.name} is not ready after {took:.0f} s"))


def _timed_out(member: Member, reason: str) -> WorkerLoss:
    return WorkerLoss(reason, f"from {member.place.name}", member.place.node)
