"""NSGA-II (Deb et al. 2002, doi:10.1109/4235.996017), by Optuna: non-dominated sorting and crowding distance."""

from collections.abc import Sequence

from optuna.samplers import NSGAIISampler
from optuna.samplers.nsgaii import PolynomialMutation, SBXCrossover
from optuna.trial import Trial, create_trial

from evosearch.search.optimizers import _optuna
from evosearch.search.optimizers._pending import Pending
from evosearch.search.optimizers.registry import OptimizerConfig, Problem, optimizer
from evosearch.search.space.types import Genome, Observation

POPULATION = 16  # parents of a generation, where the spec says nothing
CROSSOVER_ETA = 2.0  # distribution index: low, so that budgets of hundreds of candidates get across the space


@optimizer("nsga2", categoricals=True, objectives=True, least_population=4)
class Nsga2:
    """Parents cross (simulated binary crossover; categoricals by exchange) and children mutate (polynomial mutation).

    Constraints rank as in the paper: what keeps them dominates what breaks one. A dimension that is inactive in a
    genome is still inherited, unseen, and comes into effect where a child activates it. Parents are chosen at the first
    ask of a generation, and what is told later is never one: so it is told whole generations, and is not asynchronous.
    What is known of another search is the first generation, or part of it.
    """

    def __init__(self, config: OptimizerConfig, problem: Problem) -> None:
        self._size = config.population or POPULATION
        self._asked = 0
        self._dimensions, self._objectives = problem.dimensions, problem.objectives
        self._pending: Pending[Trial] = Pending()
        with _optuna.experimental():  # polynomial mutation
            sampler = NSGAIISampler(
                population_size=self._size,
                crossover=SBXCrossover(eta=CROSSOVER_ETA),
                mutation=PolynomialMutation(),
                seed=config.seed,
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
        """The size at the start of a generation, what is left of it later."""
        return self._size - self._asked % self._size

    def ask(self, n: int) -> list[Genome]:
        return [self._ask_one() for _ in range(n)]

    def tell(self, observations: Sequence[Observation]) -> None:
        for observation in observations:
            trial = self._pending.take(observation.genome)
            for name, amount in _optuna.constraints(observation).items():
                trial.set_constraint(name, amount)
            self._study.tell(trial, self._values(observation))

    def stop_reason(self) -> str | None:
        return None

    def _ask_one(self) -> Genome:
        trial = self._study.ask()
        if not self._asked:  # the start: what is not drawn has no generation until somebody asks for it
            self._sampler.get_trial_generation(self._study, self._study.trials[-1])
        genome = {dimension.name: _optuna.suggest(trial, dimension) for dimension in self._dimensions}
        genome = {d.name: genome[d.name] if d.active(genome) else d.init for d in self._dimensions}
        self._pending.add(genome, trial)
        self._asked += 1
        return dict(genome)

    def _values(self, observation: Observation) -> list[float]:
        """Of a failure they decide nothing, since it breaks a constraint by more than anybody; but it fills its place
        in the generation, which ends when so many are told.
        """
        return _optuna.values(observation) or [0.0] * self._objectives
