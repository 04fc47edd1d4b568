"""Documents of the shipped suites' splits, and their few-shot examples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import SuiteError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import load_suite
from evosearch.evaluation.suites.tasks import TaskLibrary

EVALS = Path(__file__).parents[2] / "evals"
Smaller = Callable[..., Path]


def test_reasoning_is_searched_on_no_public_test_document(hub: Path, smaller: Smaller) -> None:
    harness = Harness(load_suite(smaller("reasoning")))
    sources = {
        split: {items.task: items.documents or "as lm-eval evaluates" for items in harness.batch(split).sets}
        for split in ("search", "validation", "test")
    }
    tuned = {"gsm8k": "train", "gsm8k_flexible": "train", "arc_easy": "train", "arc_challenge": "train"}
    assert sources["search"] == tuned | {"hellaswag": "train"}
    assert sources["validation"] == sources["search"] | {"arc_easy": "validation", "arc_challenge": "validation"}
    assert sources["test"] == dict.fromkeys(sources["search"], "as lm-eval evaluates")


def test_it_would_be_refused_otherwise(hub: Path, smaller: Smaller) -> None:
    path = smaller("reasoning", tasks=[{"task": "arc_easy", "metric": "acc_norm", "chance": 0.25}])
    with pytest.raises(SuiteError, match="draw from the test documents of 'arc_easy', a public benchmark"):
        Harness(load_suite(path))


def test_a_benchmark_without_public_answers_is_what_lm_eval_evaluates(hub: Path, smaller: Smaller) -> None:
    """HellaSwag's test set has none: the validation set is reported instead, and must not be tuned on."""
    task = {"task": "hellaswag", "metric": "acc_norm", "chance": 0.25}
    for sources, key in (
        ({}, "task: the search"),
        ({"search": "train"}, "task: the validation"),
        ({"search": "train", "validation": "validation"}, "documents_from.validation: the validation"),
    ):
        path = smaller("reasoning", tasks=[task | {"documents_from": sources}])
        with pytest.raises(SuiteError) as caught:
            Harness(load_suite(path))
        assert str(caught.value) == (
            f"{path}: tasks[0].{key} split would draw from the validation documents, which lm-eval evaluates, of "
            "'hellaswag', a public benchmark: the search would tune on the benchmark's evaluation data. Set "
            "`documents_from: {search: train, validation: train}`, or a separate task for each split with `task: "
            "{search: …, validation: …, test: …}`, or `acknowledge_contamination: true` to proceed and report it."
        )
    Harness(load_suite(smaller("reasoning", tasks=[task], acknowledge_contamination=True)))


def test_both_filters_use_the_same_answers(hub: Path, smaller: Smaller, tokenizer: Any) -> None:
    harness = Harness(load_suite(smaller("reasoning")))
    for split in ("search", "validation", "test"):
        sets = {items.task: items for items in harness.batch(split).sets}
        assert sets["gsm8k"].doc_hashes == sets["gsm8k_flexible"].doc_hashes
        assert len(set(harness.freeze(harness.batch(split), tokenizer, 2048).generations)) == len(sets["gsm8k"])


def test_questions_of_one_video_stay_in_one_split(hub: Path, smaller: Smaller) -> None:
    harness = Harness(load_suite(smaller("reasoning")))
    groups = {}
    for split in ("search", "validation", "test"):
        (items,) = (items for items in harness.batch(split).sets if items.task == "hellaswag")
        groups[split] = set(items.groups)
        assert len(groups[split]) == (len(items) + 1) // 2  # two questions per video
    assert groups["search"].isdisjoint(groups["validation"] | groups["test"])


def test_five_examples_are_one_prefix_and_never_the_document_itself(
    hub: Path, smaller: Smaller, tokenizer: Any
) -> None:
    """Documents and examples both come from the training set."""
    path = smaller("reasoning", documents={"search": 26, "validation": 26, "test": 26})
    harness = Harness(load_suite(path))
    batches = [harness.batch(split) for split in ("search", "validation")]
    prompts = [
        str(tokenizer.decode(request.prompt))
        for batch in batches
        for request in harness.freeze(batch, tokenizer, 2048).generations
    ]
    assert len(prompts) == 2 * 2 * 26
    assert all(prompt.count("Question:") == 6 for prompt in prompts)
    assert all(prompt.count(prompt.split("Question: ")[-1]) == 1 for prompt in prompts)
    ids = [i for batch in batches for items in batch.sets if items.task == "gsm8k" for i in items.doc_ids]
    assert min(ids) < 5  # some of the first five were drawn, so the assertion above is not vacuous
    other = set(batches[1].sets[0].doc_ids)
    shown = [i for i in range(60) if i not in other][:5]  # the first five that the other split did not draw
    plain = [prompt for prompt, i in zip(prompts[:26], batches[0].sets[0].doc_ids, strict=False) if i not in shown]
    examples = plain[0].rsplit("Question:", 1)[0]
    assert examples.count("####") == 5
    assert all(prompt.startswith(examples) for prompt in plain)


def test_gsm8k_is_the_library_s_but_for_the_examples(hub: Path) -> None:
    ours = TaskLibrary([EVALS / "reasoning"]).load("ours", "reasoning_gsm8k").config.to_dict(keep_callable=False)
    theirs = TaskLibrary([]).load("theirs", "gsm8k").config.to_dict(keep_callable=False)
    for name in ("task", "tag", "metadata"):
        ours.pop(name, None)
        theirs.pop(name, None)
    differing = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert differing == {"fewshot_config", "generation_kwargs"}
    assert ours["generation_kwargs"]["until"] == theirs["generation_kwargs"]["until"]
    assert ours["generation_kwargs"]["max_gen_toks"] == 256  # lm-eval's default for a Hugging Face model
    assert theirs["num_fewshot"] == 5


def test_no_problem_of_mgsm_is_searched_on(hub: Path, smaller: Smaller) -> None:
    """The sets are disjoint by position in GSM8K's test set; an added copy is found as a near-duplicate."""
    counts = {"search": 30, "validation": 30, "test": 40}
    harness = Harness(load_suite(smaller("mgsm_ja", documents=counts)))
    used = [i for split in ("search", "validation") for i in harness.batch(split).sets[0].doc_ids]
    assert sorted(used) == list(range(60))  # all but the last, which is in MGSM
    assert {items.lm_eval_task for items in harness.batch("test").sets} == {"mgsm_ja_250"}
    counts["search"] = 31
    with pytest.raises(SuiteError, match="near-duplicates"):
        Harness(load_suite(smaller("mgsm_ja", documents=counts)))
