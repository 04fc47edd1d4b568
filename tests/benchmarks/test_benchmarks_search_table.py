"""`scripts/bench/search_table` on a whole tiny search: its rows, and the ensemble of the parents among them."""

import numpy as np
import pytest
import yaml

from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.run import run

from evosearch.spec.spec import load_spec


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("bench/search_table")


@pytest.fixture
def choices_only(world):
    """A finished search whose one task is multiple choice; returns its spec."""
    spec = world("choices", suite="choices_suite.yaml", budget={"candidates": 6})
    suite = yaml.safe_load((spec.parent / "suite.yaml").read_text())
    suite["tasks"] = [task for task in suite["tasks"] if task["name"] == "choice"]
    (spec.parent / "choices_suite.yaml").write_text(yaml.safe_dump(suite))
    run(spec, Silent())
    return spec


def test_parents_ensemble_stands_beside_the_models_that_test_was_opened_for(script, choices_only):
    found = script.table(str(choices_only))
    rows = {row["model"]: row for row in found["rows"]}
    assert {"base", "parent:0", "parent:1", "uniform", script.ENSEMBLE} < set(rows)
    assert "ensemble" not in found
    together = rows[script.ENSEMBLE]
    for split, items in (("search", 8), ("validation", 10), ("test", 20)):
        assert together[split]["n"] == items
        assert together[split]["lower"] <= together[split]["value"] <= together[split]["upper"]
    assert together["tasks"]["choice"]["value"] == pytest.approx(together["test"]["value"])
    winner = rows[found["winner"]]
    assert together["lead"]["value"] == pytest.approx(winner["test"]["value"] - together["test"]["value"])

    # By the formula, from the ledger: Σ_m log p_m over the choices, the right one being the recorded gold one.
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
    falls = [fall["value"] for fall in best["falls"]]
    scores = [best["scores"][split]["value"] for split in ("search", "validation", "test")]
    assert falls == pytest.approx([scores[0] - scores[1], scores[1] - scores[2]])
    lost = script.show_falls(found).splitlines()
    assert len(lost) == 2 + len(found["finalists"]) + 3
    assert f"| {-falls[0]:+.1f} [" in lost[2]
    assert found["openings"] >= 1
    assert found["contamination"] is False

    shown = script.show(found).splitlines()
    assert shown[0].count("|") == 7
    assert sum(line.startswith(f"| {script.ENSEMBLE} | ") for line in shown) == 1
    assert f"**{found['winner']}** (winner)" in shown[2]


def test_a_generated_answer_has_no_choices_to_average(script, world):
    spec = world("mixed", budget={"candidates": 6})
    run(spec, Silent())
    found = script.table(str(spec))
    assert script.ENSEMBLE not in {row["model"] for row in found["rows"]}
    assert found["ensemble"] == "none: generate is measured by exact_match, an ensemble by acc"
    assert all(set(row["tasks"]) == {"choice", "generate"} for row in found["rows"])
