"""The champion of a registered model: read before the gate decides, and replaced after a promotion."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.errors import RecipeError, TrackingError
from evosearch.promotion.gate import GateDecision
from evosearch.promotion.promote import Champion
from evosearch.recipe.bundle import inner
from evosearch.recipe.files import anchor, is_recipe, map_references
from evosearch.recipe.identity import digest
from evosearch.recipe.provenance import KEY, Provenance
from evosearch.recipe.schema import Recipe
from evosearch.reporting.openings import times_opened
from evosearch.search.progress import Watcher
from evosearch.search.recorder import Recorder
from evosearch.search.records import PromotedRecord
from evosearch.search.state import SearchState
from evosearch.setup.loading import contamination_acknowledged
from evosearch.setup.models import Models
from evosearch.setup.prepare import Prepared
from evosearch.setup.recorded_inputs import models_by_content
from evosearch.tracking.changes import CONTAMINATION, OPENINGS
from evosearch.tracking.model_registry import Registry


def current_champion(prepared: Prepared, registry: Registry | None, watcher: Watcher) -> Champion | None:
    """Return the current champion of the spec's `register_as`; None, with a note, if it cannot be compared."""
    name = prepared.spec.config.promotion.register_as
    if name is None or registry is None:
        return None
    try:
        found = registry.champion(name)
        text = registry.recipe(found) if found else None
    except TrackingError as exc:
        watcher.note(f"the current champion of '{name}' cannot be read and is left out of the gate: {exc}")
        return None
    if found is None or text is None:
        return None
    recipe = read_champion(text, name, prepared)
    others = set(recipe.references()) - set(prepared.models.references)
    if others:
        watcher.note(f"the champion of '{name}' is made of other models ({', '.join(sorted(others))}): not compared")
        return None
    if not prepared.models.fits(recipe):
        watcher.note(f"the champion of '{name}' has another vocabulary or chat template: not compared")
        return None
    return Champion(recipe, prepared.models.identify(recipe))


def read_champion(text: str, name: str, prepared: Prepared) -> Recipe:
    """A champion's recipe; nested recipes that equal a model of this search get that model's reference."""
    *within, outer = documents.parse_all(text, name, RecipeError)
    same = _by_content(outer.pop(KEY, None), name, prepared.models)

    def ours_for(data: dict[str, Any]) -> dict[str, Any]:
        renamed: dict[str, Any] = map_references(data, lambda reference: same.get(reference, reference))
        return renamed

    load = prepared.models.opener.recipe
    ours = {_content(one, load): one for one in prepared.models.references if is_recipe(one)}
    found: dict[str, Recipe] = {}  # keys are references within the champion's file
    local: dict[str, str] = {}
    for data in within:
        own = str(data.pop("name"))
        local[own] = f"/{name}.yaml#{own}"
        found[local[own]] = documents.validate(Recipe, anchor(ours_for(data), Path("/"), local), name, RecipeError)
    known = {own: ours.get(_content(reference, found.__getitem__), own) for own, reference in local.items()}
    return documents.validate(Recipe, anchor(ours_for(outer), Path("/"), known), name, RecipeError)


def _by_content(section: Any, name: str, models: Models) -> dict[str, str]:
    """Return a champion's references → this search's, of models with the same weights in another place."""
    if section is None:
        return {}
    recorded = documents.validate(Provenance, section, f"{name}: {KEY}", RecipeError)
    ours = models_by_content(models)
    return {
        one.model: ours[one.content_sha256]
        for one in recorded.inputs
        if one.content_sha256 and one.content_sha256 in ours
    }


def _content(reference: str, load: Callable[[str], Recipe]) -> str:
    """Digest of a recipe and its nested recipes, independent of their paths and names.

    Args:
        reference: The recipe.
        load: Reference → recipe.
    """
    recipe = load(reference)
    return digest(anchor(recipe.to_dict(), Path("/"), {one: _content(one, load) for one in inner(recipe)}))


def is_unopposed(state: SearchState, champion: Champion | None) -> bool:
    """Whether the gate promoted without a comparison with the champion, because the tracking store was down."""
    gated, promoted = state.gated, state.promoted
    if champion is None or gated is None or gated.promoted is None:
        return False
    registered = promoted is not None and promoted.version is not None
    compared = any(comparison["role"] == "champion" for comparison in gated.decision["comparisons"])
    return not (registered or compared or champion.recipe_id == state.recipe_ids.get(gated.promoted))


def register(
    prepared: Prepared,
    recorder: Recorder,
    registry: Registry | None,
    decision: GateDecision,
    exported: dict[str, str],
    watcher: Watcher,
) -> None:
    """Register the winner and make it the champion; if the tracking store is down, the next run does so.

    A model that was promoted unverified is exported only: it was compared with no champion.
    """
    name, candidate = prepared.spec.config.promotion.register_as, decision.promoted
    if candidate is None:
        return
    if decision.unverified and name is not None:
        watcher.note(f"not registered as '{name}': {candidate} is unverified")
        name = None
    recipe_id = recorder.state.recipe_ids[candidate]
    earlier = recorder.state.promoted
    version = None
    if name is not None and registry is not None:
        try:
            if _superseded(registry, name, prepared.search_id, earlier):
                watcher.note(f"the champion of '{name}' is from a later search and is kept")
                return
            version = registry.register(
                name,
                search_id=prepared.search_id,
                candidate=candidate,
                recipe_id=recipe_id,
                artifact_dir=Path(exported["recipe"]).parent,
                tags=_disclosed(recorder),
            )
        except TrackingError as exc:
            watcher.note(f"not registered as '{name}': {exc}. Run the same command again to register it")
    promoted = PromotedRecord(candidate, recipe_id, name, version, exported)
    if earlier is None or replace(earlier, exported=exported) != promoted:
        recorder.record([("promoted", promoted.to_payload())])


def _disclosed(recorder: Recorder) -> dict[str, str]:
    """Tags of a registered version that qualify its test scores."""
    tags = {OPENINGS: str(times_opened(recorder.ledger, recorder.state))}
    return tags | ({CONTAMINATION: "true"} if contamination_acknowledged(recorder.state) else {})


def _superseded(registry: Registry, name: str, search_id: str, earlier: PromotedRecord | None) -> bool:
    """Whether an earlier run of this search registered its winner, and another search has replaced it since."""
    if earlier is None or earlier.registered_as != name or earlier.version is None:
        return False
    champion = registry.champion(name)
    return champion is not None and champion.search_id != search_id
