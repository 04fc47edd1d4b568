"""A search from its spec to its promoted, exported winner: the rooms, wired.

What can be wrong with the input is found before anything is written; then the ledger is opened and held, and from
there on every step is on record and can be continued.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.errors import EvosearchError, RecipeError, TrackingError
from evosearch.promotion.gate import GateDecision
from evosearch.promotion.promote import Champion, Promotion
from evosearch.recipe.schema import Recipe
from evosearch.search.controller import Budget, Controller
from evosearch.search.ledger import Ledger
from evosearch.search.optimizers.registry import create
from evosearch.search.ports import Executor
from evosearch.search.recorder import Recorder
from evosearch.search.state import SearchState
from evosearch.search.watching import Watcher
from evosearch.service.executors import make_executor
from evosearch.service.export import export_promoted
from evosearch.service.leaderboard import board_of
from evosearch.service.openings import openings, times_opened
from evosearch.service.outlook import hardly_decided
from evosearch.service.paths import Places, places_of
from evosearch.service.prepare import Prepared, prepare
from evosearch.service.recorded import contamination_acknowledged
from evosearch.service.report import measure_of, test_rows
from evosearch.service.spec import load_spec
from evosearch.service.trackers import CATCH_UP_S, PATIENCE_S, mirroring, registry_of, shown
from evosearch.service.unchanged import circumstances, refuse_other_search
from evosearch.service.versions import versions
from evosearch.tracking.changes import CONTAMINATION, OPENINGS
from evosearch.tracking.mirror import UP_TO_DATE
from evosearch.tracking.registry import Registry


@dataclass
class RunReport:
    """What a run came to; `to_json` is what `evosearch run --json` prints."""

    name: str
    search_id: str
    places: Places
    stopped: str
    seconds: float
    candidates: dict[str, int]
    best: dict[str, Any] | None
    controls: dict[str, dict[str, Any]]
    finalists: list[dict[str, Any]]  # with their scores on every split, and how far they fell
    unchosen: list[dict[str, Any]]  # the same of base and parents
    gate: dict[str, Any] | None
    test: list[dict[str, Any]]
    test_openings: int  # of this search's test set by all searches, up to now
    contamination_acknowledged: bool
    exported: dict[str, str]
    leaderboard: list[dict[str, Any]] = field(default_factory=list)
    tracking_note: str | None = None

    @property
    def promoted(self) -> bool:
        return bool(self.gate and self.gate["promoted"])

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "search_id": self.search_id,
            "ledger": self.places.ledger,
            "candidates": self.candidates,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "best": self.best,
            "controls": self.controls,
            "finalists": self.finalists,
            "unchosen": self.unchosen,
            "gate": self.gate,
            "test": self.test,
            "test_openings": self.test_openings,
            "contamination_acknowledged": self.contamination_acknowledged,
            "exported": self.exported,
            "tracking_uri": self.places.tracking,
            "tracking": self.tracking_note or "up to date",
        }


def run(path: Path, watcher: Watcher, continue_from_best: bool = False, allow_pickle: bool = False) -> RunReport:
    """Run the search that a spec describes, or continue it.

    Args:
        continue_from_best: where the recorded search cannot be replayed exactly, go on from its best candidate.
        allow_pickle: read pickled weights where a model has no others.

    Raises:
        InputError: something the user can mend; nothing was scored.
        SearchError: the search cannot go on; the ledger has the reason.
    """
    began = time.monotonic()
    spec = load_spec(path)
    places = places_of(spec)
    prepared = prepare(spec, watcher, allow_pickle)
    for text in hardly_decided(prepared.suite, prepared.batches["test"]):
        watcher.note(text)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(places.ledger, f"{path}: ledger"))
        refuse_other_search(ledger, prepared)
        stack.enter_context(ledger.acquire(prepared.search_id))
        recorder = Recorder(ledger, prepared.search_id, watcher=watcher)
        already = len(recorder.state.finished)
        _begin(recorder, prepared)
        registry = registry_of(places)
        champion = _champion(prepared, registry, watcher)  # first: two threads must not create one store
        mirror = stack.enter_context(mirroring(places, prepared.search_id, watcher))
        recorder.trackers = (mirror,)
        mirror.notify()
        executor = make_executor(spec.config.workers, prepared, watcher)
        stack.callback(executor.close)
        record = stack.enter_context(openings(ledger, shared=spec.config.ledger is not None))
        try:
            stopped = _search(prepared, recorder, executor, continue_from_best)
            decision = _promote(prepared, recorder, executor, champion, record)
            exported = _export(prepared, places, recorder, decision)
            mirror.catch_up(CATCH_UP_S, PATIENCE_S)  # the candidate's run must be there before it is registered
            _register(prepared, recorder, registry, decision, exported, watcher)
        except KeyboardInterrupt:
            recorder.record([("stopped", {"reason": "interrupted"})])
            raise
        except EvosearchError as exc:
            recorder.record([("stopped", {"reason": f"failed: {exc}"})])
            raise
        recorder.record([("stopped", {"reason": stopped})])
        mirror.close(CATCH_UP_S, PATIENCE_S)
    note = None if mirror.state == UP_TO_DATE else f"{shown(places)} is {mirror.state}"
    return _report(prepared, places, recorder, stopped, already, exported, note, time.monotonic() - began)


def _begin(recorder: Recorder, prepared: Prepared) -> None:
    parts = prepared.parts.batches if prepared.parts else ()
    for batch in (*prepared.batches.values(), *parts):
        recorder.ledger.put_item_sets(batch)
    payload = {
        "name": prepared.spec.name,
        "spec": prepared.spec.identity(),
        "versions": versions(),
        "budget": prepared.spec.config.budget.model_dump(mode="json", exclude_none=True),
        "resumed": recorder.state.sessions > 0,
    }
    recorder.record([("started", payload | circumstances(prepared))])


def _search(prepared: Prepared, recorder: Recorder, executor: Executor, continue_from_best: bool) -> str:
    config = prepared.spec.config
    controller = Controller(
        recorder=recorder,
        executor=executor,
        space=prepared.space,
        batch=prepared.batches["search"],
        controls=prepared.controls,
        identify=prepared.models.identify,
        make_optimizer=lambda start: create(config.optimizer, prepared.space.dimensions, start),
        parts=prepared.parts,
        start=config.optimizer.start,
        budget=Budget(config.budget.candidates, config.budget.hours),
        continue_from_best=continue_from_best,
    )
    return controller.run()


def _champion(prepared: Prepared, registry: Registry | None, watcher: Watcher) -> Champion | None:
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
    recipe = documents.validate(Recipe, documents.parse(text, name, RecipeError), name, RecipeError)
    others = set(recipe.references()) - set(prepared.models.references)
    if others:
        watcher.note(f"the champion of '{name}' is made of other models ({', '.join(sorted(others))}): not compared")
        return None
    if not prepared.models.fits(recipe):
        watcher.note(f"the champion of '{name}' has another vocabulary or chat template: not compared")
        return None
    return Champion(recipe, prepared.models.identify(recipe))


def _promote(
    prepared: Prepared, recorder: Recorder, executor: Executor, champion: Champion | None, openings: Ledger
) -> GateDecision:
    """Decide, unless this search has decided already and asked nothing since."""
    state = recorder.state
    if state.gated is not None and state.gated_at == state.asked_count and not _never_met(state, champion):
        return GateDecision.from_dict(state.gated)
    return Promotion(
        recorder=recorder,
        executor=executor,
        openings=openings,
        batches=prepared.batches,
        metrics={task.name: task.column for task in (*prepared.suite.scoring, *prepared.suite.guarded)},
        chances={task.name: task.chance for task in prepared.suite.guarded},
        measure=measure_of(prepared.suite, prepared.batches["test"]),
        finalists=prepared.spec.config.promotion.finalists,
        champion=champion,
    ).run()


def _never_met(state: SearchState, champion: Champion | None) -> bool:
    """Whether the gate promoted while the tracking store was away, and now there is a champion to be beaten first."""
    gated, promoted = state.gated, state.promoted
    if champion is None or gated is None or gated["promoted"] is None:
        return False
    registered = promoted is not None and promoted.get("version") is not None
    met = any(comparison["role"] == "champion" for comparison in gated["comparisons"])
    return not (registered or met or champion.recipe_id == state.recipe_ids.get(gated["promoted"]))


def _export(prepared: Prepared, places: Places, recorder: Recorder, decision: GateDecision) -> dict[str, str]:
    """The promoted winner's files, written anew at every run: they follow from the ledger."""
    name = decision.promoted
    if name is None:
        return {}
    ledger, search_id, state = recorder.ledger, recorder.search_id, recorder.state
    checkpoint = prepared.spec.config.promotion.checkpoint
    return export_promoted(ledger, search_id, state, name, prepared.models, places.exported, checkpoint)


def _register(
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
    payload = {"candidate": candidate, "recipe_id": recipe_id, "registered_as": name, "version": version}
    if earlier is None or any(earlier.get(key) != value for key, value in payload.items()):
        recorder.record([("promoted", payload | {"exported": exported})])


def _disclosed(recorder: Recorder) -> dict[str, str]:
    """What a registered version says of its test figures, as tags."""
    tags = {OPENINGS: str(times_opened(recorder.ledger, recorder.state))}
    return tags | ({CONTAMINATION: "true"} if contamination_acknowledged(recorder.state) else {})


def _superseded(registry: Registry, name: str, search_id: str, earlier: dict[str, Any] | None) -> bool:
    """Whether this search registered its winner at an earlier run, and another search's is the champion since."""
    if earlier is None or earlier.get("registered_as") != name or earlier.get("version") is None:
        return False
    champion = registry.champion(name)
    return champion is not None and champion.search_id != search_id


def _report(
    prepared: Prepared,
    places: Places,
    recorder: Recorder,
    stopped: str,
    already: int,
    exported: dict[str, str],
    tracking_note: str | None,
    seconds: float,
) -> RunReport:
    state = recorder.state
    board = board_of(recorder.ledger, recorder.search_id, state)
    rows = board.rows
    best = next((row for row in rows if row["kind"] == "candidate" and row["score"] is not None), None)
    failed = {failure["candidate"] for failure in state.failed if failure["candidate"].isdigit()}
    return RunReport(
        name=prepared.spec.name,
        search_id=prepared.search_id,
        places=places,
        stopped=stopped,
        seconds=seconds,
        candidates={
            "asked": state.asked_count,
            "scored": len(state.finished) - len(failed),
            "failed": len(failed),
            "resumed": already,
        },
        best=best and {key: best[key] for key in ("candidate", "recipe_id", "score", "fitness")},
        controls={row["candidate"]: {"score": row["score"]} for row in rows if row["kind"] != "candidate"},
        finalists=board.finalists,
        unchosen=board.unchosen,
        gate=state.gated,
        test=test_rows(recorder, prepared.suite, prepared.batches["test"], prepared.example),
        test_openings=board.test_openings,
        contamination_acknowledged=board.contamination_acknowledged,
        exported=exported,
        leaderboard=rows,
        tracking_note=tracking_note,
    )
