"""Scoring end to end: work of a second score, subsets of a batch, few-shot draws, and faulty models."""

import copy
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evosearch.errors import CandidateError, SuiteError
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest, lay_out
from evosearch.evaluation.engine.runs import distinct_prefixes
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.evaluation.harness.harness import max_length_of
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.suites.suite import load_suite
from evosearch.evaluation.types import GOLD, ItemBatch, ItemSet, Tokens

Data = dict[str, Any]


@pytest.fixture(scope="module")
def scorer(suite_file: Path, tokenizer: Any, model: Any) -> Scorer:
    return Scorer(load_suite(suite_file), tokenizer, max_length_of(model.config, tokenizer))


def scorer_of(data: Data, folder: Path, tokenizer: Any, model: Any) -> Scorer:
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(data))
    return Scorer(load_suite(path), tokenizer, max_length_of(model.config, tokenizer))


class Opens:
    """Audit of all files that the interpreter opens; the hook cannot be removed, so it has a switch."""

    def __init__(self) -> None:
        self.on, self.paths = False, []  # type: bool, list[str]
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and event == "open":
            self.paths.append(str(args[0]))


def test_a_second_score_tokenizes_opens_and_builds_nothing(
    scorer: Scorer, tokenizer: Any, model: Any, new_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.api.task
    import lm_eval.tasks
    import lm_eval.utils
    import transformers

    calls: Counter[str] = Counter()
    watched: list[tuple[Any, str]] = [
        *((type(tokenizer), name) for name in ("__call__", "encode", "_encode_plus", "convert_tokens_to_ids")),
        *((lm_eval.api.task.ConfigurableTask, n) for n in ("__init__", "construct_requests", "fewshot_context")),
        (lm_eval.tasks.TaskManager, "__init__"),
        (lm_eval.utils, "apply_template"),
        (transformers.PreTrainedModel, "__init__"),
    ]
    for owner, name in watched:
        original = getattr(owner, name)

        def counting(*args: Any, original: Any = original, name: str = name, **kwargs: Any) -> Any:
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)
    fresh = Scorer(scorer.suite, tokenizer, max_length_of(model.config, tokenizer))
    batch, other = fresh.batch("validation"), new_model(tokenizer, seed=1)
    first = fresh.score(model, batch)
    assert min(calls[name] for name in ("encode", "construct_requests", "apply_template")) > 0  # the counters work
    opens = Opens()
    calls.clear()
    opens.on = True
    second = fresh.score(other, batch)
    opens.on = False
    assert (calls, opens.paths) == (Counter(), [])
    assert second.fitness != first.fitness
    assert fresh.score(model, batch).fitness == first.fitness


def test_a_subset_of_a_batch_scores_as_in_the_full_batch(scorer: Scorer, model: Any) -> None:
    batch = scorer.batch("validation")
    subset = ItemBatch("validation", tuple(some(items, slice(2, 5)) for items in batch.sets[1:]))
    card, full = scorer.score(model, subset), scorer.score(model, batch)
    for items in subset.sets:
        for name in (GOLD, scorer.suite.tasks[1].metric if items.task == "letter" else GOLD):
            np.testing.assert_allclose(card.columns[items.task][name], full.columns[items.task][name][2:5], atol=1e-4)
    assert card.batch_digest == subset.digest
    assert card.fitness.n == 9
    weights = {"letter": 0.5, "t_word": 0.25, "t_generate": 0.25}  # of the tasks in the batch, normalized
    gold = sum(weight * card.columns[task][GOLD].mean() for task, weight in weights.items())
    assert card.fitness.value == pytest.approx(gold)


def some(items: ItemSet, taken: slice) -> ItemSet:
    return ItemSet(items.task, items.lm_eval_task, items.doc_ids[taken], items.doc_hashes[taken])


def test_random_shots_depend_on_the_document_alone(
    suite_data: Data, task_configs: Data, tasks_writer: Any, tmp_path: Path, tokenizer: Any, model: Any
) -> None:
    config = {**task_configs["t_choice"], "fewshot_config": {"sampler": "default"}}
    tasks_writer(tmp_path / "tasks", {"t_choice": config})
    suite_data["tasks"] = [{**suite_data["tasks"][0], "num_fewshot": 1}]
    scorer = scorer_of(suite_data, tmp_path, tokenizer, model)
    batch = scorer.batch("test")
    subset = ItemBatch("test", (some(batch.sets[0], slice(4, 9)),))
    every = scorer.plans(batch)[0].loglikelihoods
    assert scorer.plans(subset)[0].loglikelihoods == every[12:]
    beginnings = {request.inputs[:8] for request in every}
    assert len(beginnings) > 1  # drawn, not the same for all


def test_sharing_runs_each_sequence_once() -> None:
    def request(text: str, length: int) -> LoglikelihoodRequest:
        tokens = tuple(map(ord, text))
        return LoglikelihoodRequest(tokens[:-1], tokens[-length:])

    requests = [request("question a", 1), request("question b", 1), request("question bc", 2), request("other", 3)]
    laid = lay_out(requests, ScoreOptions()).passes("tree", torch.device("cpu"))
    assert laid.tokens == Tokens(forwarded=9 + 1 + 4, padded=0, distinct=14, requested=9 + 9 + 10 + 4)  # "question "
    assert laid.tokens.distinct == distinct_prefixes([r.inputs for r in requests])
    assert [one.reads.numel() for one in laid.passes] == [1 + 1 + 3]  # the first two share a position


def test_the_head_runs_only_where_it_is_needed(scorer: Scorer, model: Any) -> None:
    rows: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda module, args, out: rows.append(args[0].shape[0]))
    try:
        card = scorer.score(model, scorer.batch("search"))
    finally:
        hook.remove()
    assert sum(rows) < card.tokens.forwarded / 2


def test_weights_that_are_not_finite_are_the_candidates_fault(scorer: Scorer, model: Any) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight.fill_(math.nan)
    with pytest.raises(CandidateError, match=r"score: \d+ of \d+ log-likelihoods are not finite"):
        scorer.score(broken, scorer.batch("search"))
    generations = ItemBatch("search", scorer.batch("search").sets[3:])
    frozen, _, laid = scorer.plans(generations)
    from evosearch.evaluation.engine.generation import generate

    with pytest.raises(CandidateError, match="not finite during generation"):
        generate(broken, laid)
    assert all(not i.resps for task in frozen.tasks for document in task.documents for i in document.instances)


def test_what_greedy_scoring_cannot_reproduce_is_refused(scorer: Scorer, model: Any) -> None:
    penalized = copy.deepcopy(model)
    penalized.generation_config.repetition_penalty = 1.2
    with pytest.raises(CandidateError, match=r"generation_config.repetition_penalty is 1.2"):
        scorer.score(penalized, scorer.batch("search"))
    capped = copy.deepcopy(model)
    capped.config.final_logit_softcapping = 30.0
    with pytest.raises(CandidateError, match="llama sets final_logit_softcapping"):
        scorer.score(capped, scorer.batch("search"))


REFUSED: list[tuple[Data, str]] = [
    ({"do_sample": True, "temperature": 0.7, "max_gen_toks": 8}, "generation_kwargs.do_sample is True"),
    ({"num_beams": 4, "max_gen_toks": 8}, "generation_kwargs.num_beams is 4: only greedy decoding is supported"),
    ({"max_gen_toks": 96}, "requested max tokens to generate (96) must be less than"),
    ({"max_length": 4, "max_gen_toks": 8}, "tokens leaves -"),
]


@pytest.mark.parametrize(("kwargs", "message"), REFUSED)
def test_generation_that_is_not_greedy_is_refused(
    kwargs: Data,
    message: str,
    suite_data: Data,
    task_configs: Data,
    tasks_writer: Any,
    tmp_path: Path,
    tokenizer: Any,
    model: Any,
) -> None:
    task_configs["t_generate"]["generation_kwargs"] = {"until": ["\n"], **kwargs}
    tasks_writer(tmp_path / "tasks", {"t_generate": task_configs["t_generate"]})
    suite_data["tasks"] = suite_data["tasks"][3:]
    scorer = scorer_of(suite_data, tmp_path, tokenizer, model)
    with pytest.raises(SuiteError) as caught:
        scorer.prepare(scorer.batch("search"))
    assert str(caught.value).startswith(f"{tmp_path / 's.yaml'}: tasks[0].task: document ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"doc_to_target": "{{[]}}"}, "has no right answer. Set `fitness: score`"),
        (
            {"doc_to_target": "{{'none of these'}}"},
            "its right answer is none of these. 0 to 2, or the text of a choice",
        ),
        (
            {"doc_to_choice": "{{choices + ['y' * 97]}}"},
            "the continuation has 98 tokens, but the model's context length is 96",
        ),
    ],
)
def test_documents_that_cannot_be_scored(
    change: Data,
    message: str,
    suite_data: Data,
    task_configs: Data,
    tasks_writer: Any,
    tmp_path: Path,
    tokenizer: Any,
    model: Any,
) -> None:
    tasks_writer(tmp_path / "tasks", {"t_choice": {**task_configs["t_choice"], **change}})
    suite_data["tasks"] = suite_data["tasks"][:1]
    scorer = scorer_of(suite_data, tmp_path, tokenizer, model)
    with pytest.raises(SuiteError) as caught:
        scorer.prepare(scorer.batch("search"))
    assert message in str(caught.value)


def test_data_that_changed_since_the_batch_was_drawn(scorer: Scorer) -> None:
    items = scorer.batch("search").sets[0]
    hashes = ("0" * 64, *items.doc_hashes[1:])
    with pytest.raises(SuiteError, match="the data have changed"):
        scorer.prepare(ItemBatch("search", (ItemSet(items.task, items.lm_eval_task, items.doc_ids, hashes),)))
