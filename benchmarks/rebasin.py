"""Barrier on the straight path between independently trained bases of the tiny zoo, before and after Git Re-Basin.

The barrier is the largest amount by which the loss of (1−t)·A + t·B exceeds (1−t)·loss(A) + t·loss(B), in nats per
token of the answers to documents of the four tiny tasks. Activations are those of other documents; `both` is weight
matching that starts from them.
"""

import argparse
import math
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._report import publish
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.references import default_cache
from evosearch.checkpoints.tokenizers.loading import load_tokenizer
from evosearch.materialize.in_memory import ResidentModel
from evosearch.merging.activation_matching import Inputs
from evosearch.merging.activation_matching import match as match_activations
from evosearch.merging.symmetries import Permutation, axes_of
from evosearch.merging.weight_matching import Pair, match, objective
from evosearch.moments.sampled_moments import SampledMoments
from evosearch.recipe.sample import Sample
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import INPUTS
from evosearch.zoo.tiny_data import STOP, TASKS, draw
from evosearch.zoo.tiny_models import ensure
from evosearch.zoo.tiny_training import Setting

Text = tuple[tuple[int, ...], int]  # tokens of a document, and how many of them are its context


def parse_arguments() -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.rebasin", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pairs", type=pair_of, nargs="+", default=[(0, 1)], metavar="A,B", help="seeds of two bases each, default 0,1"
    )
    parser.add_argument("--points", type=int, default=11, help="models on the path, default %(default)s")
    parser.add_argument("--documents", type=int, default=200, help="documents of each task, default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default %(default)s")
    return parser.parse_args()


def pair_of(text: str) -> tuple[int, int]:
    """Two different seeds, such as 0,1."""
    first, second = (int(part) for part in text.split(","))
    if first == second:
        raise argparse.ArgumentTypeError(f"{text}: two different seeds, such as 0,1")
    return first, second


def main() -> None:
    """Train the bases unless they are cached, and print the paths of every pair."""
    given = parse_arguments()
    torch.set_num_threads(given.threads)
    found = [measure(pair, given.documents, given.points) for pair in given.pairs]
    published = [table(one["losses"], given.points) for one in found]
    publish({"pairs": found}, *published, summary(found))


def measure(seeds: tuple[int, int], documents: int, points: int) -> dict[str, Any]:
    """Losses along the paths of one pair, the barriers, and by how much they fall."""
    folders = [ensure("base", default_cache(), setting=Setting(seed=seed)) for seed in seeds]
    first, second = (Checkpoint.open(folder) for folder in folders)
    rng = random.Random(77)  # a stream of documents of its own
    scored, read = (texts(folders[0], rng, documents) for _ in range(2))
    found, seconds = dict[str, Permutation | None](none=None), dict[str, float]()
    for name, how in (("weights", by_weights), ("activations", partial(by_activations, read))):
        started = time.perf_counter()
        found[name] = how(first, second)
        seconds[name] = time.perf_counter() - started
    pairs = pairs_of(first, second)
    found["both"] = match(pairs, first.shape.head_size, found["activations"])
    losses = {name: path_losses(first, second, own, scored, points) for name, own in found.items()}
    heights = {name: barrier(own) for name, own in losses.items()}
    return {
        "seeds": seeds,
        "losses": losses,
        "barrier": heights,
        "fallen": {name: 1 - height / heights["none"] for name, height in heights.items()},
        "objective": {name: objective(pairs, own or Permutation({})) for name, own in found.items()},
        "seconds": seconds,
    }


def summary(found: Sequence[Mapping[str, Any]]) -> str:
    """Barrier of every pair, and by how much it falls, as Markdown."""
    names = [name for name in found[0]["barrier"] if name != "none"]
    lines = ["| seeds | barrier | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for one in found:
        cells = [f"{one['barrier'][name]:.3f} ({one['fallen'][name]:.0%} lower)" for name in names]
        lines.append(
            f"| {one['seeds'][0]}, {one['seeds'][1]} | {one['barrier']['none']:.3f} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def texts(folder: Path, rng: random.Random, count: int) -> list[Text]:
    """Draw documents of each task, with their answers."""
    encode = load_tokenizer(folder)
    documents = [draw(task, rng) for task in TASKS for _ in range(count)]
    pairs = [(one.context, one.context + one.answer + STOP) for one in documents]
    return [(tuple(encode(whole)["input_ids"]), len(encode(context)["input_ids"])) for context, whole in pairs]


def pairs_of(first: Checkpoint, second: Checkpoint) -> list[Pair]:
    """Every tensor of both models, with its groups."""
    found = []
    for name, info in first.tensors.items():
        axes = axes_of(name, info.shape, first.shape.head_size)
        assert axes is not None
        found.append(Pair(axes, partial(first.load, name), partial(second.load, name)))
    return found


def by_weights(first: Checkpoint, second: Checkpoint) -> Permutation:
    """Weight matching."""
    return match(pairs_of(first, second), first.shape.head_size)


def by_activations(read: Sequence[Text], first: Checkpoint, second: Checkpoint) -> Permutation:
    """Activation matching."""
    sample = Sample(text="drawn documents")
    with tempfile.TemporaryDirectory() as folder:
        samples = SampledMoments(Path(folder), "cpu", known={sample.key: tuple(tokens for tokens, _ in read)})
        samples.attach(sample, {"first": first, "second": second})
        ends = [checkpoint.statistics[sample.key, INPUTS] for checkpoint in (first, second)]
        inputs = [
            Inputs(pair.axes, partial(ends[0].load, name), partial(ends[1].load, name))
            for pair, name in zip(pairs_of(first, second), first.tensors, strict=True)
            if ends[0].has(name)
        ]
        return match_activations(inputs, first.shape.head_size, int(first.config["num_key_value_heads"]))


def path_losses(
    first: Checkpoint, second: Checkpoint, permutation: Permutation | None, scored: Sequence[Text], points: int
) -> list[float]:
    """Losses of (1−t)·A + t·P(B) at equally spaced t, in nats per token of the answers."""
    alone = {"merge_method": "linear", "models": [{"model": first.reference, "parameters": {"weight": 1.0}}]}
    resident = ResidentModel({first.reference: first}, first.reference, example=Recipe.model_validate(alone))
    live = dict(resident.model.named_parameters())
    ends = []
    for pair, name in zip(pairs_of(first, second), first.tensors, strict=True):
        other = pair.model().float()
        other = other if permutation is None else permutation.apply(other, pair.axes)
        ends.append((live[name], pair.reference().float(), other))
    return [_loss_at(resident.model, ends, t, scored) for t in ts(points)]


@torch.no_grad()
def _loss_at(model: Any, ends: Sequence[tuple[Tensor, Tensor, Tensor]], t: float, scored: Sequence[Text]) -> float:
    for parameter, one, other in ends:
        parameter.copy_(torch.lerp(one, other, t))
    return loss_of(model, scored)


@torch.no_grad()
def loss_of(model: Any, scored: Sequence[Text]) -> float:
    """Loss of a model in nats per token of the answers."""
    lengths: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for tokens, context in scored:
        lengths.setdefault((len(tokens), context), []).append(tokens)
    losses, count = list[float](), 0
    for (_, context), rows in lengths.items():
        ids = torch.tensor(rows)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[:, context - 1 :]
        answers = ids[:, context:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="sum")
        losses.append(float(loss))
        count += answers.numel()
    return math.fsum(losses) / count


def ts(points: int) -> list[float]:
    """Points of the path."""
    return [index / (points - 1) for index in range(points)]


def barrier(losses: Sequence[float]) -> float:
    """The largest excess over the line between the ends."""
    line = zip(ts(len(losses)), losses, strict=True)
    return max(loss - ((1 - t) * losses[0] + t * losses[-1]) for t, loss in line)


def table(losses: Mapping[str, Sequence[float]], points: int) -> str:
    """The losses along the paths as Markdown."""
    lines = ["| t | " + " | ".join(losses) + " |", "|---|" + "---|" * len(losses)]
    for index, t in enumerate(ts(points)):
        lines.append(f"| {t:.2f} | " + " | ".join(f"{own[index]:.3f}" for own in losses.values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
