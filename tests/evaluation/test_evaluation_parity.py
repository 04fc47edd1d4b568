"""Six families, four output types, plain and chat, with and without examples, with lm-eval's own loop as the oracle."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest, score_loglikelihoods
from evosearch.evaluation.harness.harness import max_length_of
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.evaluation.types import LOGLIKELIHOODS, REQUESTS

LENGTH = 320  # five examples in a chat fit
DOCUMENTS = 6
MEAN = {"aggregation": "mean", "higher_is_better": True}
CHAT = (
    "{{ bos_token }}{% for m in messages %}#{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}#assistant: {% endif %}"
)
SHORT = "{% for m in messages %}{{ m.role[0] }}={{ m.content }}.{% endfor %}{% if add_generation_prompt %}a={% endif %}"


def metric(name: str, aggregation: str | None = None, higher: bool = True) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation or name, "higher_is_better": higher}


PARITY: dict[str, dict[str, Any]] = {
    "p_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}?",
        "doc_to_choice": "{{choices[:2]}}",
        "doc_to_target": "{{gold % 2}}",
        "description": "name it.\n",
        "metric_list": [
            *(metric(name, "mean") for name in ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")),
            metric("f1"),
            metric("mcc", "matthews_corrcoef"),
            metric("brier_score", higher=False),
        ],
    },
    "p_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}: ",
        "doc_to_target": "{{answer}}",
        "metric_list": [metric("acc", "mean"), metric("perplexity", higher=False)],
    },
    "p_write": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}=",
        "doc_to_target": "{{answer}}",
        "gen_prefix": "so",
        "generation_kwargs": {"until": ["\n", "9"], "max_gen_toks": 40, "do_sample": False},
        "metric_list": [metric("exact_match", "mean"), metric("bleu"), metric("chrf"), metric("ter", higher=False)],
        "filter_list": [
            {"name": "whole", "filter": [{"function": "take_first"}]},
            {
                "name": "letter",
                "filter": [
                    {"function": "regex", "regex_pattern": "([a-j])", "fallback": "none"},
                    {"function": "take_first"},
                ],
            },
        ],
    },
    "p_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{ [text, text, text, text] | join(' ') }}",
        "metric_list": [
            metric("word_perplexity", "weighted_perplexity", False),
            metric("byte_perplexity", "weighted_perplexity", False),
            metric("bits_per_byte", higher=False),
        ],
    },
}
FILTERS = {"p_choice": "none", "p_word": "none", "p_write": "letter", "p_text": "none"}

SUITE: dict[str, Any] = {
    "name": "parity",
    "include": ["tasks"],
    "tasks": [
        {"task": "p_choice", "metric": "acc_norm", "chance": 0.3},
        {"task": "p_word", "metric": "acc", "chance": 0.0},
        {"task": "p_write", "metric": "exact_match", "chance": 0.0, "filter": "letter"},
        {"task": "p_text", "report_only": True},
    ],
    "documents": {"search": 1, "validation": 1, "test": DOCUMENTS},
    "fitness": "gold_logprob",  # the targets of p_write are words, and the filter keeps a letter
}

# Suite keys on the left, the corresponding arguments of lm_eval's command line on the right.
CHATTING = {"apply_chat_template": True, "fewshot_as_multiturn": True}
BRIEF = {"system_instruction": "be brief."}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "plain 5-shot": ({"num_fewshot": 5}, {}),
    "chat": ({"apply_chat_template": True}, CHATTING),
    "chat 5-shot": ({"apply_chat_template": True, "num_fewshot": 5}, CHATTING),
    "plain 2-shot, system": ({"num_fewshot": 2, **BRIEF}, BRIEF),
    "chat 2-shot, system": ({"apply_chat_template": True, "num_fewshot": 2, **BRIEF}, {**CHATTING, **BRIEF}),
    "chat 2-shot in one turn": (
        {"apply_chat_template": True, "num_fewshot": 2, "fewshot_as_multiturn": False},
        {"apply_chat_template": True, "fewshot_as_multiturn": False},
    ),
    "chat 1-shot, named template, shorter": (
        {"apply_chat_template": "short", "num_fewshot": 1, "generation_kwargs": {"max_gen_toks": 5}},
        CHATTING,
    ),
}
FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "gpt2", "phi")
EVERY = tuple(VARIANTS)[
    :4
]  # with every family; the others with two, one that puts <s> before texts and one that does not
CASES = [(family, variant) for variant in VARIANTS for family in (FAMILIES if variant in EVERY else ("llama", "gpt2"))]


@dataclass
class World:
    """A folder of tasks and its scorers, one for each variant and kind of tokenizer."""

    folder: Path
    scorers: dict[tuple[str, bool], Scorer] = field(default_factory=dict)

    def scorer(self, variant: str, tokenizer: Any, bos: bool) -> Scorer:
        if (variant, bos) not in self.scorers:
            path = self.folder / "suite.yaml"
            path.write_text(yaml.safe_dump({**SUITE, **VARIANTS[variant][0]}))
            self.scorers[variant, bos] = Scorer(load_suite(path), tokenizer, LENGTH)
        return self.scorers[variant, bos]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tasks_writer: Any) -> World:
    folder = tmp_path_factory.mktemp("parity")
    tasks_writer(folder / "tasks", PARITY, 12)
    return World(folder)


def make(family: str, vocabulary: int) -> Any:
    import transformers

    torch.manual_seed(5)
    shared = {"vocab_size": vocabulary, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}
    if family == "gpt2":
        small = transformers.GPT2Config(n_positions=LENGTH, n_embd=32, n_layer=2, n_head=4, **shared)
        return transformers.GPT2LMHeadModel(small).eval()
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    size |= {"num_key_value_heads": 2, "max_position_embeddings": LENGTH, "head_dim": 8, "pad_token_id": 0}
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma", "phi": "Phi"}[family]
    tied = {"tie_word_embeddings": family in ("qwen2", "gemma")}
    config = getattr(transformers, f"{name}Config")(**size, **shared, **tied)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def with_chat(tokenizer: Any, bos: bool) -> Any:
    from tokenizers.processors import TemplateProcessing

    other = copy.deepcopy(tokenizer)
    other.chat_template = {"default": CHAT, "short": SHORT}
    if bos:  # like Llama's: before every text, and in the chat template too
        other.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return other


@pytest.fixture(scope="module")
def theirs(world: World) -> dict[str, Any]:
    """Task objects loaded by lm-eval alone."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    folder, tasks = world.folder / "tasks", {}
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    for name in PARITY:
        config = load_yaml(folder / f"{name}.yaml")
        files = config["dataset_kwargs"]["data_files"]
        config["dataset_kwargs"]["data_files"] = {split: str(folder / file) for split, file in files.items()}
        tasks[name] = manager.load([config])["tasks"][name]
    return tasks


def expected(model: Any, tokenizer: Any, scorer: Scorer, variant: str, tasks: dict[str, Any]) -> dict[str, Any]:
    """The results of lm-eval's evaluate on the same documents."""
    ours, given = VARIANTS[variant]
    template = {"chat_template": "short"} if ours.get("apply_chat_template") == "short" else {}
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, chat_template_args=template)
    assert lm.max_length == LENGTH == max_length_of(model.config, tokenizer)
    for name, task in tasks.items():  # as `simple_evaluate` does with its num_fewshot and gen_kwargs
        task.set_config("num_fewshot", ours.get("num_fewshot", 0))
        if name == "p_write":
            kwargs = {**PARITY[name]["generation_kwargs"], **ours.get("generation_kwargs", {})}
            task.set_config("generation_kwargs", kwargs)
    samples = {items.lm_eval_task: list(items.doc_ids) for items in scorer.batch("test").sets}
    return dict(evaluate(lm, {"tasks": tasks}, samples=samples, bootstrap_iters=0, **given))


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_scores_are_lm_evals(family: str, variant: str, world: World, theirs: dict[str, Any], tokenizer: Any) -> None:
    bos = family in ("llama", "gemma")
    tokenizer = with_chat(tokenizer, bos)
    model, scorer = make(family, len(tokenizer)), world.scorer(variant, tokenizer, bos)
    card = scorer.score(model, scorer.batch("test"))
    out = expected(model, tokenizer, scorer, variant, theirs)
    _check_requests(scorer, model, card.columns, out)
    for task, filter_name in FILTERS.items():
        reported = {
            key.split(",")[0]: value
            for key, value in out["results"][task].items()
            if key.endswith(f",{filter_name}") and "_stderr" not in key
        }
        assert card.reported[task] == pytest.approx(reported, rel=1e-4, abs=1e-6), task
        assert len(reported) == len(PARITY[task]["metric_list"])
    assert {"p_choice", "p_word", "p_write"} == set(card.tasks)
    for task, score in card.tasks.items():
        assert score.value == pytest.approx(card.reported[task][score.metric])


def _check_requests(scorer: Scorer, model: Any, columns: Any, out: dict[str, Any]) -> None:
    """Log-likelihoods of all requests, and whether greedy decoding gives the continuation."""
    frozen, plan, _ = scorer.plans(scorer.batch("test"))
    _, greedy, *_ = score_loglikelihoods(model, plan)
    margins = [_margin(model, request) for request in plan.requests]
    flags = 0
    for task in frozen.tasks:
        name = task.spec.name
        samples = [sample for sample in out["samples"][name] if sample["filter"] == FILTERS[name]]
        assert len(samples) == DOCUMENTS
        if name == "p_write":
            continue
        answers = [resp[0] for sample in samples for resp in sample["resps"]]
        lls = np.array([answer if name == "p_text" else answer[0] for answer in answers])
        ours = columns[name][LOGLIKELIHOODS]
        np.testing.assert_array_less(np.abs(ours - lls), 1e-3 + 1e-6 * np.abs(lls), err_msg=name)
        assert np.ptp(lls) > 1
        assert columns[name][REQUESTS].tolist() == [len(sample["resps"]) for sample in samples]
        if name != "p_text":
            asked = [query.requests[0] for document in task.documents for query in document.queries]
            sure = [margins[request] > 1e-4 for request in asked]
            assert [greedy[request] for request in asked if margins[request] > 1e-4] == [
                answer[1] for answer, known in zip(answers, sure, strict=True) if known
            ]
            flags += sum(sure)
    assert flags > 0.9 * DOCUMENTS * (4 + 1)


@torch.no_grad()
def _margin(model: Any, request: LoglikelihoodRequest) -> float:
    """Smallest margin between the best and the second-best token."""
    logits = model(input_ids=torch.tensor([request.inputs])).logits[0, -len(request.targets) :]
    best = logits.topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


@pytest.mark.parametrize("family", FAMILIES)
def test_examples_drawn_for_each_document(family: str, tmp_path: Path, tasks_writer: Any, tokenizer: Any) -> None:
    """lm-eval's own draw depends on what else is scored, so its model gets the requests that were frozen here."""
    drawn = {name: {**PARITY[name], "fewshot_config": {"sampler": "default"}} for name in ("p_choice", "p_word")}
    tasks_writer(tmp_path / "tasks", drawn, 12)
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({**SUITE, "tasks": SUITE["tasks"][:2], "num_fewshot": 5}))
    model, scorer = make(family, len(tokenizer)), Scorer(load_suite(path), tokenizer, LENGTH)
    batch = scorer.batch("test")
    card, frozen = scorer.score(model, batch), scorer.plans(batch)[0]
    prefixes = {request.inputs[:20] for request in frozen.loglikelihoods}
    assert len(prefixes) > DOCUMENTS  # no common prefix
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    for task in frozen.tasks:
        instances = [instance for document in task.documents for instance in document.instances]
        lls = np.array([answer[0] for answer in lm.loglikelihood(instances, disable_tqdm=True)])
        ours = card.columns[task.spec.name][LOGLIKELIHOODS]
        np.testing.assert_array_less(np.abs(ours - lls), 1e-3 + 1e-6 * np.abs(lls))


def test_rolling_texts_span_several_windows(world: World, tokenizer: Any) -> None:
    scorer = world.scorer("plain", with_chat(tokenizer, False), False)
    frozen, _, _ = scorer.plans(scorer.batch("test"))
    windows = [len(document.queries[0].requests) for document in frozen.tasks[3].documents]
    assert min(windows) == 1
    assert max(windows) > 3


def test_options_change_the_requests(world: World, tokenizer: Any) -> None:
    tokenizer = with_chat(tokenizer, False)
    made = {}
    for variant in VARIANTS:
        scorer = world.scorer(variant, tokenizer, False)
        frozen, _, _ = scorer.plans(scorer.batch("test"))
        made[variant] = (frozen.loglikelihoods, frozen.generations)
        texts = [tokenizer.decode(request.prompt) for request in frozen.generations]
        assert all(
            ("#assistant: so" in text) == (variant.startswith("chat") and "named" not in variant) for text in texts
        )
        assert all(request.max_new_tokens == (5 if "shorter" in variant else 40) for request in frozen.generations)
    assert len({str(asked) for asked in made.values()}) == len(VARIANTS)
    suites = {variant: world.scorer(variant, tokenizer, False).suite for variant in VARIANTS}
    assert len({suite.digest() for suite in suites.values()}) == len(VARIANTS)
    assert all(Suite.model_validate(suite.model_dump()) == suite for suite in suites.values())
