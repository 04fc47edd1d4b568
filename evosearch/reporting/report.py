"""What a run came to."""

from dataclasses import dataclass, field
from typing import Any

from evosearch.promotion.finalists import kind_of
from evosearch.reporting.leaderboard import board_of, pareto_rows
from evosearch.reporting.test_table import test_rows
from evosearch.search.recorder import Recorder
from evosearch.search.records import is_candidate
from evosearch.search.state import SearchState
from evosearch.setup.prepare import Prepared
from evosearch.spec.run_dir import RunDir


@dataclass
class RunReport:
    """What a run came to; `to_json` is what `evosearch run --json` prints."""

    name: str
    search_id: str
    run_dir: RunDir
    stopped: str
    seconds: float
    candidates: dict[str, int]
    best: dict[str, Any] | None
    baselines: dict[str, dict[str, Any]]
    finalists: list[dict[str, Any]]  # with their scores on every split, and how far they fell
    unchosen: list[dict[str, Any]]  # the same of base and parents
    gate: dict[str, Any] | None
    test: list[dict[str, Any]]
    test_openings: int  # of this search's test set by all searches, up to now
    contamination_acknowledged: bool
    exported: dict[str, str]
    winner: dict[str, Any] | None = None  # of a stage that others build on
    stages: list[dict[str, Any]] = field(default_factory=list)  # of a spec of stages, all of them
    leaderboard: list[dict[str, Any]] = field(default_factory=list)
    tracking_note: str | None = None

    @property
    def promoted(self) -> bool:
        return bool(self.gate and self.gate["promoted"])

    def to_json(self) -> dict[str, Any]:
        stages = {"stages": self.stages} if self.stages else {}
        return stages | {
            "name": self.name,
            "search_id": self.search_id,
            "ledger": self.run_dir.ledger,
            "candidates": self.candidates,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "best": self.best,
            "baselines": self.baselines,
            "finalists": self.finalists,
            "unchosen": self.unchosen,
            "pareto": pareto_rows(self.leaderboard),
            "gate": self.gate,
            "test": self.test,
            "test_openings": self.test_openings,
            "contamination_acknowledged": self.contamination_acknowledged,
            "exported": self.exported,
            "tracking_uri": self.run_dir.tracking,
            "tracking": self.tracking_note or "up to date",
        }


def winner_of(state: SearchState) -> dict[str, Any] | None:
    """What a stage found, or the last one promoted; None where nothing was."""
    if state.winner is not None:
        found = {key: getattr(state.winner, key) for key in ("candidate", "recipe_id", "score")}
    elif state.gated is not None and state.gated.promoted is not None:
        name = state.gated.promoted
        found = {"candidate": name, "recipe_id": state.recipe_ids[name], "score": state.score(name, "validation")}
    else:
        return None
    return found | {"kind": kind_of(found["candidate"])}


def candidates_of(state: SearchState, already: int) -> dict[str, int]:
    """How many candidates there were, and how many of them before this run."""
    failed = _failed(state)
    counts = {"asked": state.proposed, "scored": len(state.finished) - len(failed), "failed": len(failed)}
    return counts | {"resumed": already}


def _failed(state: SearchState) -> set[str]:
    """Candidates that have no score on the search split nor on a part of it. One that failed later was scored there."""
    scored = {name for name, split in state.cards if split == "search"} | {name for name, _ in state.samples}
    return {
        failure.candidate
        for failure in state.failed
        if is_candidate(failure.candidate) and failure.split == "search" and failure.candidate not in scored
    }


def report(
    prepared: Prepared,
    run_dir: RunDir,
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
    return RunReport(
        name=prepared.spec.name,
        search_id=prepared.search_id,
        run_dir=run_dir,
        stopped=stopped,
        seconds=seconds,
        candidates=candidates_of(state, already),
        best=best and {key: best[key] for key in ("candidate", "recipe_id", "score", "fitness")},
        baselines={row["candidate"]: {"score": row["score"]} for row in rows if row["kind"] != "candidate"},
        finalists=board.finalists,
        unchosen=board.unchosen,
        gate=state.gated.decision if state.gated else None,
        test=test_rows(recorder, prepared.suite, prepared.batches["test"], prepared.baselines),
        test_openings=board.test_openings,
        contamination_acknowledged=board.contamination_acknowledged,
        exported=exported,
        winner=winner_of(state),
        leaderboard=rows,
        tracking_note=tracking_note,
    )
