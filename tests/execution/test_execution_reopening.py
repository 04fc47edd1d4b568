"""An executor that is closed between two uses makes new workers for the second."""

from pathlib import Path
from typing import Any

from evosearch.evaluation.types import ItemBatch
from evosearch.execution.reopening import ReopeningExecutor
from evosearch.recipe.schema import Recipe
from evosearch.search.baselines import single
from evosearch.search.protocols import Job, Outcome


class Echo:
    """Executor that returns every job as scored by itself."""

    slots = 2

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self.queue: list[Job] = []
        log.append(f"{name} made")

    def submit(self, job: Job) -> None:
        self.queue.append(job)

    def wait(self, timeout_s: float) -> list[Outcome]:
        done, self.queue = self.queue, []
        return [Outcome(job, self.name) for job in done]

    def close(self) -> None:
        self.log.append(f"{self.name} closed")


def job(name: str) -> Job:
    recipe: Recipe = single(str(Path("/model")))
    return Job(name, recipe, ItemBatch("search", ()))


def test_it_is_made_at_once_and_again_when_it_is_used_after_a_close() -> None:
    log: list[str] = []
    names = iter("ab")

    def make() -> Any:
        return Echo(next(names), log)

    executor = ReopeningExecutor(make)
    assert log == ["a made"]
    assert executor.slots == 2
    executor.submit(job("0@search"))
    assert [one.worker for one in executor.wait(0.0)] == ["a"]
    executor.close()
    executor.close()
    assert (executor.slots, executor.wait(0.0)) == (0, [])
    executor.submit(job("1@search"))
    executor.submit(job("2@search"))
    assert [(one.job.id, one.worker) for one in executor.wait(0.0)] == [("1@search", "b"), ("2@search", "b")]
    executor.close()
    assert log == ["a made", "a closed", "b made", "b closed"]
