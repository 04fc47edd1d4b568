"""`benchmarks.optimizers` and `benchmarks.spaces`: landscapes, their optimum and closed forms, and short runs."""

import json
import sys
from itertools import combinations

import numpy as np
import pytest
import yaml

from evosearch.errors import SpecError


@pytest.fixture(scope="module")
def landscapes():
    from benchmarks._synthetic import landscapes

    return landscapes


@pytest.fixture(scope="module")
def made(landscapes):
    """One landscape of each kind."""
    return {name: make(3) for name, (make, _) in landscapes.LANDSCAPES.items()}


def genomes(landscape, count, seed=0):
    """Random genomes."""
    from evosearch.search.optimizer_config import OptimizerConfig, create

    optimizer = create(OptimizerConfig(name="random", seed=seed), landscape.dimensions, landscape.start)
    return [optimizer.ask(1)[0] for _ in range(count)]


def test_no_genome_is_better_than_the_optimum(made):
    for name, landscape in made.items():
        tests = [landscape.test(genome) for genome in genomes(landscape, 200)]
        assert max(tests) < landscape.optimum < 100.0, name
        assert max(test for _, test in landscape.baselines.values()) < landscape.optimum, name
        assert landscape.optimum > landscape.test(landscape.start) + 1.0, f"{name}: nothing to find"


def test_the_closed_form_is_the_accuracy_on_many_items():
    """The accuracy on very many items equals the closed form, with preferences and with noise."""
    from benchmarks._synthetic.world import World

    rng = np.random.default_rng(0)
    for rough in (0.0, 0.7):
        world = World.draw(5, 2, 200_000, 6, suits=1.5, rough=rough, smooth=False)
        abilities, place = np.array([0.8, -0.4]), rng.normal(0.0, 1.0, 6)
        found = world.fitness(abilities, place)
        assert found.value == pytest.approx(world.accuracy(abilities, place), abs=4 * found.stderr)
        assert found.stderr < 0.12


def test_few_items_consistently_favour_some_models():
    """On few items one of two equally good models is consistently ahead, so a search can overfit."""
    from benchmarks._synthetic.world import World

    world = World.draw(1, 2, 200, 8, suits=1.0, rough=0.2)
    abilities, here = np.zeros(2), np.full(8, 0.5)
    assert world.accuracy(abilities, here) == pytest.approx(world.accuracy(abilities, -here))
    one, other = world.fitness(abilities, here), world.fitness(abilities, -here)
    assert one != other
    assert world.fitness(abilities, here) == one


def test_slope_is_the_gradient_of_the_accuracy(landscapes):
    merges = landscapes.Merges.draw(np.random.default_rng(2), 2, 50.0, rotated=True)
    from benchmarks._synthetic.world import World

    world, at = World.draw(2, 4, 40, 8, rough=0.3), np.linspace(0.1, 1.2, 8)

    def accuracy(weights):
        return world.accuracy(merges.abilities(weights), weights - 0.25)

    slope = world.slope(merges.abilities(at), at - 0.25, merges.gradients(at))
    step = 1e-6 * np.eye(8)
    assert slope == pytest.approx([(accuracy(at + d) - accuracy(at - d)) / 2e-6 for d in step], rel=1e-5)


def test_the_best_route_equals_that_of_an_exhaustive_search(monkeypatch):
    """Dynamic programming compared with enumeration, on a small space."""
    from benchmarks._synthetic import routes

    sites = tuple((model, layer) for model in routes.MODELS for layer in range(3))
    slots = (*((f"1 {model}:{layer}", model, layer) for model, layer in sites), ("end first:2", "first", 2))
    small = {"LAYERS": 3, "REPEATS": 1, "MAX_HOPS": 5, "SITES": sites, "SLOTS": slots}
    for name, value in small.items():
        monkeypatch.setattr(routes, name, value)
    for seed in range(5):
        flow = routes.Flow.draw(np.random.default_rng(seed), "categorical")
        free = [name for name, *_ in slots[1:-1]]
        taken = [set(some) for size in range(4) for some in combinations(free, size)]
        tried = [flow.model(flow._genome(some | {slots[0][0], slots[-1][0]}))[0][0] for some in taken]
        assert flow.model(flow.best())[0][0] == pytest.approx(max(tried))


def test_landscapes_print_a_document_and_tables(monkeypatch, capsys):
    from benchmarks import optimizers

    args = ["--landscapes", "--quick", "--only", "few", "routing", "--optimizers", "random", "cma_es", "grid"]
    monkeypatch.setattr(sys, "argv", ["optimizers", *args])
    optimizers.main()
    out, shown = capsys.readouterr()
    found = json.loads(out)
    assert found["seeds"] == [0, 1]
    assert found["command"].startswith("python -m benchmarks.optimizers --landscapes --quick")
    assert found["date"].endswith(" UTC")
    few = found["summary"]["few"]
    assert next(iter(few["contestants"])) == "random"
    assert "grid, two holes" in few["contestants"]
    assert few["refused"] == {}
    last = few["contestants"]["cma_es"]["after"]["60"]
    assert last["item_evaluations"] == 60 * 240
    assert last["leads_baseline"] == 2
    assert last["test"]["lower"] <= last["test"]["median"] <= last["test"]["upper"]
    tests = [contest["runs"]["cma_es"]["after"]["60"]["test"] for contest in found["contests"][:2]]
    assert last["test"]["median"] == pytest.approx(np.median(tests))
    assert "grid takes one or two dimensions" in found["summary"]["routing"]["refused"]["grid"]
    assert "cma_es, thresholds" in found["summary"]["routing"]["contestants"]
    assert "| few | 20 evaluations | 60 evaluations |" in shown
    assert "grid does not support this landscape: optimizer.name: grid takes one or two dimensions" in shown


def test_the_same_seed_is_the_same_contest():
    from benchmarks._synthetic.contests import Contest

    def run():
        found = Contest("noisy", 4, (24,), ("cma_es",)).run()
        return {label: run["after"] for label, run in found["runs"].items()}

    assert run() == run()


def test_an_unsupported_optimizer_is_reported_not_skipped(made):
    from benchmarks._synthetic.contestants import contestants
    from benchmarks._synthetic.contests import search

    (grid,) = contestants(["grid"])
    with pytest.raises(SpecError, match="one or two dimensions"):
        search(made["separable"], grid, 0, [10])


@pytest.fixture
def bench():
    from benchmarks._synthetic.searches import Bench

    with Bench() as bench:
        yield bench


def test_searches_are_compared_at_equal_items(bench, world):
    from benchmarks._synthetic.contestants import contestants
    from benchmarks._synthetic.searches import search_rows

    spec = world("compared")
    chosen = contestants(["random", "tpe"])
    found = bench.compare_optimizers(spec, chosen, range(2), candidates=5, finalists=2)
    assert [(row["label"], row["seed"]) for row in found["runs"]] == [
        ("random", 0),
        ("tpe", 0),
        ("random", 1),
        ("tpe", 1),
    ]
    assert {row["item_evaluations"] for row in found["runs"]} == {5 * 16}
    assert all(row["stopped"] == "items" and row["failed"] == 0 for row in found["runs"])
    best = found["baselines"]["best scale"]
    assert best["baseline"].startswith("scale:")
    ahead = [row["test"] - best["test"] for row in found["runs"] if row["label"] == "tpe"]
    assert found["summary"]["tpe"]["ahead"]["median"] == pytest.approx(np.median(ahead))
    rows = search_rows(found)
    assert [row[0] for row in rows] == ["best parent", "uniform", "best scale", "random", "tpe"]
    assert rows[-1][-2:] == ["80", "2"]
    assert not list(spec.parent.glob("**/*.db")), "no ledger in the folder of the spec"


def test_stages_share_the_items(bench, world):
    """A merge, then a route through its winner: two searches with the item evaluations of one."""
    spec = world("spaces")
    data = yaml.safe_load(spec.read_text())
    route = {"search": True, "models": ["stage:merge", "./expert1"], "repeats": 1, "max_hops": 4}
    stages = [
        {key: data[key] for key in ("recipe", "optimizer", "budget")} | {"name": "merge"},
        {"name": "route", "recipe": {"routing": route}, "optimizer": {"name": "random"}, "budget": {"candidates": 9}},
    ]
    shared = {key: value for key, value in data.items() if key not in ("recipe", "optimizer", "budget")}
    staged = spec.parent / "staged.yaml"
    staged.write_text(yaml.safe_dump(shared | {"name": "staged", "stages": stages}))
    found = bench.compare_spaces({"one": spec, "both": staged}, [7], candidates=8, finalists=2)
    one, both = found["runs"]
    assert one["item_evaluations"] == both["item_evaluations"] == 8 * 16
    (first,) = both["earlier_stages"]
    assert first["item_evaluations"] == 4 * 16
    assert both["seed"] == 7
    assert set(found["baselines"]) == {"best parent", "uniform", "best scale"}
