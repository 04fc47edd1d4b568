"""lm-eval's own loop as the oracle: the same documents and model, request by request and metric by metric."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from evosearch.evaluation.engine.generation import generate
from evosearch.evaluation.engine.generation_plan import Decoder, lay_out_generations
from evosearch.evaluation.engine.loglikelihood import lay_out, score_loglikelihoods
from evosearch.evaluation.engine.runs import distinct_prefixes
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.evaluation.harness.harness import max_length_of
from evosearch.evaluation.harness.lm_adapter import RequestRecorder
from evosearch.evaluation.harness.requests import Requests
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.suites.suite import load_suite
from evosearch.evaluation.types import GOLD, LOGLIKELIHOODS, REQUESTS, ItemSet, ScoreCard


@pytest.fixture(scope="module")
def scorer(suite_file: Path, tokenizer: Any, model: Any) -> Scorer:
    return Scorer(load_suite(suite_file), tokenizer, max_length_of(model.config, tokenizer))


@pytest.fixture(scope="module")
def card(scorer: Scorer, model: Any) -> ScoreCard:
    return scorer.score(model, scorer.batch("test"))


@pytest.fixture(scope="module")
def samples(scorer: Scorer, model: Any, tokenizer: Any) -> dict[str, list[dict[str, Any]]]:
    """Suite task → lm_eval's log of each document of the test split, with the suite's filter."""
    sets = scorer.batch("test").sets
    tasks = {items.lm_eval_task: lm_eval_task(scorer, items) for items in sets}
    out = evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1),
        {"tasks": tasks},
        samples={items.lm_eval_task: list(items.doc_ids) for items in sets},
        bootstrap_iters=0,
    )
    wanted = {"t_generate": "letter"}
    return {
        items.task: [s for s in out["samples"][items.lm_eval_task] if s["filter"] == wanted.get(items.task, "none")]
        for items in sets
    }


def lm_eval_task(scorer: Scorer, items: ItemSet) -> Any:
    """A task object loaded by lm-eval alone."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(scorer.suite.include[0])
    config = load_yaml(folder / f"{items.lm_eval_task}.yaml")
    files = config["dataset_kwargs"]["data_files"]
    config["dataset_kwargs"]["data_files"] = {split: str(folder / file) for split, file in files.items()}
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return manager.load([config])["tasks"][items.lm_eval_task]


@pytest.mark.parametrize("task", ["choice", "letter", "t_word"])
def test_log_likelihoods_and_greedy_flags_are_lm_evals(card: ScoreCard, samples: Any, task: str) -> None:
    expected = np.array([resp[0][0] for sample in samples[task] for resp in sample["resps"]])
    ours = card.columns[task][LOGLIKELIHOODS]
    assert ours.shape == expected.shape
    assert np.ptp(expected) > 1  # the model distinguishes the requests
    np.testing.assert_array_less(np.abs(ours - expected), 1e-3 + 1e-6 * np.abs(expected))
    assert card.columns[task][REQUESTS].tolist() == [len(sample["resps"]) for sample in samples[task]]


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("choice", "acc"),
        ("choice", "acc_norm"),
        ("letter", "acc"),
        ("letter", "acc_norm"),
        ("t_word", "acc"),
        ("t_word", "perplexity"),
        ("t_generate", "exact_match"),
    ],
)
def test_metrics_are_lm_evals_for_every_document(card: ScoreCard, samples: Any, task: str, metric: str) -> None:
    expected = np.array([float(sample[metric]) for sample in samples[task]])
    np.testing.assert_allclose(card.columns[task][metric], expected, atol=1e-3)


def test_documents_are_lm_evals(scorer: Scorer, samples: Any) -> None:
    for items in scorer.batch("test").sets:
        assert [sample["doc_id"] for sample in samples[items.task]] == list(items.doc_ids)


def test_generated_texts_are_lm_evals(scorer: Scorer, model: Any, samples: Any) -> None:
    frozen, _, plan = scorer.plans(scorer.batch("test"))
    texts, tokens = generate(model, plan)
    expected = [sample["resps"][0][0] for sample in samples["t_generate"]]
    assert texts == expected
    assert len(set(expected)) > 3
    assert any(0 < len(text) < 12 for text in expected)  # some stopped at a stop string, before max_gen_toks
    assert all(stop not in text for text in texts for stop in ("\n", "ab", "9"))
    prompts = [request.prompt for request in frozen.generations]
    assert distinct_prefixes(prompts) < tokens.forwarded <= distinct_prefixes(prompts) + len(texts) * 11
    assert tokens.forwarded < sum(map(len, prompts))  # shared prefixes run once


def test_gold_log_probabilities(card: ScoreCard, samples: Any, scorer: Scorer, model: Any, tokenizer: Any) -> None:
    for task in ("choice", "letter"):
        for gold, sample in zip(card.columns[task][GOLD], samples[task], strict=True):
            lls = np.array([resp[0][0] for resp in sample["resps"]])
            assert gold == pytest.approx(lls[sample["doc"]["gold"]] - np.logaddexp.reduce(lls), abs=1e-3)
    for gold, sample in zip(card.columns["t_word"][GOLD], samples["t_word"], strict=True):
        length = len(sample["doc"]["answer"]) + 1  # one token per character, plus the context's trailing space
        assert gold == pytest.approx(sample["resps"][0][0][0] / length, abs=1e-3)
    for gold, sample in zip(card.columns["t_generate"][GOLD], samples["t_generate"], strict=True):
        assert gold == pytest.approx(teacher_forced(model, tokenizer, sample), abs=1e-3)


def teacher_forced(model: Any, tokenizer: Any, sample: dict[str, Any]) -> float:
    import torch

    context, target = sample["arguments"][0][0], sample["doc"]["answer"]
    ids = torch.tensor([tokenizer.encode(context + target)])
    with torch.no_grad():
        logprobs = model(ids).logits.float().log_softmax(-1)[0]
    positions = range(ids.shape[1] - len(target) - 1, ids.shape[1] - 1)
    return float(np.mean([float(logprobs[p, ids[0, p + 1]]) for p in positions]))


def test_batch_sizes_change_nothing(scorer: Scorer, card: ScoreCard, tokenizer: Any, model: Any) -> None:
    small = Scorer(
        scorer.suite, tokenizer, max_length_of(model.config, tokenizer), ScoreOptions(batch_tokens=64, batch_reads=8)
    )
    other = small.score(model, small.batch("test"))
    assert other.tokens.distinct == card.tokens.distinct <= other.tokens.forwarded <= 1.05 * card.tokens.distinct
    for task, columns in card.columns.items():
        for name, values in columns.items():
            np.testing.assert_allclose(other.columns[task][name], values, atol=1e-4, err_msg=f"{task} {name}")


PAIRS = [("", "abc"), ("abc", " d"), ("abc  ", "d"), ("x" * 40 + "?" * 80, " answer"), ("<s>abc", "de"), ("", "<s>a")]
PROMPTS = ["abc", "<s>abc", "q: " * 40, "x"]


def with_bos(tokenizer: Any) -> Any:
    """The same tokenizer with `<s>` before every text, like Llama's."""
    from tokenizers.processors import TemplateProcessing

    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert other.encode("a")[0] == other.bos_token_id
    return other


@pytest.mark.parametrize("bos", [False, True])
def test_empty_long_and_prefixed_contexts_are_lm_evals(model: Any, tokenizer: Any, bos: bool) -> None:
    tokenizer = with_bos(tokenizer) if bos else tokenizer
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    expected = lm.loglikelihood([SimpleNamespace(args=pair, task_name=None) for pair in PAIRS], disable_tqdm=True)
    requests = Requests(RequestRecorder(tokenizer, lm.max_length))
    for pair in PAIRS:
        requests.loglikelihood("here", *pair)
    lls, greedy, *_ = score_loglikelihoods(model, lay_out(requests.lls, ScoreOptions()))
    np.testing.assert_allclose(lls, [ll for ll, _ in expected], atol=1e-3)
    assert greedy.tolist() == [flag for _, flag in expected]


@pytest.mark.parametrize("bos", [False, True])
def test_long_and_prefixed_prompts_are_lm_evals(model: Any, tokenizer: Any, bos: bool) -> None:
    tokenizer = with_bos(tokenizer) if bos else tokenizer
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    kwargs = {"until": ["\n", "e"], "max_gen_toks": 20}
    expected = lm.generate_until([SimpleNamespace(args=(text, kwargs)) for text in PROMPTS], disable_tqdm=True)
    requests = Requests(RequestRecorder(tokenizer, lm.max_length))
    for text in PROMPTS:
        requests.generation("here", text, kwargs)
    plan = lay_out_generations(requests.generations, Decoder(tokenizer), ScoreOptions())
    assert generate(model, plan)[0] == expected
