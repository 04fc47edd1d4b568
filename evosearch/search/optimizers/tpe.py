"""The tree-structured Parzen estimator (Bergstra et al. 2011), multivariate, by Optuna."""

import math
import warnings
from collections.abc import Sequence

import optuna
from optuna.samplers import TPESampler
from optuna.trial import Trial, TrialState

from evosearch.recipe.shapes import Scalar
from evosearch.search.optimizers._pending import Pending
from evosearch.search.optimizers.registry import OptimizerConfig, optimizer
from evosearch.search.types import Dimension, Genome, Observation

optuna.logging.set_verbosity(optuna.logging.WARNING)  # no line per study; ours is in memory and nobody's business


@optimizer("tpe", categoricals=True)
class Tpe:
    """Optuna's sampler over a study in memory: the ledger is the record, Optuna only proposes.

    Takes every kind of dimension; one that is inactive is not suggested, so the estimator does not learn from values
    that had no effect. Where several are asked together, pending ones count as bad, which keeps them apart. Candidates
    that break a constraint come behind all that break none, by how much they break it.
    """

    def __init__(self, config: OptimizerConfig, dimensions: tuple[Dimension, ...], start: Genome) -> None:
        self.population = config.population or 8
        self._categorical_first = sorted(dimensions, key=lambda dimension: dimension.active_if is not None)
        self._dimensions = dimensions
        self._pending: Pending[Trial] = Pending()
        self._study = optuna.create_study(direction="maximize", sampler=_sampler(config, dimensions, self.population))
        self._study.enqueue_trial({d.name: start[d.name] for d in dimensions if d.active(start)})

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
            if observation.value is None:
                # Of violations, this is the worst. A trial that Optuna knows as failed would be forgotten, and its
                # neighbourhood asked again; a pruned one without a constraint ranks before those that break theirs.
                trial.set_constraint("failed", math.inf)
                self._study.tell(trial, state=TrialState.PRUNED)
            else:
                if observation.violation > 0:
                    trial.set_constraint("violation", observation.violation)
                self._study.tell(trial, observation.value)

    def stop_reason(self) -> str | None:
        return None

    def _suggested(self, trial: Trial) -> Genome:
        values: Genome = {}
        for dimension in self._categorical_first:  # what activates others is known before them
            values[dimension.name] = _suggest(trial, dimension) if dimension.active(values) else dimension.init
        return {dimension.name: values[dimension.name] for dimension in self._dimensions}


def _sampler(config: OptimizerConfig, dimensions: Sequence[Dimension], population: int) -> TPESampler:
    conditional = any(dimension.active_if for dimension in dimensions)
    with warnings.catch_warnings():
        # `group` splits the space into parts that are active together; pinned and covered by our own law tests.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=config.seed, multivariate=True, group=conditional, constant_liar=population > 1)


def _suggest(trial: Trial, dimension: Dimension) -> Scalar:
    if dimension.kind == "categorical":
        return trial.suggest_categorical(dimension.name, dimension.choices)
    if dimension.kind == "int":
        low, high = int(dimension.low), int(dimension.high)
        return int(trial.suggest_int(dimension.name, low, high, log=dimension.log))
    return dimension.clip(float(trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.log)))
