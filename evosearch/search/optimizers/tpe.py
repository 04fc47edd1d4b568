"""Multivariate tree-structured Parzen estimator (Bergstra et al. 2011), by Optuna.

Several objectives are split as in Ozaki et al. (2022, doi:10.1613/jair.1.13188).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from evosearch.search.optimizer import Problem
from evosearch.search.optimizers import _optuna
from evosearch.search.optimizers._parzen import Parzen
from evosearch.search.optimizers.registry import optimizer
from evosearch.search.pending import Pending
from evosearch.search.space.dimensions import Genome, Observation

RUNNING, FINISHED = 1, 2  # states in which a trial was read; 0: never read


@optimizer("tpe", population=8, categoricals=True, asynchronous=True, objectives=True)
class Tpe:
    """Optuna's sampler over a study in memory: the ledger is the record, Optuna only proposes.

    Takes every kind of dimension. Inactive dimensions are not suggested, so the estimator does not learn from values
    without effect. Pending candidates count as bad, which keeps proposals apart. Candidates that break a constraint
    rank behind all others, by the size of the violation. The known candidates of another search are finished trials.
    """

    def __init__(self, problem: Problem) -> None:
        dimensions, start = problem.dimensions, problem.start
        self.population = problem.population
        self._categorical_first = sorted(dimensions, key=lambda dimension: dimension.active_if is not None)
        self._dimensions = dimensions
        self._pending: Pending[Trial] = Pending()
        conditional = any(dimension.active_if for dimension in dimensions)
        together = self.population > 1 or problem.asynchronous
        with _optuna.experimental():  # `group` splits the space into subspaces that are active together
            sampler = _CachingSampler(seed=problem.seed, multivariate=True, group=conditional, constant_liar=together)
        self._study = _optuna.study(sampler, problem.objectives)
        for observation in _optuna.known(problem):
            self._learn(observation)
        self._study.enqueue_trial({d.name: start[d.name] for d in _optuna.actives(dimensions, start)})

    def ask(self, n: int) -> list[Genome]:
        """Propose `n` genomes."""
        asked = []
        for _ in range(n):
            trial = self._study.ask()
            genome = self._suggested(trial)
            self._pending.add(genome, trial)
            asked.append(dict(genome))
        return asked

    def tell(self, observations: Sequence[Observation]) -> None:
        """Finish the pending trials."""
        for observation in observations:
            trial = self._pending.take(observation.genome)
            for name, amount in _optuna.constraints(observation).items():
                trial.set_constraint(name, amount)
            if observation.state == "failed":
                # Optuna ignores failed trials, and would propose their neighbourhood again; a pruned trial without a
                # constraint would rank before those that break theirs
                self._study.tell(trial, state=TrialState.PRUNED)
            else:
                self._study.tell(trial, _optuna.values(observation))

    def stop_reason(self) -> str | None:
        """Return None: the estimator never ends by itself."""
        return None

    def _learn(self, observation: Observation) -> None:
        """Add a finished trial that was never proposed here."""
        scored = observation.state == "scored"
        active = _optuna.actives(self._dimensions, observation.genome)
        self._study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if scored else TrialState.PRUNED,
                values=_optuna.values(observation) if scored else None,
                params={dimension.name: observation.genome[dimension.name] for dimension in active},
                distributions=_optuna.distributions(active),
                constraints=_optuna.constraints(observation),
            )
        )

    def _suggested(self, trial: Trial) -> Genome:
        values: Genome = {}
        for dimension in self._categorical_first:  # activating dimensions come before those they activate
            values[dimension.name] = _optuna.suggest(trial, dimension) if dimension.active(values) else dimension.init
        return {dimension.name: values[dimension.name] for dimension in self._dimensions}


class _CachingSampler(TPESampler):
    """Optuna's sampler, reading each trial once instead of at every ask; proposals are the same.

    With hundreds of workers and hundreds of dimensions, reading takes most of the time of an ask.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._parzen_estimator_cls = Parzen
        self._read: dict[tuple[str, ...], _Rows] = {}
        self._space: dict[str, BaseDistribution] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the dimensions that all trials share; without conditions, these are all once a trial is finished."""
        if self._group:
            return super().infer_relative_search_space(study, trial)
        if not self._space:
            self._space = super().infer_relative_search_space(study, trial)
        return dict(self._space)

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: Study
    ) -> dict[str, np.ndarray]:
        rows = self._read.setdefault(tuple(search_space), _Rows(len(search_space)))
        numbers = np.fromiter((trial.number for trial in trials), np.intp, len(trials))
        # A running trial has values of dimensions that may turn out inactive, so it is read again when finished
        states = np.fromiter(((RUNNING, FINISHED)[trial.state.is_finished()] for trial in trials), np.int8, len(trials))
        for index in rows.unread(numbers, states):
            row = self._row(trials[index], search_space, study)
            rows.put(int(numbers[index]), int(states[index]), row)
        columns = rows.of(numbers)
        return dict(zip(search_space, columns, strict=True))

    def _row(self, trial: FrozenTrial, search_space: dict[str, BaseDistribution], study: Study) -> list[float] | None:
        """Return a trial's values as Optuna's estimators take them; None if some are missing."""
        values = self._get_params(trial, study)
        if not search_space.keys() <= values.keys():
            return None
        return [distribution.to_internal_repr(values[name]) for name, distribution in search_space.items()]


class _Rows:
    """Values of trials in one set of dimensions, by trial number."""

    def __init__(self, width: int) -> None:
        self._values = np.empty((64, width))
        self._states = np.zeros(64, dtype=np.int8)
        self._complete = np.zeros(64, dtype=bool)

    def unread(self, numbers: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Return the positions of the trials that were not read in their current state."""
        while len(numbers) and numbers.max() >= len(self._states):
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
            self._states = np.concatenate([self._states, np.zeros_like(self._states)])
            self._complete = np.concatenate([self._complete, np.zeros_like(self._complete)])
        found: np.ndarray = np.nonzero(self._states[numbers] != states)[0]
        return found

    def put(self, number: int, state: int, row: list[float] | None) -> None:
        """Store a trial's values."""
        self._states[number], self._complete[number] = state, row is not None
        if row is not None:
            self._values[number] = row

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """Return values as (dimensions, trials), without the trials that lack a value."""
        return np.ascontiguousarray(self._values[numbers[self._complete[numbers]]].T)
