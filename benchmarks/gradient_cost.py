"""Cost of gradient jobs: time relative to scoring the same items, and memory at the shape of a 1B model.

    .venv/bin/python -m benchmarks.gradient_cost [zoo small adapters memory] [--rounds N] [--documents N]

A worker in this process runs, in turn, a scoring job, a gradient job in few coefficients and one in many, each at other
coefficients; ratios are medians over rounds of the jobs' processor times, merging included.

    zoo        the models and the search items of the quickstart
    small      random models of the shape of SmolLM2-135M with three parents, on short documents
    adapters   the same with three LoRA adapters of rank 16
    memory     one gradient step of a random bfloat16 model of the shape of Llama-3.2-1B with two parents, on a CPU

One thread. Prints one JSON document and tables. Exit code 1 if a claim is not met.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks._gradient_cost.case import Case, Row
from benchmarks._gradient_cost.step import Memory
from benchmarks._made_up_suites.settings import SETTINGS, write_suite
from benchmarks._paths import EVALS, ROOT
from benchmarks._random_models.llama import BILLION, PROJECTIONS, SMALL, write_adapter, write_model
from benchmarks._report import publish

COST, MANY_TO_FEW, PEAK_GIB = 3.3, 1.1, 12.0  # claims
PARENTS = (1, 2, 3)
WEIGHT: dict[str, Any] = {"low": 0.0, "high": 1.5}
FEW = {**WEIGHT, "per": "group", "groups": 4, "ends": "shared"}
MANY = [*({"filter": name, "value": {**WEIGHT, "per": "layer"}} for name in PROJECTIONS), {"filter": "*", "value": 0.5}]


def zoo(folder: Path, rounds: int, documents: int) -> Row:
    """Measure the built-in models, which are trained on first use."""
    from evosearch.checkpoints.references import default_cache

    parents = [f"zoo:tiny/{name}" for name in ("reverse", "sort", "deal", "median")]
    holes = [{**WEIGHT, "per": "group", "groups": 3, "ends": "shared"}, {**WEIGHT, "per": "tensor"}]
    case = Case("zoo:tiny/base", parents, EVALS / "quickstart.yaml", default_cache(), holes)
    return case.row("zoo", case.batch("search", 60), rounds)


def small(folder: Path, rounds: int, documents: int) -> Row:
    """Measure random models of the shape of SmolLM2-135M."""
    base = write_model(folder / "base", SMALL, 0)
    parents = [str(write_model(folder / str(seed), SMALL, seed, base)) for seed in PARENTS]
    return _small(SMALL.name, base, parents, folder, rounds, documents)


def adapters(folder: Path, rounds: int, documents: int) -> Row:
    """Measure adapters of such a model."""
    base = write_model(folder / "base", SMALL, 0)
    parents = [f"{base}+{write_adapter(folder / str(seed), SMALL, seed)}" for seed in PARENTS]
    return _small(f"{SMALL.name}, adapters", base, parents, folder, rounds, documents)


def _small(name: str, base: Path, parents: list[str], folder: Path, rounds: int, documents: int) -> Row:
    case = Case(str(base), parents, _suite(folder), folder, [FEW, MANY])
    return case.row(name, case.batch("test", documents), rounds)


def memory(folder: Path, rounds: int, documents: int) -> Memory:
    """Measure one gradient step of the 1B shape, in a process of its own."""
    base = write_model(folder / "base", BILLION, 0)
    for seed in PARENTS[:2]:
        write_model(folder / str(seed), BILLION, seed, base)
    _suite(folder)
    command = [sys.executable, "-m", "benchmarks._gradient_cost.step", str(folder), str(documents)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def _suite(folder: Path) -> Path:
    return write_suite(folder / "suite", SETTINGS["zero-shot, choices of one token"], 64)


Part = Callable[[Path, int, int], Row | Memory]
COSTS: dict[str, Part] = {"zoo": zoo, "small": small, "adapters": adapters}
PARTS: dict[str, Part] = COSTS | {"memory": memory}


def table(rows: list[Row]) -> str:
    """Markdown table of times."""
    lines = [
        "| models | weights | items | tokens | score, s | gradient, s | ratio | coefficients | ratio "
        "| coefficients | many / few |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells: list[Any] = [row.models, f"{row.parameters / 1e6:.1f}M", row.items, row.tokens]
        cells += [f"{row.score:.3g}", f"{row.gradient:.3g}", f"{row.cost:.2f}", row.few]
        cells += [f"{row.cost_of_many:.2f}", row.many, f"{row.many_to_few:.3f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def described(found: Memory) -> str:
    """Return the figures of the gradient step in words."""
    sizes = f"{found.parameters / 1e9:.2f}B weights, {found.items} items, {found.tokens} tokens"
    peaks = f"peaks without mapped files: start {found.start:.1f} GiB, scoring {found.score:.1f}, gradient step "
    times = f"{found.gradient_seconds:.0f} s ({found.gradient_seconds / found.score_seconds:.1f} times the scoring job)"
    return f"{sizes}; {peaks}{found.gradient:.1f} GiB, {times}."


def main() -> int:
    """Run the parts; return the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.gradient_cost", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"default: {' '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--documents", type=int, default=24, help="of the random models; default %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Row | Memory] = {}
    for name in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = PARTS[name](Path(folder), options.rounds, options.documents)
        print(f"{name}: {found[name]}", file=sys.stderr)
    rows = [row for row in found.values() if isinstance(row, Row)]
    steps = [step for step in found.values() if isinstance(step, Memory)]
    publish(
        {name: asdict(one) for name, one in found.items()}, *([table(rows)] if rows else []), *map(described, steps)
    )
    met = all(max(row.cost, row.cost_of_many) <= COST and row.many_to_few <= MANY_TO_FEW for row in rows)
    return int(not (met and all(max(step.start, step.gradient) <= PEAK_GIB for step in steps)))


if __name__ == "__main__":
    sys.exit(main())
