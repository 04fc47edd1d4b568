"""Key `fitness: {teachers: …}` of a suite: candidates are compared with teachers, without labels.

A teacher is one of the models that candidates are made of, for one task: an expert of that task. Candidates are told
how closely they follow the teacher's distribution along the teacher's own answers.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from evosearch.documents import Document
from evosearch.errors import SuiteError

AUTO = "auto"  # the parent with the best score on the task's validation split
TOP_K = 32


def _teachers(given: Any) -> Any:
    if isinstance(given, Mapping):
        for task, model in given.items():
            if not isinstance(model, str) or not model:
                raise SuiteError(str(task), f"got {model!r}", f"A model of the recipe, or {AUTO}")
    elif given != AUTO:
        raise SuiteError("", f"got {given!r}", f"{AUTO}, or a mapping from task to model")
    return given


class TeacherFitness(Document):
    """Fitness by teachers: minus the divergence from each task's teacher, in nats per position of its answers."""

    teachers: Annotated[Literal["auto"] | dict[str, str], BeforeValidator(_teachers)]
    """Task → its teacher, one of the recipe's models, written as in the recipe; or `auto`, for one task or all of them:
    the parent that scores best on the task's validation split."""
    top_k: Annotated[int, Field(ge=1, le=4096)] = TOP_K
    """Number of most probable tokens that are kept of a teacher's distribution at each position, renormalized."""

    def teacher(self, task: str) -> str | None:
        """Return the teacher of a task as it is written, `auto`, or None if it is missing."""
        return AUTO if isinstance(self.teachers, str) else self.teachers.get(task)
