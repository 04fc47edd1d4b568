"""Bayesian optimization with a Gaussian process, by Optuna: expected improvement in log space (Ament et al. 2023,
arXiv:2310.20708), of batches where several are pending; expected hypervolume improvement for several objectives
(Daulton et al. 2020, arXiv:2006.05078); constraints by the probability that they are kept (Gardner et al. 2014).

Optuna's sampler imports torch where it is made: a search by `gp` loads torch into its controller, and no other does.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from optuna.samplers import GPSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from evosearch.errors import SpecError
from evosearch.search.optimizers import _optuna
from evosearch.search.optimizers._pending import Pending
from evosearch.search.optimizers.registry import OptimizerConfig, Problem, optimizer
from evosearch.search.space.types import Genome, Observation

DIMENSIONS = 20  # beyond, its lengthscales are not found in the trials that it can use
TRIALS = 300  # a fit takes time in the cube of these, an ask seconds
KNOWN = 100  # of another search's, the best


@optimizer("gp", categoricals=True, asynchronous=True, objectives=True)
class Gp:
    """At most 20 dimensions and 300 trials; ten random ones first, after the start.

    Every kind of dimension; an inactive one counts with its `init`. Whether constraints are kept is one more process,
    fitted to -1 where all are kept, to 1 and the sum of violations in units of its mean where one is broken, and to
    twice the greatest where a candidate failed. Pending candidates are taken into account, so that a batch is spread.
    The study is made anew at each ask: what violations and failures count depends on all that is known by then.
    """

    def __init__(self, config: OptimizerConfig, problem: Problem) -> None:
        dimensions = problem.dimensions
        if len(dimensions) > DIMENSIONS:
            what = f"gp takes at most {DIMENSIONS} dimensions, and the recipe's holes have {len(dimensions)}"
            next = "Give holes fewer numbers (`per: group`, or one `name` for several), or take cma_es or tpe"
            raise SpecError("name", what, next=next)
        self._size = config.population or 4
        self._dimensions, self._objectives = dimensions, problem.objectives
        self._sampler = GPSampler(seed=config.seed, warn_independent_sampling=False)
        self._pending: Pending[int] = Pending()
        self._asked = 0
        self._waiting: dict[int, Genome] = {}  # what is pending, by its number among the asked
        self._told = _optuna.known(problem)[:KNOWN]
        self._known = len(self._told)
        self._start: Genome | None = problem.start  # until it is asked

    @property
    def population(self) -> int:
        return max(1, min(self._size, TRIALS - len(self._told) - len(self._waiting)))

    def ask(self, n: int) -> list[Genome]:
        return [self._ask_one() for _ in range(n)]

    def tell(self, observations: Sequence[Observation]) -> None:
        for observation in observations:
            del self._waiting[self._pending.take(observation.genome)]
            self._told.append(replace(observation, genome=dict(observation.genome)))

    def stop_reason(self) -> str | None:
        if len(self._told) + len(self._waiting) < TRIALS:
            return None
        known = f", {self._known} of them of the search that it was warm-started from" if self._known else ""
        return f"gp: {TRIALS} trials{known}; a Gaussian process of more takes too long"

    def _ask_one(self) -> Genome:
        genome, self._start = self._start or self._proposed(), None
        self._pending.add(genome, self._asked)
        self._waiting[self._asked] = dict(genome)
        self._asked += 1
        return dict(genome)

    def _proposed(self) -> Genome:
        study = _optuna.study(self._sampler, self._objectives)
        study.add_trials(
            [*self._finished(), *(self._trial(genome, TrialState.RUNNING) for genome in self._waiting.values())]
        )
        with np.errstate(invalid="ignore"):  # Optuna divides 0 by 0 where one point is all there is to gain, rightly
            trial = study.ask()
            genome = {dimension.name: _optuna.suggest(trial, dimension) for dimension in self._dimensions}
        return {d.name: genome[d.name] if d.active(genome) else d.init for d in self._dimensions}

    def _finished(self) -> list[FrozenTrial]:
        """What was told. A failure has the worst of each objective; constraints are there where any was broken."""
        scored = [_optuna.values(one) for one in self._told if one.state == "scored"]
        worst = [min(found) for found in zip(*scored, strict=True)] or [0.0] * self._objectives
        broken = [one.violation for one in self._told if one.violation > 0]
        unit = sum(broken) / len(broken) if broken else 1.0
        failed = 2.0 * (1.0 + max(broken, default=0.0) / unit)
        constrained = bool(broken) or len(scored) < len(self._told)

        def amount(one: Observation) -> float:
            if one.state == "failed":
                return failed
            return 1.0 + one.violation / unit if one.violation > 0 else -1.0

        return [
            self._trial(
                one.genome,
                TrialState.COMPLETE,
                _optuna.values(one) or worst,
                {"violation": amount(one)} if constrained else None,
            )
            for one in self._told
        ]

    def _trial(
        self,
        genome: Genome,
        state: TrialState,
        values: Sequence[float] | None = None,
        constraints: dict[str, float] | None = None,
    ) -> FrozenTrial:
        return create_trial(
            state=state,
            values=values,
            params=dict(genome),
            distributions=_optuna.distributions(self._dimensions),
            constraints=constraints,
        )
