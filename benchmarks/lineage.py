"""Figures of the lineage check for models whose relation is known, and its cost at the shape of a 7B model.

    .venv/bin/python -m benchmarks.lineage [--base FOLDER --adapters FOLDER ...]

The tiny zoo: its base with its four experts, and with a base that was trained in the same way from another seed (about
two minutes the first time). With `--base`: that model with LoRA experts, and with a model of its config and random
weights. The 7B shape (Llama 2, bfloat16) is a sparse file, so that its time has no reading from a disk. Exit code 1 if
a verdict is wrong, or a figure is closer to its threshold than by a factor of two.
"""

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks._report import publish
from evosearch.analysis.lineage import LEAST_CHANGE, MOST_COSINE, ModelLineage
from evosearch.checkpoints.adapters.adapted_model import apply_adapter
from evosearch.checkpoints.families.registry import family_of
from evosearch.checkpoints.reader import CONFIG, SINGLE, Checkpoint
from evosearch.checkpoints.references import default_cache
from evosearch.checkpoints.writer import safetensors_header
from evosearch.setup.lineage import MOST_ELEMENTS, MOST_TENSORS, compare
from evosearch.zoo.tiny_models import SETTING, ensure

LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
OTHER_SEED = 1


def rows_of(
    pair: str, base: Checkpoint, others: Sequence[Checkpoint], strangers: Sequence[bool]
) -> list[dict[str, Any]]:
    """Figures and verdict of every model against the base."""
    found = compare(base, others)
    return [_row(pair, *each) for each in zip(others, found, strangers, strict=True)]


def _row(pair: str, model: Checkpoint, found: ModelLineage, stranger: bool) -> dict[str, Any]:
    names = [name for name in found.tensors if len(model.tensors[name].shape) > 1]
    matrices = [found.tensors[name] for name in names if model.shape.by_name[name].layer is not None]
    cosines = [figures.cosine for figures in matrices if figures.cosine is not None]
    return {
        "models": pair,
        "model": Path(model.reference).name,
        "related": found.related,
        "expected": not stranger,
        "relative": found.relative["matrices"],
        "relative_least": min(figures.relative for figures in matrices),
        "relative_most": max(figures.relative for figures in matrices),
        "cosine": found.cosine["matrices"],
        "cosine_least": min(cosines),
        "cosine_most": max(cosines),
        "embeddings": found.overall["embeddings"].relative,
        "norms": found.overall["norms"].relative,
        "others": [other for other in found.others if other is not None],
    }


def zoo() -> list[dict[str, Any]]:
    """Figures of the tiny zoo."""
    cache = default_cache()
    base, *experts = (Checkpoint.open(ensure(name, cache)) for name in ("base", "reverse", "sort", "deal", "median"))
    other = Checkpoint.open(
        ensure("base", cache, None, replace(SETTING, seed=OTHER_SEED, threads=1)), "base of another seed"
    )
    return rows_of("tiny zoo", base, [*experts, other], [False] * len(experts) + [True])


def adapted(folder: Path, adapters: Sequence[Path]) -> list[dict[str, Any]]:
    """Figures of LoRA experts of a base, and of a model of the same shape with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    base = Checkpoint.open(folder)
    experts = [apply_adapter(base, adapter, adapter.name) for adapter in adapters]
    with TemporaryDirectory(prefix="lineage-") as scratch:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(scratch)
        stranger = Checkpoint.open(Path(scratch), "random weights")
        return rows_of(folder.parent.name, base, [*experts, stranger], [False] * len(experts) + [True])


def cost() -> dict[str, float]:
    """Time and memory of the check of two models of the 7B shape."""
    layout = [(name, _shape(name)) for name in family_of(LLAMA_7B, CONFIG).shape(LLAMA_7B).by_name]
    header = safetensors_header(layout, torch.bfloat16)
    size = len(header) + 2 * sum(torch.Size(shape).numel() for _, shape in layout)
    with TemporaryDirectory(prefix="lineage-") as scratch:
        for name in ("one", "other"):
            folder = Path(scratch) / name
            folder.mkdir()
            (folder / CONFIG).write_text(json.dumps(LLAMA_7B))
            with (folder / SINGLE).open("wb") as file:
                file.write(header)
                file.truncate(size)
        one, other = (Checkpoint.open(Path(scratch) / name) for name in ("one", "other"))
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        compare(one, [other])
        seconds = time.perf_counter() - started
        shutil.rmtree(Path(scratch) / "other")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    bound = MOST_TENSORS * MOST_ELEMENTS * 2 / 2**20
    return {"seconds": seconds, "peak_growth_mib": grown / 2**10, "read_at_most_mib": bound, "model_gib": size / 2**30}


def _shape(name: str) -> tuple[int, ...]:
    width, wide, vocabulary = 4096, 11008, 32000
    if "embed_tokens" in name or "lm_head" in name:
        return vocabulary, width
    if "norm" in name:
        return (width,)
    if "down_proj" in name:
        return width, wide
    return (wide, width) if "mlp" in name else (width, width)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = ["| models | model | verdict | relative change (matrices) | cosine to the base | embeddings | norms |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        change = f"{row['relative']:.2g} ({row['relative_least']:.2g} to {row['relative_most']:.2g})"
        angle = f"{row['cosine']:.2f} ({row['cosine_least']:.2f} to {row['cosine_most']:.2f})"
        verdict = "related" if row["related"] else "unrelated"
        apart = f"{row['embeddings']:.2g} | {row['norms']:.2g}"
        lines.append(f"| {row['models']} | {row['model']} | {verdict} | {change} | {angle} | {apart} |")
    return "\n".join(lines)


def main() -> int:
    """Print the figures; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="base of the adapters")
    parser.add_argument("--adapters", type=Path, nargs="*", default=[], help="LoRA experts of the base")
    given = parser.parse_args()
    taken = cost()  # first: the peak of memory is that of the process
    rows = zoo() + (adapted(given.base, given.adapters) if given.base else [])
    text = ", ".join(f"{name} {value:.3g}" for name, value in taken.items())
    publish({"rows": rows, "cost_7b": taken}, table(rows), f"7B shape: {text}")
    wrong = [row for row in rows if row["related"] != row["expected"]]
    near = [row for row in rows if row["expected"] and row["relative"] > LEAST_CHANGE / 2]
    near += [row for row in rows if not row["expected"] and abs(row["cosine"]) > MOST_COSINE / 2]
    return 1 if wrong or near else 0


if __name__ == "__main__":
    sys.exit(main())
