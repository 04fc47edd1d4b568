"""The notebook: its cells run in order, from three folders to a champion, and leave plots."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_search.ipynb"


def test_its_outputs_are_not_kept() -> None:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_it_goes_from_three_folders_to_a_champion(
    zoo_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plt = pytest.importorskip("matplotlib.pyplot", reason="plots need matplotlib, which mlflow brings")
    plt.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path / "runs"))
    plots: list[Any] = []
    monkeypatch.setattr(plt, "show", lambda: plots.append(plt.gcf()))
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {cell['id']}", "exec"), names)
    assert names["first"].base == "./first-search/base"
    assert "# A first search spec, written by `evosearch init`" in capfd.readouterr().out
    report = names["report"]
    assert report.promoted, report.gate
    assert (tmp_path / "first-search" / "champion" / "model.safetensors").is_file()
    validated = next(row for row in report.leaderboard if row.candidate == report.winner.candidate)
    assert names["score"].score == pytest.approx(validated.splits["validation"].score, abs=1e-6)
    assert len(plots) == 3
    for figure in plots:
        (axes,) = figure.axes
        assert axes.get_title()
        assert axes.get_xlabel()
        assert axes.patches or axes.lines
        plt.close(figure)
