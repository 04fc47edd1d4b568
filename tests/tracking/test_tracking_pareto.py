"""The Pareto set in MLflow: tags that follow its changes, and the HTML page."""

from typing import Any

from evosearch.evaluation.types import Estimate
from evosearch.search.ledger.events import Event
from evosearch.tracking.changes import SEARCH, Plan
from evosearch.tracking.pareto_page import ParetoPoint, pareto_page
from evosearch.tracking.translator import Translator


def asked(name: str) -> tuple[str, dict[str, Any]]:
    return "asked", {"candidate": name, "group": 0, "genome": {}, "recipe": {}, "recipe_id": f"r{name}"}


def told(*observed: tuple[str, float, float]) -> tuple[str, dict[str, Any]]:
    observations = [
        {
            "candidate": name,
            "value": one + other,
            "stderr": 0.1,
            "n": 4,
            "state": "scored",
            "objectives": [{"value": value, "stderr": 0.1, "n": 4} for value in (one, other)],
        }
        for name, one, other in observed
    ]
    return "told", {"group": 0, "observations": observations}


STARTED = ("started", {"name": "s", "spec": {"objectives": ["sort, fast", "hops"]}})


def written(plans: list[list[tuple[str, dict[str, Any]]]]) -> list[Plan]:
    """Translate portions of events by one translator; return the changes of each portion."""
    translator, out, seq = Translator("id", "s"), [], 0
    for entries in plans:
        out.append({})
        for entry in entries:
            seq += 1
            translator.translate(Event(seq, float(seq), *entry), out[-1])
    return out


def test_the_tag_follows_the_set() -> None:
    names = [asked(name) for name in "0123"]
    first, second = written(
        [[STARTED, *names, told(("0", 1.0, 1.0), ("1", 0.0, 2.0), ("2", 0.0, 1.0))], [told(("3", 2.0, 1.0))]]
    )
    assert {name: first[name].tags["pareto"] for name in "012"} == {"0": "true", "1": "true", "2": "false"}
    assert first[SEARCH].tags["pareto"] == "0, 1"
    assert {name: second[name].tags["pareto"] for name in second if name} == {"0": "false", "3": "true"}
    assert second[SEARCH].tags["pareto"] == "3, 1"
    assert "r3" in second[SEARCH].files["pareto.html"]
    assert {point.name: point.value for point in second["3"].points} == {
        "objective/sort_ fast": 2.0,
        "objective/hops": 1.0,
    }


def test_candidates_that_leave_the_set_unchanged_are_on_the_final_page() -> None:
    started, reported_later, stopped = written(
        [
            [STARTED, asked("0"), asked("1"), told(("0", 1.0, 1.0))],
            [told(("1", 0.0, 0.0))],
            [("stopped", {"reason": "candidates"})],
        ]
    )
    assert SEARCH not in reported_later or "pareto.html" not in reported_later[SEARCH].files
    assert started[SEARCH].files["pareto.html"].count("<circle") == 1
    assert stopped[SEARCH].files["pareto.html"].count("<circle") == 2


def test_failures_and_broken_guards_are_in_no_set() -> None:
    kind, payload = told(("0", 9.0, 9.0), ("1", 1.0, 1.0))
    payload["observations"][0]["violations"] = [0.5]
    payload["observations"].append({"candidate": "2", "value": None, "state": "failed"})
    (plan,) = written([[STARTED, *(asked(name) for name in "012"), (kind, payload)]])
    assert plan[SEARCH].tags["pareto"] == "1"
    assert plan["0"].tags["pareto"] == "false"
    assert "pareto" not in plan["2"].tags


def test_a_search_with_one_objective_has_no_such_thing() -> None:
    observations = [{"candidate": "0", "value": 1.0, "stderr": 0.1, "n": 4, "state": "scored"}]
    (plan,) = written([[("started", {"name": "s", "spec": {}}), asked("0"), ("told", {"observations": observations})]])
    assert "pareto" not in plan[SEARCH].tags
    assert "pareto.html" not in plan[SEARCH].files


def test_the_page_stands_alone_and_escapes_what_it_is_given() -> None:
    objectives = {"<i>": Estimate(1.5, 0.1, 4), "b&c": Estimate(2.0, 0.0, 4)}
    points = [ParetoPoint("<b>7</b>", "a" * 64, True, objectives)]
    text = pareto_page("night <script>", ["<i>", "b&c"], points)
    for forbidden in ("<script", "<b>", "<i>", "b&c", "http", "src="):
        assert forbidden not in text
    assert "1.5 ± 0.1" in text
    assert text.startswith("<!doctype html>")
    assert "0 of 0 candidates" in pareto_page("empty", ["a", "b"], [])
