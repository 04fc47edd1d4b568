"""Every error evosearch raises on purpose.

EvosearchError
├── InputError            the user can mend it: exit code 2, one message, nothing half-written
│   ├── RecipeError       a recipe file or a hole in one
│   ├── SpecError         a search spec outside its recipe
│   ├── CheckpointError   a model folder, an adapter, a reference
│   ├── SuiteError        a suite, a task, a split
│   ├── LedgerError       the ledger cannot be opened, is held by another, or belongs to another search
│   └── TrackingError     the tracking store refuses what was asked of it
├── CandidateError        one candidate could not be materialized or scored; the search goes on
└── SearchError           a search cannot go on (every candidate fails, the cluster is gone)
    └── ReplayError       what a recorded search asked comes out otherwise when it is asked again
"""

from collections.abc import Iterable
from difflib import get_close_matches


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

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, str | None, str | None]]:
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
