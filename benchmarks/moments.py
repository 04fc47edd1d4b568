"""Memory of methods with statistics, at the widths of Llama's shape of 7B: of the statistics, and of regmean's merge.

    .venv/bin/python -m benchmarks.moments [--layers 1 2] [--tokens 512] [--methods M ...]

Models have 7B's widths and vocabulary, random weights in bfloat16 and few layers, and run in float32 on the CPU.
`--tied` ties the embeddings, whose two gradients are then added. Every measurement is a process of its own. Memory is
anonymous (RssAnon + RssShmem, read every 10 ms): the mapped files of models and of the sums are left out, since the
system may drop their pages. "Beside" is the peak above the built model; what grows with depth is the difference between
two depths. `regmean_merge` solves the equations of the widest layer for two models, whose statistics it computes first;
"beside" is the peak above the memory before that. Exit code 1 if one exceeds 1.5 GiB.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from benchmarks._gradient_cost.step import peak, resident
from benchmarks._random_models.llama import Shape, write_model
from benchmarks._report import publish

if TYPE_CHECKING:
    from evosearch.checkpoints.reader import Checkpoint
    from evosearch.recipe.schema import Recipe

SHAPE = Shape("7B", 1, 4096, 11008, 32, 32, 32000, "bfloat16", tied=False)
SEQUENTIAL = "regmean_plus"  # its statistics are those of a merge of two models
MERGE = "regmean_merge"
WIDEST = "model.layers.0.mlp.down_proj.weight"  # (4096, 11008)
METHODS = ("regmean", "fisher", SEQUENTIAL, MERGE)
PAIRS = (SEQUENTIAL, MERGE)  # which need two models
MOST = 1.5  # GiB beside the model


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.moments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2], help="depths, default 1 2")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    parser.add_argument("--documents", type=int, default=2, help="documents, default %(default)s")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a document, default %(default)s")
    parser.add_argument("--tied", action="store_true", help="tie the embeddings")
    parser.add_argument("--width", type=int, default=SHAPE.width, help="hidden size, default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default %(default)s")
    parser.add_argument("--folder", type=Path, help="folder for the models, default a temporary one")
    parser.add_argument("--step", metavar="METHOD", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    """Measure every method at every depth, and print the figures."""
    given = parse_arguments()
    if given.step:
        print(json.dumps(step(given)))
        return 0
    rows = []
    with TemporaryDirectory(prefix="moments-", dir=given.folder) as work:
        for layers in given.layers:
            shape = replace(_shape(layers, given.width), tied=given.tied)
            folder = Path(work) / str(layers)
            for seed, name in enumerate(("one", "two") if {*PAIRS} & {*given.methods} else ("one",)):
                write_model(folder / name, shape, seed, folder / "one" if seed else None)
            for method in given.methods:
                rows.append({"layers": layers, "parameters": shape.parameters} | _process(given, method, folder))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    publish({"rows": rows, "most_gib": MOST}, table(rows))
    return int(any(row["beside_gib"] > MOST for row in rows))


def step(given: argparse.Namespace) -> dict[str, Any]:
    """Measure one method over drawn tokens in this process; return its figures."""
    from evosearch.checkpoints.reader import Checkpoint
    from evosearch.materialize.plan import statistics_key
    from evosearch.merging.registry import specs
    from evosearch.moments import merge_moments, sampled_moments
    from evosearch.recipe.sample import Sample
    from evosearch.recipe.schema import Recipe

    torch.set_num_threads(given.threads)
    names = [str(given.folder / name) for name in (("one", "two") if given.step in PAIRS else ("one",))]
    sample, method = Sample(text="drawn tokens"), "regmean" if given.step == MERGE else given.step
    entries = [{"model": name} for name in names]
    recipe = Recipe.model_validate(
        {"merge_method": method, "models": entries, "sample": sample.model_dump(exclude_defaults=True)}
    )
    spec, models = specs()[method], {name: Checkpoint.open(Path(name), name) for name in names}
    drawn = torch.randint(
        3, SHAPE.vocabulary, (given.documents, given.tokens), generator=torch.Generator().manual_seed(5)
    )
    tokens = tuple(map(tuple, drawn.tolist()))
    cache = given.folder / f"cache-{method}"
    samples = sampled_moments.SampledMoments(cache, "cpu", known={sample.key: tokens})
    samples.attach(sample, models, recipe)
    if given.step == MERGE:
        return merge_step(recipe, models) | {"file_gib": _written(cache)}
    built = list[float]()
    for module in (merge_moments, sampled_moments):
        module.build = _noting(module.build, built)  # type: ignore[attr-defined]
    started = time.perf_counter()
    with peak() as found:
        models[names[0]].statistics[statistics_key(recipe, spec)].has("")
    return {
        "method": given.step,
        "model_gib": built[0],
        "peak_gib": found[0],
        "beside_gib": found[0] - built[0],
        "file_gib": _written(cache),
        "seconds": time.perf_counter() - started,
    }


def merge_step(recipe: "Recipe", models: "Mapping[str, Checkpoint]") -> dict[str, Any]:
    """Merge the widest weight in this process; return the figures."""
    from evosearch.materialize.apply import merge, operations

    shapes = {name: one.shape for name, one in models.items()}
    ops = operations(
        recipe,
        shapes,
        shapes[recipe.references()[0]],
        lambda one: models[one.reference].load(one.tensor),
        str,
        checkpoints=models,
    )  # computes the statistics
    op = next(op for op in ops if op.tensor == WIDEST)
    before, started = resident(), time.perf_counter()
    with peak() as found:
        merge(op, lambda one: models[one.reference].load(one.tensor), torch.bfloat16)
    seconds = time.perf_counter() - started
    return {
        "method": MERGE,
        "model_gib": before,
        "peak_gib": found[0],
        "beside_gib": found[0] - before,
        "seconds": seconds,
    }


def _written(cache: Path) -> float:
    return sum(file.stat().st_size for file in cache.rglob("*.safetensors")) / 2**30


def _noting(build: Any, built: list[float]) -> Any:
    """Return `build`, which then notes the memory with the model built."""

    def noting(*arguments: Any) -> Any:
        model = build(*arguments)
        built.append(resident())
        return model

    return noting


def _process(given: argparse.Namespace, method: str, folder: Path) -> dict[str, Any]:
    options = {"--documents": given.documents, "--tokens": given.tokens, "--threads": given.threads}
    command = [sys.executable, "-m", "benchmarks.moments", "--step", method, "--folder", str(folder)]
    command += [text for key, value in options.items() for text in (key, str(value))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _shape(layers: int, width: int) -> Shape:
    """Return 7B's shape with other layers; a smaller width shrinks all sizes but the vocabulary."""
    heads = max(1, SHAPE.heads * width // SHAPE.width)
    return replace(SHAPE, layers=layers, width=width, mlp=SHAPE.mlp * width // SHAPE.width, heads=heads, kv_heads=heads)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = ["| method | layers | model, GiB | beside it, GiB | file, GiB | seconds |", "|---|---|---|---|---|---|"]
    for row in rows:
        figures = f"{row['model_gib']:.2f} | {row['beside_gib']:.2f} | {row['file_gib']:.2f} | {row['seconds']:.0f}"
        lines.append(f"| {row['method']} | {row['layers']} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
