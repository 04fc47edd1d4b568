"""The champion of the name that a search registers under: met before the gate decides, and made after it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evosearch import documents
from evosearch.errors import RecipeError, TrackingError
from evosearch.promotion.gate import GateDecision
from evosearch.promotion.promote import Champion
from evosearch.recipe.bundle import inner
from evosearch.recipe.files import anchor, is_recipe
from evosearch.recipe.identity import digest
from evosearch.recipe.schema import Recipe
from evosearch.reporting.openings import times_opened
from evosearch.search.progress import Watcher
from evosearch.search.recorder import Recorder
from evosearch.search.records import PromotedRecord
from evosearch.search.state import SearchState
from evosearch.setup.loading import contamination_acknowledged
from evosearch.setup.prepare import Prepared
from evosearch.tracking.changes import CONTAMINATION, OPENINGS
from evosearch.tracking.registry import Registry


def present_champion(prepared: Prepared, registry: Registry | None, watcher: Watcher) -> Champion | None:
    """The present champion of the name this search registers under, where it is made of the same models."""
    name = prepared.spec.config.promotion.register_as
    if name is None or registry is None:
        return None
    try:
        found = registry.champion(name)
        text = registry.recipe(found) if found else None
    except TrackingError as exc:
        watcher.note(f"the present champion of '{name}' is not known and is left out of the gate: {exc}")
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
    """A champion's recipe; a recipe in it that is one of this search's models goes by that model's reference."""
    *within, outer = documents.parse_all(text, name, RecipeError)
    load = prepared.models.opener.recipe
    ours = {_content(one, load): one for one in prepared.models.references if is_recipe(one)}
    found: dict[str, Recipe] = {}  # as references of a file that holds them, by which they name each other
    local: dict[str, str] = {}
    for data in within:
        own = str(data.pop("name"))
        local[own] = f"/{name}.yaml#{own}"
        found[local[own]] = documents.validate(Recipe, anchor(data, Path("/"), local), name, RecipeError)
    known = {own: ours.get(_content(reference, found.__getitem__), own) for own, reference in local.items()}
    return documents.validate(Recipe, anchor(outer, Path("/"), known), name, RecipeError)


def _content(reference: str, load: Callable[[str], Recipe]) -> str:
    """A digest of what a recipe says, and the recipes that it is made of, wherever they lie and whatever their names.

    Args:
        load: reference → the recipe it names.
    """
    recipe = load(reference)
    return digest(anchor(recipe.to_dict(), Path("/"), {one: _content(one, load) for one in inner(recipe)}))


def never_met(state: SearchState, champion: Champion | None) -> bool:
    """Whether the gate promoted while the tracking store was away, and now there is a champion to be beaten first."""
    gated, promoted = state.gated, state.promoted
    if champion is None or gated is None or gated.promoted is None:
        return False
    registered = promoted is not None and promoted.version is not None
    met = any(comparison["role"] == "champion" for comparison in gated.decision["comparisons"])
    return not (registered or met or champion.recipe_id == state.recipe_ids.get(gated.promoted))


def register(
    prepared: Prepared,
    recorder: Recorder,
    registry: Registry | None,
    decision: GateDecision,
    exported: dict[str, str],
    watcher: Watcher,
) -> None:
    """Register the winner and make it the champion; a tracking store that is away does not undo a promotion."""
    name, candidate = prepared.spec.config.promotion.register_as, decision.promoted
    if candidate is None:
        return
    recipe_id = recorder.state.recipe_ids[candidate]
    earlier = recorder.state.promoted
    version = None
    if name is not None and registry is not None:
        try:
            if _superseded(registry, name, prepared.search_id, earlier):
                watcher.note(f"the champion of '{name}' is a later search's by now, and stays")
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
            watcher.note(f"not registered as '{name}': {exc}. The same command registers it later")
    promoted = PromotedRecord(candidate, recipe_id, name, version, exported)
    if earlier is None or replace(earlier, exported=exported) != promoted:
        recorder.record([("promoted", promoted.to_payload())])


def _disclosed(recorder: Recorder) -> dict[str, str]:
    """What a registered version says of its test figures, as tags."""
    tags = {OPENINGS: str(times_opened(recorder.ledger, recorder.state))}
    return tags | ({CONTAMINATION: "true"} if contamination_acknowledged(recorder.state) else {})


def _superseded(registry: Registry, name: str, search_id: str, earlier: PromotedRecord | None) -> bool:
    """Whether this search registered its winner at an earlier run, and another search's is the champion since."""
    if earlier is None or earlier.registered_as != name or earlier.version is None:
        return False
    champion = registry.champion(name)
    return champion is not None and champion.search_id != search_id
