"""A spec made ready to run: suite loaded and split, models opened, space laid out. Writes nothing but caches."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig

from evosearch.errors import CheckpointError
from evosearch.evaluation.harness import Harness, max_length_of
from evosearch.evaluation.suite import Suite
from evosearch.evaluation.types import SPLITS, ItemBatch
from evosearch.execution.worker import load_tokenizer
from evosearch.merging.registry import specs
from evosearch.recipe import checks
from evosearch.recipe.schema import Recipe
from evosearch.search.optimizers.registry import create
from evosearch.search.space import SearchSpace
from evosearch.search.template import frame
from evosearch.search.watching import Watcher
from evosearch.service.models import Models, open_models
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
    fingerprint: dict[str, dict[str, str]]  # task → key of its lm-eval configuration → digest

    @property
    def suite(self) -> Suite:
        return self.spec.suite


def prepare(spec: SearchSpec, watcher: Watcher, allow_pickle: bool = False) -> Prepared:
    """Load and check everything a search needs; cheap and telling checks first.

    Raises:
        InputError: the first thing that is wrong.
    """
    check_tracking(spec)
    if "routing" in spec.template:
        raise checks.route_refusal(spec.where)
    harness = Harness(spec.suite)
    batches = _batches(harness)
    models = open_models(frame(spec.template, spec.where), spec.where, watcher, allow_pickle)
    space = SearchSpace.from_template(spec.template, models.shape, specs(), spec.where)
    example = space.fill(space.initial())
    for text in checks.check(example, specs(), spec.where):
        watcher.note(text)
    for genome in space.corners():
        models.plan(space.fill(genome), spec.where)
    create(spec.config.optimizer, space.dimensions, space.initial(), f"{spec.file}: optimizer")
    settings = _settings(models)
    tokenizer = load_tokenizer(models.checkpoints[models.donor].tokenizer_folder)
    length = max_length_of(settings, tokenizer)
    for batch in batches.values():
        harness.freeze(batch, tokenizer, length)  # what only a tokenizer can tell: a chat template, prompts that fit
    models.inputs  # noqa: B018 (reads every byte of every model: damage is found before anything is written)
    return Prepared(spec, spec.search_id(), models, space, example, batches, harness.fingerprint())


def _settings(models: Models) -> Any:
    """transformers' config of the candidates."""
    try:
        return AutoConfig.for_model(**deepcopy(dict(models.output.config)))
    except Exception as exc:  # each class of transformers checks its keys in its own way
        where = f"{models.checkpoints[models.donor].folder}/config.json"
        reason = next(iter(str(exc).splitlines()), type(exc).__name__)
        raise CheckpointError(where, f"transformers does not take it: {reason}", next="Mend the config") from exc


def load_batches(suite: Suite) -> dict[str, ItemBatch]:
    """The items of every split; loads the suite's tasks."""
    return _batches(Harness(suite))


def _batches(harness: Harness) -> dict[str, ItemBatch]:
    return {split: harness.batch(split) for split in SPLITS}
