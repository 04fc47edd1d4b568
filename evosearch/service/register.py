"""The champion of a registered model: read before the gate decides, and replaced after a promotion."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.errors import InputError, RecipeError, TrackingError
from evosearch.preflight.licences import cards_of
from evosearch.promotion.gate import GateDecision
from evosearch.promotion.promote import Champion, scored_champion
from evosearch.recipe.bundle import inner
from evosearch.recipe.files import anchor, is_recipe, map_references
from evosearch.recipe.identity import digest
from evosearch.recipe.provenance import KEY, Provenance
from evosearch.recipe.schema import Recipe
from evosearch.reporting.export import origin_of
from evosearch.reporting.openings import times_opened
from evosearch.search.ledger.ledger import Ledger
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
from evosearch.tracking.version_texts import VersionTexts


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
    """Whether the gate promoted without a comparison with the champion, and the winner is not registered yet.

    The tracking store was down, or another search has registered its winner since.
    """
    gated, promoted = state.gated, state.promoted
    if champion is None or gated is None or gated.promoted is None:
        return False
    registered = promoted is not None and promoted.version is not None
    champions = [one["comparator"] for one in gated.decision["comparisons"] if one["role"] == "champion"]
    compared = any(scored_champion(state, name) in (None, champion.recipe_id) for name in champions)
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
            if _superseded(registry, name, prepared.search_id, earlier, candidate):
                watcher.note(f"the champion of '{name}' was promoted later and is kept")
                return
            version = registry.register(
                name,
                search_id=prepared.search_id,
                candidate=candidate,
                recipe_id=recipe_id,
                artifact_dir=Path(exported["recipe"]).parent,
                tags=_disclosed(recorder),
                texts=_texts(prepared, recorder, decision, candidate),
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


def _texts(prepared: Prepared, recorder: Recorder, decision: GateDecision, candidate: str) -> VersionTexts:
    """What people read about a registered version."""
    try:
        licences = cards_of(prepared.spec).licences
    except InputError:  # a card is read again, and may have become unreachable
        licences = {}
    return texts_of(recorder.ledger, recorder.search_id, recorder.state, candidate, decision.reasons, licences)


def texts_of(
    ledger: Ledger,
    search_id: str,
    state: SearchState,
    candidate: str,
    decision: Sequence[str],
    licences: Mapping[str, str | None],
    forced: str | None = None,
) -> VersionTexts:
    """What people read about a version, from the ledger.

    Args:
        ledger: The ledger.
        search_id: The search.
        state: Its state.
        candidate: The candidate or baseline that is registered.
        decision: Reasons of the gate.
        licences: Model → licence.
        forced: Why it is promoted by hand.
    """
    scores = origin_of(ledger, search_id, state, candidate).scores
    title = state.title(candidate)
    return VersionTexts(state.name, search_id, title, tuple(decision), scores, licences, forced)


def _superseded(registry: Registry, name: str, search_id: str, earlier: PromotedRecord | None, candidate: str) -> bool:
    """Whether an earlier run registered this winner, and another search or a person has replaced it since."""
    if earlier is None or earlier.registered_as != name or earlier.version is None:
        return False
    champion = registry.champion(name)
    if champion is None:
        return False
    by_hand = earlier.candidate == candidate and champion.version != earlier.version
    return champion.search_id != search_id or by_hand
