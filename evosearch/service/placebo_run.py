"""Placebo searches: the search, or all stages, of a spec over random task vectors, to their winner on validation.

They run after the finalists' validation and before the gate of the real search. Each is a search of its own in the same
ledger and resumes like one, but a stage is not resumed once the next one has started, which builds on its winner.
"""

from dataclasses import dataclass
from typing import Protocol

from evosearch.evaluation.harness.harness import Harness
from evosearch.promotion.honest import PlaceboWinner
from evosearch.reporting.report import RunReport
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Watcher
from evosearch.search.records import WarmStart
from evosearch.service.watchers import OnlyPreparing, StageWatcher
from evosearch.setup.executors import make_executor
from evosearch.setup.loading import read_search, recorded_winner
from evosearch.setup.prepare import Prepared, prepare
from evosearch.setup.warm_start import found_before
from evosearch.spec.lookup import recorded_names
from evosearch.spec.placebo_spec import placebo_name, placebo_of
from evosearch.spec.spec import SearchSpec, Winner


class RunsPlacebo(Protocol):
    """Function that runs or resumes one prepared search to its winner; see `run`."""

    def __call__(self, prepared: Prepared, watcher: Watcher, warm: WarmStart | None) -> RunReport:
        """Run or resume the search."""


@dataclass(frozen=True)
class PlaceboRun:
    """The placebo of a run.

    Args:
        stages: The real searches in order: one, or the stages of a multi-stage run.
        search: Runs one placebo search.
        watcher: Shows progress.
        harness: The loaded suite.
        allow_pickle: Read pickled weights of models without safetensors.
    """

    stages: tuple[SearchSpec, ...]
    search: RunsPlacebo
    watcher: Watcher
    harness: Harness
    allow_pickle: bool = False

    def __call__(self) -> PlaceboWinner:
        """Run or resume every stage of the placebo; return the winner of the last one."""
        winners: dict[str, Winner] = {}
        base = self.stages[0].frame.base_model
        for index, real in enumerate(self.stages):
            used = real.stage.winners if real.stage else ()
            spec = placebo_of(real, {name: winners[name] for name in used}, base)
            quiet = OnlyPreparing(self.watcher)
            prepared = prepare(spec, quiet, self.allow_pickle, self.harness)
            if not self._is_settled(index):
                self.search(prepared, StageWatcher(self.watcher, spec), found_before(prepared, quiet))
            if real.stage is not None:
                winners[real.stage.name] = recorded_winner(spec)
        return _result(prepared, self.watcher)

    def _is_settled(self, index: int) -> bool:
        """Whether the placebo of a later stage has started, which builds on this one's winner."""
        later = {placebo_name(spec) for spec in self.stages[index + 1 :]}
        return bool(later & set(recorded_names(self.stages[0].run_dir.ledger)))


def _result(prepared: Prepared, watcher: Watcher) -> PlaceboWinner:
    spec = prepared.spec
    with Ledger.open(spec.run_dir.ledger, f"{spec.file}: ledger", read_only=True) as ledger:
        _, state = read_search(ledger, spec.run_dir)
    found = state.winner
    assert found is not None
    workers = spec.config.workers
    return PlaceboWinner(
        found.candidate, found.recipe, found.recipe_id, state.recipes, lambda: make_executor(workers, prepared, watcher)
    )
