"""Candidates scored on minibatches of the search split: exact at resume, and decided on the full split."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import SpecError
from evosearch.reporting.leaderboard import leaderboard
from evosearch.reporting.report import CandidateCounts
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.search.state import SearchState
from evosearch.service.run import RunReport, run
from evosearch.setup.prepare import prepare
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
# Between two runs of one search: times and workers; the count, which is of all searches; folders (ids follow content).
MAY_DIFFER = ("seconds", "worker", "count", "recipe", "time", "resumed", "name", "spec", "inputs", "files")
OPTIMIZER = {"name": "cma_es", "population": 4, "sigma": 0.2, "seed": 1, "start": "best_baseline"}
CHANGES: dict[str, Any] = {  # three generations, on minibatches 0, 1, 0
    "search_minibatches": 2,
    "optimizer": OPTIMIZER,
    "budget": {"candidates": 12},
    "baselines": {"scales": [0.5]},
}


class Killed(BaseException):
    """Simulates SIGKILL: the program does not catch it."""


def events_of(spec: Path) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    run_dir = load_spec(spec).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name(run_dir.name)
        assert info is not None
        return info.search_id, [(event.type, event.payload) for event in ledger.events(info.search_id)]


def fitness_of(state: SearchState, name: str) -> float:
    """The fitness that was reported to the optimizer."""
    fitness = state.reported[name].fitness
    assert fitness is not None
    return fitness.value


def state_of(spec: Path) -> SearchState:
    run_dir = load_spec(spec).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name(run_dir.name)
        assert info is not None
        return SearchState.from_events(ledger.events(info.search_id))


def record(spec: Path) -> list[tuple[str, dict[str, Any]]]:
    """Proposals, scores, reports and decisions of a search; scores sorted, as workers finish in any order."""
    _, events = events_of(spec)
    kept = [(kind, {k: v for k, v in payload.items() if k not in MAY_DIFFER}) for kind, payload in events]
    kept = [entry for entry in kept if entry[0] not in ("started", "stopped", "promoted")]
    scored = [entry for entry in kept if entry[0] == "scored"]
    scored.sort(key=lambda entry: (entry[1]["split"], entry[1]["candidate"], str(entry[1].get("minibatch"))))
    return [entry for entry in kept if entry[0] != "scored"] + scored


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Any]:
    return {}


def whole(world: World, kept: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    if not kept:
        spec = world(name="whole", **CHANGES)
        kept["report"] = run(spec, Silent())
        kept["record"], kept["state"], kept["rows"] = (
            record(spec),
            state_of(spec),
            leaderboard(load_spec(spec).run_dir).rows,
        )
    found: list[tuple[str, dict[str, Any]]] = kept["record"]
    return found


def test_generations_take_minibatches_in_rotation_and_baselines_the_full_split(
    world: World, uninterrupted: dict[str, Any]
) -> None:
    found = whole(world, uninterrupted)
    state: SearchState = uninterrupted["state"]
    minibatches = [payload["minibatch"] for kind, payload in found if kind == "asked"]
    assert minibatches == [0] * 4 + [1] * 4 + [0] * 4
    assert {minibatch for _, minibatch in state.samples} == {0, 1}
    assert {card.tasks["choice"].n for card in state.samples.values()} == {4}
    for name in state.baselines:
        assert state.cards[name, "search"].tasks["choice"].n == 8
    sets = [{card.batch for (_, on), card in state.samples.items() if on == minibatch} for minibatch in (0, 1)]
    assert [len(own) for own in sets] == [1, 1]
    assert sets[0] != sets[1]


def test_reported_fitness_is_corrected_by_the_baselines_on_the_minibatch(
    world: World, uninterrupted: dict[str, Any]
) -> None:
    whole(world, uninterrupted)
    state: SearchState = uninterrupted["state"]
    shifts: dict[int, set[float]] = {0: set(), 1: set()}
    for (name, minibatch), card in state.samples.items():
        shifts[minibatch].add(round(fitness_of(state, name) - card.fitness.value, 9))
    assert [len(own) for own in shifts.values()] == [1, 1]  # one shift a minibatch
    (one,), (other,) = shifts.values()
    assert one == pytest.approx(-other, abs=1e-9)  # of equal halves, one is as much harder as the other is easier
    assert one != 0.0


def test_the_best_by_reported_fitness_are_rescored_on_the_full_split_for_the_finalists(
    world: World, uninterrupted: dict[str, Any]
) -> None:
    whole(world, uninterrupted)
    state: SearchState = uninterrupted["state"]
    full = [name for name, split in state.cards if split == "search" and name.isdigit()]
    (answer,) = state.answers.values()
    assert full[0] == answer, "the mean of the distribution is scored at the end of the search"
    rescored = full[1:]
    by_told = sorted(state.reported, key=lambda name: -fitness_of(state, name))
    assert rescored == by_told[:4]  # twice the two finalists
    by_all = sorted(full, key=lambda name: -state.cards[name, "search"].fitness.value)
    assert {finalist.candidate for finalist in state.finalists} == {answer, *by_all[:2]}
    assert all(state.cards[name, "search"].tasks["choice"].n == 8 for name in rescored)


def test_rescoring_decides(world: World, uninterrupted: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The best on its minibatch gets a low score on the full split, and is then not a finalist."""
    from evosearch.execution.worker import Worker
    from evosearch.search.protocols import Job, Outcome

    whole(world, uninterrupted)
    told = uninterrupted["state"]
    luckiest = max(told.reported, key=lambda name: fitness_of(told, name))
    score = Worker.run

    def unlucky(self: Worker, job: Job) -> Outcome:
        outcome = score(self, job)
        if job.id == f"{luckiest}@search" and outcome.card is not None:
            from dataclasses import replace

            card = replace(outcome.card, fitness=replace(outcome.card.fitness, value=-99.0), score=0.0)
            return replace(outcome, card=card)
        return outcome

    monkeypatch.setattr(Worker, "run", unlucky)
    spec = world(name="unlucky", **CHANGES)
    run(spec, Silent())
    state = state_of(spec)
    assert state.reported.keys() == told.reported.keys()
    assert state.cards[luckiest, "search"].fitness.value == -99.0
    assert luckiest not in [finalist.candidate for finalist in state.finalists]
    assert state.best() != -99.0


def test_the_leaderboard_marks_scores_on_a_minibatch(world: World, uninterrupted: dict[str, Any]) -> None:
    whole(world, uninterrupted)
    rows: Sequence[dict[str, Any]] = uninterrupted["rows"]
    samples = [row.sample for row in rows]
    # On all items: 5 baselines, 4 candidates, the answer. The others on 4 items of each of 2 tasks.
    assert samples == [None] * (5 + 4 + 1) + [8] * 8
    report: RunReport = uninterrupted["report"]
    assert report.best is not None
    assert report.best.candidate in [row.candidate for row in rows[:10]]
    assert report.candidates == CandidateCounts(12, 12, 0, 0)
    for row in rows[10:]:
        card = uninterrupted["state"].samples[row.candidate, int(row.candidate) // 4 % 2]
        assert (row.score, row.splits) == (card.score, {})


def is_sampled(kind: str, payload: dict[str, Any]) -> bool:
    return kind == "scored" and payload["minibatch"] is not None


def is_rescored(kind: str, payload: dict[str, Any]) -> bool:
    return (
        kind == "scored"
        and payload["minibatch"] is None
        and payload["split"] == "search"
        and payload["candidate"].isdigit()
        and int(payload["candidate"]) < CHANGES["budget"]["candidates"]  # not the answer
    )


def is_told(kind: str, payload: dict[str, Any]) -> bool:
    return kind == "told"


def dying(what: Callable[[str, dict[str, Any]], bool], number: int, before: bool) -> Callable[..., Any]:
    """`Ledger.append` that dies before or after the `number`-th commit of such an event."""
    append, count = Ledger.append, 0

    def appending(self: Ledger, search_id: str, entries: Any, scores: Any = ()) -> Any:
        nonlocal count
        met = any(what(kind, dict(payload)) for kind, payload in entries)
        count += met
        if met and before and count == number:
            raise Killed
        events = append(self, search_id, entries, scores)
        if met and count == number:
            raise Killed
        return events

    return appending


def test_killed_repeatedly_it_resumes_exactly(
    world: World, uninterrupted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(world, uninterrupted)
    spec = world(name="killed", **CHANGES)
    for what, number, before in (
        (is_sampled, 6, True),  # in the second generation
        (is_told, 1, False),
        (is_rescored, 1, True),
        (is_rescored, 2, False),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(Ledger, "append", dying(what, number, before))
            with pytest.raises(Killed):
                run(spec, Silent())
    run(spec, Silent())
    assert record(spec) == expected


def test_a_cut_generation_is_completed_on_its_minibatch(world: World, uninterrupted: dict[str, Any]) -> None:
    """A budget of 6 ends in the middle of the second generation. With 12, the search proposes the same as before."""
    expected = [entry[1]["genome"] for entry in whole(world, uninterrupted) if entry[0] == "asked"]
    run(world(name="short", **CHANGES | {"budget": {"candidates": 6}}), Silent())
    spec = world(name="short", **CHANGES)
    run(spec, Silent())
    asked = [payload for kind, payload in record(spec) if kind == "asked"]
    assert [payload["minibatch"] for payload in asked] == [0] * 4 + [1] * 4 + [0] * 4
    assert [payload["genome"] for payload in asked] == expected


def test_without_the_key_nothing_is_sampled_and_the_id_stays(world: World) -> None:
    plain = load_spec(world(name="plain"))
    assert "search_minibatches" not in plain.identity()
    assert load_spec(world(name="plain", **CHANGES)).search_id() != plain.search_id()
    assert prepare(plain, Silent()).minibatches is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (1, "search_minibatches: Input should be greater than or equal to 2, got 1"),
        (
            9,
            "search_minibatches: got 9, and 'choice' has 8 search documents. At most 8",
        ),
        ("four", "search_minibatches: got 'four'. A whole number"),
    ],
)
def test_bad_values_are_refused(world: World, given: object, said: str) -> None:
    spec = world(search_minibatches=given)
    with pytest.raises(SpecError) as caught:
        load_spec(spec)
    assert str(caught.value).startswith(f"{spec}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ({"name": "greedy_soup"}, "search_minibatches: greedy_soup compares single candidates"),
        ({"name": "cma_es", "restarts": 2}, "optimizer.restarts: got 2 with search_minibatches"),
    ],
)
def test_optimizers_that_would_compare_different_questions_are_refused(
    world: World, optimizer: dict[str, object], said: str
) -> None:
    spec = world(search_minibatches=2, optimizer=optimizer)
    with pytest.raises(SpecError, match=re.escape(said)):
        load_spec(spec)
