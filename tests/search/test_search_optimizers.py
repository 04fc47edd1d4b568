"""Laws every registered optimizer keeps."""

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evosearch.documents import validate
from evosearch.errors import SpecError
from evosearch.search.optimizers import registry
from evosearch.search.optimizers.registry import Optimizer, OptimizerConfig, create
from evosearch.search.types import Dimension, Estimate, Genome, Observation

FLOATS = tuple(Dimension(f"x{i}", "float", 0.9, low=-1.0, high=1.0) for i in range(3))
MIXED = (
    Dimension("rate", "float", 0.5, low=0.01, high=1.0, log=True),
    Dimension("count", "int", 3, low=1, high=9),
    Dimension("steps", "int", 10, low=1, high=100, log=True),
    Dimension("weight", "float", 0.0, low=0.0, high=1.5),
)
CHOICES = (
    Dimension("merge_method", "categorical", "ties", choices=("ties", "linear", "slerp")),
    Dimension("density", "float", 0.5, low=0.1, high=1.0, active_if=("merge_method", ("ties",))),
    Dimension("weight", "float", 0.5, low=0.0, high=1.0),
    Dimension("flag", "categorical", True, choices=(True, False), active_if=("merge_method", ("ties", "linear"))),
)


@pytest.fixture(params=registry.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(name: str, dimensions: Sequence[Dimension] = FLOATS, **options: object) -> Optimizer:
    config = OptimizerConfig.model_validate({"name": name, **options})
    return create(config, dimensions, {dimension.name: dimension.init for dimension in dimensions})


def sphere(genome: Genome) -> float:
    return -sum((float(value) - 0.3) ** 2 for value in genome.values())


def observe(genomes: Sequence[Genome], fitness: Callable[[Genome], float | None], first: int = 0) -> list[Observation]:
    observations = []
    for index, genome in enumerate(genomes, start=first):
        value = fitness(genome)
        objectives = () if value is None else (Estimate(value, 0.1, 10),)
        observations.append(Observation(str(index), genome, objectives, (), "scored" if objectives else "failed"))
    return observations


def search(
    optimizer: Optimizer, fitness: Callable[[Genome], float | None], generations: int
) -> list[list[Observation]]:
    told = []
    for _ in range(generations):
        told.append(observe(optimizer.ask(optimizer.population), fitness))
        optimizer.tell(told[-1])
    return told


def test_registry_finds_every_file() -> None:
    assert {"cma_es", "random", "tpe"} <= set(registry.names())
    for found in registry.names():
        assert registry.load(found).name == found


def test_configuring_one_optimizer_imports_no_other_library() -> None:
    code = (
        "import sys, evosearch.search.space, evosearch.search.ledger, evosearch.search.replay;"
        "from evosearch.search.optimizers.registry import OptimizerConfig; OptimizerConfig(name='random');"
        "assert not {'cma', 'optuna', 'cmaes', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dimensions", [FLOATS, MIXED, FLOATS[:1], MIXED[1:2]], ids=["floats", "mixed", "one", "int"])
def test_asks_within_bounds(name: str, dimensions: tuple[Dimension, ...]) -> None:
    fitness = lambda genome: sum(float(value) for value in genome.values())  # noqa: E731 (pushes to the bounds)
    for generation in search(make(name, dimensions), fitness, 12):
        for observation in generation:
            assert list(observation.genome) == [dimension.name for dimension in dimensions]
            for dimension in dimensions:
                value = observation.genome[dimension.name]
                assert dimension.contains(value)
                assert type(value) is (int if dimension.kind == "int" else float)


def test_integers_reach_every_value(name: str) -> None:
    generations = search(make(name, MIXED, seed=3, population=8), lambda genome: float(genome["count"]), 25)
    counts = {observation.genome["count"] for told in generations for observation in told}
    assert 9 in counts
    assert len(counts) >= 4


def test_improves_a_sphere(name: str) -> None:
    generations = search(make(name, seed=1), sphere, 150 // make(name).population)
    best = max(observation.objectives[0].value for told in generations for observation in told)
    start = sphere({dimension.name: dimension.init for dimension in FLOATS})
    assert best > (start / 10 if name == "random" else start / 50)


def test_same_seed_asks_the_same_and_another_seed_differs(name: str) -> None:
    one, two, other = (search(make(name, MIXED, seed=seed), sphere, 6) for seed in (5, 5, 6))
    assert [[o.genome for o in told] for told in one] == [[o.genome for o in told] for told in two]
    assert one[1][1].genome != other[1][1].genome


def test_asking_in_portions_asks_the_same(name: str) -> None:
    whole, parts = make(name, MIXED), make(name, MIXED)
    for _ in range(3):
        count = whole.population
        genomes = whole.ask(count)
        assert [*parts.ask(1), *parts.ask(count - 3), *parts.ask(2)] == genomes
        observations = observe(genomes, sphere)
        whole.tell(observations)
        parts.tell(observations[:2])
        parts.tell(observations[2:])


def test_draws_nothing_from_the_global_generator_and_survives_its_reseeding(name: str) -> None:
    expected = search(make(name, MIXED), sphere, 6)
    np.random.seed(11)
    before = np.random.get_state()
    optimizer = make(name, MIXED)
    found = search(optimizer, sphere, 3)
    after = np.random.get_state()
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]
    np.random.seed(0)
    found += search(optimizer, sphere, 3)
    assert [[o.genome for o in told] for told in found] == [[o.genome for o in told] for told in expected]


def test_goes_on_when_everything_fails(name: str) -> None:
    optimizer = make(name)
    search(optimizer, lambda genome: None, 12)
    assert optimizer.stop_reason() is None
    assert all(
        -1.0 <= float(value) <= 1.0 for genome in optimizer.ask(optimizer.population) for value in genome.values()
    )


def test_flat_fitness_stops_nothing(name: str) -> None:
    optimizer = make(name)
    search(optimizer, lambda genome: 0.25, 40)
    assert optimizer.stop_reason() is None


@pytest.mark.parametrize("offset", [-1000.0, 1000.0])
def test_failures_repel(name: str, offset: float) -> None:
    """Half of the space fails, whatever the sign of the fitness elsewhere: a failure is worse than any score."""
    if name == "random":
        pytest.skip("learns nothing")
    optimizer = make(name, seed=2, population=8)
    fitness = lambda genome: None if float(genome["x0"]) > 0 else offset + float(genome["x1"])  # noqa: E731
    generations = search(optimizer, fitness, 25)
    late = [observation for told in generations[-8:] for observation in told]
    assert sum(observation.state == "failed" for observation in late) < len(late) / 4


def excess(genome: Genome) -> float:
    """By how much the values' sum exceeds nought: this cuts off the sphere's optimum."""
    return max(0.0, sum(float(value) for value in genome.values()))


def observe_guarded(genomes: Sequence[Genome]) -> list[Observation]:
    found = observe(genomes, sphere)
    return [replace(observation, violations=(0.0, excess(observation.genome))) for observation in found]


FIVE = tuple(Dimension(f"x{i}", "float", -0.5, low=-1.0, high=1.0) for i in range(5))


def search_guarded(name: str, seed: int, told: int) -> list[Observation]:
    optimizer = make(name, FIVE, seed=seed)
    out: list[Observation] = []
    while len(out) < told:
        observations = observe_guarded(optimizer.ask(optimizer.population))
        optimizer.tell(observations)
        out += observations
    return out


def best_kept(observations: Sequence[Observation]) -> float:
    return max(observation.objectives[0].value for observation in observations if observation.violation == 0)


def test_ends_feasible_and_better_than_random_where_a_constraint_cuts_the_optimum_off(name: str) -> None:
    if name == "random":
        pytest.skip("learns nothing")
    optimum = -5 * 0.3**2  # at 0: the nearest point of the plane Σx = 0 to (0.3, …)
    for seed in (1, 2):
        found, yardstick = search_guarded(name, seed, 200), search_guarded("random", seed, 200)
        assert best_kept(yardstick) < best_kept(found) <= optimum
        late = found[-40:]
        assert sum(o.violation > 0.1 for o in late) < len(late) / 4
        assert sum(o.violation > 0.1 for o in yardstick[-40:]) > len(late) / 4


def test_replays_violations_bit_for_bit(name: str) -> None:
    one, two = search_guarded(name, 5, 60), search_guarded(name, 5, 60)
    assert [observation.genome for observation in one] == [observation.genome for observation in two]


def test_learns_from_violations_and_not_from_constraints_that_are_kept(name: str) -> None:
    free, kept, broken = make(name, seed=4), make(name, seed=4), make(name, seed=4)
    asked: list[list[Genome]] = [[], [], []]
    for _ in range(6):
        for optimizer, genomes, violations in zip((free, kept, broken), asked, ((), (0.0, -3.0), None), strict=True):
            own = observe(optimizer.ask(optimizer.population), sphere)
            genomes += [observation.genome for observation in own]
            own = [replace(o, violations=(excess(o.genome),) if violations is None else violations) for o in own]
            optimizer.tell(own)
    assert asked[0] == asked[1]
    assert (asked[0] == asked[2]) == (name == "random")


def test_failures_are_worse_than_any_violation(name: str) -> None:
    """Half of the space fails, all of the rest breaks a constraint: the search stays where it breaks it least."""
    if name == "random":
        pytest.skip("learns nothing")
    optimizer = make(name, seed=2, population=8)
    late: list[Observation] = []
    for generation in range(25):
        observations = observe(optimizer.ask(8), lambda genome: None if float(genome["x0"]) > 0 else 5.0)
        observations = [
            o if o.state == "failed" else replace(o, violations=(50.0 + 10 * (1 + float(o.genome["x1"])),))
            for o in observations
        ]
        optimizer.tell(observations)
        late += observations if generation >= 17 else []
    assert sum(observation.state == "failed" for observation in late) < len(late) / 4
    assert np.mean([float(observation.genome["x1"]) for observation in late]) < -0.3


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.tuples(st.floats(-1e12, 1e12), st.one_of(st.just(0.0), st.floats(1e-300, 1e6))),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_cma_es_ranks_feasible_before_infeasible_before_failed(drawn: list[tuple[float, float] | None]) -> None:
    from evosearch.search.optimizers.cma_es import _losses

    told = [
        Observation("0", {}, (), (), "failed")
        if one is None
        else Observation("0", {}, (Estimate(one[0], 0, 1),), (one[1],))
        for one in drawn
    ]
    losses = _losses(told)
    assert np.isfinite(losses).all()
    for one, loss in zip(told, losses, strict=True):
        for other, behind in zip(told, losses, strict=True):
            first = (one.value is None, one.violation, -(one.value or 0.0) if one.violation == 0 else 0.0)
            second = (other.value is None, other.violation, -(other.value or 0.0) if other.violation == 0 else 0.0)
            if first < second:
                assert loss < behind
            elif first == second:
                assert loss == behind


def test_a_cut_generation_is_completed(name: str) -> None:
    """A budget ends in the middle of a generation and is raised later: no candidate is lost or asked twice."""
    optimizer = make(name, population=6)
    genomes = optimizer.ask(4)
    optimizer.tell(observe(genomes, sphere))
    rest = optimizer.ask(optimizer.population)
    optimizer.tell(observe(rest, sphere, first=4))
    assert len({tuple(genome.values()) for genome in (*genomes, *rest)}) == 4 + len(rest)
    if name == "cma_es":
        whole = make(name, population=6)
        assert whole.ask(6) == [*genomes, *rest]
        assert optimizer.population == 6


def test_telling_what_was_not_asked_is_our_mistake(name: str) -> None:
    optimizer = make(name)
    asked = observe(optimizer.ask(1), sphere)
    optimizer.tell(asked)
    with pytest.raises(AssertionError, match="not asked"):
        optimizer.tell(asked)


def test_categoricals_are_taken_or_refused_by_name(name: str) -> None:
    if not registry.load(name).categoricals:
        with pytest.raises(SpecError, match=r"night.yaml: optimizer.name: .*merge_method, flag have choices.*tpe"):
            create(
                OptimizerConfig(name=name), CHOICES, {d.name: d.init for d in CHOICES}, where="night.yaml: optimizer"
            )
        return
    optimizer = make(name, CHOICES, seed=1)
    fitness = lambda genome: (genome["merge_method"] == "linear") - abs(float(genome["weight"]) - 0.7)  # noqa: E731
    generations = search(optimizer, fitness, 12)
    genomes = [observation.genome for told in generations for observation in told]
    assert {genome["merge_method"] for genome in genomes} == {"ties", "linear", "slerp"}
    for genome in genomes:
        assert list(genome) == [dimension.name for dimension in CHOICES]
        for dimension in CHOICES:
            assert dimension.contains(genome[dimension.name])
            if not dimension.active(genome):
                assert genome[dimension.name] == dimension.init
    if name == "tpe":
        late = [observation.genome["merge_method"] for observation in generations[-1]]
        assert late.count("linear") >= 5


@pytest.mark.parametrize("other", ["random", "tpe"])
def test_the_first_candidate_is_the_start(other: str) -> None:
    assert make(other, MIXED).ask(1) == [{dimension.name: dimension.init for dimension in MIXED}]


def test_cma_es_starts_around_the_start_also_on_a_bound() -> None:
    dimensions = [Dimension(f"w{i}", "float", 0.0, low=0.0, high=1.0) for i in range(40)]
    values = np.array([list(genome.values()) for genome in make("cma_es", dimensions, sigma=0.01).ask(10)])
    assert values.min() >= 0.0
    assert values.max() < 0.06


def test_cma_es_says_why_it_stops() -> None:
    optimizer = make("cma_es", seed=1)
    for _ in range(400):
        optimizer.tell(observe(optimizer.ask(optimizer.population), sphere))
        if optimizer.stop_reason():
            break
    assert "tol" in str(optimizer.stop_reason())


@pytest.mark.parametrize(("dimensions", "population"), [(1, 4), (12, 11), (300, 21)])
def test_default_population_of_cma_es(dimensions: int, population: int) -> None:
    many = [Dimension(f"w{i}", "float", 0.5) for i in range(dimensions)]
    assert make("cma_es", many).population == population == 4 + math.floor(3 * math.log(dimensions))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "cmaes"}, "night.yaml: optimizer.name: unknown optimizer 'cmaes'.*Did you mean 'cma_es'"),
        ({"name": "random", "sigma": 0.2}, "optimizer.sigma: random takes no step size"),
        ({"asynchronous": True}, "optimizer.asynchronous: not supported yet"),
        ({"population": 3}, "optimizer.population: got 3.*at least 4"),
        ({"sigma": 0.0}, "optimizer.sigma: .*greater than 0"),
        ({"start": "middle"}, "optimizer.start"),
        ({"popsize": 8}, "optimizer.popsize: unknown key.*Known keys here: name, population"),
    ],
)
def test_a_wrong_configuration_names_the_key(given: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        validate(OptimizerConfig, given, "night.yaml: optimizer", SpecError)
