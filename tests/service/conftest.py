"""Worlds that can be moved, for tests of exported recipes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evosearch.reporting.export import export
from evosearch.search.progress import Silent
from evosearch.service.run import run


@pytest.fixture
def exported_as(world: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """`exported_as(name)`: winner/best.yaml, the recipe of a candidate or baseline, next to specs/ with its models.

    Models and suite are copies instead of links, so that the whole tree can be moved.
    """

    def made(candidate: str) -> Path:
        report = run(world("night", budget={"candidates": 6}), Silent())
        assert report.candidates.scored == 6
        for entry in (tmp_path / "specs").iterdir():
            if entry.is_symlink():
                folder = entry.resolve()
                entry.unlink()
                shutil.copytree(folder, entry)
        out = tmp_path / "winner" / "best.yaml"
        export("night", "recipe", out, candidate, False, Silent())
        return out

    return made
