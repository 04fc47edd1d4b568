"""Gradient steps and answers in the tracking store: steps are points of the search, answers are tagged runs."""

from pathlib import Path

from benchmarks._simulated.searches import SEARCH, score, search
from benchmarks._simulated.workers import SimulatedWorkers
from benchmarks._simulated.world import World
from evosearch.search.budget import Budget
from evosearch.search.ledger.events import Event
from evosearch.tracking.changes import FINISHED, Plan
from evosearch.tracking.changes import SEARCH as OWN
from evosearch.tracking.translator import Translator

ASKS = 20


def test_steps_are_points_of_the_search_and_answers_are_tagged(tmp_path: Path) -> None:
    world = World(models=2, layers=2, densities=False, items=70)
    config = {"name": "gradient", "population": 2, "batch": 40, "check_every": 2}
    workers = SimulatedWorkers(1, lambda job: 1.0, score(world), lambda: 0.0)
    _, recorder = search(tmp_path, world, workers, config, Budget(candidates=ASKS), steps=world.steps(40, 2))
    plan: Plan = {}
    translator = Translator(SEARCH, "steps")
    for event in recorder.ledger.events(SEARCH):
        translator.translate(event, plan)
    recorder.ledger.close()
    state = recorder.state
    shards = [name for name, one in state.candidates.items() if one.gradient]
    assert plan.keys() == {OWN, *(name for name in state.candidates if name not in shards)}
    fitness = [point for point in plan[OWN].points if point.name == "gradient/fitness"]
    assert [point.step for point in fitness] == [int(name) for name in shards]
    assert [point.value for point in fitness] == [one.fitness.value for one in state.gradients.values()]
    tagged = {name for name, changes in plan.items() if changes.tags.get("answer") == "true"}
    assert tagged == set(state.answers.values())
    best = [point for point in plan[OWN].points if point.name == "best_fitness"]
    assert best[-1].step == ASKS, "every candidate is settled, the answer included"
    assert best[-1].value == max(found[1] for name in state.reported if (found := state.as_reported(name)))


def test_the_run_of_a_retried_step_ends() -> None:
    about = {"candidate": "0", "split": "search", "minibatch": 0}
    events: list[tuple[str, dict[str, object]]] = [
        ("asked", {"candidate": "0", "gradient": True}),
        ("retried", about | {"stage": "worker", "reason": "lost"}),
        ("differentiated", about | {"fitness": {"value": 1.0, "stderr": 0.0, "n": 1}}),
    ]
    plan: Plan = {}
    translator = Translator(SEARCH, "steps")
    for seq, (kind, payload) in enumerate(events, start=1):
        translator.translate(Event(seq, float(seq), kind, payload), plan)
    assert plan["0"].tags["retry_reason"] == "worker: lost"
    assert plan["0"].status == FINISHED
