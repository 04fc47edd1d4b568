"""`lm_eval` and `evosearch score` give the same results, each started as a user would, on the same documents."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow  # lm_eval indexes its full library at every start
ROLLING: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
    ],
}
CHAT = (
    "{% for m in messages %}#{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}#assistant: {% endif %}"
)

# Task, its keys in the suite, and the same for lm_eval's command line; one for each output type.
RUNS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "t_choice": (
        {"metric": "acc_norm", "chance": 0.3, "num_fewshot": 5},
        ["--num_fewshot", "5"],
        "none",
    ),
    "t_word": ({"metric": "acc", "chance": 0.0}, [], "none"),
    "t_generate": (
        {
            "metric": "exact_match",
            "filter": "letter",
            "chance": 0.0,
            "num_fewshot": 1,
            "apply_chat_template": True,
            "system_instruction": "be brief",
            "generation_kwargs": {"max_gen_toks": 9},
        },
        [
            "--num_fewshot",
            "1",
            "--apply_chat_template",
            "--system_instruction",
            "be brief",
            "--gen_kwargs",
            "max_gen_toks=9",
        ],
        "letter",
    ),
    "t_text": ({"report_only": True}, [], "none"),
}


@dataclass(frozen=True)
class Both:
    """Output of the programs: ours as JSON and items, theirs by task."""

    score: dict[str, Any]
    items: list[dict[str, Any]]
    results: dict[str, dict[str, Any]]
    samples: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, model: Any, tasks_writer: Any) -> Both:
    import copy

    folder = tmp_path_factory.mktemp("programs")
    tasks = tasks_writer(folder / "tasks")
    tasks_writer(folder / "text", {"t_text": ROLLING})
    for file in folder.glob("text/t_*"):
        file.rename(tasks / file.name)
    talking = copy.deepcopy(tokenizer)
    talking.chat_template = CHAT
    model = copy.deepcopy(model)
    model.config.max_position_embeddings = 320  # five examples fit
    model.save_pretrained(folder / "model")
    talking.save_pretrained(folder / "model")
    entries = [{"task": name, **keys} for name, (keys, _, _) in RUNS.items()]
    counts = {"search": 1, "validation": 1, "test": 12}
    suite = {"name": "both", "include": ["tasks"], "tasks": entries, "documents": counts}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    score = json.loads(_ours(folder))
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    ids = {task: [item["doc_id"] for item in items if item["task"] == task] for task in RUNS}
    with ThreadPoolExecutor(2) as pool:
        out = dict(zip(RUNS, pool.map(lambda task: _theirs(folder, task, ids[task]), RUNS), strict=True))
    samples = {
        task: [sample for sample in found[1] if sample["filter"] == RUNS[task][2]] for task, found in out.items()
    }
    return Both(score, items, {task: found[0] for task, found in out.items()}, samples)


def _ours(folder: Path) -> str:
    command = ["-m", "evosearch.cli.main", "score", str(folder / "model"), str(folder / "suite.yaml")]
    return _run(folder, [*command, "--split", "test", "--items", str(folder / "items.jsonl"), "--json"])


def _theirs(folder: Path, task: str, ids: list[int]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    out = folder / f"out_{task}"
    model = f"pretrained={folder / 'model'},dtype=float32"
    command = ["-m", "lm_eval", "--model", "hf", "--model_args", model, "--device", "cpu", "--batch_size", "1"]
    command += ["--tasks", task, "--include_path", str(folder / "tasks"), "--samples", json.dumps({task: ids})]
    _run(folder / "tasks", [*command, *RUNS[task][1], "--output_path", str(out), "--log_samples"])
    (results,), (samples,) = out.rglob("results_*.json"), out.rglob("samples_*.jsonl")
    logged = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"][task], logged


def _run(folder: Path, command: list[str]) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["EVOSEARCH_DATA"] = str(folder / "data")  # not the user's count of test openings
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("task", RUNS)
def test_metrics_are_those_of_the_program(task: str, both: Both) -> None:
    expected = {
        key.split(",")[0]: value
        for key, value in both.results[task].items()
        if key.endswith(f",{RUNS[task][2]}") and "_stderr" not in key
    }
    assert len(expected) >= 1
    assert both.score["reported"][task] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    if task == "t_text":
        assert task not in both.score["tasks"]
    else:
        found = both.score["tasks"][task]
        assert found["value"] == pytest.approx(expected[found["metric"]])
        assert found["n"] == 12 == both.results[task]["sample_len"]


@pytest.mark.parametrize("task", RUNS)
def test_every_item_has_its_log_likelihoods_and_metrics(task: str, both: Both) -> None:
    ours = [item for item in both.items if item["task"] == task]
    assert [item["doc_id"] for item in ours] == [sample["doc_id"] for sample in both.samples[task]]
    for item, sample in zip(ours, both.samples[task], strict=True):
        for metric in sample["metrics"]:
            assert item["metrics"][metric] == pytest.approx(sample[metric], rel=1e-5, abs=1e-3), metric
        if task == "t_generate":
            assert "loglikelihoods" not in item
            continue
        expected = [_ll(resp[0]) for resp in sample["resps"]]
        for ll, other in zip(item["loglikelihoods"], expected, strict=True):
            assert abs(ll - other) < 1e-3 + 1e-6 * abs(other)


def _ll(answer: Any) -> float:
    """lm_eval writes answers as texts."""
    return float(answer[0]) if isinstance(answer, list) else float(answer)


def test_the_execution_mode_is_reported(both: Both) -> None:
    assert both.score["modes"] == {"loglikelihood": "tree", "generation": "tree"}
    tokens = both.score["tokens"]
    assert tokens["distinct"] <= tokens["forwarded"] + tokens["padded"] <= 1.05 * tokens["distinct"]
    assert tokens["requested"] > 1.5 * tokens["distinct"]  # the five examples run once; other tasks have none


def test_the_examples_of_the_program_were_five(both: Both) -> None:
    prompts = [sample["arguments"]["gen_args_0"]["arg_0"] for sample in both.samples["t_choice"]]
    assert all(prompt.count("?") == 6 for prompt in prompts)


def test_the_prompts_of_the_program_were_chats(both: Both) -> None:
    prompts = [sample["arguments"]["gen_args_0"]["arg_0"] for sample in both.samples["t_generate"]]
    assert all(prompt.startswith("#system: be brief\n#user: ") for prompt in prompts)
    assert all(prompt.count("#assistant: ") == 2 for prompt in prompts)  # one example, one answer to be given
    assert {len(item["metrics"]) for item in both.items if item["task"] == "t_text"} == {2}
