"""One cell of the board: a problem, a method, an optimizer and a seed, and the spec that `evosearch run` gets."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.board.entries import Given, Json, Method, Optimizer, Problem
from evosearch.evaluation.statistics.gradient_steps import LEAST_HELD_BACK, MOST_HELD_BACK

HIGH = 1.5  # upper bound of a weight; the lower one is 0
BY_GRADIENT = ("gradient", "auto")  # optimizers that compare models on the held-back part
Key = tuple[str, str, str, int, int]  # problem, method, optimizer, seed, item evaluations


@dataclass(frozen=True)
class Cell:
    """One search of the board."""

    problem: Problem
    method_name: str
    method: Method
    optimizer_name: str
    optimizer: Optimizer
    seed: int
    items: int
    documents: Mapping[str, int]  # split → documents per task that replace the problem's

    @property
    def key(self) -> Key:
        """What identifies the cell in the results."""
        return self.problem.name, self.method_name, self.optimizer_name, self.seed, self.items

    @property
    def label(self) -> str:
        """The cell in a line of progress."""
        return f"{self.problem.name}, {self.method_name}, {self.optimizer_name}, seed {self.seed}"

    def suite(self, given: Given) -> Json:
        """The suite: the problem's, with the method's keys; every seed draws other documents."""
        replaced = dict(self.method.suite)
        documents = {**given.suite["documents"], **replaced.pop("documents", {}), **self.documents}
        return {**given.suite, **replaced, "documents": documents, "split_seed": self.seed}

    def spec(self, given: Given, suite: Path, threads: int) -> Json:
        """The search spec.

        Args:
            given: Inputs of the problem.
            suite: Path of the suite file.
            threads: CPU threads of the worker.
        """
        hole = {"low": 0.0, "high": HIGH, **self.method.weight(self.problem)}
        return {
            "name": self.name(given),
            "recipe": {
                "merge_method": "task_arithmetic",
                "base_model": given.base,
                "models": [{"model": expert, "parameters": {"weight": hole}} for expert in given.experts],
                "dtype": "float32",
            },
            "optimizer": {**self.optimizer.config, "seed": self.seed},
            "suite": str(suite),
            "budget": {"items": self.items},
            "workers": {"executor": "local", "threads": threads},
            "tracking": {"uri": "jsonl:tracking.jsonl"},
            "baselines": {"scales": list(self.problem.scales), **self.method.baselines},
            "promotion": {"finalists": self.problem.finalists},
        }

    def digest(self, given: Given) -> str:
        """Eight digits of everything that the result depends on, apart from the models' weights and the code."""
        suite = {key: value for key, value in self.suite(given).items() if key != "include"}
        settings = {
            "hole": self.method.weight(self.problem),
            "high": HIGH,
            "optimizer": dict(self.optimizer.config),
            "scales": self.problem.scales,
            "finalists": self.problem.finalists,
            "baselines": dict(self.method.baselines),
            "experts": len(given.experts),
            "suite": suite,
        }
        return hashlib.sha256(json.dumps([self.key, settings], sort_keys=True).encode()).hexdigest()[:8]

    def name(self, given: Given) -> str:
        """Name of the search; a changed cell is another search."""
        parts = (self.problem.name, self.method_name, self.optimizer_name, str(self.seed), self.digest(given))
        return ".".join(parts)

    def write(self, given: Given, folder: Path, threads: int) -> Path:
        """Write spec and suite; return the path of the spec."""
        folder.mkdir(parents=True, exist_ok=True)
        suite, spec = folder / "suite.yaml", folder / "spec.yaml"
        suite.write_text(yaml.safe_dump(self.suite(given), sort_keys=False), encoding="utf-8")
        spec.write_text(yaml.safe_dump(self.spec(given, suite, threads), sort_keys=False), encoding="utf-8")
        return spec

    def evaluations(self, given: Given) -> int:
        """Estimated number of items that are scored or differentiated, a gradient counted three times.

        Search and controls, baselines, validation of finalists and baselines, and the models that the gate compares.
        """
        counts: dict[str, int] = self.suite(given)["documents"]
        tasks = len(given.suite["tasks"])
        compared = counts["search"]
        if self.optimizer_name in BY_GRADIENT and compared >= 10 * LEAST_HELD_BACK:
            compared = min(compared // 10, MOST_HELD_BACK // tasks)
        plain = len(given.experts) + 2  # base, experts, uniform average
        controls = sum(bool(on) for on in self.method.baselines.values())
        models = {
            "search": plain + len(self.problem.scales),
            "validation": plain + 3 + self.problem.finalists,  # the three best scales
            "test": plain + 2 + controls,  # winner and best scale
        }
        documents = {**counts, "search": compared}
        return self.items * (1 + controls) + tasks * sum(documents[split] * count for split, count in models.items())
