"""A search from its spec to its promoted, exported winner: the rooms, wired.

What can be wrong with the input is found before anything is written; then the ledger is opened and held, and from
there on every step is on record and can be continued.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.errors import EvosearchError, LedgerError, RecipeError, TrackingError
from evosearch.evaluation.types import SPLITS
from evosearch.promotion.gate import GateDecision
from evosearch.promotion.promote import Champion, Promotion
from evosearch.recipe.schema import Recipe
from evosearch.search.controller import Budget, Controller
from evosearch.search.controls import controls
from evosearch.search.ledger import Ledger
from evosearch.search.optimizers.registry import create
from evosearch.search.ports import Executor
from evosearch.search.recorder import Recorder
from evosearch.search.state import SearchState
from evosearch.search.watching import Watcher
from evosearch.service.executors import make_executor
from evosearch.service.export import export_promoted
from evosearch.service.leaderboard import leaderboard_rows
from evosearch.service.openings import openings
from evosearch.service.paths import Places, places_of
from evosearch.service.prepare import Prepared, prepare
from evosearch.service.report import measure_of, test_rows
from evosearch.service.spec import check_same_search, load_spec
from evosearch.service.trackers import mirroring, registry_of
from evosearch.service.versions import versions
from evosearch.tracking.mirror import UP_TO_DATE, hide_credentials
from evosearch.tracking.registry import Registry

CATCH_UP_S = 120.0  # how long the end of a run waits for the mirror


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
    finalists: list[dict[str, Any]]
    gate: dict[str, Any] | None
    test: list[dict[str, Any]]
    test_openings: int
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
            "gate": self.gate,
            "test": self.test,
            "test_openings": self.test_openings,
            "exported": self.exported,
            "tracking_uri": self.places.tracking,
            "tracking": self.tracking_note or "up to date",
        }


def run(path: Path, watcher: Watcher, continue_from_best: bool = False) -> RunReport:
    """Run the search that a spec describes, or continue it.

    Args:
        continue_from_best: where the recorded search cannot be replayed exactly, go on from its best candidate.

    Raises:
        InputError: something the user can mend; nothing was scored.
        SearchError: the search cannot go on; the ledger has the reason.
    """
    began = time.monotonic()
    spec = load_spec(path)
    places = places_of(spec)
    prepared = prepare(spec, watcher)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(places.ledger, f"{path}: ledger"))
        refuse_other_search(ledger, prepared)
        stack.enter_context(ledger.acquire(prepared.search_id))
        recorder = Recorder(ledger, prepared.search_id, watcher=watcher)
        already = len(recorder.state.finished)
        _begin(recorder, prepared)
        registry = registry_of(places)
        champion = _champion(prepared, registry, watcher)  # first: two threads must not create one store
        mirror = stack.enter_context(mirroring(places, prepared.search_id, CATCH_UP_S))
        recorder.trackers = (mirror,)
        mirror.notify()
        executor = make_executor(spec.config.workers, prepared, watcher)
        stack.callback(executor.close)
        record = stack.enter_context(openings(ledger, shared=spec.config.ledger is not None))
        try:
            stopped = _search(prepared, recorder, executor, continue_from_best)
            decision = _promote(prepared, recorder, executor, champion, record)
            exported = _export(prepared, places, recorder, decision)
            mirror.catch_up(CATCH_UP_S)  # the candidate's run must be there before it is registered
            _register(prepared, recorder, registry, decision, exported, watcher)
        except KeyboardInterrupt:
            recorder.record([("stopped", {"reason": "interrupted"})])
            raise
        except EvosearchError as exc:
            recorder.record([("stopped", {"reason": f"failed: {exc}"})])
            raise
        recorder.record([("stopped", {"reason": stopped})])
        mirror.close(CATCH_UP_S)
    note = None if mirror.state == UP_TO_DATE else f"MLflow at {hide_credentials(places.tracking)} is {mirror.state}"
    return _report(prepared, places, recorder, stopped, already, exported, note, time.monotonic() - began)


def refuse_other_search(ledger: Ledger, prepared: Prepared) -> None:
    """Stop where the ledger holds another search of this name, or one of other inputs."""
    spec = prepared.spec
    for known in ledger.searches():
        if known.name != spec.name:
            continue
        state = SearchState.from_events(ledger.events(known.search_id))
        check_same_search(state.spec, spec, str(ledger.url))
        _check_inputs(state.inputs, prepared)


def _check_inputs(recorded: Mapping[str, str], prepared: Prepared) -> None:
    for reference, sha in recorded.items():
        now = prepared.models.inputs.get(reference)
        if now is None:
            what = "this search began with it, and the spec now names other places (was the spec moved?)"
            raise LedgerError(f"{prepared.spec.where}: {reference}", what, next="Run the spec from where it was")
        if now != sha:
            raise LedgerError(
                f"{prepared.spec.where}: {reference}",
                f"its weights changed since this search began (content {sha[:12]} then, {now[:12]} now)",
                next="Restore the model, or give the new search another name",
            )


def _begin(recorder: Recorder, prepared: Prepared) -> None:
    for batch in prepared.batches.values():
        recorder.ledger.put_item_sets(batch)
    payload = {
        "name": prepared.spec.name,
        "spec": prepared.spec.identity(),
        "inputs": prepared.models.inputs,
        "batches": {split: batch.digest for split, batch in prepared.batches.items()},
        "versions": versions(),
        "budget": prepared.spec.config.budget.model_dump(mode="json", exclude_none=True),
        "resumed": recorder.state.sessions > 0,
    }
    recorder.record([("started", payload)])


def _search(prepared: Prepared, recorder: Recorder, executor: Executor, continue_from_best: bool) -> str:
    config = prepared.spec.config
    controller = Controller(
        recorder=recorder,
        executor=executor,
        space=prepared.space,
        batch=prepared.batches["search"],
        controls=controls(prepared.example, config.controls.scales),
        identify=prepared.models.identify,
        make_optimizer=lambda start: create(config.optimizer, prepared.space.dimensions, start),
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
    return Champion(recipe, prepared.models.identify(recipe))


def _promote(
    prepared: Prepared, recorder: Recorder, executor: Executor, champion: Champion | None, openings: Ledger
) -> GateDecision:
    """Decide, unless this search has decided already and asked nothing since."""
    state = recorder.state
    if state.gated is not None and state.gated_at == state.asked_count:
        return GateDecision.from_dict(state.gated)
    return Promotion(
        recorder=recorder,
        executor=executor,
        openings=openings,
        batches={split: prepared.batches[split] for split in SPLITS[1:]},
        metrics={task.name: task.metric for task in prepared.suite.tasks},
        measure=measure_of(prepared.suite, prepared.batches["test"]),
        finalists=prepared.spec.config.promotion.finalists,
        champion=champion,
    ).run()


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
            version = registry.register(
                name,
                search_id=prepared.search_id,
                candidate=candidate,
                recipe_id=recipe_id,
                artifact_dir=Path(exported["recipe"]).parent,
            )
        except TrackingError as exc:
            watcher.note(f"not registered as '{name}': {exc}. The same command registers it later")
    payload = {"candidate": candidate, "recipe_id": recipe_id, "registered_as": name, "version": version}
    if earlier is None or any(earlier.get(key) != value for key, value in payload.items()):
        recorder.record([("promoted", payload | {"exported": exported})])


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
    rows = leaderboard_rows(state)
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
        finalists=list(state.finalists),
        gate=state.gated,
        test=test_rows(recorder, prepared.suite, prepared.batches["test"], prepared.example),
        test_openings=state.test_openings[-1]["count"] if state.test_openings else 0,
        exported=exported,
        leaderboard=rows,
        tracking_note=tracking_note,
    )
