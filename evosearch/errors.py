"""Exceptions of evosearch.

EvosearchError
├── InputError            bad input: one message, no partial output; exit code 2, or `exit_code` of the class
│   ├── RecipeError       a recipe or one of its holes
│   ├── SpecError         a search spec outside of its recipe
│   ├── CheckpointError   a model folder, an adapter or a reference
│   ├── SuiteError        a suite, a task or a split
│   ├── LedgerError       a ledger that cannot be opened, is damaged, or belongs to another search
│   │   └── LedgerUnavailableError   the ledger cannot be used for now: locked, full disk; exit code 1
│   ├── TrackingError     a request that the tracking store rejects
│   ├── ClusterError      a cluster that is unreachable, denies access, or does not run the search
│   └── Problems          several input errors, reported together
├── CandidateError        one candidate could not be materialized or scored; the search continues
└── SearchError           the search cannot continue (every candidate fails, the cluster is gone)
    └── ReplayError       replaying the ledger proposes other candidates than it records
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar


class EvosearchError(Exception):
    """Base class of all errors of evosearch."""


class InputError(EvosearchError, ValueError):
    """Invalid user input.

    Args:
        where: File and key, such as `night.yaml: recipe.models[1].parameters.denisty`.
        what: What is wrong.
        allowed: What is accepted instead.
        next: What to do next.
    """

    exit_code: ClassVar[int] = 2  # of the program
    line: int | None = None  # of the key in its file, counted from 1; only `check` finds it

    def __init__(self, where: str, what: str, allowed: str | None = None, next: str | None = None) -> None:
        self.where, self.what, self.allowed, self.next = where, what, allowed, next
        parts = [_sentence(f"{where}: {what}"), *(_sentence(part) for part in (allowed, next) if part)]
        super().__init__(" ".join(parts))

    @property
    def problems(self) -> tuple["InputError", ...]:
        """The individual errors: this one, unless it is a `Problems`."""
        return (self,)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data for `--json`."""
        fields = {"where": self.where, "what": self.what, "allowed": self.allowed, "next": self.next}
        return fields if self.line is None else {**fields, "line": self.line}

    def __reduce__(self) -> tuple[type["InputError"], tuple[Any, ...]]:
        """Pickle the fields, because `args` contains only the message; errors are sent between processes."""
        return type(self), (self.where, self.what, self.allowed, self.next)


class RecipeError(InputError):
    """Invalid recipe, or a recipe that does not fit its models."""


class SpecError(InputError):
    """Invalid search spec outside of its recipe."""


class CheckpointError(InputError):
    """A model that is missing, damaged, of an unsupported family, or incompatible with the others."""


class SuiteError(InputError):
    """Unusable suite, task or split."""


class LedgerError(InputError):
    """A ledger that cannot be read or written, is damaged, or records another search."""


class LedgerUnavailableError(LedgerError):
    """A ledger that cannot be used for now: the input is right, and the same command may succeed later."""

    exit_code = 1


class TrackingError(InputError):
    """A request that the tracking store cannot fulfil."""


class ClusterError(InputError):
    """A cluster that is unreachable, denies access, or has no search of that name."""


class Problems(InputError):  # noqa: N818 - a collection of errors
    """Several input errors, numbered in one message.

    Args:
        where: The file with the errors.
        found: At least two errors.
    """

    def __init__(self, where: str, found: Sequence[InputError]) -> None:
        self._found = tuple(found)
        super().__init__(where, f"{len(self._found)} problems")
        numbered = [f"{number}. {problem}" for number, problem in enumerate(self._found, start=1)]
        self.args = ("\n".join([f"{where}: {self.what}:", *numbered]),)

    @property
    def problems(self) -> tuple[InputError, ...]:
        """The individual errors."""
        return self._found

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and those of each error, as plain data for `--json`."""
        return super().to_dict() | {"problems": [problem.to_dict() for problem in self._found]}

    def __reduce__(self) -> tuple[type[InputError], tuple[Any, ...]]:
        return type(self), (self.where, self._found)


def in_one(where: str, found: Sequence[InputError]) -> InputError:
    """Combine errors: a single one is returned as it is, several as `Problems`, without duplicates."""
    each = list({str(problem): problem for error in found for problem in error.problems}.values())
    return each[0] if len(each) == 1 else Problems(where, each)


class CandidateError(EvosearchError):
    """Failure of one candidate.

    Args:
        stage: `materialize` or `score`.
        reason: What went wrong, in one line.
    """

    def __init__(self, stage: str, reason: str) -> None:
        self.stage, self.reason = stage, reason
        super().__init__(f"{stage}: {reason}")

    def __reduce__(self) -> tuple[type["CandidateError"], tuple[str, str]]:
        return type(self), (self.stage, self.reason)


class SearchError(EvosearchError):
    """A search that cannot continue."""


class ReplayError(SearchError):
    """A search that cannot be resumed exactly."""


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return `Did you mean 'density'?` for the closest known name, or None if none is close."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else None


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else text + "."
