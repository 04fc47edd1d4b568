"""Loss of ZipIt! merges of independently trained bases of the tiny zoo, beside averages with and without Git Re-Basin.

    .venv/bin/python -m benchmarks.zipit [--pairs 0,1 2,3] [--memory]

Every merge is a recipe, written to disk and loaded. Losses are nats per token of the answers to documents of the four
tiny tasks, which both bases were trained on; activations are those of other documents. "Excess" is the loss above the
mean loss of the two bases. `aligned` is the second base after `rebasin_activations`.

`--memory` matches the hidden units of one layer instead, at the width of MLPs of 7B, by drawn activations of 4,096
tokens in a mapped file, and prints seconds and the anonymous memory that this takes. Exit code 1 above 1.5 GiB.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM

from benchmarks._gradient_cost.step import peak, resident
from benchmarks._report import publish
from benchmarks.moments import MOST, SHAPE
from benchmarks.rebasin import loss_of, pair_of, texts
from evosearch.checkpoints.references import default_cache
from evosearch.merging.unit_sets import of_hidden
from evosearch.moments.sampled_moments import MOST_ROWS
from evosearch.search.progress import Silent
from evosearch.service.merge import merge
from evosearch.zoo.tiny_data import STOP, TASKS, draw
from evosearch.zoo.tiny_models import ensure
from evosearch.zoo.tiny_training import Setting

Document = Mapping[str, Any]

WIDTH = SHAPE.mlp  # hidden units of an MLP of 7B

RECIPES: Mapping[str, Document] = {
    "linear": {"merge_method": "linear"},
    "linear, aligned": {"merge_method": "linear"},
    "zipit": {},
    "zipit, beta 0": {"beta": 0.0},
    "zipit, beta 0.25": {"beta": 0.25},
    "zipit, alpha 0.1": {"alpha": 0.1},
    "zipit, alpha 0.1, beta 0.25": {"alpha": 0.1, "beta": 0.25},
    "zipit, aligned": {"residual": "keep"},
    "zipit, beta 0, aligned": {"residual": "keep", "beta": 0.0},
    "zipit, beta 0.25, aligned": {"residual": "keep", "beta": 0.25},
    "zipit, alpha 0.1, aligned": {"residual": "keep", "alpha": 0.1},
    "zipit, depth 1/3": {"depth": 1 / 3},
    "zipit, depth 2/3": {"depth": 2 / 3},
    "zipit, depth 1/3, aligned": {"residual": "keep", "depth": 1 / 3},
    "zipit, depth 2/3, aligned": {"residual": "keep", "depth": 2 / 3},
}


def parse_arguments() -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.zipit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pairs", type=pair_of, nargs="+", default=[(0, 1)], metavar="A,B", help="seeds of two bases each, default 0,1"
    )
    parser.add_argument("--memory", action="store_true", help="measure the memory of a matching")
    parser.add_argument("--width", type=int, default=WIDTH, help="of --memory: hidden units, default %(default)s")
    parser.add_argument("--documents", type=int, default=200, help="documents of each task, default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default %(default)s")
    return parser.parse_args()


def main() -> int:
    """Train the bases unless they are cached, and print the losses of every pair."""
    given = parse_arguments()
    torch.set_num_threads(given.threads)
    if given.memory:
        return memory(given.width)
    found = [measure(pair, given.documents) for pair in given.pairs]
    publish({"pairs": found}, table(found))
    return 0


def memory(width: int) -> int:
    """Match the hidden units of one layer, without and with repeated matches; print seconds and memory."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="zipit-") as work:
        size = MOST_ROWS * width
        both = torch.from_file(str(Path(work) / "inputs"), shared=True, size=2 * size, dtype=torch.float32)
        both.normal_(generator=torch.Generator().manual_seed(0))
        first, second = both.view(2, MOST_ROWS, width)
        for alpha in (0.0, 0.1):
            before, started = resident(), time.perf_counter()
            with peak() as found:
                of_hidden(first, second, alpha, 1.0)
            row = {"alpha": alpha, "gib": found[0] - before, "seconds": time.perf_counter() - started}
            rows.append(row)
    lines = ["| alpha | memory, GiB | seconds |", "|---|---|---|"]
    lines += [f"| {row['alpha']:g} | {row['gib']:.2f} | {row['seconds']:.0f} |" for row in rows]
    publish({"width": width, "rows": rows, "most_gib": MOST}, "\n".join(lines))
    return int(any(row["gib"] > MOST for row in rows))


def measure(seeds: tuple[int, int], documents: int) -> dict[str, Any]:
    """Losses of both bases and of every merge."""
    folders = [ensure("base", default_cache(), setting=Setting(seed=seed)) for seed in seeds]
    rng = random.Random(77)  # the documents of benchmarks.rebasin
    scored = texts(folders[0], rng, documents)
    read = [draw(task, rng) for task in TASKS for _ in range(documents)]
    with tempfile.TemporaryDirectory(prefix="zipit-") as work:
        folder = Path(work)
        lines = [json.dumps({"text": one.context + one.answer + STOP}) for one in read]
        (folder / "texts.jsonl").write_text("\n".join(lines))
        sample = {"text": "texts.jsonl", "documents": len(lines)}
        ends = [_loss(one, scored) for one in folders]
        losses, seconds = dict[str, float](), dict[str, float]()
        for number, (name, document) in enumerate(RECIPES.items()):
            path, out = folder / f"{number}.yaml", folder / str(number)
            path.write_text(yaml.safe_dump_all(recipe(name, document, folders, sample)))
            started = time.perf_counter()
            merge(path, out, Silent(), allow_unrelated=True)
            seconds[name] = time.perf_counter() - started
            losses[name] = _loss(out, scored)
    return {"seeds": seeds, "ends": ends, "losses": losses, "seconds": seconds}


def recipe(name: str, document: Document, folders: Sequence[Path], sample: Document) -> list[dict[str, Any]]:
    """Documents of a recipe file: the alignment of the second base if the name asks for it, and the merge."""
    first, second = map(str, folders)
    found: list[dict[str, Any]] = []
    if name.endswith("aligned"):
        aligning = {"name": "aligned", "merge_method": "rebasin_activations", "base_model": first}
        found.append({**aligning, "models": [{"model": second}], "sample": dict(sample)})
        second = "aligned"
    models = [{"model": first}, {"model": second}]
    if document.get("merge_method") == "linear":
        return [*found, {"merge_method": "linear", "models": models, "parameters": {"weight": 0.5}}]
    zipping = {"merge_method": "zipit", "models": models, "sample": dict(sample)}
    return [*found, zipping | ({"parameters": dict(document)} if document else {})]


def _loss(folder: Path, scored: Sequence[Any]) -> float:
    return loss_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), scored)


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Excess of every merge for every pair, as Markdown."""
    heads = [f"{one['seeds'][0]}, {one['seeds'][1]}" for one in found]
    lines = ["| merge | " + " | ".join(f"excess, bases {head}" for head in heads) + " |"]
    lines.append("|---|" + "---|" * len(heads))
    for name in RECIPES:
        cells = [f"{one['losses'][name] - sum(one['ends']) / 2:.3f}" for one in found]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
