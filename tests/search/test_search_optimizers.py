"""Laws of every registered optimizer, third-party ones included."""

import math
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evosearch.documents import validate
from evosearch.errors import SpecError
from evosearch.search.optimizer import Optimizer, Recommends
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.optimizers import registry
from evosearch.search.space.dimensions import Dimension, Estimate, Genome, Observation

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
# The exceptions of the laws; an optimizer in none of them has to keep every law.
ENDS = ("greedy_soup", "grid", "soup")  # stop by themselves, without random draws
SOUPS = ("greedy_soup", "soup")  # weights that can be 0
STEPPERS = tuple(one for one in registry.names() if registry.load(one).gradients)  # told gradients, without draws
UNTAUGHT = (*ENDS, "random")  # hardly depend on results; see their own tests
FEWEST = {"gp": 14}  # candidates per law if an ask takes long; ten of them are random


@pytest.fixture(params=registry.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[name for name in registry.names() if name not in (*UNTAUGHT, *FEWEST)])
def learner(request: pytest.FixtureRequest) -> str:
    """Optimizers that improve with many candidates; slow ones have their own tests."""
    return str(request.param)


@pytest.fixture(params=[name for name in registry.names() if name not in (*UNTAUGHT, *FEWEST, *STEPPERS)])
def ranker(request: pytest.FixtureRequest) -> str:
    """Learners that are told the rank of a failure or a broken constraint; a gradient shows neither."""
    return str(request.param)


def fitting(name: str, dimensions: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """Adapt a space to an optimizer: two dimensions for a grid, weights from 0 for a soup, real numbers for steps."""
    if name == "grid":
        return tuple(dimensions[:2])
    if name in SOUPS:
        return tuple(Dimension(d.name, d.kind, max(0.0, d.init), low=0.0, high=d.high) for d in dimensions)
    if name in STEPPERS:
        return tuple(d if d.kind == "categorical" else replace(d, kind="float", init=float(d.init)) for d in dimensions)
    return tuple(dimensions)


def made(config: OptimizerConfig, dimensions: Sequence[Dimension] = FLOATS, **more: object) -> Optimizer:
    found = fitting(config.name, dimensions)
    return create(config, found, {dimension.name: dimension.init for dimension in found}, **more)  # type: ignore[arg-type]


def make(name: str, dimensions: Sequence[Dimension] = FLOATS, **options: object) -> Optimizer:
    return made(OptimizerConfig.model_validate({"name": name, **options}), dimensions)


def sphere(genome: Genome) -> float:
    return -sum((float(value) - 0.3) ** 2 for value in genome.values())


def observe(genomes: Sequence[Genome], fitness: Callable[[Genome], float | None], first: int = 0) -> list[Observation]:
    observations = []
    for index, genome in enumerate(genomes, start=first):
        value = fitness(genome)
        objectives = () if value is None else (Estimate(value, 0.1, 10),)
        gradient = slopes(genome, fitness) if objectives else None
        state: Literal["scored", "failed"] = "scored" if objectives else "failed"
        observations.append(Observation(str(index), genome, objectives, (), state, gradient=gradient))
    return observations


def slopes(genome: Genome, fitness: Callable[[Genome], float | None], step: float = 1e-6) -> dict[str, float]:
    """Central differences in the real numbers; 0 next to a failure, and for everything else."""

    def slope(name: str) -> float:
        value = genome[name]
        if not isinstance(value, float):
            return 0.0
        above, below = fitness({**genome, name: value + step}), fitness({**genome, name: value - step})
        return 0.0 if above is None or below is None else (above - below) / (2 * step)

    return {name: slope(name) for name in genome}


def search(
    optimizer: Optimizer, fitness: Callable[[Genome], float | None], generations: int
) -> list[list[Observation]]:
    told: list[list[Observation]] = []
    for _ in range(generations):
        if optimizer.stop_reason():
            break
        told.append(observe(optimizer.ask(optimizer.population), fitness))
        optimizer.tell(told[-1])
    return told


def generations(name: str, wanted: int, population: int | None = None) -> int:
    """`wanted`, or fewer for slow optimizers."""
    size = population or make(name).population
    return min(wanted, -(-FEWEST[name] // size)) if name in FEWEST else wanted


def genomes_of(told: Sequence[Sequence[Observation]]) -> list[list[Genome]]:
    return [[observation.genome for observation in group] for group in told]


def test_registry_finds_every_file() -> None:
    assert {"cma_es", "gp", "greedy_soup", "grid", "nsga2", "random", "soup", "tpe"} <= set(registry.names())
    for found in registry.names():
        assert registry.load(found).name == found


@pytest.mark.parametrize("chosen", ["random", "grid", "greedy_soup", "soup", "tpe", "nsga2"])
def test_configuring_one_optimizer_imports_no_other_library(chosen: str) -> None:
    libraries = {"cma", "optuna", "cmaes", "torch"} - ({"optuna"} if chosen in ("tpe", "nsga2") else set())
    code = (
        "import sys, evosearch.search.space, evosearch.search.ledger, evosearch.search.replay;"
        f"from evosearch.search.optimizer_config import OptimizerConfig; OptimizerConfig(name={chosen!r});"
        f"assert not {libraries} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dimensions", [FLOATS, MIXED, FLOATS[:1], MIXED[1:2]], ids=["floats", "mixed", "one", "int"])
def test_asks_within_bounds(name: str, dimensions: tuple[Dimension, ...]) -> None:
    fitness = lambda genome: sum(float(value) for value in genome.values())  # noqa: E731 (pushes to the bounds)
    found = fitting(name, dimensions)
    for generation in search(make(name, dimensions), fitness, generations(name, 12)):
        for observation in generation:
            assert list(observation.genome) == [dimension.name for dimension in found]
            for dimension in found:
                value = observation.genome[dimension.name]
                assert dimension.contains(value)
                assert type(value) is (int if dimension.kind == "int" else float)


def test_integers_reach_every_value(name: str) -> None:
    if name in STEPPERS:
        with pytest.raises(SpecError, match=f"optimizer.name: {name} takes only real numbers, but count has whole"):
            create(OptimizerConfig(name=name), MIXED, {dimension.name: dimension.init for dimension in MIXED})
        return
    size = 20 if name == "grid" else 8
    told = search(
        make(name, MIXED, seed=3, population=size), lambda genome: float(genome["count"]), generations(name, 25, size)
    )
    counts = {observation.genome["count"] for group in told for observation in group}
    assert 9 in counts
    assert len(counts) >= (2 if name in SOUPS else 4)


def test_improves_a_sphere_more_than_random_search(learner: str) -> None:
    size = make(learner, population=8).population
    told = search(make(learner, seed=1, population=8), sphere, 150 // size)
    yardstick = search(make("random", seed=1, population=8), sphere, len(told) * size // 8)
    best, drawn = (max(o.objectives[0].value for group in found for o in group) for found in (told, yardstick))
    start = sphere({dimension.name: dimension.init for dimension in FLOATS})
    assert best > drawn > start / 10
    assert best > start / 50


def test_same_seed_asks_the_same_and_another_seed_differs(name: str) -> None:
    count = generations(name, 6)
    one, two, other = (search(make(name, MIXED, seed=seed), sphere, count) for seed in (5, 5, 6))
    assert genomes_of(one) == genomes_of(two)
    assert (genomes_of(one) == genomes_of(other)) == (name in (*ENDS, *STEPPERS))
    assert name in (*ENDS, *STEPPERS) or one[1][1].genome != other[1][1].genome


def test_asks_do_not_depend_on_batch_sizes(name: str) -> None:
    whole, parts = make(name, MIXED), make(name, MIXED)
    draw = random.Random(3)
    for _ in range(generations(name, 4)):
        if name == "soup" and whole.stop_reason() is not None:  # after the models and their soup
            assert parts.stop_reason() == whole.stop_reason()
            break
        genomes = whole.ask(whole.population)
        asked: list[Genome] = []
        while len(asked) < len(genomes):
            asked += parts.ask(min(draw.randint(0, 3), len(genomes) - len(asked)))
        assert asked == genomes
        observations = observe(genomes, sphere)
        whole.tell(observations)
        parts.tell(observations[:2])
        parts.tell(observations[2:])


def test_draws_nothing_from_the_global_generators_and_survives_their_reseeding(name: str) -> None:
    count = generations(name, 6)
    expected = search(make(name, MIXED), sphere, count)
    np.random.seed(11)
    random.seed(11)
    before, before_plain = np.random.get_state(), random.getstate()
    optimizer = make(name, MIXED)
    found = search(optimizer, sphere, count // 2)
    after = np.random.get_state()
    assert np.array_equal(before[1], after[1])
    assert before[2:] == after[2:]
    assert random.getstate() == before_plain
    np.random.seed(0)
    random.seed(0)
    found += search(optimizer, sphere, count - count // 2)
    assert genomes_of(found) == genomes_of(expected)


def test_genomes_are_copied_in_and_out(name: str) -> None:
    """An optimizer does not change genomes that it returned or received, and copies its own."""
    plain, handled = make(name, MIXED), make(name, MIXED)
    for _ in range(generations(name, 4)):
        if plain.stop_reason():
            break
        genomes = plain.ask(plain.population)
        handed = handled.ask(handled.population)
        kept = [dict(genome) for genome in handed]
        told = observe([dict(genome) for genome in handed], sphere)
        for genome in handed:
            genome["weight" if "weight" in genome else "count"] = 1
        plain.tell(observe(genomes, sphere))
        handled.tell(told)
        assert [observation.genome for observation in told] == kept == genomes
        for observation in told:
            observation.genome.clear()


@pytest.mark.parametrize("dimensions", [FLOATS, MIXED, CHOICES], ids=["floats", "mixed", "choices"])
def test_answers_are_in_the_space_better_than_the_start_and_change_nothing(
    name: str, dimensions: tuple[Dimension, ...]
) -> None:
    if (dimensions is CHOICES and not registry.load(name).categoricals) or not isinstance(make(name), Recommends):
        return
    found = fitting(name, dimensions)
    asked, silent = make(name, found, seed=2), make(name, found, seed=2)
    assert isinstance(asked, Recommends)
    assert asked.answers() == [], "nothing is learned yet"

    def near(genome: Genome) -> float:
        return -sum((float(v) - 0.3) ** 2 for v in genome.values() if isinstance(v, float))

    for _ in range(30):
        asked.tell(observe(asked.ask(asked.population), near))
        silent.tell(observe(silent.ask(silent.population), near))
        for genome in asked.answers():
            assert list(genome) == [dimension.name for dimension in found]
            for dimension in found:
                assert dimension.contains(genome[dimension.name])
                assert dimension.active(genome) or genome[dimension.name] == dimension.init
    assert asked.ask(asked.population) == silent.ask(silent.population)
    assert max(map(near, asked.answers())) > near({dimension.name: dimension.init for dimension in found})


def test_continues_when_everything_fails(name: str) -> None:
    optimizer = make(name)
    told = search(optimizer, lambda genome: None, generations(name, 12))
    if name in SOUPS:
        assert optimizer.stop_reason() == f"{name}: no model could be scored alone"
        assert sum(map(len, told)) == 4
        return
    assert optimizer.stop_reason() is None
    assert all(
        -1.0 <= float(value) <= 1.0 for genome in optimizer.ask(optimizer.population) for value in genome.values()
    )


def test_flat_fitness_stops_nothing(name: str) -> None:
    optimizer = make(name)
    told = search(optimizer, lambda genome: 0.25, generations(name, 40))
    if name in ENDS:
        counts = {"grid": 1 + 11 * 11, "greedy_soup": 1 + 3 + 2, "soup": 1 + 3 + 1}  # the start, and all
        assert sum(map(len, told)) == counts[name]
    else:
        assert optimizer.stop_reason() is None


@pytest.mark.parametrize("offset", [-1000.0, 1000.0])
def test_failures_repel(ranker: str, offset: float) -> None:
    """Half of the space fails, for either sign of the fitness elsewhere: a failure is worse than any score."""
    optimizer = make(ranker, seed=2, population=8)
    fitness = lambda genome: None if float(genome["x0"]) > 0 else offset + float(genome["x1"])  # noqa: E731
    told = search(optimizer, fitness, 25)
    late = [observation for group in told[-8:] for observation in group]
    assert sum(observation.state == "failed" for observation in late) < len(late) / 4


def excess(genome: Genome) -> float:
    """Excess of the sum of values over 0, which cuts off the sphere's optimum."""
    return max(0.0, sum(float(value) for value in genome.values()))


def observe_guarded(genomes: Sequence[Genome]) -> list[Observation]:
    found = observe(genomes, sphere)
    return [replace(observation, violations=(0.0, excess(observation.genome))) for observation in found]


FIVE = tuple(Dimension(f"x{i}", "float", -0.5, low=-1.0, high=1.0) for i in range(5))


def search_guarded(name: str, seed: int, told: int) -> list[Observation]:
    optimizer = make(name, FIVE, seed=seed)
    out: list[Observation] = []
    while len(out) < told and not optimizer.stop_reason():
        observations = observe_guarded(optimizer.ask(optimizer.population))
        optimizer.tell(observations)
        out += observations
    return out


def best_kept(observations: Sequence[Observation]) -> float:
    return max(observation.objectives[0].value for observation in observations if observation.violation == 0)


def test_ends_feasible_and_better_than_random_where_a_constraint_cuts_the_optimum_off(ranker: str) -> None:
    optimum = -5 * 0.3**2  # at 0: the nearest point of the plane Σx = 0 to (0.3, …)
    for seed in (1, 2):
        found, yardstick = (search_guarded(who, seed, 200) for who in (ranker, "random"))
        assert best_kept(yardstick) < best_kept(found) <= optimum
        late = found[-40:]
        assert sum(o.violation > 0.1 for o in late) < len(late) / 4
        assert sum(o.violation > 0.1 for o in yardstick[-40:]) > len(late) / 4


def test_replays_violations_bit_for_bit(name: str) -> None:
    one, two = (search_guarded(name, 5, FEWEST.get(name, 60)) for _ in range(2))
    assert [observation.genome for observation in one] == [observation.genome for observation in two]


def test_learns_from_violations_and_not_from_constraints_that_are_kept(name: str) -> None:
    free, kept, broken = make(name, seed=4), make(name, seed=4), make(name, seed=4)
    asked: list[list[Genome]] = [[], [], []]
    for _ in range(generations(name, 6)):
        for optimizer, genomes, violations in zip((free, kept, broken), asked, ((), (0.0, -3.0), None), strict=True):
            if optimizer.stop_reason():
                continue
            own = observe(optimizer.ask(optimizer.population), sphere)
            genomes += [observation.genome for observation in own]
            own = [replace(o, violations=(excess(o.genome),) if violations is None else violations) for o in own]
            optimizer.tell(own)
    assert asked[0] == asked[1]
    assert (asked[0] == asked[2]) == (name in (*UNTAUGHT, *STEPPERS))


def test_failures_are_worse_than_any_violation(ranker: str) -> None:
    """Half of the space fails, the rest breaks a constraint: the search stays where the violation is least."""
    optimizer = make(ranker, seed=2, population=8)
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
    from evosearch.search.optimizers._generations import losses as _losses

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
    """A budget ends in the middle of a generation and is raised later: no candidate is lost or proposed twice."""
    optimizer = make(name, population=6)
    first = min(4, optimizer.population - 1)
    genomes = optimizer.ask(first)
    optimizer.tell(observe(genomes, sphere))
    rest = optimizer.ask(optimizer.population)
    optimizer.tell(observe(rest, sphere, first=first))
    distinct = 1 if name in STEPPERS else first + len(rest)
    assert len({tuple(genome.values()) for genome in (*genomes, *rest)}) == distinct
    if name in ("cma_es", "nsga2"):
        whole = make(name, population=6)
        asked = whole.ask(6)
        assert asked == [*genomes, *rest]
        assert optimizer.population == 6
        whole.tell(observe(asked, sphere))
        asked = whole.ask(6)
        genomes = optimizer.ask(2)
        optimizer.tell(observe(genomes, sphere))
        assert [*genomes, *optimizer.ask(optimizer.population)] == asked


def test_telling_a_genome_that_is_not_pending_is_an_assertion_error(name: str) -> None:
    optimizer = make(name)
    asked = observe(optimizer.ask(1), sphere)
    optimizer.tell(asked)
    with pytest.raises(AssertionError, match="not pending"):
        optimizer.tell(asked)


def test_categoricals_are_taken_or_refused_by_name(name: str) -> None:
    dimensions = CHOICES[:2] if name == "grid" else CHOICES
    start = {d.name: d.init for d in dimensions}
    if not registry.load(name).categoricals:
        with pytest.raises(SpecError, match=r"night.yaml: optimizer.name: .*merge_method, flag have choices.*tpe"):
            create(OptimizerConfig(name=name), dimensions, start, where="night.yaml: optimizer")
        return
    if name in SOUPS:
        with pytest.raises(SpecError, match=r"night.yaml: optimizer.name: .*merge_method has the choices ties, linear"):
            create(OptimizerConfig(name=name), dimensions, start, where="night.yaml: optimizer")
        return
    optimizer = create(OptimizerConfig(name=name, seed=1, population=8), dimensions, start)
    fitness = lambda genome: (  # noqa: E731
        (genome["merge_method"] == "linear") - abs(float(genome.get("weight", 0.7)) - 0.7)
    )
    told = search(optimizer, fitness, generations(name, 12, 8))
    genomes = [observation.genome for group in told for observation in group]
    assert {genome["merge_method"] for genome in genomes} == {"ties", "linear", "slerp"}
    for genome in genomes:
        assert list(genome) == [dimension.name for dimension in dimensions]
        for dimension in dimensions:
            assert dimension.contains(genome[dimension.name])
            if not dimension.active(genome):
                assert genome[dimension.name] == dimension.init
    if name not in (*UNTAUGHT, *FEWEST):
        late = [observation.genome["merge_method"] for observation in told[-1]]
        assert late.count("linear") >= 5


def test_the_start_is_the_first_candidate_or_the_centre(name: str) -> None:
    if "sigma" in registry.load(name).options:
        near = make(name, population=10, sigma=0.001).ask(10)
        assert all(abs(value - 0.9) < 0.05 for genome in near for value in genome.values())
    else:
        dimensions = fitting(name, MIXED)
        start = {dimension.name: dimension.init for dimension in dimensions}
        assert make(name, MIXED).ask(1) == [start]


def test_cma_es_starts_around_the_start_also_on_a_bound() -> None:
    dimensions = [Dimension(f"w{i}", "float", 0.0, low=0.0, high=1.0) for i in range(40)]
    values = np.array([list(genome.values()) for genome in make("cma_es", dimensions, sigma=0.01).ask(10)])
    assert values.min() >= 0.0
    assert values.max() < 0.06


def test_cma_es_gives_a_stop_reason() -> None:
    optimizer = make("cma_es", seed=1)
    for _ in range(400):
        optimizer.tell(observe(optimizer.ask(optimizer.population), sphere))
        if optimizer.stop_reason():
            break
    assert "tol" in str(optimizer.stop_reason())


def test_the_least_step_of_a_whole_number_is_a_fifth_of_its_own_bin() -> None:
    from evosearch.search.optimizers._generations import least_steps

    count, steps = MIXED[1], MIXED[2]
    edges = math.log(100.5) - math.log(0.5)
    for value in (1, 10, 100):
        mean = np.array([dimension.to_unit(value if dimension is steps else dimension.init) for dimension in MIXED])
        least = 0.2 * math.log((value + 0.5) / (value - 0.5)) / edges
        for beyond in (mean, -mean, 2.0 - mean):  # a mean may be outside, and is reflected
            assert least_steps(MIXED, beyond) == [0.0, 0.2 / 9, pytest.approx(least), 0.0]
    assert least_steps((count,), np.array([0.0, 0.5])) == [0.2 / 9]  # a surplus coordinate


@pytest.mark.parametrize("name", ["cma_es", "lra_cma"])
@pytest.mark.parametrize(("value", "others"), [(1, range(2, 6)), (100, range(94, 100))])
def test_a_whole_number_on_a_logarithmic_scale_neither_freezes_nor_jumps(name: str, value: int, others: range) -> None:
    """With small steps around the best value, neighbours are tried now and then, and nothing far away."""
    dimensions = tuple(replace(d, init=value) if d.name == "steps" else d for d in MIXED)
    optimizer = make(name, dimensions, seed=3, population=20, sigma=0.002)
    told = search(optimizer, lambda genome: -abs(math.log(genome["steps"] / value)), 15)
    tried = {observation.genome["steps"] for group in told for observation in group} - {value}
    assert tried
    assert tried <= set(others)


@pytest.mark.parametrize(("dimensions", "population"), [(1, 4), (12, 11), (300, 21)])
def test_default_population_of_cma_es(dimensions: int, population: int) -> None:
    many = [Dimension(f"w{i}", "float", 0.5) for i in range(dimensions)]
    assert make("cma_es", many).population == population == 4 + math.floor(3 * math.log(dimensions))


def test_the_population_is_known_without_building_the_optimizer(name: str) -> None:
    for dimensions, population in ((FLOATS, None), (FLOATS, 6), (FLOATS[:1], None)):
        config, found = OptimizerConfig(name=name, population=population), fitting(name, dimensions)
        known, built = config.population_for(found), made(config, found).population
        assert built < known if name in SOUPS and population == 6 and len(found) == 3 else built == known


@pytest.mark.parametrize("seed", [1, 2])
def test_asynchronous_optimizers_take_asks_and_tells_in_any_order(name: str, seed: int) -> None:
    """Results of any pending candidates arrive in any order, and more are proposed than a generation has."""
    if not registry.load(name).asynchronous:
        with pytest.raises(SpecError, match=f"asynchronous: {name} is generational: it .*Supported by: .*tpe"):
            validate(OptimizerConfig, {"name": name, "asynchronous": True}, "night.yaml: optimizer", SpecError)
        return

    def run(total: int) -> list[Genome]:
        draw = random.Random(seed)
        optimizer = make(name, seed=seed, population=6, asynchronous=True)
        pending: list[Genome] = []
        asked: list[Genome] = []
        while len(asked) < total:
            if len(pending) < draw.randint(1, 20):
                genome = optimizer.ask(1)[0]
                asked.append(genome)
                pending.append(dict(genome))
            else:
                chosen = draw.sample(range(len(pending)), draw.randint(1, len(pending)))
                told = [pending[index] for index in chosen]
                pending = [genome for index, genome in enumerate(pending) if index not in chosen]
                optimizer.tell(observe(told, lambda genome: sphere(genome) if float(genome["x1"]) > -0.8 else None))
        return asked

    total = FEWEST.get(name, 110)
    asked = run(total)
    assert asked == run(total)
    for genome in asked:
        assert all(-1.0 <= float(value) <= 1.0 for value in genome.values())
    if name not in (*UNTAUGHT, *FEWEST):
        yardstick = [genome for group in genomes_of(search(make("random", seed=seed), sphere, 20)) for genome in group]
        assert max(map(sphere, asked)) > max(map(sphere, yardstick[:total]))


TARGETS = (-0.4, 0.6)


def two(genome: Genome) -> tuple[float, float]:
    """Two spheres; the best trade-offs are on the line between their centres."""
    first, second = (-sum((float(value) - target) ** 2 for value in genome.values()) for target in TARGETS)
    return first, second


def test_several_objectives_are_taken_or_refused_by_name(name: str) -> None:
    if not registry.load(name).objectives:
        with pytest.raises(SpecError, match=f"optimizer.name: {name} takes one objective, but the spec has 2.*nsga2"):
            made(OptimizerConfig(name=name), objectives=2)
        return

    def run(who: str) -> list[Genome]:
        optimizer = made(OptimizerConfig(name=who, population=16, seed=3), FIVE, objectives=2)
        out: list[Genome] = []
        while len(out) < FEWEST.get(name, 120) and not optimizer.stop_reason():
            genomes = optimizer.ask(optimizer.population)
            told = [
                Observation(str(index), genome, tuple(Estimate(value, 0.1, 10) for value in two(genome)))
                if float(genome["x0"]) > -0.9
                else Observation(str(index), genome, (), (), "failed")
                for index, genome in enumerate(genomes)
            ]
            optimizer.tell(told)
            out += genomes
        return out

    found = run(name)
    assert found == run(name)
    if name in (*UNTAUGHT, *FEWEST):
        return

    def volume(genomes: Sequence[Genome]) -> float:
        """Hypervolume above (-6, -6)."""
        area, floor = 0.0, -6.0
        for first, second in sorted(map(two, genomes), reverse=True):
            if second > floor and first > -6.0:
                area += (first + 6.0) * (second - floor)
                floor = second
        return area

    assert volume(found) > volume(run("random"))


def test_known_candidates_of_another_search_are_used_or_ignored(name: str) -> None:
    """Known trials near the optimum attract optimizers that learn from single trials."""
    dimensions = fitting(name, FLOATS)
    draw = np.random.default_rng(7)
    near = [{d.name: float(draw.uniform(0.25, 0.35)) for d in dimensions} for _ in range(15)]
    far = [{d.name: float(draw.uniform(max(d.low, -1.0), 1.0)) for d in dimensions} for _ in range(15)]
    known = sorted(observe([*near, *far], sphere), key=lambda one: -one.objectives[0].value)
    known.append(Observation("failed", far[0], (), (), "failed"))
    config = OptimizerConfig(name=name, population=6)
    count = min(6, made(config).population)
    warm, cold = made(config, known=known).ask(count), made(config).ask(count)
    if warm == cold:
        assert name not in ("tpe", "gp", "nsga2")
        return
    assert warm[0] == cold[0]  # the start
    if name == "gp":  # whose batches spread out
        assert max(map(sphere, warm[1:])) > max(map(sphere, cold[1:]))
    else:
        assert np.mean([*map(sphere, warm[1:])]) > 0.5 * np.mean([*map(sphere, cold[1:])])
        assert min(map(sphere, warm[1:])) > min(map(sphere, cold[1:]))
    assert made(config, known=known).ask(count) == warm
    assert made(config, known=known, objectives=2).ask(2)  # known trials of other objectives are ignored


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "cmaes"}, "night.yaml: optimizer.name: unknown optimizer 'cmaes'.*Did you mean 'cma_es'"),
        ({"name": "random", "sigma": 0.2}, "optimizer.sigma: random has no option 'sigma'.*Remove it"),
        ({"name": "tpe", "points": 5}, "optimizer.points: tpe has no option 'points'"),
        ({"name": "nsga2", "population": 3}, "optimizer.population: got 3.*nsga2 needs at least 4"),
        ({"name": "cma_es", "population": 3}, "optimizer.population: got 3.*at least 4"),
        ({"name": "cma_es", "sigma": 0.0}, "optimizer.sigma: .*greater than 0"),
        ({"sigma": 0.1}, "optimizer.sigma: auto has no option 'sigma'.*name: cat_cma, cma_es or lra_cma"),
        ({"start": "middle"}, "optimizer.start"),
        (
            {"name": "cma_es", "popsize": 8},
            "optimizer.popsize: cma_es has no option .*Known keys here: name, population.*restarts",
        ),
        (
            {"name": "greedy_soup", "asynchronous": True},
            "optimizer.asynchronous: greedy_soup is generational: .*Supported by: .*random",
        ),
    ],
)
def test_a_wrong_configuration_names_the_key(given: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        validate(OptimizerConfig, given, "night.yaml: optimizer", SpecError)


@pytest.mark.parametrize("dimensions", [FLOATS, MIXED, CHOICES])
def test_the_caching_sampler_of_tpe_proposes_what_optunas_does(
    dimensions: Sequence[Dimension], monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna.samplers import TPESampler

    from evosearch.search.optimizers import tpe

    def asked() -> list[Genome]:
        optimizer = make("tpe", dimensions, population=4, asynchronous=True, seed=7)
        pending = observe(optimizer.ask(8), _numbers)
        for index in range(8, 40):  # some are always pending, and one in five fails
            optimizer.tell([pending.pop(0)])
            fitness = _numbers if index % 5 else lambda genome: None
            pending += observe(optimizer.ask(1), fitness, first=index)
        return [observation.genome for observation in pending]

    remembering = asked()
    monkeypatch.setattr(tpe, "_CachingSampler", TPESampler)
    assert remembering == asked()


def _numbers(genome: Genome) -> float:
    return -sum((float(value) - 0.3) ** 2 for value in genome.values() if isinstance(value, int | float))
