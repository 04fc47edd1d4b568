"""Laws of the leaderboard, for every field of a row and every column by name."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from evosearch.cli.leaderboard_table import leaderboard_table
from evosearch.recipe.parameters import leaves
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
        kept["json"] = json.loads(evosearch("leaderboard", spec, "--json")[1])["rows"]
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


def test_holes_with_many_numbers_are_folded_and_the_export_has_all(
    world: Callable[..., Path], evosearch: Callable[..., Any], tmp_path: Path
) -> None:
    hole = {"low": 0.0, "high": 1.5, "per": "tensor"}
    models = [
        {"model": "./expert1", "parameters": {"weight": hole}},
        {"model": "./expert2", "parameters": {"weight": 0.5}},
    ]
    recipe = {"merge_method": "task_arithmetic", "base_model": "./base", "models": models}
    spec = world(recipe=recipe, optimizer={"name": "random"}, budget={"candidates": 2})
    run(spec, Silent())
    rows = json.loads(evosearch("leaderboard", spec, "--json")[1])["rows"]
    start, other = sorted((r for r in rows if r["kind"] == "candidate"), key=lambda row: row["candidate"] != "0")
    assert list(start["genome"]) == list(other["genome"]) == ["models[0].weight"]
    folded = other["genome"]["models[0].weight"]
    assert folded["title"] == "expert1.weight"
    assert 0.0 <= folded["low"] < folded["mean"] < folded["high"] <= 1.5
    text = evosearch("leaderboard", spec)[1].replace("\n", " ")
    assert re.search(r"#[01]: expert1\.weight: [\d.]+ \([\d.]+ to [\d.]+\) over ", text)
    found = leaderboard(load_spec(spec).run_dir)
    assert "expert1.weight: " in found._repr_html_()
    frame = found.to_frame()
    assert [name for name in frame if name.startswith("genome.")] == [
        f"genome.models[0].weight.{end}" for end in ("mean", "low", "high")
    ]
    out = tmp_path / "winner.yaml"
    code, _, err = evosearch("export", spec, "--candidate", other["candidate"], "-o", out)
    assert code == 0, err
    written = yaml.safe_load(out.read_text())["models"][0]["parameters"]["weight"]
    assert len(list(leaves(written))) == folded["numbers"]
    assert max(leaves(written)) == pytest.approx(folded["high"])
