"""Key `fitness: {teachers: …}` of a suite: candidates are compared with teachers, without labels.

A teacher is one of the models that candidates are made of, for one task: an expert of that task. Candidates are told
how closely they follow the teacher's distribution along the teacher's own answers.
"""

from typing import Annotated, Literal

from pydantic import Field

from evosearch.documents import Document

AUTO = "auto"  # the parent with the best score on the task's validation split
TOP_K = 32


class TeacherFitness(Document):
    """Fitness by teachers: minus the divergence from each task's teacher, in nats per position of its answers."""

    teachers: Literal["auto"] | dict[str, str]
    """Task → its teacher, one of the recipe's models, written as in the recipe; or `auto`, for one task or all of them:
    the parent that scores best on the task's validation split."""
    top_k: Annotated[int, Field(ge=1, le=4096)] = TOP_K
    """Number of most probable tokens that are kept of a teacher's distribution at each position, renormalized."""

    def teacher(self, task: str) -> str | None:
        """Return the teacher of a task as it is written, `auto`, or None if it is missing."""
        return AUTO if isinstance(self.teachers, str) else self.teachers.get(task)
