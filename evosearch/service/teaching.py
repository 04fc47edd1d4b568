"""Choice of a search's teachers: recorded once, before anything is scored on the search split.

`auto` reads right answers of the validation split: each parent is scored there, and a task's teacher is the parent with
the best metric on it; of equal ones, the first in the recipe.
"""

from collections.abc import Mapping
from functools import partial

from evosearch.errors import SearchError
from evosearch.evaluation.suites.teacher_keys import AUTO
from evosearch.evaluation.types import TaskScore
from evosearch.execution.taught import TaughtExecutor
from evosearch.search.progress import Progress
from evosearch.search.protocols import Executor, Job
from evosearch.search.recorder import WAIT_S, Recorder
from evosearch.search.records import TeachersRecord
from evosearch.setup.prepare import Prepared
from evosearch.setup.teachers import named_teachers, parents_of, teachers_of


def teaching(prepared: Prepared, recorder: Recorder, executor: Executor) -> Executor:
    """Return an executor whose jobs have the suite's teachers; the given one if the fitness needs none.

    Raises:
        SearchError: `auto` is set, and no parent could be scored on validation.
    """
    named = named_teachers(prepared.spec)
    if not named:
        return executor
    if not recorder.state.teachers:
        scores = _scores(prepared, recorder, executor) if AUTO in named.values() else {}
        chosen = {task: best(task, scores) if own == AUTO else own for task, own in named.items()}
        recorder.record([("teachers", TeachersRecord(chosen, _by_task(scores, named)).to_payload())])
    return TaughtExecutor(executor, teachers_of(prepared, recorder.state.teachers))


def best(task: str, scores: Mapping[str, Mapping[str, TaskScore]]) -> str:
    """Return the model with the best metric on a task, the first of equal ones.

    Args:
        task: The task.
        scores: Reference → task → its metric on validation; not empty.
    """
    return max(scores, key=lambda reference: scores[reference][task].value)


def _scores(prepared: Prepared, recorder: Recorder, executor: Executor) -> dict[str, Mapping[str, TaskScore]]:
    """Score every parent on validation; return reference → task → metric. A parent that fails is left out."""
    parents = parents_of(prepared)
    jobs: dict[str, str] = {}  # job → reference
    for reference, parent in parents.items():
        assert parent.recipe is not None
        job = Job(f"teacher:{parent.name}@validation", parent.recipe, prepared.batches["validation"])
        jobs[job.id] = reference
        executor.submit(job)
    found: dict[str, Mapping[str, TaskScore]] = {}
    left, progress = set(jobs), partial(Progress, "teachers", total=len(jobs))
    while left:
        recorder.watcher.update(progress(len(jobs) - len(left)))
        for outcome in executor.wait(WAIT_S):
            left.discard(outcome.job.id)
            if outcome.card is not None:
                found[jobs[outcome.job.id]] = outcome.card.tasks
            elif outcome.failure is not None:
                recorder.watcher.note(f"{outcome.job.id} failed: {outcome.failure.stage}: {outcome.failure.reason}")
    if not found:
        raise SearchError("teachers: no parent could be scored on validation, so none can be chosen")
    return {reference: found[reference] for reference in parents if reference in found}


def _by_task(scores: Mapping[str, Mapping[str, TaskScore]], named: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Task → reference → metric on validation, of the tasks whose teacher was chosen."""
    chosen = [task for task, own in named.items() if own == AUTO]
    return {task: {reference: own[task].value for reference, own in scores.items()} for task in chosen}
