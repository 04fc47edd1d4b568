"""The expected score ranks merges that are nearly alike as the score does, and agrees with greedy decoding."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.evaluation.types import EXPECTED

EXPERTS = ("reverse", "sort", "deal", "median")
LAYERS = 6


class Merge:
    """θ = θ_base + Σ_i w_i (θ_i − θ_base), with a weight for each expert and third of the layers, in one model."""

    def __init__(self, cache: Path) -> None:
        from transformers import AutoTokenizer, LlamaForCausalLM

        from evosearch.zoo.tiny_models import ensure

        folder = ensure("base", cache)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        models = [LlamaForCausalLM.from_pretrained(ensure(name, cache)).eval() for name in ("base", *EXPERTS)]
        self.model: Any = models[0]
        self.base, *tuned = [{name: p.detach().clone() for name, p in m.named_parameters()} for m in models]
        self.deltas = [{name: own[name] - at for name, at in self.base.items()} for own in tuned]

    def set(self, weights: Any) -> Any:
        """Return the model with these weights, (experts, 3)."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                third = self.third(name)
                changes = zip(weights[:, third], self.deltas, strict=True)
                parameter.copy_(self.base[name] + sum(float(w) * delta[name] for w, delta in changes))
        return self.model

    @staticmethod
    def third(name: str) -> int:
        """Index of a tensor's third of the layers; embeddings belong to the first, final norm to the last."""
        if ".layers." in name:
            return int(name.split(".layers.")[1].split(".")[0]) * 3 // LAYERS
        return 0 if "embed" in name else 2


@pytest.fixture(scope="module")
def merge(zoo_cache: Path) -> Merge:
    return Merge(zoo_cache)


@pytest.fixture(scope="module")
def suite() -> Suite:
    found = load_suite(Path(__file__).parents[2] / "evals" / "quickstart.yaml")
    counts = found.documents.model_copy(update={"search": 60, "validation": 1, "test": 500})
    return found.model_copy(update={"documents": counts})


def scorers(suite: Suite, merge: Merge, *kinds: str) -> Iterator[Scorer]:
    for kind in kinds:
        own = suite.model_copy(update={"fitness": kind})
        length = max_length_of(merge.model.config, merge.tokenizer)
        yield Scorer(own, merge.tokenizer, length, harness=Harness(own))


@pytest.mark.slow
def test_the_expected_score_ranks_neighbours_by_their_score(suite: Suite, merge: Merge) -> None:
    """18 merges around the best single scale; 240 search items against the score of 2,000 other documents."""
    kinds = ("expected_score", "margin", "gold_logprob")
    of_kind = list(scorers(suite, merge, *kinds))
    rng, told, scores = np.random.default_rng(1), [], []
    for _ in range(18):
        model = merge.set((0.6 + 0.15 * rng.standard_normal((4, 3))).clip(0.0, 1.5))
        told.append([scorer.score(model, scorer.batch("search")).fitness.value for scorer in of_kind])
        scores.append(of_kind[0].score(model, of_kind[0].batch("test")).score)
    expected, margin, gold = (float(spearmanr(each, scores).statistic) for each in zip(*told, strict=True))
    assert min(expected, margin) >= 0.5
    assert gold < min(expected, margin)


def test_an_answer_that_is_more_likely_than_not_is_the_greedy_one(suite: Suite, merge: Merge) -> None:
    (scorer,) = scorers(suite, merge, "expected_score")
    seen = 0
    for scale in (0.5, 0.7, 1.0):
        columns = scorer.score(merge.set(np.full((4, 3), scale)), scorer.batch("search")).columns
        for task in ("reverse", "sort", "deal"):
            likely = columns[task][EXPECTED] > 0.5
            assert columns[task]["exact_match"][likely].all()
            seen += int(likely.sum())
    assert seen > 100
