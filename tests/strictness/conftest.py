"""Loaders of recipes, specs and suites, shared with `benchmarks/fuzz.py`."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def loaders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Name → loader of recipes, search specs and suites."""
    from benchmarks._mutations.loaders import loaders

    return {loader.name: loader for loader in loaders(tmp_path_factory.mktemp("fuzz"))}
