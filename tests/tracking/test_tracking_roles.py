"""Names, roles, states, rounded values and durations of runs in MLflow."""

from typing import Any

from evosearch.search.ledger.events import Event
from evosearch.tracking.changes import FINISHED, Plan
from evosearch.tracking.metrics import readable
from evosearch.tracking.translator import Translator

MODELS = {"zoo:tiny/base": "ab", "zoo:tiny/sort": "cd"}


def translated(*written: tuple[str, dict[str, Any]]) -> Plan:
    plan: Plan = {}
    translator = Translator("id", "quickstart")
    for seq, entry in enumerate(written, start=1):
        translator.translate(Event(seq, float(seq), *entry), plan)
    return plan


def started() -> tuple[str, dict[str, Any]]:
    return "started", {"name": "quickstart", "spec": {}, "inputs": MODELS}


def asked(name: str, **more: Any) -> tuple[str, dict[str, Any]]:
    recipe = {"models": [{"model": "zoo:tiny/sort"}]}
    return "asked", {"candidate": name, "group": 7, "genome": {}, "recipe": recipe, "recipe_id": name, **more}


def scored(name: str, value: float, split: str = "search") -> tuple[str, dict[str, Any]]:
    fitness = {"value": value / 100, "stderr": 0.123456, "n": 4}
    seconds = {"materialize": 0.25, "score": 0.5}
    card = {"split": split, "batch": "b", "score": value, "fitness": fitness, "tasks": {}, "seconds": seconds}
    return "scored", {"candidate": name, **card}


def failed(name: str, split: str = "search") -> tuple[str, dict[str, Any]]:
    return "failed", {"candidate": name, "split": split, "stage": "score", "reason": "lost"}


def gated(winner: str, promoted: str | None) -> tuple[str, dict[str, Any]]:
    return "gated", {"winner": winner, "promoted": promoted, "unverified": False, "reasons": [], "comparisons": []}


def baseline(name: str, kind: str) -> tuple[str, dict[str, Any]]:
    recipe = {"models": [{"model": "zoo:tiny/sort"}]}
    return "baseline", {"candidate": name, "kind": kind, "recipe": recipe, "recipe_id": name}


def roles(plan: Plan) -> dict[str, tuple[str, str]]:
    return {name: (run.tags["role"], run.tags["state"]) for name, run in plan.items() if "role" in run.tags}


def test_runs_are_named_for_people() -> None:
    plan = translated(
        started(), baseline("parent:0", "parent"), baseline("scale:0.60", "scale"), asked("90"), scored("champion", 1.0)
    )
    assert {name: run.name for name, run in plan.items() if name} == {
        "parent:0": "quickstart · parent sort",
        "scale:0.60": "quickstart · scale 0.6",
        "90": "quickstart · #90 · gen 7",
        "champion": "quickstart · champion of the registry",
    }


def test_every_run_has_a_role_and_a_state() -> None:
    plan = translated(
        started(),
        baseline("scale:0.60", "scale"),
        *(asked(name) for name in "0123"),
        asked("4", duplicate_of="2"),
        scored("scale:0.60", 40.0),
        failed("0"),
        scored("1", 50.0),
        scored("2", 60.0),
        scored("2", 55.0, "validation"),
        failed("1", "validation"),
        ("finalist", {"candidate": "2", "rank": 1, "score": 55.0}),
        ("finalist", {"candidate": "scale:0.60", "rank": 2, "score": 35.0}),
        scored("champion", 45.0, "test"),
        gated("2", None),
    )
    assert roles(plan) == {
        "scale:0.60": ("baseline", "scored"),
        "0": ("candidate", "failed"),
        "1": ("candidate", "scored"),
        "2": ("finalist", "winner"),
        "3": ("candidate", "pending"),
        "4": ("candidate", "duplicate of #2"),
        "champion": ("champion", "scored"),
    }
    assert plan["1"].tags["failure_split"] == "validation"
    assert plan["0"].points == [], "a failure has nothing to be sorted by"


def test_a_promotion_makes_the_other_champions_former_ones() -> None:
    before = [asked(name) for name in "01"] + [scored(name, 50.0) for name in "01"]
    first = [*before, scored("champion", 40.0, "test"), gated("0", "0"), ("promoted", {"candidate": "0"})]
    assert roles(translated(*first)) == {
        "0": ("champion", "promoted"),
        "1": ("candidate", "scored"),
        "champion": ("former champion", "scored"),
    }
    second = [*first, ("finalist", {"candidate": "0", "rank": 2, "score": 1.0}), gated("1", "1")]
    again = roles(translated(*second, ("promoted", {"candidate": "1"})))
    assert again["0"] == ("former champion", "scored")
    assert again["1"] == ("champion", "promoted")


def test_the_duration_is_the_time_on_workers() -> None:
    """Candidates of one generation are proposed together and wait for workers: the wait is not theirs."""
    plan = translated(asked("0"), asked("1"), scored("1", 50.0), scored("0", 50.0), scored("0", 50.0, "validation"))
    for name, milliseconds in (("0", 1500), ("1", 750)):
        assert plan[name].status == FINISHED
        assert plan[name].status_ms - plan[name].started_ms == milliseconds
    totals = [(point.step, point.value) for point in plan["0"].points if point.name == "seconds/total"]
    assert totals == [(0, 0.75), (1, 1.5)]
    # Events are a second apart: candidate 0 is proposed at 1 s and scored at 4 s, candidate 1 at 2 s and at 3 s
    waited = {name: [point.value for point in plan[name].points if point.name == "seconds/waiting"] for name in "01"}
    assert waited == {"0": [2.25], "1": [0.25]}


def test_a_failure_takes_its_time_on_the_worker_too() -> None:
    _, fault = failed("0")
    plan = translated(asked("0"), ("failed", fault | {"seconds": {"score": 0.5}}))
    assert plan["0"].status_ms - plan["0"].started_ms == 500
    plan = translated(asked("0"), ("failed", fault | {"seconds": {}}))
    assert plan["0"].status_ms - plan["0"].started_ms == 1000, "a worker that died: until it was recorded"


def test_values_are_rounded_as_people_read_them() -> None:
    run = translated(asked("0"), scored("0", 28.91493), scored("0", 27.5, "validation"))["0"]
    points = {point.name: point.value for point in run.points}
    assert points["score/search"] == 28.91
    assert points["fitness/search"] == 0.2891
    assert points["fitness_stderr/search"] == 0.1235
    line = [(point.step, point.value) for point in run.points if point.name == "score/by_split"]
    assert line == [(0, 28.91), (1, 27.5)]
    assert readable(0.000123456, 2) == 0.00012
    assert readable(0.0, 2) == 0.0
    assert readable(1234.5678, 2) == 1234.57
