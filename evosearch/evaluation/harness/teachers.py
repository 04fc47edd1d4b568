"""Teachers: computation of their lessons, and of a frozen batch whose items are compared with them.

    value of an item = -mean_j KL(q_j ‖ p_j)        j answer positions, q the teacher's distribution, p the candidate's

in nats, at most 0. Positions follow the teacher's own answer, so that neither right answers nor the candidate's own
answers are needed; see `lessons.py` for the positions and distributions of each output type.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evosearch.checkpoints.cache.layout import TEACHERS
from evosearch.checkpoints.cache.locks import LOCKS, locked
from evosearch.checkpoints.cache.uses import hold
from evosearch.evaluation.engine.distributions import TopTokens, top_tokens
from evosearch.evaluation.engine.generation import generate_tokens
from evosearch.evaluation.engine.generation_plan import GenerationRequest, lay_out_generations
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest, lay_out, score_loglikelihoods
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.evaluation.harness.divergence import Taught, TaughtChoice, TaughtText
from evosearch.evaluation.harness.frozen import FrozenBatch, FrozenDocument, FrozenTask
from evosearch.evaluation.harness.lessons import Lesson, lesson_file
from evosearch.evaluation.harness.right_answers import RightChoice
from evosearch.evaluation.types import Teacher

Requests = Sequence[GenerationRequest] | Sequence[LoglikelihoodRequest]


@dataclass(frozen=True)
class Classroom:
    """Where lessons are kept and how they are computed.

    Attributes:
        cache: The node's cache folder.
        top_k: Number of tokens that are kept at each position.
        options: Batch sizes and execution modes of the teachers' forward passes.
        model_of: Teacher → its model in evaluation mode, on the device to run on. Called only if a lesson is missing.
        waiting: Called if another process of this node computes the lesson.
    """

    cache: Path
    top_k: int
    options: ScoreOptions
    model_of: Callable[[Teacher], Any]
    waiting: Callable[[], None] | None = None

    def lesson(self, teacher: Teacher, frozen: FrozenBatch) -> Lesson:
        """Return a teacher's lesson on the only task of a frozen batch, from the cache unless it is missing there.

        Raises:
            CandidateError: The teacher's outputs are not finite.
            CheckpointError: The cache cannot be written.
        """
        (task,) = frozen.tasks
        requests = requests_of(task, frozen)
        file = lesson_file(self.cache, teacher.recipe_id, _flat(requests), self.top_k)
        hold(self.cache, TEACHERS, file.name, f"{teacher.reference} on {task.spec.name}")
        found = Lesson.load(file)
        if found is None:
            with locked(self.cache / LOCKS / file.stem, self.waiting):
                found = Lesson.load(file)  # computed by another process meanwhile
                if found is None:
                    found = self._computed(self.model_of(teacher), requests, frozen)
                    found.save(file)
        return found

    def _computed(self, model: Any, requests: Sequence[Requests], frozen: FrozenBatch) -> Lesson:
        flat = _flat(requests)
        if any(isinstance(request, GenerationRequest) for request in flat):
            prompts = [request for request in flat if isinstance(request, GenerationRequest)]
            answers, _ = generate_tokens(model, lay_out_generations(prompts, frozen.decoder, self.options))
            return self._along(model, [forced(one.prompt, own) for one, own in zip(prompts, answers, strict=True)])
        texts = [request for request in flat if isinstance(request, LoglikelihoodRequest)]
        if all(document.exercise and document.exercise.choice is None for document in frozen.tasks[0].documents):
            return self._along(model, texts)
        lls = score_loglikelihoods(model, lay_out(texts, self.options)).lls
        counts = np.array([len(own) for own in requests], dtype=np.int64)
        nothing = np.zeros((0, 1))
        return Lesson(counts, np.zeros(0, np.int32), nothing.astype(np.int32), nothing.astype(np.float32), lls)

    def _along(self, model: Any, requests: Sequence[LoglikelihoodRequest]) -> Lesson:
        """Distributions along continuations."""
        top: TopTokens
        top, _ = top_tokens(model, lay_out(requests, self.options), self.top_k)
        counts = np.array([len(request.targets) for request in requests], dtype=np.int64)
        answers = np.array([token for request in requests for token in request.targets], dtype=np.int32)
        return Lesson(counts, answers, top.tokens, top.probabilities, np.zeros(0))


def forced(prompt: tuple[int, ...], answer: tuple[int, ...]) -> LoglikelihoodRequest:
    """Return the request that reads an answer after its prompt."""
    return LoglikelihoodRequest((*prompt, *answer[:-1]), answer)


def requests_of(task: FrozenTask, frozen: FrozenBatch) -> list[Requests]:
    """Return the requests of each document that its teacher answers: a prompt, a continuation, or its choices."""
    found: list[Requests] = []
    for document in task.documents:
        exercise = document.exercise
        assert exercise is not None, "frozen for another fitness"
        if exercise.prompt is not None:
            found.append([exercise.prompt])
        elif exercise.choice is not None:
            indices = (*exercise.choice.requests, *exercise.choice.minus)
            found.append([frozen.loglikelihoods[index] for index in indices])
        elif exercise.request is not None:
            found.append([frozen.loglikelihoods[exercise.request]])
    return found


@dataclass(frozen=True)
class SplitLesson:
    """A teacher's lesson on all items of one task and split."""

    recipe_id: str  # the teacher's
    lesson: Lesson
    doc_ids: tuple[int, ...]  # of the items, in the lesson's order

    @cached_property
    def place(self) -> dict[int, int]:
        """Document id → place in the lesson."""
        return {doc_id: index for index, doc_id in enumerate(self.doc_ids)}


def taught(frozen: FrozenBatch, lessons: Mapping[str, SplitLesson]) -> FrozenBatch:
    """Return a frozen batch whose items are compared with their teachers.

    Args:
        frozen: The batch, a split or a subset of one.
        lessons: Task → its lesson on the split.
    """
    requests, tasks = list(frozen.loglikelihoods), list[FrozenTask]()
    for task in frozen.tasks:
        if task.spec.name not in lessons:
            tasks.append(task)
            continue
        own = lessons[task.spec.name]
        ids = next(items.doc_ids for items in frozen.batch.sets if items.task == task.spec.name)
        documents = tuple(
            replace(document, taught=_taught(document, own.lesson, own.place[doc_id], frozen, requests))
            for document, doc_id in zip(task.documents, ids, strict=True)
        )
        tasks.append(replace(task, documents=documents))
    return replace(frozen, loglikelihoods=tuple(requests), tasks=tuple(tasks))


def _taught(
    document: FrozenDocument, lesson: Lesson, item: int, frozen: FrozenBatch, requests: list[LoglikelihoodRequest]
) -> Taught:
    """Compare a document with its teacher; the request that reads the teacher's answer is appended to `requests`."""
    exercise = document.exercise
    assert exercise is not None, "frozen for another fitness"
    if exercise.choice is not None:
        return TaughtChoice(exercise.choice, _shares(exercise.choice, lesson.choice_lls(item)))
    if exercise.prompt is not None:
        request = forced(exercise.prompt.prompt, lesson.answer(item))
    else:
        assert exercise.request is not None
        request = frozen.loglikelihoods[exercise.request]
    targets = lesson.targets(item)
    requests.append(replace(request, soft=targets))
    return TaughtText(len(requests) - 1, len(request.targets), targets.entropy)


def _shares(choice: RightChoice, lls: NDArray[np.float64]) -> tuple[float, ...]:
    """The teacher's probability of each choice, as the metric normalizes them."""
    count = len(choice.requests)
    z = lls[:count] - lls[count:] if choice.minus else lls
    if choice.lengths:
        z = np.array([own / length if length else -np.inf for own, length in zip(z, choice.lengths, strict=True)])
    likely = np.exp(z - z.max())
    return tuple((likely / likely.sum()).tolist())


def _flat(requests: Sequence[Requests]) -> list[GenerationRequest | LoglikelihoodRequest]:
    return [request for own in requests for request in own]
