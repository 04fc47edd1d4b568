"""Every error evosearch raises on purpose.

EvosearchError
├── InputError            the user can mend it: exit code 2, one message, nothing half-written
│   ├── RecipeError       a recipe file or a hole in one
│   ├── SpecError         a search spec outside its recipe
│   ├── CheckpointError   a model folder, an adapter, a reference
│   ├── SuiteError        a suite, a task, a split
│   ├── LedgerError       the ledger cannot be opened, is held by another, or belongs to another search
│   ├── TrackingError     the tracking store refuses what was asked of it
│   ├── ClusterError      a cluster cannot be reached, refuses who asks, or knows no such search
│   └── Problems          several of these, which one look found
├── CandidateError        one candidate could not be materialized or scored; the search goes on
└── SearchError           a search cannot go on (every candidate fails, the cluster is gone)
    └── ReplayError       what a recorded search asked comes out otherwise when it is asked again
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any


class EvosearchError(Exception):
    """Root of the tree."""


class InputError(EvosearchError, ValueError):
    """What the user gave is wrong.

    Args:
        where: file and key, as `night.yaml: recipe.models[1].parameters.denisty`.
        what: what was got.
        allowed: what would have been accepted.
        next: what to do now.
    """

    def __init__(self, where: str, what: str, allowed: str | None = None, next: str | None = None) -> None:
        self.where, self.what, self.allowed, self.next = where, what, allowed, next
        parts = [_sentence(f"{where}: {what}"), *(_sentence(part) for part in (allowed, next) if part)]
        super().__init__(" ".join(parts))

    @property
    def problems(self) -> tuple["InputError", ...]:
        """What is wrong, one by one: itself, unless it stands for several."""
        return (self,)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `--json` documents have it."""
        return {"where": self.where, "what": self.what, "allowed": self.allowed, "next": self.next}

    def __reduce__(self) -> tuple[type["InputError"], tuple[Any, ...]]:
        """Errors travel between processes: pickle by the fields, since `args` holds only the message."""
        return type(self), (self.where, self.what, self.allowed, self.next)


class RecipeError(InputError):
    """A recipe is not well-formed, or does not fit the models it names."""


class SpecError(InputError):
    """A search spec is not well-formed outside its recipe."""


class CheckpointError(InputError):
    """A model folder is missing, damaged, of an unknown family, or does not fit the others."""


class SuiteError(InputError):
    """A suite, one of its tasks or one of its splits cannot be used."""


class LedgerError(InputError):
    """A ledger cannot be opened or written, is held by another process, or records another search."""


class TrackingError(InputError):
    """The tracking store cannot do what was asked."""


class ClusterError(InputError):
    """A cluster cannot be reached, does not let one in, or has no search of that name."""


class Problems(InputError):  # noqa: N818 (what it is made of are the errors)
    """Several things are wrong with what the user gave: all of them, numbered.

    Args:
        where: the file they were found for.
        found: at least two.
    """

    def __init__(self, where: str, found: Sequence[InputError]) -> None:
        self._found = tuple(found)
        super().__init__(where, f"{len(self._found)} problems")
        numbered = [f"{number}. {problem}" for number, problem in enumerate(self._found, start=1)]
        self.args = ("\n".join([f"{where}: {self.what}:", *numbered]),)

    @property
    def problems(self) -> tuple[InputError, ...]:
        return self._found

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"problems": [problem.to_dict() for problem in self._found]}

    def __reduce__(self) -> tuple[type[InputError], tuple[Any, ...]]:
        return type(self), (self.where, self._found)


def in_one(where: str, found: Sequence[InputError]) -> InputError:
    """One problem as it is, several as `Problems`; what two found alike is there once."""
    each = list({str(problem): problem for error in found for problem in error.problems}.values())
    return each[0] if len(each) == 1 else Problems(where, each)


class CandidateError(EvosearchError):
    """One candidate failed.

    Args:
        stage: `materialize` or `score`.
        reason: one line, what was found.
    """

    def __init__(self, stage: str, reason: str) -> None:
        self.stage, self.reason = stage, reason
        super().__init__(f"{stage}: {reason}")

    def __reduce__(self) -> tuple[type["CandidateError"], tuple[str, str]]:
        return type(self), (self.stage, self.reason)


class SearchError(EvosearchError):
    """A search cannot go on."""


class ReplayError(SearchError):
    """A recorded search cannot be continued exactly."""


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """`Did you mean 'density'?`, or None when nothing known is near."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else None


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else text + "."
