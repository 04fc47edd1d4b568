"""Every spec in `recipes/` loads, matches its models, and merges the optimizer's first generation."""

import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml

from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import load_suite
from evosearch.merging.registry import specs
from evosearch.recipe.checks import check
from evosearch.recipe.identity import recipe_id
from evosearch.search.optimizer_config import create
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.setup.prepare import Prepared, prepare
from evosearch.setup.teachers import named_teachers, parents_of
from evosearch.spec.spec import SearchSpec, Winner, load_spec
from evosearch.spec.stages import StagedSpec, load

ROOT = Path(__file__).parents[2]
FILES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
ELSEWHERE = ("reasoning", "sentences", "mgsm_ja")  # suites whose documents need the network; another one replaces them

# Spec → dimensions, population, candidates (None: limited by items)
EXPECTED: dict[str, tuple[int, int, int | None]] = {
    "dare": (8, 10, 100),
    "dataflow": (47, 12, 96),
    "groups": (12, 12, 96),
    "japanese_math": (6, 9, 1000),
    "layers": (6, 12, 96),
    "layerwise": (24, 12, 180),
    "lora_library": (9, 12, 360),
    "methods": (7, 8, 96),
    "pareto": (8, 16, 128),
    "smollm2": (48, 1, None),
    "smollm2_ties": (15, 10, 120),
    "ties": (8, 10, 100),
    "unlearn": (4, 8, 80),
}


@cache
def harness(suite: Path) -> Harness:
    return Harness(load_suite(suite))


def prepared(path: Path) -> Prepared:
    """Prepare a spec, with documents that need no network."""
    spec = load_spec(path)
    if spec.suite.name in ELSEWHERE:
        assert f"../evals/{spec.suite.name}.yaml" in path.read_text()
        path.write_text(path.read_text().replace(f"../evals/{spec.suite.name}.yaml", "../evals/quickstart.yaml"))
        spec = load_spec(path)
    return prepare(spec, Silent(), harness=harness(suite_of(path.parent, spec.suite.name)))


def suite_of(shipped: Path, name: str) -> Path:
    return shipped.parent / "evals" / f"{name}.yaml"


def comment_of(name: str) -> str:
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return "\n".join(lines)


@pytest.mark.parametrize("name", FILES)
def test_each_recipe_starts_with_a_description_and_its_command(name: str) -> None:
    comment = comment_of(name)
    assert len(comment.splitlines()) >= 5
    assert re.search(rf"^#   evosearch run recipes/{name}\.yaml( |$)", comment, re.MULTILINE)


@pytest.mark.parametrize("name", FILES)
def test_it_loads(name: str) -> None:
    """As shipped, with its suite."""
    path = ROOT / "recipes" / f"{name}.yaml"
    spec = load(path)
    suite = yaml.safe_load(path.read_text())["suite"]
    assert spec.name.replace("-", "_").startswith(name.partition("_")[0])
    assert (path.parent / suite).resolve() == ROOT / "evals" / f"{spec.suite.name}.yaml"


def test_the_readme_lists_every_file_and_no_other() -> None:
    table = (ROOT / "recipes" / "README.md").read_text().split("## Holes")[0]
    assert sorted(re.findall(r"^\| `(\w+)\.yaml` \|", table, re.MULTILINE)) == FILES


@pytest.mark.parametrize("name", EXPECTED)
def test_a_generation_is_proposed_filled_and_planned(shipped: Path, name: str) -> None:
    """Including opened and compared models, the search space, baselines, and counted prompts."""
    found = prepared(shipped / f"{name}.yaml")
    dimensions, population, candidates = EXPECTED[name]
    assert len(found.space.dimensions) == dimensions
    assert found.spec.config.budget.candidates == candidates
    genomes = first_generation(found)
    assert len(genomes) == population
    for genome in genomes:
        recipe = found.space.fill(genome)
        check(recipe, specs(), name)
        found.models.plan(recipe, name)
    applicable = [baseline.name for baseline in found.baselines if baseline.recipe is not None]
    assert {"base", "parent:0", "uniform"} <= set(applicable)


def first_generation(found: Prepared) -> list[dict[str, float | int | bool | str]]:
    spec = found.spec
    objectives = len(getattr(spec.config, "objectives", None) or (None,))
    made = create(spec.config.optimizer, found.space.dimensions, found.space.initial(), objectives=objectives)
    return made.ask(made.population)


@pytest.mark.parametrize("name", ["cat_cma", "lra_cma"])
def test_weights_per_layer(name: str, shipped: Path, edited: Callable[..., Path]) -> None:
    """One number per layer of each expert, for the diagonal optimizer or the alternatives in the comments."""
    found = prepared(shipped / "layerwise.yaml")
    names = [dimension.name for dimension in found.space.dimensions]
    assert sum("layer 3" in name for name in names) == 4
    assert found.spec.config.optimizer.options["diagonal"]
    other = prepared(edited("layerwise", ("name: cma_es", f"name: {name}"), ("  diagonal: true\n", "")))
    assert first_generation(other)


def test_separate_ends_as_the_comment_counts_them(edited: Callable[..., Path]) -> None:
    assert len(prepared(edited("layerwise", (", ends: shared", ""))).space.dimensions) == 4 * 8


def test_ties_as_published_is_the_other_choice(edited: Callable[..., Path]) -> None:
    changed = ("{normalize: false}", "{normalize: true, lambda: {low: 0.3, high: 2.0}}")
    assert len(prepared(edited("ties", changed)).space.dimensions) == 9


def test_only_the_chosen_method_s_parameters_count(shipped: Path, edited: Callable[..., Path]) -> None:
    found = prepared(shipped / "methods.yaml")
    method, density = (next(d for d in found.space.dimensions if key in d.name) for key in ("merge_method", "density"))
    assert method.choices == ("task_arithmetic", "ties", "dare_ties")
    genome = found.space.initial()
    assert not density.active(genome | {method.name: "task_arithmetic"})
    assert density.active(genome | {method.name: "dare_ties"})
    for choice in method.choices:
        recipe = found.space.fill(genome | {method.name: choice})
        given = {name for entry in recipe.models for name in entry.parameters}
        assert given == ({"weight"} if choice == "task_arithmetic" else {"weight", "density"})
    cat_cma = ("{name: tpe, population: 8, ", "{name: cat_cma, population: 8, sigma: 0.2, ")
    assert len(first_generation(prepared(edited("methods", cat_cma)))) == 8


def test_layers_are_taken_from_the_experts_in_order(shipped: Path) -> None:
    found = prepared(shipped / "layers.yaml")
    experts = ("reverse", "sort", "deal", "median")
    assert [d.choices for d in found.space.dimensions] == [experts] * 6
    for genome in first_generation(found):
        recipe = found.space.fill(genome)
        layers = [source for each in recipe.slices for source in each.sources for _ in range(*source.layer_range)]
        assert [source.model for source in layers] == [f"zoo:tiny/{label}" for label in genome.values()]
    assert {baseline.name for baseline in found.baselines if baseline.recipe} >= {"parent:3", "uniform", "scale:0.30"}


def test_a_few_candidates_of_layers_run_to_the_gate(edited: Callable[..., Path]) -> None:
    few = ("budget: {candidates: 96}", "budget: {candidates: 4}"), ("workers: {count: 2", "workers: {executor: local")
    path = edited(
        "layers", *few, ("population: 12", "population: 4"), ("register_as: quickstart, finalists: 6", "finalists: 2")
    )
    path.write_text(path.read_text() + "tracking: {uri: 'jsonl:events.jsonl'}\n")
    report = run(path, Silent(), allow_unrelated=True)  # stand-ins have random weights
    assert (report.candidates.proposed, report.candidates.failed) == (4, 0)
    assert report.gate is not None
    assert len(report.finalists) == 2


def test_unlearning_subtracts_one_expert_and_guards_the_others(shipped: Path) -> None:
    found = prepared(shipped / "unlearn.yaml")
    assert {guard.task for guard in found.suite.guards} == {"reverse", "deal", "median"}
    assert [task.name for task in found.suite.tasks if task.unlearn] == ["sort"]
    sort, *others = found.space.dimensions
    assert (sort.low, sort.high) == (-1.5, 0.0)
    assert all(dimension.low == 0.0 for dimension in others)


def test_the_japanese_merge_is_as_published(shipped: Path) -> None:
    spec = load_spec(ROOT / "recipes" / "japanese_math.yaml")
    found = prepared(shipped / "japanese_math.yaml")
    assert spec.suite.name == "mgsm_ja"
    assert found.models.references[0] == "mistralai/Mistral-7B-v0.1"
    assert set(found.space.initial().values()) == {0.5}
    assert {"weight", "density"} == {dimension.name.rsplit(".", 1)[-1] for dimension in found.space.dimensions}
    optimizer = found.spec.config.optimizer
    assert (optimizer.name, optimizer.start, optimizer.population) == ("cma_es", "init", None)
    assert optimizer.options["sigma"] == pytest.approx(1 / 6)
    assert len(first_generation(found)) == 4 + math.floor(3 * math.log(6))


def test_abel_s_further_tokens_are_left_out(shipped: Path) -> None:
    """All parents are converted to the base's vocabulary, whose rows the output has."""
    models = prepared(shipped / "japanese_math.yaml").models
    rows = {name: model.tensors["lm_head.weight"].shape[0] for name, model in models.checkpoints.items()}
    assert len(set(rows.values())) == 1
    assert models.output.config["vocab_size"] == rows["mistralai/Mistral-7B-v0.1"]


def test_adapters_share_their_base(shipped: Path) -> None:
    """Eight adapters have their own queries and values, and share all other tensors of one base."""
    models = prepared(shipped / "lora_library.yaml").models
    base, *adapted = models.checkpoints.values()
    assert len(adapted) == 8
    for model in adapted:
        own = [name for name in model.tensors if model.shares(name) is None]
        assert len(own) == 2 * base.shape.num_layers
        assert all("q_proj" in name or "v_proj" in name for name in own)


def test_each_expert_teaches_the_tiny_models_its_own_task(shipped: Path) -> None:
    found = prepared(shipped / "teachers.yaml")
    assert len(found.space.dimensions) == 228
    assert named_teachers(found.spec) == dict.fromkeys(("reverse", "sort", "deal", "median"), "auto")
    assert list(parents_of(found)) == [f"zoo:tiny/{name}" for name in ("reverse", "sort", "deal", "median")]
    assert found.suite.tasks == load_spec(shipped / "groups.yaml").suite.tasks


def test_pareto_names_tasks_of_its_suite() -> None:
    spec = load_spec(ROOT / "recipes" / "pareto.yaml")
    scoring = {task.name for task in spec.suite.scoring}
    assert set(spec.config.objectives) == scoring
    assert {guard.task for guard in spec.suite.guards} == {task.name for task in spec.suite.tasks} - scoring


def test_the_quickstart_costs_as_much_as_more_candidates_of_its_first_stage() -> None:
    staged, groups = (load(ROOT / "recipes" / f"{name}.yaml") for name in ("quickstart", "groups"))
    assert isinstance(staged, StagedSpec)
    assert isinstance(groups, SearchSpec)
    items = sum(groups.suite.count(task, "search") for task in groups.suite.tasks)
    first, second = (stage.budget for stage in staged.config.stages)
    assert (first.candidates, second.items) == (36, 14_400)
    assert 36 * items + 14_400 == (groups.config.budget.candidates or 0) * items == 23_040


def test_the_quickstart_s_last_stage_has_a_number_per_tensor_with_derivatives(shipped: Path) -> None:
    """Both stages are prepared; the first's initial values stand for its winner."""
    staged = load(shipped / "quickstart.yaml")
    assert isinstance(staged, StagedSpec)
    measured = harness(suite_of(shipped, "quickstart"))
    first = prepare(staged.stage(0, {}), Silent(), harness=measured)
    recipe = first.space.fill(first.space.initial() | {first.space.dimensions[0].name: 0.75})
    found = Winner(recipe.to_dict(), recipe_id(recipe, first.models.inputs))
    second = prepare(staged.stage(1, {"groups": found}), Silent(), harness=measured)
    assert [one.spec.name for one in (first, second)] == ["quickstart.groups", "quickstart.tensors"]
    assert [len(one.space.dimensions) for one in (first, second)] == [12, 4 * 57]
    assert "stage:groups" in {baseline.name for baseline in second.baselines if baseline.recipe is not None}
    slopes = second.space.with_derivatives(second.space.initial())
    second.models.plan(slopes, "quickstart")
    assert recipe_id(slopes, second.models.inputs) == recipe_id(
        second.space.fill(second.space.initial()), second.models.inputs
    )


def test_the_hybrid_searches_a_route_through_its_first_stage_s_winner(shipped: Path) -> None:
    """Both stages are prepared; a model of the zoo with the same shape replaces the winner."""
    staged = load(shipped / "hybrid.yaml")
    assert isinstance(staged, StagedSpec)
    groups = load_spec(shipped / "groups.yaml")
    stages = [staged.stage(0, {}), staged.stage(1, {"weights": Winner({}, "", place=Path("zoo:tiny/sort"))})]
    assert [stage.name for stage in stages] == ["hybrid.weights", "hybrid.route"]
    assert sum(stage.config.budget.candidates or 0 for stage in stages) == groups.config.budget.candidates
    first, second = (prepare(stage, Silent(), harness=harness(suite_of(shipped, "quickstart"))) for stage in stages)
    assert len(first.space.dimensions) == len(prepared(shipped / "groups.yaml").space.dimensions)
    for found in (first, second):
        for genome in first_generation(found):
            recipe = found.space.fill(genome)
            check(recipe, specs(), "hybrid")
            found.models.plan(recipe, "hybrid")
    for genome in first_generation(second):
        route = second.space.fill(genome).routing
        assert route is not None
        assert len(route.hops) <= 9
        assert (route.hops[0].model, route.hops[0].layer) == ("zoo:tiny/sort", 0)
        assert (route.hops[-1].model, route.hops[-1].layer) == ("zoo:tiny/sort", 5)
    assert {"base", "uniform"} <= {baseline.name for baseline in second.baselines if baseline.recipe is not None}
