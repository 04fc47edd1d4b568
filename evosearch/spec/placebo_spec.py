"""Spec of a placebo: the same search, whose models are replaced by the base plus random task vectors.

Its search is named like a stage: `night.placebo`, or `night.weights-placebo` for the stage `weights`. It ends with a
winner on validation. Space, optimizer, seed, budget and suite are those of the real search; a warm start is left out,
because its genomes were found with the real models, unless it is from a stage, which has a placebo too.
"""

from collections.abc import Mapping

from evosearch.errors import SpecError
from evosearch.recipe.files import STAGE, exists, map_references, pieces
from evosearch.recipe.placebo_reference import PlaceboReference
from evosearch.spec.spec import SearchSpec, Stage, Winner
from evosearch.spec.stages import PLACEBO


def placebo_of(spec: SearchSpec, winners: Mapping[str, Winner], base: str | None = None) -> SearchSpec:
    """Return the spec of a search's placebo.

    Args:
        spec: The real search.
        winners: Stage name → winner of that stage's placebo, of the stages that this one builds on.
        base: Base of the task vectors, if the spec has none; a reference with an absolute path.

    Raises:
        SpecError: The search has no task vectors.
    """
    origin = base_of(spec, base)
    renamed = {f"{STAGE}{name}": f"{STAGE}{name}-{PLACEBO}" for name in winners}
    seed = spec.config.optimizer.seed
    named = dict.fromkeys((*spec.frame.references(), *(spec.baselines.models or ())))
    placebos = {one: _placebo(one, origin, seed, renamed) for one in named if one != origin}
    within = {f"{name}-{PLACEBO}": winner for name, winner in winners.items()}
    own = spec.stage or Stage(spec.name, "", 0)
    stage = Stage(own.pipeline, _stage_name(spec), own.index, winners=within, placebo_of=spec.name)
    changes = {
        "name": placebo_name(spec),
        "optimizer": spec.config.optimizer.model_copy(
            update={"warm_start": renamed.get(spec.config.optimizer.warm_start or "")}
        ),
        "baselines": spec.config.baselines.model_copy(update={"trained": False, "placebo": False}),
        "promotion": spec.config.promotion.model_copy(update={"register_as": None, "checkpoint": False}),
    }
    template = map_references(spec.template, lambda one: placebos.get(one, one))
    return SearchSpec(spec.file, spec.config.model_copy(update=changes), template, spec.suite, stage, placebos)


def placebo_name(spec: SearchSpec) -> str:
    """Return the name of a search's placebo."""
    return f"{spec.stage.pipeline if spec.stage else spec.name}.{_stage_name(spec)}"


def _stage_name(spec: SearchSpec) -> str:
    return f"{spec.stage.name}-{PLACEBO}" if spec.stage else PLACEBO


def base_of(spec: SearchSpec, base: str | None = None) -> str:
    """Return the base that a placebo's task vectors are relative to.

    Raises:
        SpecError: The search has no task vectors.
    """
    where = spec.at("baselines.placebo")
    if spec.is_route:
        what = "this search is for routes, which have no task vectors to replace"
        raise SpecError(where, what, "Searches for merges", "Remove it, or set it to false")
    own = spec.frame.base_model
    found = own if own is not None and not own.startswith(STAGE) else spec.baselines.base_model or base
    if found is None:
        what = "the recipe has no base_model, so there are no task vectors to replace"
        raise SpecError(where, what, "A base_model in the recipe or in baselines", "Set baselines.base_model")
    return found


def _placebo(reference: str, base: str, seed: int, renamed: Mapping[str, str]) -> str:
    """Return what replaces a model: the winner of a placebo stage, or a placebo."""
    model, *adapter = pieces(reference, exists)
    under = renamed.get(model)
    if under is None:
        return str(PlaceboReference(reference, base, seed))
    return str(PlaceboReference(f"{under}+{adapter[0]}", under, seed)) if adapter else under


def is_placebo(search: str) -> bool:
    """Return whether a search of this name is the placebo of another."""
    return search.rpartition(".")[2].rpartition("-")[2] == PLACEBO
