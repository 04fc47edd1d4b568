"""Four suites of generated questions, which differ in how their requests share tokens; the content is irrelevant."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

WORDS = """
water river city animal metal light planet number large small under between before after which when heat energy plant
stone bridge glass paper winter summer doctor teacher engine signal window garden market island history science measure
language picture country machine carbon copper ocean desert forest mountain valley surface pressure season orbit circle
square triangle weight length volume speed force motion current voltage
"""
SHOTS = 5
NEW_TOKENS = 32
_LETTERS = "ABCD"
_MEAN = {"aggregation": "mean", "higher_is_better": True}


@dataclass(frozen=True)
class Setting:
    """One comparison with lm-eval."""

    name: str
    documents: int
    config: dict[str, Any]  # of the lm-eval task
    claim: float  # minimum ratio of lm-eval's time to ours


def _choices(sampler: str) -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "answers",
        "doc_to_target": "gold",
        "num_fewshot": SHOTS,
        "fewshot_split": "fewshot",
        "fewshot_config": {"sampler": sampler},
        "metric_list": [{"metric": "acc", **_MEAN}],
    }


SETTINGS = {
    one.name: one
    for one in (
        Setting("five-shot, one prefix", 40, _choices("first_n"), 15.0),
        Setting("five-shot, examples drawn for each document", 40, _choices("default"), 3.0),
        Setting(
            "zero-shot, choices of one token",
            200,
            {
                "output_type": "multiple_choice",
                "doc_to_text": "Question: {{question}}\n{{listed}}\nAnswer:",
                "doc_to_choice": list(_LETTERS),
                "doc_to_target": "gold",
                "metric_list": [{"metric": "acc", **_MEAN}],
            },
            1.2,
        ),
        Setting(
            f"five-shot, {NEW_TOKENS} tokens generated",
            16,
            {
                "output_type": "generate_until",
                "doc_to_text": "Question: {{question}}\nAnswer:",
                "doc_to_target": "{{answers[gold]}}",
                "num_fewshot": SHOTS,
                "fewshot_split": "fewshot",
                "fewshot_config": {"sampler": "first_n"},
                # A stop sequence that never occurs, so that all answers have the same length in both programs
                "generation_kwargs": {"until": ["\n\n\n\n"], "max_gen_toks": NEW_TOKENS, "do_sample": False},
                "metric_list": [{"metric": "exact_match", **_MEAN}],
            },
            1.0,
        ),
    )
}


def write_suite(folder: Path, setting: Setting, documents: int) -> Path:
    """Write suite, task and documents into a new folder; return the suite's file."""
    tasks = folder / "tasks"
    tasks.mkdir(parents=True)
    for split, count, seed in (("fewshot", 3 * SHOTS, 1), ("test", documents + 2, 2)):
        lines = [json.dumps(document) for document in _documents(count, seed)]
        (tasks / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    config = {
        "task": "bench",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "test.jsonl", "fewshot": "fewshot.jsonl"}},
        "test_split": "test",
        **setting.config,
    }
    (tasks / "bench.yaml").write_text(yaml.safe_dump(config))
    metric = setting.config["metric_list"][0]["metric"]
    suite = {
        "name": "bench",
        "include": ["tasks"],
        "tasks": [{"task": "bench", "metric": metric, "chance": 0.0}],
        "documents": {"search": 1, "validation": 1, "test": documents},
        "fitness": "score",
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite))
    return path


def _documents(count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)

    def words(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS.split(), k=draw.randint(least, most)))

    made = []
    for _ in range(count):
        answers = [words(1, 4) for _ in _LETTERS]
        listed = "\n".join(f"{letter}. {answer}" for letter, answer in zip(_LETTERS, answers, strict=True))
        made.append({"question": words(8, 20) + "?", "answers": answers, "listed": listed, "gold": draw.randrange(4)})
    return made
