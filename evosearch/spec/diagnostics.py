"""What a look at a spec finds: every problem, each once, and notes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from evosearch.errors import InputError, in_one

T = TypeVar("T")


@dataclass
class Findings:
    """Problems, which stop a run; what may go wrong, which a run says; notes for who asks. In the order found.

    What depends on something that was not found well is not looked at: it could only say the same again.
    """

    problems: list[InputError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, step: Callable[[], T]) -> T | None:
        """The step's result, or None and its problems on the list."""
        try:
            return step()
        except InputError as error:
            self.add(error)
            return None

    def add(self, error: InputError) -> None:
        known = {str(problem) for problem in self.problems}
        self.problems += [problem for problem in error.problems if str(problem) not in known]

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def raise_all(self, where: str) -> None:
        """Args:
            where: the file that all of them are found for.

        Raises:
            InputError: the one problem, or all of them as `Problems`.
        """
        if self.problems:
            raise in_one(where, self.problems)

    def rename(self, shown: Mapping[str, str]) -> None:
        """Names in place of files that are there for a check alone."""
        for path, name in shown.items():
            self.warnings = [text.replace(path, name) for text in self.warnings]
            self.notes = [text.replace(path, name) for text in self.notes]
            self.problems = [_renamed(problem, path, name) for problem in self.problems]


def _renamed(problem: InputError, path: str, name: str) -> InputError:
    told = (problem.where, problem.what, problem.allowed, problem.next)
    where, what, allowed, next = (text and text.replace(path, name) for text in told)
    return type(problem)(where or "", what or "", allowed, next)
