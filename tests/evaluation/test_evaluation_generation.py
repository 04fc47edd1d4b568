"""Work done by generation; stop strings in rows that end at different times; models without a usable cache."""

from typing import Any

import numpy as np
import pytest
import torch

from evosearch.evaluation.engine.generation import generate
from evosearch.evaluation.engine.generation_plan import Decoder, GenerationRequest, Stop, lay_out_generations
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest, lay_out
from evosearch.evaluation.engine.runs import distinct_prefixes
from evosearch.evaluation.engine.score_options import ScoreOptions

Prompts = list[tuple[int, ...]]


def few_shot(kind: str, size: int, questions: int = 60) -> Prompts:
    """Prompts of a task: with a common prefix, with examples drawn per prompt from a pool, or without examples."""
    draw = np.random.default_rng(0)
    pool = [tuple(draw.integers(4, size, 30).tolist()) for _ in range(9)]
    made = []
    for _ in range(questions):
        shots = {"first": pool[:5], "drawn": [pool[i] for i in draw.permutation(9)[:5]], "none": []}[kind]
        made.append(sum(shots, ()) + tuple(draw.integers(4, size, int(draw.integers(8, 30))).tolist()))
    return made


@pytest.mark.parametrize("budget", [256, 1024, 8192])
@pytest.mark.parametrize("kind", ["first", "drawn", "none"])
def test_a_log_likelihood_runs_hardly_more_than_the_distinct_tokens(kind: str, budget: int) -> None:
    """Choices of several tokens, choices of one token, single continuations and complete texts, all in one batch."""
    draw, asked = np.random.default_rng(1), []
    for prompt in few_shot(kind, 40):
        choices = [(*prompt, *draw.integers(4, 40, int(size)).tolist()) for size in draw.integers(1, 12, 4)]
        asked += [LoglikelihoodRequest(choice[:-1], choice[len(prompt) :]) for choice in choices]
    texts = [tuple(draw.integers(4, 40, int(size)).tolist()) for size in draw.integers(2, 300, 12)]
    asked += [LoglikelihoodRequest(text[:-1], text[1:]) for text in texts]
    tokens = lay_out(asked, ScoreOptions(batch_tokens=budget)).passes("tree", torch.device("cpu")).tokens
    assert tokens.distinct == distinct_prefixes([one.inputs for one in asked])
    assert tokens.distinct <= tokens.forwarded
    assert tokens.forwarded + tokens.padded <= 1.05 * tokens.distinct


@pytest.mark.parametrize("kind", ["first", "drawn", "none"])
def test_generation_runs_prompts_as_a_trie_and_each_new_token_once(kind: str, model: Any, tokenizer: Any) -> None:
    prompts = [prompt[-60:] if kind == "none" else prompt[:80] for prompt in few_shot(kind, len(tokenizer), 24)]
    asked = [GenerationRequest(prompt, (), 6) for prompt in dict.fromkeys(prompts)]
    plan = lay_out_generations([*asked, asked[0]], Decoder(tokenizer), ScoreOptions(generation_rows=5))
    texts, tokens = generate(model, plan)
    assert texts[0] == texts[-1]
    assert tokens.distinct <= tokens.forwarded + tokens.padded <= 1.05 * tokens.distinct


def test_rows_that_stop_at_different_times_are_continued_as_if_alone(model: Any, tokenizer: Any) -> None:
    prompts = [prompt[:70] for prompt in few_shot("none", len(tokenizer), 12)]
    stops = (Stop("q", 3), Stop("7", 3), Stop("\n", 3))
    asked = [GenerationRequest(prompt, stops, 4 + index % 3 * 6) for index, prompt in enumerate(prompts)]
    together = generate(model, lay_out_generations(asked, Decoder(tokenizer), ScoreOptions()))[0]
    alone = [
        generate(model, lay_out_generations([one], Decoder(tokenizer), ScoreOptions(modes=("rows",))))[0][0]
        for one in asked
    ]
    assert together == alone
    assert len({len(text) for text in together}) > 2
    assert not any(stop.text in text for text in together for stop in stops)
    for text, one in zip(together, asked, strict=True):
        ids = torch.tensor([one.prompt])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=one.max_new_tokens, do_sample=False
        )
        whole = tokenizer.decode(made[0, len(one.prompt) :], skip_special_tokens=True)
        for stop in stops:
            whole = whole.split(stop.text)[0]
        assert text == whole
