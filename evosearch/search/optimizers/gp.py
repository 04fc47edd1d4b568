"""Bayesian optimization with a Gaussian process, by Optuna.

Acquisition is expected improvement in log space (Ament et al. 2023, arXiv:2310.20708), over batches if several are
pending; expected hypervolume improvement for several objectives (Daulton et al. 2020, arXiv:2006.05078); constraints
enter by the probability that they are kept (Gardner et al. 2014).

Optuna's sampler imports torch when it is built, so that only a search by `gp` loads torch into its controller.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from optuna.samplers import GPSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from evosearch.errors import SpecError
from evosearch.search.optimizer import Problem
from evosearch.search.optimizers import _optuna
from evosearch.search.optimizers.registry import optimizer
from evosearch.search.pending import Pending
from evosearch.search.space.dimensions import Dimension, Genome, Observation

DIMENSIONS = 20  # lengthscales of more dimensions cannot be estimated from TRIALS trials
TRIALS = 300  # a fit takes time cubic in these, an ask seconds
KNOWN = 100  # best candidates taken over from another search


def _check(dimensions: Sequence[Dimension]) -> None:
    """Check the number of dimensions.

    Raises:
        SpecError: There are too many.
    """
    if len(dimensions) > DIMENSIONS:
        what = f"gp takes at most {DIMENSIONS} dimensions, but the recipe's holes have {len(dimensions)}"
        next = "Give holes fewer numbers (`per: group`, or one `name` for several), or use cma_es or tpe"
        raise SpecError("name", what, next=next)


@optimizer("gp", population=4, categoricals=True, asynchronous=True, objectives=True, fits=_check)
class Gp:
    """Gaussian process over at most 20 dimensions and 300 trials, the first ten of them random, after the start.

    Takes every kind of dimension; inactive ones count with their `init`. Whether constraints are kept is modelled by a
    further process, fitted to -1 if all are kept, to 1 plus the sum of violations in units of its mean if one is
    broken, and to twice the largest of these for a failed candidate. Pending candidates are taken into account, so that
    a batch spreads out. The study is rebuilt at each ask, since the values for violations and failures depend on all
    results so far.
    """

    def __init__(self, problem: Problem) -> None:
        self._size = problem.population
        self._dimensions, self._objectives = problem.dimensions, problem.objectives
        self._sampler = GPSampler(seed=problem.seed, warn_independent_sampling=False)
        self._pending: Pending[int] = Pending()
        self._asked = 0
        self._waiting: dict[int, Genome] = {}  # pending genomes by ask index
        self._told = _optuna.known(problem)[:KNOWN]
        self._known = len(self._told)
        self._start: Genome | None = problem.start  # until it is proposed

    @property
    def population(self) -> int:
        """Number of candidates to propose together next."""
        return max(1, min(self._size, TRIALS - len(self._told) - len(self._waiting)))

    def ask(self, n: int) -> list[Genome]:
        """Propose `n` genomes."""
        return [self._ask_one() for _ in range(n)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Keep the results for the next fit."""
        for observation in observations:
            del self._waiting[self._pending.take(observation.genome)]
            self._told.append(replace(observation, genome=dict(observation.genome)))

    def stop_reason(self) -> str | None:
        """Return a reason if there are too many trials to fit."""
        if len(self._told) + len(self._waiting) < TRIALS:
            return None
        known = f", {self._known} of them from the warm start" if self._known else ""
        return f"gp: reached {TRIALS} trials{known}; fitting a Gaussian process to more takes too long"

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
        with np.errstate(invalid="ignore"):  # Optuna divides 0 by 0 if only one point improves, which is handled
            trial = study.ask()
            genome = {dimension.name: _optuna.suggest(trial, dimension) for dimension in self._dimensions}
        return {d.name: genome[d.name] if d.active(genome) else d.init for d in self._dimensions}

    def _finished(self) -> list[FrozenTrial]:
        """Return the finished trials. Failures get the worst of each objective; constraints are set once broken."""
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
