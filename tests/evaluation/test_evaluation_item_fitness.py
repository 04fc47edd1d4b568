"""Item values of every fitness: against formulas by hand, against lm-eval's verdicts, and their gradients."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evosearch.errors import SuiteError
from evosearch.evaluation.engine.generation import generate
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest, lay_out, score_loglikelihoods
from evosearch.evaluation.harness.answer_key import LONG_ANSWER, MAX_TEXTS
from evosearch.evaluation.harness.differentiable import differentiable
from evosearch.evaluation.harness.divergence import TaughtChoice, taught_fitness
from evosearch.evaluation.harness.frozen import FrozenBatch
from evosearch.evaluation.harness.harness import max_length_of
from evosearch.evaluation.harness.item_fitness import ItemFitness, ItemFitnessBuilder
from evosearch.evaluation.harness.judge import Judge
from evosearch.evaluation.harness.requests import Pair, disjoint
from evosearch.evaluation.harness.right_answers import RightChoice, RightText
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.harness.teachers import _shares
from evosearch.evaluation.suites.suite import load_suite
from evosearch.evaluation.suites.suite_task import SuiteTask
from evosearch.evaluation.types import EXPECTED, GOLD, LOGLIKELIHOODS, MARGIN, REQUESTS, Column

Data = dict[str, Any]
Make = Callable[..., Scorer]
MEAN = {"aggregation": "mean", "higher_is_better": True}
CHOICE: Data = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}?",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
}
WRITE: Data = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}=",
    "doc_to_target": "{{answer[0]}}",
    "target_delimiter": "",
    "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match", **MEAN}],
}
TAKE_FIRST = {"function": "take_first"}
LETTER = {"function": "regex", "regex_pattern": "([a-j])", "group_select": -1}
TASKS: dict[str, Data] = {
    "acc": CHOICE,
    "acc_norm": CHOICE,
    "acc_bytes": CHOICE,
    "acc_mutual_info": CHOICE,
    "exact_match": {**CHOICE, "doc_to_choice": ["a", "b", "c"]},
    "several": {**CHOICE, "doc_to_target": "{{[gold, (gold + 1) % 3]}}"},
    "either": {**CHOICE, "doc_to_target": "{{[(gold + 1) % 3, gold]}}"},
    "word": {"output_type": "loglikelihood", "doc_to_text": "{{question}}: ", "doc_to_target": "{{answer}}"},
    "write": WRITE,
    "any": {**WRITE, "doc_to_target": "{{[answer[0], 'b', 'ab']}}"},
    "first": {**WRITE, "filter_list": [{"name": "first", "filter": [{**LETTER, "group_select": 0}, TAKE_FIRST]}]},
    "limit": {**WRITE, "generation_kwargs": {"until": ["\n"], "max_gen_toks": 1, "do_sample": False}},
    "conclude": {
        **WRITE,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 40, "do_sample": False},
        "filter_list": [{"name": "last", "filter": [LETTER, TAKE_FIRST]}],
    },
    "long": {
        **WRITE,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 40, "do_sample": False},
        "doc_to_target": "{{text[:60]}}",
    },
    "beyond": {**WRITE, "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3}, "doc_to_target": "{{text}}"},
    "within": {
        **WRITE,
        "generation_kwargs": {"until": ["\n", ".."], "max_gen_toks": 3},
        "doc_to_target": "{{[text, 'ab', 'abc']}}",
    },
    "aliases": {**WRITE, "doc_to_target": "{{range(200) | map('string') | list}}"},
}
WRITTEN = ("write", "any", "first", "limit", "conclude", "long", "beyond", "within", "aliases")
METRIC = {"several": "acc", "either": "exact_match", "word": "acc", **dict.fromkeys(WRITTEN, "exact_match")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tasks_writer: Any) -> Path:
    made = tmp_path_factory.mktemp("fitness")
    metrics = {name: [{"metric": METRIC.get(name, name), **MEAN}] for name in TASKS}
    named = {f"f_{name}": {"metric_list": metrics[name], **own} for name, own in TASKS.items()}
    tasks_writer(made / "tasks", named)
    return made


@pytest.fixture
def scorer_of(folder: Path, tokenizer: Any, model: Any) -> Make:
    def make(*names: str, fitness: Any = "expected_score", **options: Any) -> Scorer:
        tasks = [{"task": f"f_{name}", "name": name, "metric": METRIC.get(name, name), "chance": 0.0} for name in names]
        tasks = [{**task, **options} for task in tasks]
        counts = {"search": 15, "validation": 2, "test": 2}
        path = folder / "s.yaml"
        path.write_text(
            yaml.safe_dump({"name": "s", "include": ["tasks"], "tasks": tasks, "documents": counts, "fitness": fitness})
        )
        return Scorer(load_suite(path), tokenizer, max_length_of(model.config, tokenizer))

    return make


def values(scorer: Scorer, model: Any, task: str) -> dict[str, Column]:
    return dict(scorer.score(model, scorer.batch("search")).columns[task])


def frozen(scorer: Scorer) -> FrozenBatch:
    return scorer.plans(scorer.batch("search"))[0]


def logprob(model: Any, tokens: Sequence[int], continuation: Sequence[int]) -> float:
    """The log-likelihood of a continuation by a plain forward pass."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*tokens, *continuation]])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(tokens) - 1 + i, token]) for i, token in enumerate(continuation))


CHOICES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "several")


@pytest.mark.parametrize("name", CHOICES)
def test_the_probability_of_a_choice_is_a_softmax_as_the_metric_normalizes(
    scorer_of: Make, model: Any, name: str
) -> None:
    scorer = scorer_of(name)
    columns = values(scorer, model, name)
    lls = np.split(columns[LOGLIKELIHOODS], columns[REQUESTS].astype(int).cumsum()[:-1])
    for item, (document, own) in enumerate(zip(frozen(scorer).tasks[0].documents, lls, strict=True)):
        choices = document.document["choices"]
        lengths = [len(choice) for choice in choices]  # of ASCII, so bytes are characters
        z = {"acc_norm": own / lengths, "acc_bytes": own / lengths} if name in ("acc_norm", "acc_bytes") else {}
        normalized = z.get(name, own[:3] - own[3:] if name == "acc_mutual_info" else own)
        p = np.exp(normalized) / np.exp(normalized).sum()
        gold = document.document["gold"]
        right = [gold, (gold + 1) % 3] if name == "several" else [gold]
        assert columns[EXPECTED][item] == pytest.approx(p[right].sum(), rel=1e-9)


@pytest.mark.parametrize("name", [*CHOICES, "exact_match", "word", "write", "any", "limit"])
def test_lm_eval_counts_an_item_as_right_if_its_margin_is_positive(
    scorer_of: Make, new_model: Any, name: str, tokenizer: Any
) -> None:
    metric = METRIC.get(name, name)
    verdicts = []
    scorer = scorer_of(name, fitness="margin")
    for seed in range(4):
        columns = values(scorer, new_model(tokenizer, seed=seed), name)
        if name in ("write", "any"):  # an answer may also end at the limit
            assert (columns[metric][columns[MARGIN] > 0.5] == 1).all()
        else:
            np.testing.assert_array_equal(columns[MARGIN] > 0.5, columns[metric] == 1)
        verdicts += list(columns[metric])
    assert sum(verdicts) < len(verdicts)
    assert sum(verdicts) > 0 or name not in (*CHOICES, "limit")  # random models give no longer text


def test_a_generated_answer_has_one_of_its_ends(scorer_of: Make, model: Any, tokenizer: Any) -> None:
    scorer = scorer_of("write", "any", "first", "limit")
    card = scorer.score(model, scorer.batch("search"))
    newline, stop = (tokenizer.convert_tokens_to_ids(text) for text in "\n.")
    ends = [[newline], [stop], [tokenizer.eos_token_id]]
    for task in frozen(scorer).tasks:
        for item, document in enumerate(task.documents):
            prompt = frozen(scorer).generations[document.queries[0].requests[0]].prompt
            letter = document.document["answer"][0]
            texts = {"any": dict.fromkeys([letter, "b", "ab"])}.get(task.spec.name, [letter])
            after = [[]] if task.spec.name in ("first", "limit") else ends
            continuations = [[*tokenizer.encode(text), *end] for text in texts for end in after]
            expected = sum(np.exp(logprob(model, prompt, one)) for one in continuations)
            assert card.columns[task.spec.name][EXPECTED][item] == pytest.approx(expected, rel=1e-4)


def test_a_conclusion_follows_the_models_own_text(scorer_of: Make, model: Any, tokenizer: Any) -> None:
    scorer = scorer_of("conclude")
    batch = scorer.batch("search")
    found = scorer.score(model, batch).columns["conclude"]
    _, _, generations = scorer.plans(batch)
    texts = generate(model, generations)[0]
    lengths = set()
    for item, document in enumerate(frozen(scorer).tasks[0].documents):
        text = texts[document.queries[0].requests[0]]
        before = max((place for place, letter in enumerate(text) if letter in "abcdefghij"), default=None)
        if before is None:
            assert found[EXPECTED][item] == 0.0
            continue
        lengths.add(before)
        prompt = generations.requests[document.queries[0].requests[0]].prompt
        answer = tokenizer.encode(document.document["answer"][0])
        kept = text[:before].rstrip()  # lm-eval counts spaces at the end of a context to the continuation
        tokens, spaces = [*prompt, *tokenizer.encode(kept)], tokenizer.encode(text[len(kept) : before])
        expected = np.exp(logprob(model, tokens, [*spaces, *answer]))
        assert found[EXPECTED][item] == pytest.approx(expected, rel=1e-3)
    assert len(lengths) > 2
    assert frozen(scorer).item_fitness("expected_score").generated == "conclude"


def test_a_long_answer_counts_by_its_mean_log_probability(scorer_of: Make, model: Any) -> None:
    gold = values(scorer_of("long", fitness="gold_logprob"), model, "long")[GOLD]
    scorer = scorer_of("long")
    expected = values(scorer, model, "long")[EXPECTED]
    long = np.array([len(one.document["text"]) > LONG_ANSWER for one in frozen(scorer).tasks[0].documents])
    assert 0 < long.sum() < len(long)
    np.testing.assert_allclose(expected[long], np.exp(gold[long]), rtol=1e-6)
    assert (expected[~long] < np.exp(gold[~long])).all()


@pytest.mark.parametrize("fitness", ["expected_score", "margin", "gold_logprob"])
def test_an_unlearning_target_has_the_complement(scorer_of: Make, model: Any, fitness: str) -> None:
    column = {"expected_score": EXPECTED, "margin": MARGIN, "gold_logprob": GOLD}[fitness]
    names = ("acc", "word", "write")
    plain, gone = scorer_of(*names, fitness=fitness), scorer_of(*names, fitness=fitness, unlearn=True)
    one, other = plain.score(model, plain.batch("search")), gone.score(model, gone.batch("search"))
    for name in names:
        value = one.columns[name][column]
        complement = np.log1p(-np.exp(np.minimum(value, -(2.0**-23)))) if fitness == "gold_logprob" else 1 - value
        np.testing.assert_allclose(other.columns[name][f"1-{column}"], complement, rtol=1e-9)
    scale = 1 if fitness == "gold_logprob" else 100
    means = [other.columns[name][f"1-{column}"].mean() for name in names]
    assert other.fitness.value == pytest.approx(scale * np.mean(means))
    assert dict(zip(names, means, strict=True)) == pytest.approx(
        {name: one.value / scale for name, one in other.task_fitness.items()}
    )


@pytest.mark.parametrize("fitness", ["expected_score", "margin", "gold_logprob"])
@pytest.mark.parametrize("unlearn", [False, True])
def test_the_fitness_is_differentiable_and_is_that_of_the_score_card(
    scorer_of: Make, model: Any, fitness: Any, unlearn: bool
) -> None:
    scorer = scorer_of(
        "acc_norm", "acc_mutual_info", "several", "word", "write", "any", fitness=fitness, unlearn=unlearn
    )
    batch = scorer.batch("search")
    card, own = scorer.score(model, batch), frozen(scorer).item_fitness(fitness)
    assert own.generated is None
    rng = np.random.default_rng(0)
    lls = torch.tensor(-rng.random(len(own.requests)) - 0.1, requires_grad=True)
    margins = torch.tensor(rng.standard_normal(len(own.requests)), requires_grad=True)
    inputs = (margins,) if fitness == "margin" else (lls,)

    def total(*given: torch.Tensor) -> torch.Tensor:
        found = own(lls if fitness == "margin" else given[0], given[-1] if fitness == "margin" else margins)
        return torch.stack([weight * found[task].mean() for task, weight in own.weights.items()]).sum()

    assert torch.autograd.gradcheck(total, inputs)
    assert sum(own.weights.values()) == pytest.approx(1.0)
    assert {one.task for one in batch.sets} == set(own.weights) == set(card.task_fitness)
    assert len(set(own.indices)) == len(own.requests)


def test_the_score_card_has_the_fitness_of_its_log_likelihoods(scorer_of: Make, model: Any) -> None:
    scorer = scorer_of("acc_norm", "word", "write")
    own = frozen(scorer).item_fitness("expected_score")
    found = score_loglikelihoods(model, lay_out(own.requests, scorer.options))  # no generation, fewer requests
    items = own(torch.from_numpy(found.lls), torch.from_numpy(found.margins))
    value = sum(weight * float(items[task].mean()) for task, weight in own.weights.items())
    assert value == pytest.approx(scorer.score(model, scorer.batch("search")).fitness.value, rel=1e-5)


def test_a_target_that_the_metric_does_not_accept_is_named(scorer_of: Make, folder: Path) -> None:
    config = yaml.safe_load((folder / "tasks" / "f_write.yaml").read_text())
    config |= {"task": "f_odd", "doc_to_target": "{{answer}}", "filter_list": TASKS["first"]["filter_list"]}
    (folder / "tasks" / "f_odd.yaml").write_text(yaml.safe_dump(config))
    METRIC["odd"] = "exact_match"
    try:
        with pytest.raises(
            SuiteError, match=r"is not right by 'exact_match' with filter 'first'\. Set `fitness: score`"
        ):
            frozen(scorer_of("odd"))
        assert frozen(scorer_of("odd", fitness="score")).tasks[0].documents[0].right is None
        assert frozen(scorer_of("odd", fitness="gold_logprob")).tasks[0].documents[0].right is not None
    finally:
        del METRIC["odd"]


def test_what_has_no_gradient_is_named(scorer_of: Make) -> None:
    def why(*names: str, fitness: str = "expected_score") -> str | None:
        scorer = scorer_of(*names, fitness=fitness)
        return differentiable(scorer.suite, scorer.harness)

    assert why("acc", "write", "first", "long") is None
    assert why("acc", "conclude", fitness="gold_logprob") is None
    assert "'conclude' depends on the model's own generated text" in str(why("acc", "conclude"))
    assert "fitness: score counts right answers" in str(why("acc", fitness="score"))


def test_a_language_needs_a_conclusion(scorer_of: Make, model: Any) -> None:
    with pytest.raises(SuiteError, match=r"language: the probability of its right answer does not depend"):
        frozen(scorer_of("write", language="en"))
    plain, english = (values(scorer_of("conclude", **own), model, "conclude") for own in ({}, {"language": "en"}))
    inside = english["in_language"] == 1
    np.testing.assert_array_equal(english[EXPECTED], np.where(inside, plain[EXPECTED], 0.0))


OWN_REQUESTS = """
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask


class OwnRequests(ConfigurableTask):
    def __init__(self, config=None):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def construct_requests(self, doc, ctx, apply_chat_template=False, chat_template=None, **kwargs):
        pairs = [(ctx, f" {choice}") for choice in doc["choices"]]
        return [Instance("loglikelihood", doc, pair, index, **kwargs) for index, pair in enumerate(pairs)]

    def process_results(self, doc, results):
        lls = np.array([ll for ll, _ in results]) / [len(choice) for choice in doc["choices"]]
        return {"acc_norm": float(lls.argmax() == doc["gold"])}

    def aggregation(self):
        return {"acc_norm": mean}

    def higher_is_better(self):
        return {"acc_norm": True}
"""


def test_unknown_lengths_only_matter_where_the_fitness_divides_by_them(
    scorer_of: Make, model: Any, folder: Path
) -> None:
    config = yaml.safe_load((folder / "tasks" / "f_word.yaml").read_text()) | {"task": "f_own"}
    text = yaml.safe_dump(config) + "class: !function own_requests.OwnRequests\n"
    (folder / "tasks" / "f_own.yaml").write_text(text)
    (folder / "tasks" / "own_requests.py").write_text(OWN_REQUESTS)
    METRIC["own"] = "acc_norm"
    try:
        with pytest.raises(SuiteError, match=r"lengths by which 'acc_norm' divides are unknown\. Set `fitness: score`"):
            frozen(scorer_of("own"))
        for fitness in ("score", "gold_logprob"):
            assert (values(scorer_of("own", fitness=fitness), model, "own")[GOLD] < 0).all()
    finally:
        del METRIC["own"]


def test_a_task_asks_its_teacher_for_one_kind_of_answer(scorer_of: Make, folder: Path) -> None:
    config = yaml.safe_load((folder / "tasks" / "f_word.yaml").read_text()) | {"task": "f_mixed"}
    text = yaml.safe_dump(config) + "class: !function mixed_requests.OwnRequests\n"
    (folder / "tasks" / "f_mixed.yaml").write_text(text)
    some = OWN_REQUESTS.replace(
        'for choice in doc["choices"]]\n', 'for choice in doc["choices"][: 1 + doc["gold"]]]\n', 1
    )
    assert some != OWN_REQUESTS
    some = some.replace("acc_norm", "acc")
    (folder / "tasks" / "mixed_requests.py").write_text(some)
    METRIC["mixed"] = "acc"
    match = r"document \d+ of '.*mixed'.* asks its teacher for the likelihood.*, and document \d+ for the likelihood"
    try:
        with pytest.raises(SuiteError, match=match):
            frozen(scorer_of("mixed", fitness={"teachers": "auto"}))
    finally:
        del METRIC["mixed"]


def test_the_gold_log_probability_is_that_of_the_first_right_text(scorer_of: Make, model: Any) -> None:
    scorer = scorer_of("either")
    columns = values(scorer, model, "either")
    lls = columns[LOGLIKELIHOODS].reshape(-1, 3)
    for item, document in enumerate(frozen(scorer).tasks[0].documents):
        first = (document.document["gold"] + 1) % 3  # as the task lists them
        length = len(document.document["choices"][first]) + 1  # tokens are characters, after a space
        assert columns[GOLD][item] == pytest.approx(lls[item, first] / length)


@pytest.mark.parametrize("name", ["acc", "exact_match", "either", "word"])
def test_the_gold_log_probability_does_not_depend_on_the_fitness(scorer_of: Make, model: Any, name: str) -> None:
    kinds = ("score", "gold_logprob", "expected_score", "margin")
    first, *others = (values(scorer_of(name, fitness=kind), model, name)[GOLD] for kind in kinds)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_texts_that_cannot_be_generated_do_not_count(scorer_of: Make, model: Any, tokenizer: Any) -> None:
    scorer = scorer_of("within")
    requests = frozen(scorer).item_fitness("expected_score").requests
    ends = ["ab\n", "ab</s>", "abc"]  # not `ab..`, which has four tokens
    assert {tokenizer.decode(one.targets) for one in requests} == set(ends)
    with pytest.raises(SuiteError, match=r"document \d+ of .*beyond': no right answer can be .* more than 3 tokens"):
        frozen(scorer_of("beyond"))
    assert values(scorer_of("beyond", fitness="score"), model, "beyond")["exact_match"].sum() == 0


def test_of_many_targets_the_first_ones_count(scorer_of: Make, tokenizer: Any) -> None:
    scorer = scorer_of("aliases")
    (task,) = frozen(scorer).tasks
    assert len(frozen(scorer).item_fitness("expected_score").requests) <= MAX_TEXTS * len(task.documents)
    for document in task.documents:
        assert isinstance(document.right, RightText)
        texts = [tokenizer.decode(frozen(scorer).loglikelihoods[one].targets) for one in document.right.requests]
        assert len(texts) == MAX_TEXTS // 3 * 3  # of one spelling with three ends each
        assert {text.strip(" .\n").removesuffix("</s>") for text in texts} == set(map(str, range(MAX_TEXTS // 3)))
        judge = Judge(task.task, task.ensemble, "exact_match", document.document, document.instances)
        assert judge.right(["199"])  # the metric counts them all


@pytest.mark.parametrize("fitness", ["expected_score", "margin", "teachers"])
def test_an_empty_choice_is_never_likely_and_leaves_a_gradient(fitness: Any) -> None:
    answer = RightChoice((0, 1, 2), (1,), 1, lengths=(4.0, 3.0, 0.0))  # the metric divides by 0
    lls = torch.tensor([-5.0, -4.0, -3.0], dtype=torch.float64, requires_grad=True)
    found = of_one_item(fitness, answer)(lls, torch.zeros_like(lls))["t"]
    if fitness == "teachers":
        assert found.item() == pytest.approx(float(torch.tensor([-5 / 4, -4 / 3]).log_softmax(0)[0]), abs=1e-6)
    else:
        assert found.item() == pytest.approx(100 / (1 + np.exp(-5 / 4 + 4 / 3)))
    (slopes,) = torch.autograd.grad(found.sum(), lls)
    assert slopes.isfinite().all()
    assert (slopes != 0).tolist() == [True, True, False]


def of_one_item(fitness: Any, answer: RightChoice) -> ItemFitness:
    """The fitness of one item; its teacher is almost sure of the first choice."""
    spec, requests = SuiteTask(task="t", metric="acc_norm", chance=0.0), [LoglikelihoodRequest((1,), (2,))] * 3
    if fitness == "teachers":
        shares = _shares(answer, np.array([-4.0, -120.0, -1.0]))
        return taught_fitness([(spec, {0: TaughtChoice(answer, shares)})], requests)
    builder = ItemFitnessBuilder(fitness, requests)
    builder.add(spec, 1, {0: answer}, {})
    return builder.build()


def test_of_texts_that_begin_alike_the_shorter_one_is_kept() -> None:
    def pair(before: str, after: str) -> Pair:
        return tuple(before.encode()), tuple(after.encode())

    given = [pair("q", "ab"), pair("q", "a"), pair("q", "b"), pair("q", "a"), pair("qb", "c"), pair("", "qd")]
    assert disjoint(given) == [pair("q", "a"), pair("q", "b"), pair("", "qd")]
    assert disjoint([]) == []
