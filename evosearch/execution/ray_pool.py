"""The Ray executor: a pool of actors with one worker each, on this machine or on a cluster.

Actors are created with `max_restarts=0, max_task_retries=0`: Ray would hide a death behind an "unavailable" error, and
a restarted actor has lost its state. Instead, a lost worker is replaced by a new one, and its job goes to the next idle
worker; `faults` decides when a job is not retried. An actor that does not fit on any node stays pending: it is the
demand that an autoscaler sees. No request is sent to the cluster while its head node does not answer.
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
from evosearch.execution.faults import MAX_HANDED_BACK, JobHistory, WorkerLoss, quarantined
from evosearch.execution.members import Member, Members, Run, answer, is_ready
from evosearch.execution.placement import Placement
from evosearch.execution.ray_cluster import address_of, connect
from evosearch.execution.start_failures import StartFailures
from evosearch.search.protocols import Job, Outcome

TICK_S = 1.0  # between two checks of deadlines, number of workers and head node
UNCLEAR_S = 120.0  # of lost contact until a worker is given up; Ray declares a node dead within a minute
SPARE_S = 120.0  # until requests for workers that no job needs are withdrawn
GONE_S = 90.0  # silence of the head node until the search ends; a head that restarts from its store is back by then


@dataclass(frozen=True)
class RayOptions:
    """Size of the pool.

    Attributes:
        count: Number of workers; None for as many as fit on the cluster, as its nodes come and go.
        cpus_per_worker: CPU cores of each worker.
        gpus_per_worker: GPUs of each worker. Below 1, workers share a GPU; from 2 on, a model is spread over several.
            None for 1 if any node has GPUs, else 0.
        address: Address of a cluster; None for `$RAY_ADDRESS`, or else a local Ray for this process.
        fill: If `count` is None, request as many workers as fit, even if there are fewer jobs. For callers that always
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
        SpecError: The cluster is unreachable or refuses the token, or a worker fits on none of its nodes.
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
        self._pending_error: Exception | None = None  # raised once all outcomes have been returned
        self._start_failures = StartFailures(notice)
        self._spare_since: float | None = None
        self._last_tick = 0.0
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
        """Number of workers that can score now. Starting workers do not count: they may have to wait for a node."""
        return self._members.alive

    @property
    def placed(self) -> int:
        """Number of workers that are placed on a node, including those that are starting."""
        return self._members.placed

    def capacity(self) -> int:
        """Return how many workers would fit on the cluster's nodes if these were empty; 0 while the head is silent."""
        return capacity(self._cluster.nodes(), self._demand) if self._cluster.silent_for() is None else 0

    def busy(self) -> bool:
        """Return whether workers fit on nodes, but all of these are in use; False while the head is silent."""
        return self.capacity() > 0 and not any(self._demand.fits(free) for free in self._cluster.free())

    def submit(self, job: Job) -> None:
        """Queue a job, and start it if a worker is idle."""
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
            self._pending_error = exc  # raised by the next call, so that the outcomes are recorded first
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

    # --- results ---

    def _listen(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._done and self._jobs:
            left = max(0.0, deadline - time.monotonic())
            ready = self._members.ready(min(left, TICK_S))
            idle = len(self._members.idle)
            for ref in ready:
                self._handle(ref)
                self._dispatch()  # at once, so that idle workers continue while the other results are handled
            self._tick()
            if (len(self._members.idle) > idle and not self._queue) or (not ready and left <= 0):
                break  # a worker has started, and the caller may submit more

    def _handle(self, ref: Any) -> None:
        if ref in self._members.running:
            self._finished(ref)
        elif ref in self._members.unclear:
            self._pinged(ref)
        elif ref in self._members.starting:
            self._started(ref)
        elif ref in self._members.placing:
            self._placed(ref)

    def _placed(self, ref: Any) -> None:
        member = self._members.placing.pop(ref)
        location, loss = answer(ref, "")
        if loss is not None:
            self._lost_at_start(member, loss)
            return
        member.location, member.since = location, time.monotonic()
        self._members.starting[member.started] = member
        self._placement.placed()

    def _started(self, ref: Any) -> None:
        member = self._members.starting.pop(ref)
        problem, loss = answer(ref, member.location.node)
        if loss is not None:
            self._lost_at_start(member, loss)
        elif problem is not None:
            self._not_built(member, problem)
        else:
            self._start_failures.reset()
            self._members.free(member)

    def _finished(self, ref: Any) -> None:
        run = self._members.running.pop(ref)
        outcome, loss = answer(ref, run.member.location.node)
        if loss is not None:
            self._lost(run, loss)
            return
        if outcome.failure is None:  # a quick failure would make the deadlines of good candidates too short
            self._deadlines.observe(run.history.job.evaluations, time.monotonic() - run.since)
        self._members.free(run.member)
        history, failure = run.history, outcome.failure
        history.attempts += outcome.retries
        if failure is not None and failure.fault == "worker" and history.handed_back < MAX_HANDED_BACK:
            history.handed_back += 1
            history.attempts.append(failure)
            self._queue.append(history)  # at the end, so that another worker is likely to take it
        else:
            self._done.append(replace(outcome, job=history.job, retries=self._updated(history).retries))

    def _pinged(self, ref: Any) -> None:
        """Handle the answer to a ping after contact with a worker was lost."""
        run = self._members.unclear.pop(ref)
        _, loss = answer(ref, run.member.location.node)
        if loss is None:
            self._notice(f"{run.history.job.id}: its result was lost in transit; scoring it again")
            lost_result = WorkerLoss("the result was lost in transit", "", run.member.location.node, node_lost=True)
            run.history.attempts.append(lost_result)
            self._members.free(run.member)
            self._retry(run)
        elif loss.unclear and time.monotonic() - run.since < UNCLEAR_S:
            self._members.to_ping.append(run)  # Ray has not decided yet
        else:
            self._discard(run, loss)

    # --- losses ---

    def _lost(self, run: Run, loss: WorkerLoss) -> None:
        """Handle the loss of a worker with a job, or of contact with it."""
        if not loss.unclear:
            self._discard(run, loss)
            return
        run.since = time.monotonic()
        self._members.ping(run)

    def _discard(self, run: Run, loss: WorkerLoss) -> None:
        """Kill a lost worker, and retry or quarantine its job."""
        run.member.kill()
        # The loss of a worker that died before it received the job is a failure, which does not count against the job
        run.history.attempts.append(loss if run.begun else loss.failure())
        self._updated(run.history)
        self._retry(run)

    def _retry(self, run: Run) -> None:
        """Retry a job on another worker after the loss of its worker, or quarantine it."""
        history = run.history
        self._fill()
        reason = history.give_up_reason()
        if reason is None:
            last = history.attempts[-1]
            self._notice(f"{history.job.id}: {last.reason}; scoring it again on another worker")
            self._queue.appendleft(history)
            self._dispatch()
            return
        failure, retries = quarantined(history, reason)
        self._done.append(Outcome(history.job, run.member.location.name, failure=failure, retries=retries))

    def _updated(self, history: JobHistory) -> JobHistory:
        """Attribute losses to nodes that have turned out to be lost."""
        if history.losses:
            history.blame_nodes(self._cluster.lost_nodes())
        return history

    def _lost_at_start(self, member: Member, loss: WorkerLoss) -> None:
        member.kill()
        lost = self._cluster.lost_nodes()
        if loss.node_lost or member.location.node in lost:
            self._notice(f"a starting worker was lost with its node: {loss.reason}")
        else:
            self._start_failures.lost(loss.reason, self._members.may_score)
        self._fill()

    def _not_built(self, member: Member, problem: InputError) -> None:
        member.kill()
        self._start_failures.not_built(member.location.name, problem, self._members.may_score)

    # --- requests ---

    def _dispatch(self) -> None:
        """Assign queued jobs to idle workers."""
        while self._queue and self._members.idle:
            history = self._queue.popleft()
            member = self._members.pick(history.bad_nodes)
            unseen = time.monotonic() - member.since > TICK_S
            run = Run(history, member, member.actor.ping.remote() if unseen else None)
            self._members.running[member.actor.run.remote(*self._batches.arguments(history.job))] = run

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
        if self._start_failures.paused:
            return
        for _ in range(more):
            actor = self._make_actor()
            members.placing[actor.locate.remote()] = Member(actor, actor.start.remote())

    # --- periodic checks ---

    def _tick(self) -> None:
        """Check deadlines, the head node and the number of workers, at most once every TICK_S."""
        now, members = time.monotonic(), self._members
        if now - self._last_tick < TICK_S:
            return
        self._last_tick = now
        silent = self._cluster.silent_for()
        if silent is not None and silent > GONE_S:
            what = f"the cluster is gone: its head node has not answered for {silent:.0f} s"
            raise SearchError(f"{what}. Everything scored is in the ledger. Run the same command to resume")
        if silent is not None:
            return
        ended = self._cluster.ended()
        if ended is not None:
            raise SearchError(f"Ray on this machine has ended: {ended}. Run the same command to resume")
        self._fill()
        for run in members.to_ping:
            members.ping(run)
        members.to_ping.clear()
        self._placement.check(len(members.placing), members.placed)
        self._placement.check_starts({one.location.name: one.since for one in members.starting.values()}, self.slots)
        self._give_up_running(now)
        self._give_up_unclear(now)
        self._give_up_starting(now)

    def _give_up_running(self, now: float) -> None:
        """Kill workers whose job is past its deadline."""
        for ref, run in list(self._members.running.items()):
            items, took = run.history.job.evaluations, now - run.since
            if took > self._deadlines.limit(items) and not is_ready(ref):
                del self._members.running[ref]
                typical = self._deadlines.typical(items)
                known = "" if typical is None else f" (typical: {typical:.3g} s)"
                self._discard(run, _timed_out(run.member, f"no answer after {took:.0f} s{known}"))

    def _give_up_unclear(self, now: float) -> None:
        """Kill workers with which contact has been lost for too long."""
        for ref, run in list(self._members.unclear.items()):
            took = now - run.since
            if took > UNCLEAR_S and not is_ready(ref):
                del self._members.unclear[ref]
                reason = f"contact with the worker was lost, and it has not answered for {took:.0f} s"
                self._discard(run, replace(_timed_out(run.member, reason), node_lost=True))

    def _give_up_starting(self, now: float) -> None:
        """Kill workers whose start takes too long."""
        for ref, member in list(self._members.starting.items()):
            took = now - member.since
            if took > self._options.timeouts.start and not is_ready(ref):
                del self._members.starting[ref]
                reason = f"{member.location.name} is not ready after {took:.0f} s"
                self._lost_at_start(member, _timed_out(member, reason))


def _timed_out(member: Member, reason: str) -> WorkerLoss:
    return WorkerLoss(reason, f"from {member.location.name}", member.location.node)
