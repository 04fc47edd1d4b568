"""Workers that run out of memory: halved batches, recorded retries, and cases where smaller batches do not help."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evosearch.errors import SpecError
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import load_suite
from evosearch.execution.device import spread_of
from evosearch.execution.worker import Worker
from evosearch.execution.worker_config import WorkerConfig
from evosearch.recipe.schema import Recipe
from evosearch.search.protocols import Job, Outcome

World = Callable[..., Path]


@pytest.fixture
def folder(world: World) -> Path:
    """The world's models, and a suite with 50 documents in `test`."""
    folder = world().parent
    suite = yaml.safe_load((folder / "suite.yaml").read_text())
    suite["documents"] = {"search": 4, "validation": 4, "test": 50}
    (folder / "larger.yaml").write_text(yaml.safe_dump(suite))
    return folder


@pytest.fixture
def harness(folder: Path) -> Harness:
    return Harness(load_suite(folder / "larger.yaml"))


@pytest.fixture
def config(folder: Path, harness: Harness, tmp_path: Path) -> WorkerConfig:
    suite, recipe = harness.suite.model_dump(mode="json"), blend(folder, 0.3).to_dict()
    return WorkerConfig(recipe=recipe, suite=suite, cache=tmp_path, device="cpu", threads=1)


def blend(folder: Path, weight: float) -> Recipe:
    parents = [
        {"model": str(folder / name), "parameters": {"weight": share}}
        for name, share in (("expert1", weight), ("expert2", 1 - weight))
    ]
    return Recipe.model_validate(
        {
            "merge_method": "task_arithmetic",
            "base_model": str(folder / "base"),
            "models": parents,
            "parameters": {"lambda": 1.0},
        }
    )


@contextmanager
def at_most(worker: Worker, tokens: int) -> Iterator[list[int]]:
    """Make the model run out of memory above a number of tokens; yield the sizes of its passes."""
    ran: list[int] = []

    def refuse(module: Any, args: Any, kwargs: Any) -> None:
        ran.append(kwargs["input_ids"].numel())
        if ran[-1] > tokens:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {ran[-1]} MiB.")

    hook = worker.resident.model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield ran
    finally:
        hook.remove()


def same(one: Outcome, other: Outcome) -> bool:
    """Return whether every score and log-likelihood is bitwise equal."""
    assert one.card is not None, one.failure
    assert other.card is not None, other.failure
    pairs = [
        (values, other.card.columns[task][name])
        for task, columns in one.card.columns.items()
        for name, values in columns.items()
    ]
    assert pairs
    return all(np.array_equal(mine, theirs) for mine, theirs in pairs)


def test_the_batch_size_is_halved_until_a_batch_fits(config: WorkerConfig, folder: Path, harness: Harness) -> None:
    """50 documents fit into one pass of the default size, but not into the memory of this device."""
    worker, batch = Worker(config, harness=harness), harness.batch("test")
    untroubled = Worker(config, harness=harness).run(Job("0@test", blend(folder, 0.3), batch))
    with at_most(worker, 260) as ran:
        outcome = worker.run(Job("0@test", blend(folder, 0.3), batch))
    assert max(ran) > 260, "otherwise memory never ran out"
    assert outcome.failure is None
    assert [(fault.stage, fault.fault) for fault in outcome.retries] == [("score", "worker")] * len(outcome.retries)
    assert [fault.reason for fault in outcome.retries][:1] == [
        "out of memory at 2048 tokens per batch; 1024 from now on"
    ]
    assert all("Traceback" in fault.traceback for fault in outcome.retries)
    assert "Tried to allocate" in outcome.retries[0].traceback
    assert worker.options.batch_tokens == 256
    small = Worker(replace(config, options=worker.options), harness=harness).run(
        Job("0@test", blend(folder, 0.3), batch)
    )
    assert same(outcome, small)
    assert not small.retries
    assert untroubled.card is not None
    assert outcome.card is not None
    for task, columns in untroubled.card.columns.items():
        for name, values in columns.items():
            np.testing.assert_allclose(outcome.card.columns[task][name], values, atol=1e-4)


def test_later_candidates_keep_the_smaller_budget(config: WorkerConfig, folder: Path, harness: Harness) -> None:
    worker, batch = Worker(config, harness=harness), harness.batch("test")
    with at_most(worker, 260) as ran:
        worker.run(Job("0@test", blend(folder, 0.3), batch))
        ran.clear()
        later = [worker.run(Job(f"{n}@{split}", blend(folder, 0.1 * n), harness.batch(split))) for n, split in PAIRS]
    assert max(ran) <= 260
    assert all(outcome.card is not None and not outcome.retries for outcome in later)


PAIRS = ((1, "test"), (2, "search"), (3, "validation"))  # one batch laid out before the change, two after


def test_batch_and_cache_limits_are_halved_together(config: WorkerConfig, folder: Path, harness: Harness) -> None:
    worker, batch = Worker(config, harness=harness), harness.batch("test")
    worker.run(Job("0@test", blend(folder, 0.3), batch))
    scorer, tried = worker.scorer, []
    real = scorer.harness.collect

    def collect(*args: Any) -> Any:
        tried.append(scorer.options)
        if len(tried) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*args)

    scorer.harness.collect = collect  # type: ignore[method-assign]
    outcome = worker.run(Job("0@test", blend(folder, 0.3), batch))
    assert [(options.batch_tokens, options.cached_tokens) for options in tried] == [
        (None, 32768),
        (1024, 16384),
        (512, 8192),
    ]
    assert outcome.card is not None
    assert outcome.retries[1].reason == (
        "out of memory at 1024 tokens per batch; 512 from now on, and 8192 cached tokens instead of 16384"
    )


def test_out_of_memory_at_the_minimum_is_the_workers_fault(
    config: WorkerConfig, folder: Path, harness: Harness
) -> None:
    worker, batch = Worker(config, harness=harness), harness.batch("search")
    with at_most(worker, 0):
        outcome = worker.run(Job("0@search", blend(folder, 0.3), batch))
    assert outcome.card is None
    assert outcome.failure is not None
    assert (outcome.failure.stage, outcome.failure.fault) == ("score", "worker")
    assert outcome.failure.reason.startswith("out of memory: CUDA out of memory")
    steps = [re.findall(r"at (\d+) tokens per batch; (\d+)", fault.reason)[0] for fault in outcome.retries]
    assert steps == [("2048", "1024"), ("1024", "512"), ("512", "256")]
    again = worker.run(Job("1@search", blend(folder, 0.4), batch))
    assert again.card is not None, "running out of memory has no lasting effect"


def test_out_of_memory_while_merging_keeps_the_batch_size(
    config: WorkerConfig, folder: Path, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, batch = Worker(config, harness=harness), harness.batch("search")

    def refuse(*_: Any) -> float:
        torch.empty(2**60)  # the CPU's allocator refuses
        return 0.0

    monkeypatch.setattr(worker.resident, "materialize", refuse)
    outcome = worker.run(Job("0@search", blend(folder, 0.3), batch))
    assert outcome.failure is not None
    assert (outcome.failure.stage, outcome.failure.fault) == ("materialize", "worker")
    assert "out of memory" in outcome.failure.reason
    assert not outcome.retries
    assert worker.options == ScoreOptions()


def test_tensors_of_a_failed_attempt_are_freed_before_the_next(
    config: WorkerConfig, folder: Path, harness: Harness
) -> None:
    """Tensors of the first attempt are freed before the second: no traceback keeps their frames alive."""
    import gc
    import weakref

    worker, batch = Worker(config, harness=harness), harness.batch("search")
    made: list[weakref.ref[torch.Tensor]] = []

    def refuse(module: Any, args: Any, output: Any) -> None:
        alive = [each for each in made if each() is not None]
        assert not alive, "the previous attempt is still in memory"
        made.append(weakref.ref(output.last_hidden_state))
        if len(made) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        hook.remove()

    gc.disable()  # so that only an explicit collection by the worker frees cycles
    try:
        hook = worker.resident.model.base_model.register_forward_hook(refuse)
        outcome = worker.run(Job("0@search", blend(folder, 0.3), batch))
    finally:
        gc.enable()
    assert outcome.card is not None, outcome.failure
    assert len(outcome.retries) == 2


def test_a_worker_reports_its_limits(config: WorkerConfig, harness: Harness) -> None:
    worker = Worker(config, harness=harness)
    assert worker.measured() == {
        "device": "cpu",
        "batch_tokens": 2048,
        "cached_tokens": 32768,
        "measured": False,
        "devices": [],
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
def test_fewer_gpus_than_requested_are_an_error() -> None:
    with pytest.raises(SpecError) as caught:
        spread_of(torch.device("cuda", 0), 2.0)
    assert str(caught.value).startswith("workers.gpus_per_worker: got 2, but this worker sees 0 GPUs.")
    assert spread_of(torch.device("cuda", 0), 0.5) is None
    assert spread_of(torch.device("cpu"), 2.0) is None, "a CPU is one device, however many GPUs are declared"


REAL = """
import json, resource, sys
from dataclasses import replace
from pathlib import Path
import torch
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.evaluation.suites.suite import load_suite
from evosearch.execution.worker import Worker
from evosearch.execution.worker_config import WorkerConfig
from evosearch.recipe.schema import Recipe
from evosearch.search.protocols import Job

folder = Path(sys.argv[1])
suite = load_suite(folder / "suite.yaml")
harness = Harness(suite)
recipe = Recipe.model_validate(
    {"merge_method": "linear", "models": [{"model": str(folder / "wide"), "parameters": {"weight": 1.0}}]}
)
config = WorkerConfig(
    recipe=recipe.to_dict(), suite=suite.model_dump(mode="json"), cache=folder, device="cpu", threads=1,
    options=ScoreOptions(batch_tokens=8192),
)
job = Job("0@test", recipe, harness.batch("test"))


def score(worker):
    outcome = worker.run(job)
    columns = outcome.card.columns if outcome.card else {}
    values = {f"{task} {name}": list(map(float, found)) for task, own in columns.items() for name, found in own.items()}
    failure = outcome.failure and [outcome.failure.stage, outcome.failure.fault, outcome.failure.reason]
    retries = [[each.stage, each.fault, each.reason] for each in outcome.retries]
    return {"values": values, "failure": failure, "retries": retries, "tokens": worker.options.batch_tokens}


small, large = (Worker(replace(config, options=ScoreOptions(batch_tokens=n)), harness=harness) for n in (256, 8192))
score(small)  # so that everything lazy is loaded
taken = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
found = {"free": score(Worker(config, harness=harness))}
limit = taken * 1024 + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
found["limited"] = score(large)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
lower = ScoreOptions(batch_tokens=found["limited"]["tokens"])
found["small"] = score(Worker(replace(config, options=lower), harness=harness))
print(json.dumps(found))
"""


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A model whose passes take far more memory than its weights, and 200 questions of 40 tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = "abcdefghij=?.\n "
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *letters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    sizes = {"hidden_size": 32, "intermediate_size": 8192, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes))
    model.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    draw = torch.Generator().manual_seed(1)
    rows = []
    for index in range(240):
        text = "".join("abcdefghij"[i] for i in torch.randint(10, (38,), generator=draw).tolist())
        rows.append({"question": text, "gold": index % 2})
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "long",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "long.jsonl"}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "num_fewshot": 0,
        "target_delimiter": "",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}?",
        "doc_to_choice": ["a", "b"],
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tasks / "long.yaml").write_text(yaml.safe_dump(task))
    suite = {
        "name": "long",
        "include": ["tasks"],
        "tasks": [{"task": "long", "metric": "acc", "chance": 0.5}],
        "documents": {"search": 2, "validation": 2, "test": 200},
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    return tmp_path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits address space as Linux does")
def test_a_memory_limited_process_still_scores(wide: Path) -> None:
    """8,000 tokens take 260 MB for each of three MLP activations; 256 tokens take a 32nd of that."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(wide), str(250 << 20)],
        capture_output=True, text=True, env=environment, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    limited, free, small = found["limited"], found["free"], found["small"]
    assert free["retries"] == small["retries"] == []
    assert limited["failure"] is None
    assert [each[:2] for each in limited["retries"]] == [["score", "worker"]] * len(limited["retries"])
    assert limited["retries"][0][2] == "out of memory at 8192 tokens per batch; 4096 from now on"
    assert limited["tokens"] < 8192
    assert limited["values"] == small["values"], "as those of a worker that started with small batches"
    assert limited["values"].keys() == free["values"].keys()
    for name, values in limited["values"].items():
        np.testing.assert_allclose(values, free["values"][name], atol=1e-3)
