"""NSGA-II, non-dominated sorting with crowding distance (Deb et al. 2002, doi:10.1109/4235.996017), by Optuna."""

from collections.abc import Sequence

from optuna.samplers import NSGAIISampler
from optuna.samplers.nsgaii import PolynomialMutation, SBXCrossover
from optuna.trial import Trial, create_trial

from evosearch.search.optimizer import Problem
from evosearch.search.optimizers import _optuna
from evosearch.search.optimizers.registry import optimizer
from evosearch.search.pending import Pending
from evosearch.search.space.dimensions import Genome, Observation

CROSSOVER_ETA = 2.0  # distribution index: low, so that budgets of hundreds of candidates cross the space


@optimizer("nsga2", population=16, categoricals=True, objectives=True, least_population=4)
class Nsga2:
    """Simulated binary crossover of parents (categoricals are exchanged) and polynomial mutation of children.

    Constraints rank as in the paper: candidates that keep them dominate those that break one. Inactive dimensions are
    inherited too, and take effect if a child activates them. Parents are chosen at the first ask of a generation, and
    later results are ignored: it needs complete generations and does not support asynchronous mode. The known
    candidates of another search are the first generation, or part of it.
    """

    def __init__(self, problem: Problem) -> None:
        self._size = problem.population
        self._asked = 0
        self._dimensions, self._objectives = problem.dimensions, problem.objectives
        self._pending: Pending[Trial] = Pending()
        with _optuna.experimental():  # polynomial mutation
            sampler = NSGAIISampler(
                population_size=self._size,
                crossover=SBXCrossover(eta=CROSSOVER_ETA),
                mutation=PolynomialMutation(),
                seed=problem.seed,
            )
        self._study = _optuna.study(sampler, problem.objectives)
        for observation in _optuna.known(problem):
            self._study.add_trial(
                create_trial(
                    values=self._values(observation),
                    params=dict(observation.genome),
                    distributions=_optuna.distributions(self._dimensions),
                    constraints=_optuna.constraints(observation),
                    system_attrs={sampler._get_generation_key(): 0},
                )
            )
        self._study.enqueue_trial(dict(problem.start))
        self._sampler = sampler

    @property
    def population(self) -> int:
        """The size at the start of a generation, later the number of candidates that are left."""
        return self._size - self._asked % self._size

    def ask(self, n: int) -> list[Genome]:
        """Propose `n` genomes."""
        return [self._ask_one() for _ in range(n)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Finish the pending trials."""
        for observation in observations:
            trial = self._pending.take(observation.genome)
            for name, amount in _optuna.constraints(observation).items():
                trial.set_constraint(name, amount)
            self._study.tell(trial, self._values(observation))

    def stop_reason(self) -> str | None:
        """Return None: NSGA-II never ends by itself."""
        return None

    def _ask_one(self) -> Genome:
        trial = self._study.ask()
        if not self._asked:  # Optuna assigns the enqueued start its generation only when asked for it
            self._sampler.get_trial_generation(self._study, self._study.trials[-1])
        genome = {dimension.name: _optuna.suggest(trial, dimension) for dimension in self._dimensions}
        genome = {d.name: genome[d.name] if d.active(genome) else d.init for d in self._dimensions}
        self._pending.add(genome, trial)
        self._asked += 1
        return dict(genome)

    def _values(self, observation: Observation) -> list[float]:
        """Return the objectives; zeros for a failure, which only complete the generation.

        A failure ranks last by its constraint.
        """
        return _optuna.values(observation) or [0.0] * self._objectives
