"""What a check found, and the table of all."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Finding:
    """One check: what became of it, why, and the figures that decided."""

    check: str
    state: str
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


class UnmetError(Exception):
    """What a check holds to is not so."""

    def __init__(self, reason: str, **figures: Any) -> None:
        super().__init__(reason)
        self.figures = figures


class SkipError(Exception):
    """A check that cannot be made here."""


def judged(name: str, check: Callable[[], Mapping[str, Any]]) -> Finding:
    """What comes of a check; whatever it raises is a failure of it alone."""
    try:
        return Finding(name, PASSED, figures=check())
    except SkipError as skip:
        return Finding(name, SKIPPED, str(skip))
    except UnmetError as unmet:
        return Finding(name, FAILED, str(unmet), unmet.figures)
    except Exception as error:
        return Finding(name, FAILED, f"{type(error).__name__}: {error}", {"traceback": traceback.format_exc()})


def hold(what: bool, reason: str, **figures: Any) -> None:
    """Raises:
    UnmetError: it is not so.
    """
    if not what:
        raise UnmetError(reason, **figures)


def table(findings: list[Finding]) -> str:
    lines = ["| check | | figures |", "|---|---|---|"]
    for one in findings:
        figures = {key: value for key, value in one.figures.items() if not isinstance(value, dict | list | str)}
        cells = ", ".join(f"{key} {_short(value)}" for key, value in figures.items())
        lines.append(f"| {one.check} | {one.state} | {one.reason or cells} |")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
