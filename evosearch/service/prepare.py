"""A spec made ready to run: suite loaded and split, models opened, space laid out. Writes nothing but caches."""

from dataclasses import dataclass

from evosearch.evaluation.harness import Harness
from evosearch.evaluation.suite import Suite
from evosearch.evaluation.types import SPLITS, ItemBatch
from evosearch.merging.registry import specs
from evosearch.recipe import schema
from evosearch.recipe.schema import Recipe
from evosearch.search.optimizers.registry import create
from evosearch.search.space import SearchSpace
from evosearch.search.watching import Watcher
from evosearch.service.models import Models, open_models, references_in
from evosearch.service.spec import SearchSpec
from evosearch.service.trackers import check_tracking


@dataclass(frozen=True)
class Prepared:
    """All that a search needs and that does not change while it runs."""

    spec: SearchSpec
    search_id: str
    models: Models
    space: SearchSpace
    example: Recipe  # the recipe with every hole at its start
    batches: dict[str, ItemBatch]  # split → its items

    @property
    def suite(self) -> Suite:
        return self.spec.suite


def prepare(spec: SearchSpec, watcher: Watcher) -> Prepared:
    """Load and check everything a search needs; cheap and telling checks first.

    Raises:
        InputError: the first thing that is wrong.
    """
    check_tracking(spec)
    if "routing" in spec.template:
        raise schema.route_refusal(spec.where)
    batches = load_batches(spec.suite)
    models = open_models(references_in(spec.template), spec.where, watcher)
    space = SearchSpace.from_template(spec.template, models.shape, specs(), spec.where)
    example = space.fill(space.initial())
    for text in schema.check(example, specs(), spec.where):
        watcher.note(text)
    create(spec.config.optimizer, space.dimensions, space.initial(), f"{spec.file}: optimizer")
    return Prepared(spec, spec.search_id(), models, space, example, batches)


def load_batches(suite: Suite) -> dict[str, ItemBatch]:
    """The items of every split; loads the suite's tasks."""
    harness = Harness(suite)
    return {split: harness.batch(split) for split in SPLITS}
