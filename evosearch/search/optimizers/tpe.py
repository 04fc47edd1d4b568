"""The tree-structured Parzen estimator (Bergstra et al. 2011), multivariate, by Optuna; for several objectives with
the split of Ozaki et al. (2022, doi:10.1613/jair.1.13188).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from evosearch.search.optimizers import _optuna
from evosearch.search.optimizers._parzen import Parzen
from evosearch.search.optimizers._pending import Pending
from evosearch.search.optimizers.registry import OptimizerConfig, Problem, optimizer
from evosearch.search.space.types import Genome, Observation

RUNS, ENDED = 1, 2  # states in which a trial is read; 0: it was not


@optimizer("tpe", categoricals=True, asynchronous=True, objectives=True)
class Tpe:
    """Optuna's sampler over a study in memory: the ledger is the record, Optuna only proposes.

    Takes every kind of dimension; one that is inactive is not suggested, so the estimator does not learn from values
    that had no effect. Where several are pending at once, they count as bad, which keeps them apart. Candidates that
    break a constraint come behind all that break none, by how much they break it. What is known of another search are
    finished trials, before the first.
    """

    def __init__(self, config: OptimizerConfig, problem: Problem) -> None:
        dimensions, start = problem.dimensions, problem.start
        self.population = config.population or 8
        self._categorical_first = sorted(dimensions, key=lambda dimension: dimension.active_if is not None)
        self._dimensions = dimensions
        self._pending: Pending[Trial] = Pending()
        conditional = any(dimension.active_if for dimension in dimensions)
        together = self.population > 1 or config.asynchronous
        with _optuna.experimental():  # `group` splits the space into parts that are active together
            sampler = _Remembering(seed=config.seed, multivariate=True, group=conditional, constant_liar=together)
        self._study = _optuna.study(sampler, problem.objectives)
        for observation in _optuna.known(problem):
            self._learn(observation)
        self._study.enqueue_trial({d.name: start[d.name] for d in _optuna.actives(dimensions, start)})

    def ask(self, n: int) -> list[Genome]:
        asked = []
        for _ in range(n):
            trial = self._study.ask()
            genome = self._suggested(trial)
            self._pending.add(genome, trial)
            asked.append(dict(genome))
        return asked

    def tell(self, observations: Sequence[Observation]) -> None:
        for observation in observations:
            trial = self._pending.take(observation.genome)
            for name, amount in _optuna.constraints(observation).items():
                trial.set_constraint(name, amount)
            if observation.state == "failed":
                # A trial that Optuna knows as failed would be forgotten, and its neighbourhood asked again; a pruned
                # one without a constraint would rank before those that break theirs.
                self._study.tell(trial, state=TrialState.PRUNED)
            else:
                self._study.tell(trial, _optuna.values(observation))

    def stop_reason(self) -> str | None:
        return None

    def _learn(self, observation: Observation) -> None:
        """A finished trial that was never asked."""
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
        for dimension in self._categorical_first:  # what activates others is known before them
            values[dimension.name] = _optuna.suggest(trial, dimension) if dimension.active(values) else dimension.init
        return {dimension.name: values[dimension.name] for dimension in self._dimensions}


class _Remembering(TPESampler):
    """Optuna's sampler, which reads all trials of the past at every ask: here each is read once, and asks are the same.

    With hundreds of workers on hundreds of dimensions that reading is most of what an ask takes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._parzen_estimator_cls = Parzen
        self._read: dict[tuple[str, ...], _Rows] = {}
        self._space: dict[str, BaseDistribution] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What all trials have in common: where nothing is conditional every dimension, as soon as one is finished."""
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
        # While it runs, a trial has values of dimensions that turn out inactive: it is read again when it is finished
        states = np.fromiter(((RUNS, ENDED)[trial.state.is_finished()] for trial in trials), np.int8, len(trials))
        for index in rows.unread(numbers, states):
            row = self._row(trials[index], search_space, study)
            rows.put(int(numbers[index]), int(states[index]), row)
        columns = rows.of(numbers)
        return dict(zip(search_space, columns, strict=True))

    def _row(self, trial: FrozenTrial, search_space: dict[str, BaseDistribution], study: Study) -> list[float] | None:
        """One trial's values as Optuna's estimators take them; None where it lacks some."""
        values = self._get_params(trial, study)
        if not search_space.keys() <= values.keys():
            return None
        return [distribution.to_internal_repr(values[name]) for name, distribution in search_space.items()]


class _Rows:
    """Values of trials, by number; of one set of dimensions."""

    def __init__(self, width: int) -> None:
        self._values = np.empty((64, width))
        self._states = np.zeros(64, dtype=np.int8)
        self._whole = np.zeros(64, dtype=bool)

    def unread(self, numbers: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Positions of the trials that were never read in their state."""
        while len(numbers) and numbers.max() >= len(self._states):
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
            self._states = np.concatenate([self._states, np.zeros_like(self._states)])
            self._whole = np.concatenate([self._whole, np.zeros_like(self._whole)])
        found: np.ndarray = np.nonzero(self._states[numbers] != states)[0]
        return found

    def put(self, number: int, state: int, row: list[float] | None) -> None:
        self._states[number], self._whole[number] = state, row is not None
        if row is not None:
            self._values[number] = row

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """(dimensions, trials), without the trials that lack a value."""
        return np.ascontiguousarray(self._values[numbers[self._whole[numbers]]].T)
