"""Searches by gradients: steps in shards, held-back scorings, answers; any number of workers, and kills anywhere."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks._simulated.searches import SEARCH, heavy_tailed, score, search
from benchmarks._simulated.workers import SimulatedWorkers
from benchmarks._simulated.world import World
from evosearch.errors import ReplayError
from evosearch.evaluation.types import SPLITS, ScoreCard
from evosearch.promotion.validate import Validation
from evosearch.search.budget import Budget
from evosearch.search.ledger.events import Event
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.protocols import Job, Outcome
from evosearch.search.records import Reported
from evosearch.search.replay import replay
from evosearch.search.space.dimensions import Evaluation
from evosearch.search.state import SearchState

pytestmark = pytest.mark.usefixtures("no_power_cuts")
WORLD = World(models=3, layers=2, densities=False, items=70)
SHARDS, DOCUMENTS = 3, 40
STEPS = WORLD.steps(DOCUMENTS, SHARDS)
ASKS = 60


def workers(count: int = 1, world: World = WORLD) -> SimulatedWorkers:
    return SimulatedWorkers(count, heavy_tailed(count), score(world), lambda: 0.0)


def config(**more: Any) -> dict[str, Any]:
    return {"name": "gradient", "population": SHARDS, "batch": DOCUMENTS, "check_every": 2, **more}


def run(folder: Path, executor: Any, budget: Budget | None = None, **options: Any) -> list[Event]:
    """Start or resume a search and return its events."""
    steps = options.pop("steps", STEPS)
    _, recorder = search(folder, WORLD, executor, config(**options), budget or Budget(candidates=ASKS), steps=steps)
    events = recorder.ledger.events(SEARCH)
    recorder.ledger.close()
    return events


def fresh(**options: Any) -> Any:
    chosen, space = OptimizerConfig(start="init", **config(**options)), WORLD.space
    return create(chosen, space.dimensions, space.initial(), minibatches=STEPS.count, held_back=True)


def payloads(events: Sequence[Event], kind: str) -> list[dict[str, Any]]:
    return [event.payload for event in events if event.type == kind]


@pytest.fixture
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    return run(tmp_path_factory.mktemp("whole"), workers())


def test_the_minibatches_are_balanced_disjoint_from_the_held_back_part_and_weighted() -> None:
    held = STEPS.held_back
    assert held is not None
    assert STEPS.ranked is held
    assert (STEPS.count, len(STEPS.batches)) == (3, 3 * SHARDS), "56 documents of each task, 20 a step; 14 held back"
    assert [len(items) for items in held.sets] == [14, 14]
    seen: set[str] = set()
    for step in range(STEPS.count):
        shards = STEPS.batches[step * SHARDS : (step + 1) * SHARDS]
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
        hashes = [one for shard in shards for items in shard.sets for one in items.doc_hashes]
        assert len(hashes) == len(set(hashes)) == DOCUMENTS
        seen |= set(hashes)
        assert STEPS.weights(step * SHARDS) == {"first": 1 / DOCUMENTS, "second": 1 / DOCUMENTS}
    held_hashes = {one for items in held.sets for one in items.doc_hashes}
    assert not seen & held_hashes
    assert seen | held_hashes == {one for items in WORLD.batch.sets for one in items.doc_hashes}


def test_few_documents_are_all_used() -> None:
    steps = World(models=2, items=9).steps(documents=24, shards=4)
    assert (steps.count, steps.held_back, sum(map(len, steps.batches))) == (1, None, 18)
    assert steps.ranked is steps.full


def test_a_search_finds_what_the_gradient_points_to(tmp_path: Path) -> None:
    events = run(tmp_path, workers(), Budget(candidates=300), rate=0.05)
    state = SearchState.from_events(events)
    (answer,) = state.answers.values()
    start = WORLD.card(Job("start@search", WORLD.space.fill(WORLD.space.initial()), WORLD.batch))
    best = WORLD.card(Job("end@search", WORLD.space.fill(state.proposal(answer).genome), WORLD.batch))
    assert best.fitness.value > start.fitness.value
    assert best.tasks["first"].value > start.tasks["first"].value


def test_what_is_recorded(whole: list[Event]) -> None:
    state = SearchState.from_events(whole)
    assert state.proposed == ASKS
    cycle = 2 * SHARDS + 1
    for index, payload in enumerate(payloads(whole, "asked")):
        scored = (index + 1) % cycle == 0
        assert payload["gradient"] is not scored
        assert (payload["minibatch"] is None) is scored
    shards = [payload["candidate"] for payload in payloads(whole, "asked") if payload["gradient"]]
    assert [payload["candidate"] for payload in payloads(whole, "differentiated")] == shards
    genomes = [payload["genome"] for payload in payloads(whole, "asked") if payload["gradient"]]
    assert all(genomes[i] == genomes[i - i % SHARDS] for i in range(len(genomes))), "one point a step"
    assert genomes[0] != genomes[SHARDS]
    averages = [name for name, one in state.candidates.items() if not one.gradient and not state.is_answer(name)]
    assert all((name, "search") in state.cards for name in averages)
    assert not state.samples
    assert all(state.evidence(name) is None for name in shards), "steps are not ranked"
    assert state.best() is not None
    (answer,) = state.answers.values()
    assert (answer, "search") in state.cards
    assert state.finished == {str(index) for index in range(ASKS)}


def test_a_gradient_costs_three_items(tmp_path: Path) -> None:
    step, check = 3 * DOCUMENTS, 2 * 14
    events = run(tmp_path, workers(), Budget(items=4 * step + check))
    assert len(payloads(events, "asked")) == 4 * SHARDS + 1
    again = run(tmp_path, workers(), Budget(items=5 * step + 2 * check))
    assert len(payloads(again, "asked")) == 5 * SHARDS + 2, "a budget is raised later: the same asks continue"
    assert payloads(again, "asked")[: len(payloads(events, "asked"))] == payloads(events, "asked")


def test_workers_and_their_speed_change_nothing(whole: list[Event], tmp_path: Path) -> None:
    """Gradients are added in ask order, whichever worker is first: the same bits for any number of workers."""
    events = run(tmp_path, workers(4))
    done = [payload["candidate"] for payload in payloads(events, "differentiated")]
    assert done != sorted(done, key=int), "results arrive in another order"
    assert payloads(events, "asked") == payloads(whole, "asked")


class Killed(BaseException):
    """The process ends here."""


class Mortal:
    """Workers that kill the search after some outcomes."""

    def __init__(self, inner: SimulatedWorkers, outcomes: int) -> None:
        self._inner, self._left, self.slots = inner, outcomes, inner.slots
        self.submit, self.close = inner.submit, inner.close

    def wait(self, timeout_s: float) -> list[Outcome]:
        if self._left == 0:
            raise Killed
        found = self._inner.wait(timeout_s)
        self._left -= len(found)
        return found


@pytest.mark.parametrize("after", [0, 1, 2, 4, 6, 7, 8, 20, 33, 59, ASKS])
def test_a_search_killed_between_shards_goes_on_bit_for_bit(after: int, whole: list[Event], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, Mortal(workers(), after))
    events = run(tmp_path, workers(2))
    assert payloads(events, "asked") == payloads(whole, "asked")
    results = [(payload["candidate"], payload["gradient"]) for payload in payloads(events, "differentiated")]
    assert sorted(results) == sorted(
        (payload["candidate"], payload["gradient"]) for payload in payloads(whole, "differentiated")
    ), "nothing is differentiated twice"
    assert [one["observations"] for one in payloads(events, "told")] == [
        one["observations"] for one in payloads(whole, "told")
    ]


def test_answers_are_not_replayed(whole: list[Event]) -> None:
    optimizer = fresh()
    replayed = replay(optimizer, whole)
    assert (replayed.pending, replayed.next_index) == ([], ASKS)
    with pytest.raises(ReplayError, match=f"candidate {SHARDS} was proposed with"):
        replay(fresh(rate=0.1), whole)


def test_a_resume_repeats_no_answer_and_an_extended_search_gives_a_new_one(tmp_path: Path) -> None:
    def answers(events: Sequence[Event]) -> list[str]:
        return [payload["candidate"] for payload in payloads(events, "answered")]

    first = run(tmp_path, workers())
    assert answers(first) == [str(ASKS)]
    assert answers(run(tmp_path, workers())) == [str(ASKS)]
    longer = run(tmp_path, workers(), Budget(candidates=ASKS + 20))
    assert answers(longer) == [str(ASKS), str(ASKS + 21)], "the first answer has a place in the order of candidates"
    names = [event.payload["candidate"] for event in longer if event.type in ("asked", "answered")]
    assert names == [str(index) for index in range(ASKS + 22)]
    assert set(SearchState.from_events(longer).answers.values()) == {str(ASKS + 21)}


def test_without_a_held_back_part_three_averages_are_recommended(tmp_path: Path) -> None:
    steps = WORLD.steps(DOCUMENTS, SHARDS, hold_back=0.0)
    events = run(tmp_path, workers(), steps=steps, hold_back=0.0)
    assert all(payload["gradient"] for payload in payloads(events, "asked"))
    assert [payload["minibatch"] for payload in payloads(events, "asked")[: 5 * SHARDS]] == [
        *range(4 * SHARDS),
        0,
        1,
        2,
    ]
    assert len(payloads(events, "answered")) == 3


@pytest.mark.parametrize("lost", [1, SHARDS])
def test_failed_shards_are_left_out_and_a_failed_step_goes_back(lost: int, tmp_path: Path) -> None:
    """Step 3 loses one shard or all: the point of step 4 then is halfway between those of steps 2 and 3."""
    failing = {str(3 * SHARDS + 1 + shard) for shard in range(lost)}  # one average was asked for before it
    known = score(WORLD)
    executor = SimulatedWorkers(
        1, lambda job: 1.0, lambda job: None if job.id.split("@")[0] in failing else known(job), lambda: 0.0
    )
    events = run(tmp_path, executor, Budget(candidates=30))
    points = [payload["genome"] for payload in payloads(events, "asked") if payload["gradient"]][::SHARDS]
    assert {payload["candidate"] for payload in payloads(events, "failed")} == failing
    halfway = {name: (points[2][name] + points[3][name]) / 2 for name in points[2]}
    assert (points[4] == pytest.approx(halfway)) is (lost == SHARDS)
    assert points[4] != points[3]
    assert points[5] != points[4]
    optimizer = fresh()
    assert replay(optimizer, events).pending == []


def test_it_stops_when_the_held_back_part_gets_worse(tmp_path: Path) -> None:
    """Scores on the held-back part fall from scoring to scoring."""
    count = iter(range(1000))

    def worse(card: Callable[[Job], Any], job: Job) -> Any:
        found = card(job)
        if isinstance(found, ScoreCard):
            object.__setattr__(found.fitness, "value", -float(next(count)))
        return found

    known = score(WORLD)
    executor = SimulatedWorkers(1, lambda job: 1.0, lambda job: worse(known, job), lambda: 0.0)
    events = run(tmp_path, executor, Budget(candidates=300), patience=3)
    state = SearchState.from_events(events)
    averages = [Reported.from_payload(one) for told in payloads(events, "told") for one in told["observations"]]
    assert len([one for one in averages if not one.gradient]) == 1 + 3
    assert len(state.answers) == 1
    assert state.proposed < 300


@pytest.mark.parametrize("finalists", [1, 3])
def test_finalists_are_chosen_by_the_held_back_part(finalists: int, tmp_path: Path) -> None:
    """The rest of the search split is what the steps have seen: its scores would choose what overfits most.

    Nothing is scored on the rest, whatever its size.
    """
    executor = workers()
    _, recorder = search(tmp_path, WORLD, executor, config(), Budget(candidates=ASKS), steps=STEPS)
    batches = {split: replace(WORLD.batch, split=split) for split in SPLITS} | {"search": STEPS.ranked}
    for batch in batches.values():
        recorder.ledger.put_item_sets(batch)
    Validation(recorder=recorder, executor=executor, batches=batches, finalists=finalists).finalist()
    state = recorder.state
    told = {name: found[1] for name in state.candidates if (found := state.as_reported(name))}
    best = sorted(told, key=lambda name: -told[name])[:finalists]
    found = {one.candidate for one in state.finalists}
    assert set(state.answers.values()) < found <= {*best, *state.answers.values()}
    assert len(found) >= finalists
    sizes = {card.items for (_, split), card in state.cards.items() if split == "search"}
    assert sizes == {len(STEPS.ranked)}
    recorder.ledger.close()


def still(world: World = WORLD) -> SimulatedWorkers:
    """Workers whose gradients are zero: the search stays at its start, and its averages are that point too."""

    def known(job: Job) -> Any:
        found = score(world)(job)
        return replace(found, gradient=(0.0,) * job.gradient) if job.gradient is not None else found

    return SimulatedWorkers(1, lambda job: 1.0, known, lambda: 0.0)


def test_a_finalist_is_never_a_step_of_the_same_recipe(tmp_path: Path) -> None:
    executor = still()
    _, recorder = search(tmp_path, WORLD, executor, config(), Budget(candidates=20), steps=STEPS)
    assert len({one.recipe_id for one in recorder.state.candidates.values()}) == 1
    batches = {split: replace(WORLD.batch, split=split) for split in SPLITS}
    for batch in batches.values():
        recorder.ledger.put_item_sets(batch)
    finalist = Validation(recorder=recorder, executor=executor, batches=batches, finalists=1).finalist()
    assert finalist == str(2 * SHARDS), "the first averaged iterate"
    recorder.ledger.close()


def test_equal_answers_are_scored_once_also_after_a_resume(tmp_path: Path) -> None:
    steps = WORLD.steps(DOCUMENTS, SHARDS, hold_back=0.0)
    for _ in range(2):
        events = run(tmp_path, still(), Budget(candidates=20), steps=steps, hold_back=0.0)
        answered = payloads(events, "answered")
        first = answered[0]["candidate"]
        assert [payload["duplicate_of"] for payload in answered] == [None, first, first]
        assert [payload["candidate"] for payload in payloads(events, "scored")] == [first]


def test_shards_without_documents_end_no_search(tmp_path: Path) -> None:
    """A budget of candidates ends among the empty shards of a step, and one of items is left."""
    world = World(models=2, items=9)
    steps, executor = world.steps(documents=12, shards=100), workers(world=world)
    budget = Budget(candidates=20, items=4000)
    _, recorder = search(tmp_path, world, executor, config(population=100), budget, steps=steps)
    assert len(recorder.state.gradients) == 20, "18 documents have a shard each"
    recorder.ledger.close()


def test_evaluations_depend_on_the_ask_index_alone() -> None:
    optimizer = fresh()
    found = [optimizer.evaluation(index) for index in range(9)]
    shard = [Evaluation(index, gradient=True) for index in range(2 * SHARDS)]
    assert found == [*shard, Evaluation(), Evaluation(6, True), Evaluation(7, True)]
