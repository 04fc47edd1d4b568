"""The accidents of `scripts/bench/fuzz` and its loaders, for the tests."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # as it is for a script that is run from there


@pytest.fixture(scope="session")
def loaders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Name → loader of recipes, search specs and suites."""
    from _fuzz.loaders import loaders

    return {loader.name: loader for loader in loaders(tmp_path_factory.mktemp("fuzz"))}
