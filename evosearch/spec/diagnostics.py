"""Problems, warnings and notes that the checks of a spec collect."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from evosearch.errors import InputError, in_one

T = TypeVar("T")


@dataclass
class Diagnostics:
    """Problems, warnings and notes, each text once, in the order in which checks found them.

    A check whose input failed an earlier check is skipped: it could only repeat the same problem.

    Attributes:
        problems: Errors; any of them stops a run.
        warnings: Risks that a run reports and accepts.
        notes: Information that only `evosearch check` prints.
    """

    problems: list[InputError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, step: Callable[[], T]) -> T | None:
        """Run a step; return its result, or record its problems and return None."""
        try:
            return step()
        except InputError as error:
            self.add(error)
            return None

    def passes(self, check: Callable[[], object]) -> bool:
        """Run a check; return whether it passed, or record its problems."""
        try:
            check()
        except InputError as error:
            self.add(error)
            return False
        return True

    def add(self, error: InputError) -> None:
        """Record an error's problems."""
        known = {str(problem) for problem in self.problems}
        self.problems += [problem for problem in error.problems if str(problem) not in known]

    def warn(self, text: str) -> None:
        """Record a warning."""
        if text not in self.warnings:
            self.warnings.append(text)

    def note(self, text: str) -> None:
        """Record a note."""
        if text not in self.notes:
            self.notes.append(text)

    def raise_all(self, where: str) -> None:
        """Raise if there are problems.

        Args:
            where: The file that was checked.

        Raises:
            InputError: The only problem, or all of them as `Problems`.
        """
        if self.problems:
            raise in_one(where, self.problems)

    def rename(self, names: Mapping[str, str]) -> None:
        """Replace paths of temporary files by names that mean something to the user.

        Args:
            names: Path → name.
        """
        for path, name in names.items():
            self.warnings = [text.replace(path, name) for text in self.warnings]
            self.notes = [text.replace(path, name) for text in self.notes]
            self.problems = [_renamed(problem, path, name) for problem in self.problems]


def _renamed(problem: InputError, path: str, name: str) -> InputError:
    texts = (problem.where, problem.what, problem.allowed, problem.next)
    where, what, allowed, next = (text and text.replace(path, name) for text in texts)
    return type(problem)(where or "", what or "", allowed, next)
