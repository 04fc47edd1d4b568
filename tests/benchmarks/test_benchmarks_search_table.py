"""`benchmarks.search_table` on a complete tiny search: its rows, including the ensemble of the parents."""

import sys

import numpy as np
import pytest
import yaml

from benchmarks import search_table
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.spec.spec import load_spec


@pytest.fixture
def choices_only(world):
    """A finished search whose one task is multiple choice; returns its spec."""
    spec = world("choices", suite="choices_suite.yaml", budget={"candidates": 6})
    suite = yaml.safe_load((spec.parent / "suite.yaml").read_text())
    suite["tasks"] = [task for task in suite["tasks"] if task["name"] == "choice"]
    (spec.parent / "choices_suite.yaml").write_text(yaml.safe_dump(suite))
    run(spec, Silent())
    return spec


def test_the_table_has_the_models_scored_on_test_and_the_parents_ensemble(choices_only):
    found = search_table.collect(str(choices_only))
    rows = {row["model"]: row for row in found["rows"]}
    assert {"base", "parent:0", "parent:1", "uniform", search_table.ENSEMBLE} < set(rows)
    assert "ensemble" not in found
    together = rows[search_table.ENSEMBLE]
    for split, items in (("search", 8), ("validation", 10), ("test", 20)):
        assert together[split]["n"] == items
        assert together[split]["lower"] <= together[split]["value"] <= together[split]["upper"]
    assert together["tasks"]["choice"]["value"] == pytest.approx(together["test"]["value"])
    winner = rows[found["winner"]]
    assert together["lead"]["value"] == pytest.approx(winner["test"]["value"] - together["test"]["value"])

    # The formula applied to the ledger: argmax over choices of Σ_m log p_m, compared with the recorded gold choice
    run_dir = load_spec(choices_only).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        search_id = ledger.searches()[0].search_id
        parents = [ledger.columns(search_id, name, "test")["choice"] for name in ("parent:0", "parent:1")]
    lls = [parent["loglikelihoods"].reshape(20, 3) for parent in parents]
    chances = [each - each.max(1, keepdims=True) for each in lls]
    chances = [each - np.log(np.exp(each).sum(1, keepdims=True)) for each in chances]
    gold = abs(chances[0] - parents[0]["gold_logprob"][:, None]).argmin(1)
    right = sum(chances).argmax(1) == gold
    assert together["test"]["value"] == pytest.approx(100 * right.mean())

    assert [row["candidate"] for row in found["unchosen"]] == ["base", "parent:0", "parent:1"]
    best = found["finalists"][0]
    gaps = [gap["value"] for gap in best["gaps"]]
    scores = [best["scores"][split]["value"] for split in ("search", "validation", "test")]
    assert gaps == pytest.approx([scores[0] - scores[1], scores[1] - scores[2]])
    shown = search_table.show_gaps(found).splitlines()
    assert len(shown) == 2 + len(found["finalists"]) + 3
    assert f"| {-gaps[0]:+.1f} [" in shown[2]
    assert found["openings"] >= 1
    assert found["contamination"] is False

    shown = search_table.show(found).splitlines()
    assert shown[0].count("|") == 7
    assert sum(line.startswith(f"| {search_table.ENSEMBLE} | ") for line in shown) == 1
    assert f"**{found['winner']}** (winner)" in shown[2]


def test_a_generated_answer_has_no_choices_to_average(world):
    spec = world("mixed", budget={"candidates": 6})
    run(spec, Silent())
    found = search_table.collect(str(spec))
    assert search_table.ENSEMBLE not in {row["model"] for row in found["rows"]}
    assert found["ensemble"] == "none: generate is measured by exact_match, but the ensemble needs acc"
    assert all(set(row["tasks"]) == {"choice", "generate"} for row in found["rows"])


def test_a_search_that_does_not_exist_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["search_table", "nothing"])
    assert search_table.main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "nothing" in err
