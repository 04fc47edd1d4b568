"""One worker and search spaces of the same merge, which differ in the number of coefficients."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """Figures of one kind of models; times in seconds of processor time."""

    models: str
    parameters: int
    items: int
    tokens: int
    few: int  # coefficients
    many: int
    score: float
    gradient: float  # in few coefficients
    cost: float  # gradient / score
    cost_of_many: float
    many_to_few: float


class Case:
    """A worker, and search spaces with few and many coefficients.

    Args:
        base: Reference of the base.
        parents: References of the parents.
        suite: The suite's file.
        cache: Folder of prepared models.
        holes: The weight of every parent, in each space.
        dtype: Type that merged weights are rounded to.
    """

    def __init__(
        self, base: str, parents: Sequence[str], suite: Path, cache: Path, holes: Sequence[Any], dtype: str = "float32"
    ) -> None:
        from evosearch.evaluation.suites.suite import load_suite
        from evosearch.execution.worker import Worker
        from evosearch.execution.worker_config import WorkerConfig
        from evosearch.merging.registry import specs
        from evosearch.search.space.space import SearchSpace

        def recipe(weight: Any) -> dict[str, Any]:
            models = [{"model": parent, "parameters": {"weight": weight}} for parent in parents]
            return {"merge_method": "task_arithmetic", "base_model": base, "models": models, "out_dtype": dtype}

        loaded = load_suite(suite).model_copy(update={"fitness": "expected_score"})
        config = WorkerConfig(recipe(0.5), loaded.model_dump(mode="json"), cache, dtype, device="cpu", threads=1)
        self.worker = Worker(config)
        shape = self.worker.checkpoints[base].shape
        self.spaces = [SearchSpace.from_template(recipe(hole), shape, specs()) for hole in holes]
        model: Any = self.worker.resident.model
        self.parameters = sum(parameter.numel() for parameter in model.parameters())

    def batch(self, split: str, documents: int) -> Any:
        """Return the first documents of each task of a split."""
        from evosearch.evaluation.statistics.minibatches import taken

        full = self.worker.scorer.batch(split)
        return replace(full, sets=tuple(taken(items, range(min(documents, len(items)))) for items in full.sets))

    def run(self, batch: Any, space: int, shift: float, gradient: bool) -> tuple[float, Any]:
        """Run one job at coefficients of 0.4 + `shift`; return its processor time and its card."""
        from evosearch.search.protocols import Job

        own = self.spaces[space]
        genome = own.with_weight(0.4 + shift)
        count = len(own.dimensions) if gradient else None
        job = Job("job", own.with_derivatives(genome) if gradient else own.fill(genome), batch, gradient=count)
        started = time.process_time()
        outcome = self.worker.run(job)
        spent = time.process_time() - started
        assert outcome.failure is None, outcome.failure
        return spent, outcome.gradient or outcome.card

    def row(self, models: str, batch: Any, rounds: int) -> Row:
        """Run all kinds of jobs in turn, each at other coefficients; the first round lays out the items."""
        times: list[tuple[float, float, float]] = []
        tokens = 0
        for number in range(rounds + 1):
            shifts = [0.01 * number + 0.001 * kind for kind in range(3)]
            score, _ = self.run(batch, 0, shifts[0], False)
            few, card = self.run(batch, 0, shifts[1], True)
            many, _ = self.run(batch, 1, shifts[2], True)
            times.append((score, few, many))
            tokens = card.tokens.forwarded
        middle = statistics.median
        del times[0]
        few_many = [len(space.dimensions) for space in self.spaces]
        return Row(
            models,
            self.parameters,
            len(batch),
            tokens,
            few=few_many[0],
            many=few_many[1],
            score=middle(score for score, _, _ in times),
            gradient=middle(few for _, few, _ in times),
            cost=middle(few / score for score, few, _ in times),
            cost_of_many=middle(many / score for score, _, many in times),
            many_to_few=middle(many / few for _, few, many in times),
        )
