"""Built-in models of the quickstart: `zoo:tiny/base` and its experts, trained on first use."""

from collections.abc import Callable
from pathlib import Path


def register() -> None:
    """Register the scheme `zoo:`, as in `zoo:tiny/sort`."""
    from evosearch.checkpoints.references import register_resolver

    register_resolver("zoo", _resolver)


def _resolver(rest: str, cache: Path, progress: Callable[[str, float], None] | None) -> Path:
    from evosearch.zoo.tiny_models import resolve  # imports torch

    return resolve(rest, cache, progress)
