"""Selection of candidates for validation, and of the finalist for the gate."""

from dataclasses import replace

from evosearch.promotion.finalists import Standing, best, choose, standings
from evosearch.search.ledger.events import Event
from evosearch.search.state import SearchState


def standing(name: str, recipe_id: str, kind: str, **search: float) -> Standing:
    return Standing(name, recipe_id, kind, {"search": search["score"]}, {"search": search["fitness"]})


FIELD = [
    standing("base", "b", "base", score=10.0, fitness=0.1),
    standing("uniform", "u", "uniform", score=30.0, fitness=0.9),
    standing("scale:0.40", "s", "scale", score=40.0, fitness=0.4),
    standing("0", "r0", "candidate", score=20.0, fitness=0.8),
    standing("1", "r1", "candidate", score=50.0, fitness=0.5),
    standing("2", "r1", "candidate", score=50.0, fitness=0.5),
    standing("3", "s", "candidate", score=40.0, fitness=0.4),
    standing("10", "r10", "candidate", score=20.0, fitness=0.8),
]


def names(entries: list[Standing]) -> list[str]:
    return [entry.candidate for entry in entries]


def test_the_best_distinct_recipes_and_the_best_baseline() -> None:
    assert names(choose(FIELD, 3)) == ["0", "10", "1", "scale:0.40"]
    assert names(choose(FIELD, 2, by="score")) == ["1", "0", "scale:0.40"]
    assert names(choose(FIELD, 9)) == ["0", "10", "1", "scale:0.40"]  # 2 is 1 again, 3 is the baseline


def test_without_baseline_there_are_only_candidates() -> None:
    assert names(choose([entry for entry in FIELD if entry.kind == "candidate"], 1)) == ["0"]
    assert choose([], 4) == []


def test_answers_are_always_chosen_and_do_not_take_a_place() -> None:
    field = [replace(entry, answer=entry.candidate in ("1", "2")) for entry in FIELD]
    assert names(choose(field, 1)) == ["0", "1", "scale:0.40"]  # 2 is 1 again
    assert names(choose(field, 3)) == ["0", "10", "1", "scale:0.40"]


def test_the_best_by_score_and_ties() -> None:
    found = best(FIELD, "search")
    assert found is not None
    assert found.candidate == "1"
    baseline = best(FIELD, "search", ("uniform", "scale"))
    assert baseline is not None
    assert baseline.candidate == "scale:0.40"
    tie = best([FIELD[6], FIELD[2]], "search")
    assert tie is not None
    assert tie.candidate == "scale:0.40"
    assert best(FIELD, "validation") is None


def test_standings_follow_from_the_state() -> None:
    def fitness(score: float) -> dict[str, float]:
        return {"value": score / 100, "stderr": 0.1, "n": 4}

    def scored(candidate: str, split: str, score: float) -> tuple[str, dict[str, object]]:
        return "scored", {"candidate": candidate, "split": split, "score": score, "fitness": fitness(score)}

    written: list[tuple[str, dict[str, object]]] = [
        ("baseline", {"candidate": "base", "kind": "base", "recipe": {}, "recipe_id": "b"}),
        ("baseline", {"candidate": "uniform", "kind": "uniform", "skipped": "there is only one parent"}),
        ("asked", {"candidate": "0", "group": 0, "recipe_id": "r0"}),
        ("asked", {"candidate": "1", "group": 0, "recipe_id": "r1"}),
        scored("0", "search", 20.0),
        scored("base", "search", 10.0),
        ("failed", {"candidate": "1", "split": "search", "stage": "score", "reason": "not finite"}),
        scored("0", "validation", 25.0),
    ]
    events = [Event(seq, 0.0, kind, payload) for seq, (kind, payload) in enumerate(written, start=1)]
    no_guards = {"search": 0.0, "validation": 0.0}
    assert standings(SearchState.from_events(events)) == [
        Standing("base", "b", "base", {"search": 10.0}, {"search": 0.1}, {"search": 0.0}),
        Standing(
            *("0", "r0", "candidate"),
            {"search": 20.0, "validation": 25.0},
            {"search": 0.2, "validation": 0.25},
            no_guards,
        ),
    ]
