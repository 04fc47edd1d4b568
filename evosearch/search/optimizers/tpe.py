"""The tree-structured Parzen estimator (Bergstra et al. 2011), multivariate, by Optuna; for several objectives with
the split of Ozaki et al. (2022, doi:10.1613/jair.1.13188)."""

from collections.abc import Sequence

from optuna.samplers import TPESampler
from optuna.trial import Trial, TrialState, create_trial

from evosearch.search.optimizers import _optuna
from evosearch.search.optimizers._pending import Pending
from evosearch.search.optimizers.registry import OptimizerConfig, Problem, optimizer
from evosearch.search.types import Genome, Observation


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
            sampler = TPESampler(seed=config.seed, multivariate=True, group=conditional, constant_liar=together)
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
