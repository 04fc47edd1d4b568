"""Loaders of recipes, search specs and suites under test, with their seed documents."""

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks._mutations.outcome import Outcome
from benchmarks._paths import EVALS, RECIPES, ROOT
from evosearch import documents
from evosearch.checkpoints.families.llama import FAMILY
from evosearch.errors import InputError, RecipeError
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.merging.registry import specs
from evosearch.recipe import checks, files
from evosearch.recipe.schema import Recipe
from evosearch.search.space.space import SearchSpace
from evosearch.spec.spec import SearchSpec, Winner
from evosearch.spec.stages import load

SHAPE = FAMILY.shape({"num_hidden_layers": 4})


@dataclass(frozen=True)
class Loader:
    """A loader under test.

    Attributes:
        name: `recipe`, `spec` or `suite`.
        file: File to which texts are written.
        seeds: Documents of real files, to be mutated.
        load: Reads the file and uses the result like a command, up to the point where a model is opened.
    """

    name: str
    file: Path
    seeds: tuple[tuple[dict[str, Any], ...], ...]
    load: Callable[[Path], None]

    def try_text(self, text: str) -> Outcome:
        """Write a text, load it, and classify the outcome."""
        self.file.write_bytes(text.encode("utf-8", errors="surrogatepass"))
        started = time.perf_counter()
        try:
            self.load(self.file)
        except InputError as error:
            kind, said = "refused", str(error)
        except Exception as error:
            kind, said = "foreign", f"{type(error).__name__}: {error}"
        else:
            kind, said = "accepted", ""
        return Outcome(kind, said, time.perf_counter() - started)


def loaders(folder: Path) -> tuple[Loader, ...]:
    """The three loaders, which use an empty folder; the repository's suites are copied into it."""
    shutil.copytree(EVALS, folder / "evals", ignore=shutil.ignore_patterns("data", "*.jsonl"))
    (folder / "recipes").mkdir()
    forms = sorted((ROOT / "tests" / "recipe").glob("*_forms/*.yaml"))
    templates = sorted(RECIPES.glob("*.yaml"))
    suites = sorted(EVALS.glob("*.yaml"))
    return (
        Loader("recipe", folder / "recipes" / "recipe.yaml", _seeds(forms), _load_recipe),
        Loader("spec", folder / "recipes" / "spec.yaml", _seeds(templates) + _stacked(), _load_spec),
        Loader("suite", folder / "evals" / "suite.yaml", _seeds(suites) + _long_suite(), _load_suite),
    )


def _seeds(paths: Iterable[Path]) -> tuple[tuple[dict[str, Any], ...], ...]:
    """Documents of each file; the documents of a long file become separate seeds."""
    found = [tuple(documents.read_all(path, RecipeError)) for path in paths]
    return tuple(group for seed in found for group in ([seed] if len(seed) <= 3 else [(data,) for data in seed]))


def _stacked() -> tuple[tuple[dict[str, Any], ...], ...]:
    """Specs of a search over slices and of a search with every kind of hole."""
    (spec,) = documents.read_all(RECIPES / "groups.yaml", RecipeError)
    hole = {"low": 0.0, "high": 1.5}
    sources = [
        {"model": "./a", "layer_range": [0, 4], "parameters": {"weight": hole}},
        {"model": "./b", "layer_range": [0, 4]},
    ]
    stack = {
        "merge_method": "ties",
        "base_model": "./c",
        "slices": [{"sources": sources, "parameters": {"weight": 0.5}}],
    }
    listed = [hole | {"per": "gradient", "points": 3}, {"search": True}, {"choices": [0.1, 0.5]}, hole | {"name": "w"}]
    models = [
        {"model": f"./{i}", "parameters": {"weight": hole, "density": each}} for i, each in enumerate(listed[1:3])
    ]
    models.append(
        {"model": "./d", "parameters": {"weight": [{"filter": "mlp", "value": listed[0]}, {"value": listed[3]}]}}
    )
    wide = {"merge_method": {"choices": ["ties", "task_arithmetic"]}, "base_model": "./c", "models": models}
    more = {
        "workers": {"count": 1, "device": "cpu", "threads": 1},
        "tracking": {"uri": "jsonl:e.jsonl"},
    }
    return tuple((spec | more | {"recipe": recipe, "ledger": "sqlite:///l.db"},) for recipe in (stack, wide))


def _long_suite() -> tuple[tuple[dict[str, Any], ...], ...]:
    """A suite that uses every field."""
    text = """
    name: long
    include: [tiny]
    tasks:
      - {task: tiny_sort, name: sort, metric: exact_match, filter: none, chance: 0.0, weight: 2.0, documents: {test: 9}}
      - {task: {search: tiny_median, validation: tiny_median, test: tiny_deal}, name: m, metric: acc, chance: 0.2}
      - {task: tiny_deal, name: deal, report_only: true, num_fewshot: 1, metrics: [exact_match]}
    documents: {search: 6, validation: 5, test: 4}
    fitness: score
    split_seed: 3
    num_fewshot: 2
    apply_chat_template: true
    fewshot_as_multiturn: true
    system_instruction: Be brief.
    generation_kwargs: {max_gen_toks: 64, until: ["x"]}
    """
    return ((yaml.safe_load(text),),)


def _load_recipe(path: Path) -> None:
    recipe = files.load(path)
    again = documents.validate(Recipe, documents.parse(recipe.to_yaml(), "again", RecipeError), "again", RecipeError)
    assert again == recipe, "a written recipe reads back differently"
    checks.check(recipe, specs(), f"{path}: ")


def _load_spec(path: Path) -> None:
    spec = load(path)
    if isinstance(spec, SearchSpec):
        return _use(spec)
    winners = {stage.name: Winner({}, "0" * 64) for stage in spec.config.stages}
    for index in range(spec.count):
        _use(spec.stage(index, winners))
    return None


def _use(spec: SearchSpec) -> None:
    """Do everything with a search spec that needs no models."""
    spec.search_id()
    depths = dict.fromkeys(spec.frame.references(), SHAPE.num_layers)
    space = SearchSpace.from_template(spec.template, SHAPE, specs(), spec.where, depths)
    checks.check(space.fill(space.initial()), specs(), spec.where)
    space.with_weight(0.5)


def _load_suite(path: Path) -> None:
    suite = load_suite(path)
    suite.digest()
    assert Suite.model_validate(suite.model_dump()) == suite, "a serialized suite reads back differently"
    assert abs(sum(suite.weights().values()) - 1.0) < 1e-9
