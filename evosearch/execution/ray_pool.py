"""The Ray executor: one actor a worker, on this machine or on a cluster.

Actors are made with `max_restarts=0, max_task_retries=0`: a restarted actor hides a death behind an "unavailable" error
and has lost its state. Here a dead actor is replaced by a new one and its job goes to whoever is free, up to `RETRIES`
times; only names and recipes travel, never weights.
"""

import os
import secrets
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evosearch.errors import InputError, SearchError, SpecError
from evosearch.execution.worker import WorkerConfig
from evosearch.search.ports import Failure, Job, Outcome

RETRIES = 2  # times a job is scored again after its worker died under it


@dataclass(frozen=True)
class RayOptions:
    """How the pool is laid out. `address` None starts Ray on this machine, for this process only."""

    count: int
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
    address: str | None = None


def secure_environment(token_file: Path) -> None:
    """Token authentication on, telemetry off, in this process and all that Ray starts from it.

    Ray listens on every interface of the machine, so that a cluster without a token runs anybody's code. A token that
    the environment already names is used; otherwise one is made in `token_file`, readable by its owner only.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    if not token_file.exists():
        token_file.parent.mkdir(parents=True, exist_ok=True)
        temporary = token_file.with_name(f"{token_file.name}.{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        temporary.replace(token_file)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)


class RayExecutor:
    """Scores jobs on a pool of Ray actors."""

    def __init__(
        self, config: WorkerConfig, options: RayOptions, notice: Callable[[str], None] = lambda text: None
    ) -> None:
        self._config, self._options, self._notice = config, options, notice
        self._queue: deque[tuple[Job, tuple[Failure, ...]]] = deque()
        self._running: dict[Any, tuple[Job, tuple[Failure, ...], Any]] = {}  # ref → job, earlier faults, actor
        self._starting: dict[Any, Any] = {}  # ref of `start` → actor
        self._idle: list[Any] = []
        self._deaths_in_a_row = 0
        self._own_cluster = _connect(config, options)
        self._actor_class = _actor_class(options, config)
        for _ in range(options.count):
            self._start_actor()

    @property
    def slots(self) -> int:
        """Workers that are alive: idle, or with a job. One that starts is none yet, and may have to wait for a node."""
        return len(self._idle) + len(self._running)

    def submit(self, job: Job) -> None:
        self._queue.append((job, ()))
        self._dispatch()

    def wait(self, timeout_s: float) -> list[Outcome]:
        import ray

        deadline = time.monotonic() + timeout_s
        done: list[Outcome] = []
        while not done and (self._running or self._queue):
            pending = [*self._running, *self._starting]
            left = max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait(pending, num_returns=1, timeout=min(left, 1.0))
            if ready:
                more, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
                for ref in more:
                    done += self._started(ref) if ref in self._starting else self._finished(ref)
                    self._dispatch()  # whoever is free works on while the rest is read, and recorded
                if self._idle and not self._queue:
                    break  # there is room that whoever waits may not know of: a worker has started
            elif left <= 0:
                break
        return done

    def close(self) -> None:
        import ray

        self._queue.clear()
        if ray.is_initialized():
            for actor in [*self._idle, *self._starting.values(), *(actor for _, _, actor in self._running.values())]:
                ray.kill(actor)
            if self._own_cluster:
                ray.shutdown()
        self._running.clear()
        self._starting.clear()
        self._idle.clear()

    def _start_actor(self) -> None:
        actor = self._actor_class.remote(self._config)
        self._starting[actor.start.remote()] = actor

    def _dispatch(self) -> None:
        while self._queue and self._idle:
            job, faults = self._queue.popleft()
            actor = self._idle.pop()
            self._running[actor.run.remote(job)] = (job, faults, actor)

    def _started(self, ref: Any) -> list[Outcome]:
        import ray

        actor = self._starting.pop(ref)
        try:
            problem = ray.get(ref)
        except ray.exceptions.RayError as exc:
            self._deaths_in_a_row += 1
            if self._deaths_in_a_row > RETRIES:
                raise SearchError(f"workers die while they start: {_first_line(exc)}") from exc
            self._notice(f"a worker died while it started, starting another: {_first_line(exc)}")
            self._start_actor()
            return []
        if problem is not None:
            raise problem
        self._idle.append(actor)
        return []

    def _finished(self, ref: Any) -> list[Outcome]:
        import ray

        job, faults, actor = self._running.pop(ref)
        try:
            outcome: Outcome = ray.get(ref)
        except ray.exceptions.RayError as exc:
            return self._died(job, faults, exc)
        self._deaths_in_a_row = 0
        self._idle.append(actor)
        if outcome.failure is not None and outcome.failure.fault == "worker" and len(faults) < RETRIES:
            self._queue.appendleft((job, (*faults, outcome.failure)))
            return []
        return [replace(outcome, retries=faults)]

    def _died(self, job: Job, faults: tuple[Failure, ...], exc: Exception) -> list[Outcome]:
        failure = Failure("worker", f"the worker died: {_first_line(exc)}", str(exc), "worker")
        self._notice(f"{job.id}: {failure.reason}; a new worker takes its place")
        self._start_actor()
        if len(faults) < RETRIES:
            self._queue.appendleft((job, (*faults, failure)))
            return []
        return [Outcome(job, "?", failure=failure, retries=faults)]


def start_local(token_file: Path, cpus: int) -> None:
    """Ray on this machine, for this process: no dashboard, loopback where Ray lets us choose, token on."""
    secure_environment(token_file)
    import ray

    ray.init(
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )


def _connect(config: WorkerConfig, options: RayOptions) -> bool:
    """Join the cluster, or start one here; True where it is ours to stop."""
    token_file = config.cache / "ray_token"
    secure_environment(token_file)
    import ray

    if ray.is_initialized():
        return False
    try:
        with _own_signals():
            if options.address:
                ray.init(address=options.address, log_to_driver=False, logging_level="ERROR")
            else:
                start_local(token_file, options.count * options.cpus_per_worker)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as exc:
        where = f"workers.address: {options.address}" if options.address else "workers"
        raise SpecError(where, f"Ray did not start: {_first_line(exc)}", next="Check `ray status`") from exc
    return options.address is None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM over and dies of it on the spot; a search that is told to stop puts that on record first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _actor_class(options: RayOptions, config: WorkerConfig) -> Any:
    import ray

    threads = str(config.threads or options.cpus_per_worker)
    environment = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    remote = ray.remote(
        num_cpus=options.cpus_per_worker,
        num_gpus=options.gpus_per_worker,
        max_restarts=0,
        max_task_retries=0,
        runtime_env={"env_vars": environment},
    )
    return remote(_WorkerActor)


class _WorkerActor:
    """A worker behind Ray. Its constructor does nothing, so that what goes wrong in building it comes back as data."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._worker: Any = None

    def start(self) -> Exception | None:
        from evosearch.execution.worker import Worker

        try:
            self._worker = Worker(self._config)
        except InputError as exc:
            return _picklable(exc)
        return None

    def run(self, job: Job) -> Outcome:
        outcome: Outcome = self._worker.run(job)
        return outcome


def _picklable(exc: InputError) -> InputError:
    """Without its cause and traceback, which may hold what cannot travel."""
    return type(exc)(exc.where, exc.what, exc.allowed, exc.next)


def _first_line(exc: Exception) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[0] if lines else type(exc).__name__
