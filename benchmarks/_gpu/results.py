"""Results of checks, and their table."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class CheckResult:
    """Result of one check: its state, the reason, and the measured figures."""

    check: str
    state: str
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


class UnmetError(Exception):
    """A check failed."""

    def __init__(self, reason: str, **figures: Any) -> None:
        super().__init__(reason)
        self.figures = figures


class SkipError(Exception):
    """A check cannot run on this machine."""


def run_check(name: str, check: Callable[[], Mapping[str, Any]]) -> CheckResult:
    """Run one check; an exception fails only this check."""
    try:
        return CheckResult(name, PASSED, figures=check())
    except SkipError as skip:
        return CheckResult(name, SKIPPED, str(skip))
    except UnmetError as unmet:
        return CheckResult(name, FAILED, str(unmet), unmet.figures)
    except Exception as error:
        return CheckResult(name, FAILED, f"{type(error).__name__}: {error}", {"traceback": traceback.format_exc()})


def require(condition: bool, reason: str, **figures: Any) -> None:
    """Fail the check unless the condition holds.

    Raises:
        UnmetError: It does not hold.
    """
    if not condition:
        raise UnmetError(reason, **figures)


def table(results: list[CheckResult]) -> str:
    """Markdown table with one line for each check."""
    lines = ["| check | state | figures |", "|---|---|---|"]
    for one in results:
        figures = {key: value for key, value in one.figures.items() if not isinstance(value, dict | list | str)}
        cells = ", ".join(f"{key} {_short(value)}" for key, value in figures.items())
        lines.append(f"| {one.check} | {one.state} | {one.reason or cells} |")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
