"""Phases of a recorded search: start, search, promotion or choice of a stage's winner, export."""

import os

from evosearch.merging.registry import specs
from evosearch.promotion.gate import GateDecision
from evosearch.promotion.honest import Honest
from evosearch.promotion.mask_seeds import MaskSeeds, drawing
from evosearch.promotion.promote import Champion, Promotion
from evosearch.promotion.unverified import UnverifiedPromotion
from evosearch.promotion.validate import Validation
from evosearch.reporting.export import export_promoted, write_winner
from evosearch.reporting.test_table import measure_of
from evosearch.search.budget import Budget
from evosearch.search.controller import Controller
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.optimizer_config import create
from evosearch.search.protocols import Executor
from evosearch.search.recorder import Recorder
from evosearch.search.records import WarmStart
from evosearch.service.register import is_unopposed
from evosearch.setup.optimizing import record_of
from evosearch.setup.prepare import Prepared
from evosearch.setup.resume_check import circumstances
from evosearch.setup.versions import versions


def start(recorder: Recorder, prepared: Prepared, warm: WarmStart | None) -> None:
    """Record the start of a run, with everything that a resume compares."""
    minibatches = prepared.minibatches.batches if prepared.minibatches else ()
    for batch in (*prepared.batches.values(), *prepared.ranked.values(), *minibatches):
        recorder.ledger.put_item_sets(batch)
    payload = {
        "name": prepared.spec.name,
        "spec": prepared.spec.identity(),
        "suite_file": os.path.abspath(prepared.suite.source) if prepared.suite.source else None,
        "optimizer": record_of(prepared.choice).to_payload(),
        "versions": versions(),
        "budget": prepared.spec.config.budget.model_dump(mode="json", exclude_none=True),
        "resumed": recorder.state.sessions > 0,
    }
    entries = [("started", payload | circumstances(prepared).to_payload())]
    if warm is not None and recorder.state.sessions == 0:
        entries.append(("warm_started", warm.to_payload()))
    recorder.record(entries)


def search(prepared: Prepared, recorder: Recorder, executor: Executor, continue_from_best: bool) -> str:
    """Propose and score candidates; return why the search stopped."""
    return controller_of(prepared, recorder, executor, continue_from_best).run()


def controller_of(
    prepared: Prepared, recorder: Recorder, executor: Executor, continue_from_best: bool = False
) -> Controller:
    """Return the search loop of a prepared search, which starts where its record ends."""
    spec, warm = prepared.spec, recorder.state.warm_start
    config, steps = prepared.optimizer, prepared.steps
    known = warm.observations if warm else ()
    return Controller(
        recorder=recorder,
        executor=executor,
        space=prepared.space,
        batch=prepared.ranked["search"],
        baselines=prepared.baselines,
        identify=prepared.models.identify,
        make_optimizer=lambda start: create(
            config,
            prepared.space.dimensions,
            start,
            objectives=spec.objective_count,
            known=known,
            minibatches=steps.count if steps else 1,
            held_back=steps is not None and steps.held_back is not None,
        ),
        minibatches=prepared.minibatches,
        objectives=spec.objectives,
        start=config.start,
        warm_start=warm.start if warm else None,
        budget=Budget(**spec.config.budget.model_dump()),
        asynchronous=config.asynchronous,
        continue_from_best=continue_from_best,
    )


def promote(
    prepared: Prepared,
    recorder: Recorder,
    executor: Executor,
    champion: Champion | None,
    openings: Ledger,
    honest: Honest,
) -> GateDecision:
    """Run the gate, unless it has decided and no candidate was proposed since."""
    state = recorder.state
    if state.gated is not None and state.gated_at == len(state.candidates) and not is_unopposed(state, champion):
        return GateDecision.from_dict(state.gated.decision)
    return Promotion(
        recorder=recorder,
        executor=executor,
        openings=openings,
        batches=prepared.ranked,
        search_split=prepared.batches["search"],
        metrics={task.name: task.column for task in (*prepared.suite.scoring, *prepared.suite.guarded)},
        chances={task.name: task.chance for task in prepared.suite.guarded},
        measure=measure_of(prepared.suite, prepared.batches["test"]),
        finalists=prepared.spec.config.promotion.finalists,
        champion=champion,
        honest=honest,
        masks=_masks(prepared),
    ).run()


def _masks(prepared: Prepared) -> MaskSeeds:
    """Which finalists are also scored with other seeds of their masks; none of a placebo, which has no report."""
    return MaskSeeds(drawing(specs()), 1 if prepared.spec.placebos else prepared.spec.config.promotion.mask_seeds)


def choose_unverified(prepared: Prepared, recorder: Recorder, executor: Executor, allowed: bool) -> GateDecision:
    """Choose the best model of a suite without right answers, unless that was done and nothing changed since.

    Args:
        prepared: The search.
        recorder: Its recorder.
        executor: Scores candidates.
        allowed: Promote the model.
    """
    state = recorder.state
    if state.gated is not None and state.gated_at == len(state.candidates):
        known = GateDecision.from_dict(state.gated.decision)
        if known.promoted is not None or not allowed:
            return known
    finalists = prepared.spec.config.promotion.finalists
    return UnverifiedPromotion(
        recorder=recorder,
        executor=executor,
        batches=prepared.ranked,
        finalists=finalists,
        masks=_masks(prepared),
        allowed=allowed,
    ).run()


def choose_winner(prepared: Prepared, recorder: Recorder, executor: Executor) -> dict[str, str]:
    """Choose a stage's winner, unless that was done and no candidate was proposed since, and write its recipe.

    Returns:
        Format → path of the written file.
    """
    state = recorder.state
    if state.winner is None or state.winner_at != len(state.candidates):
        finalists = prepared.spec.config.promotion.finalists
        Validation(
            recorder=recorder,
            executor=executor,
            batches=prepared.ranked,
            finalists=finalists,
            masks=_masks(prepared),
        ).winner()
    file = prepared.spec.run_dir.winner_file
    write_winner(recorder.ledger, recorder.search_id, state, file)
    return {"recipe": str(file)}


def export(prepared: Prepared, recorder: Recorder, decision: GateDecision) -> dict[str, str]:
    """Write the promoted winner's files from the ledger, at every run.

    Returns:
        Format → path of the written files; empty if nothing is promoted.
    """
    name = decision.promoted
    if name is None:
        return {}
    ledger, search_id, state = recorder.ledger, recorder.search_id, recorder.state
    checkpoint, folder = prepared.spec.config.promotion.checkpoint, prepared.spec.run_dir.export_folder
    return export_promoted(ledger, search_id, state, name, prepared.models, folder, checkpoint)
