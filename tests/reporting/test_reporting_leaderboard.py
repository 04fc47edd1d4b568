"""Laws of the leaderboard, for every field of a row and every column by name."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evosearch.cli.leaderboard_table import leaderboard_table
from evosearch.reporting.leaderboard import Leaderboard, leaderboard
from evosearch.reporting.leaderboard_row import LeaderboardRow, leaderboard_columns
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.spec.spec import load_spec

FIELDS = [field.name for field in fields(LeaderboardRow)]


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return {}


@pytest.fixture
def board(world: Callable[..., Path], evosearch: Callable[..., Any], kept: dict[str, Any]) -> Leaderboard:
    """The leaderboard of one search; what `--json` prints is kept next to it."""
    if not kept:
        spec = world(budget={"candidates": 4})
        run(spec, Silent())
        kept["board"] = leaderboard(load_spec(spec).run_dir)
        kept["json"] = json.loads(evosearch("leaderboard", spec, "--json")[1])
    found: Leaderboard = kept["board"]
    return found


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_described_and_is_in_json_and_data_frames(
    name: str, board: Leaderboard, kept: dict[str, Any]
) -> None:
    assert re.search(rf"^ +{name}: \S.*", LeaderboardRow.__doc__ or "", re.MULTILINE)
    assert all(name in row for row in kept["json"])
    values = [getattr(row, name) for row in board.rows]
    if not any(isinstance(value, Mapping | tuple) for value in values):
        frame = board.to_frame()
        assert [None if one != one else one for one in frame[name]] == values  # NaN: a value that the row lacks


def test_a_column_is_in_terminals_and_notebooks(board: Leaderboard) -> None:
    columns = leaderboard_columns(board.rows)
    headings = [column.heading for column in columns]
    assert len(set(headings)) == len(headings)
    console = Console(width=200, record=True, file=StringIO())
    console.print(leaderboard_table(board.rows))
    text, page = console.export_text(), board._repr_html_()
    for column in columns:
        assert column.heading in text
        assert f">{column.heading}</th>" in page
        cells = [column.cell(row) for row in board.rows]
        assert any(cell not in ("", "-") for cell in cells), f"{column.heading} is empty"
        for cell in cells:
            assert cell in text
            assert f">{cell}</td>" in page
