"""Searches over merges with statistics of the models: in process, by gradient, resumed, with Ray, and exported."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from evosearch.errors import LedgerError
from evosearch.execution.worker import Worker
from evosearch.moments import sampled_moments
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.search.protocols import Job
from evosearch.search.state import SearchState
from evosearch.service.run import run
from evosearch.setup.executors import worker_config
from evosearch.setup.prepare import prepare
from evosearch.spec.spec import load_spec

Command = Callable[..., tuple[int, str, str]]
World = Callable[..., Path]
HOLE = {"low": 0.1, "high": 1.5}
QUICK: dict[str, Any] = {
    "optimizer": {"name": "cma_es", "population": 4, "sigma": 0.2, "seed": 1, "start": "init"},
    "budget": {"candidates": 8},
    "baselines": {"scales": []},
}


def recipe(method: Any, **changes: Any) -> dict[str, Any]:
    models = [{"model": f"./expert{i}", "parameters": {"weight": HOLE}} for i in (1, 2)]
    sample = {"suite": "suite.yaml", "task": "generate", "documents": 6}
    return {"merge_method": method, "models": models, "sample": sample} | changes


def scores(spec: Path) -> dict[str, float]:
    run_dir = load_spec(spec).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name(run_dir.name)
        assert info is not None
        state = SearchState.from_events(ledger.events(info.search_id))
    return {f"{name}@{split}": card.fitness.value for (name, split), card in state.cards.items()}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The folders of the models that statistics were computed of, in this process."""
    found: list[object] = []
    original = sampled_moments.build
    monkeypatch.setattr(sampled_moments, "build", lambda *args: found.append(args[0]) or original(*args))
    return found


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_a_search_computes_statistics_once_and_resumes_from_them(
    method: str, world: World, evosearch: Command, built: list[object], tmp_path: Path
) -> None:
    spec = world(method, recipe=recipe(method), **QUICK)
    code, out, err = evosearch("check", spec, "--no-dry-run", "--json")
    assert code == 0, err
    (note,) = (text for text in json.loads(out)["notes"] if text.startswith("statistics: "))
    assert "once on each node" in note
    assert "of 2 models" in note
    assert "6 documents" in note
    assert not built
    run(spec, Silent())
    assert len(built) == 2
    before = scores(spec)
    assert sum("@search" in name for name in before) >= 8 + 3
    longer = world(method, recipe=recipe(method), **QUICK | {"budget": {"candidates": 12}})
    run(longer, Silent())
    assert len(built) == 2
    after = scores(longer)
    assert {name: after[name] for name in before} == before
    assert len(after) > len(before)
    code, out, err = evosearch("export", method, "--candidate", "0", "--format", "checkpoint", "-o", tmp_path / "out")
    assert code == 0, err
    assert load_file(tmp_path / "out" / "model.safetensors")
    assert len(built) == 2
    code, _, err = evosearch("export", method, "--candidate", "0", "--format", "mergekit", "-o", tmp_path / "m.yaml")
    assert code == 2
    assert f"no equivalent of the method '{method}'" in " ".join(err.split())
    assert "Export the merged checkpoint instead" in " ".join(err.split())


def test_a_search_by_gradient_has_the_derivative_of_both(world: World) -> None:
    optimizer = {"name": "gradient", "population": 2, "batch": 6, "rate": 0.1}
    for method in ("fisher", "regmean"):
        spec = world(f"by-{method}", recipe=recipe(method), **QUICK | {"optimizer": optimizer})
        assert run(spec, Silent()).candidates.scored > 0


def test_a_method_may_be_searched_with_and_without_statistics(world: World, built: list[object]) -> None:
    methods = {"choices": ["fisher", "linear", "regmean"]}
    optimizer = {"name": "random", "population": 4, "seed": 3, "start": "init"}
    spec = world("several", recipe=recipe(methods), **QUICK | {"optimizer": optimizer})
    assert run(spec, Silent()).candidates.failed == 0
    assert len(built) == 4


def test_changed_texts_stop_a_resume(world: World) -> None:
    texts = world().parent / "own.txt"
    texts.write_text("abc\n\ndef")
    spec = world("texts", recipe=recipe("fisher", sample={"text": "own.txt"}), **QUICK)
    run(spec, Silent())
    texts.write_text("abc\n\ndeg")
    with pytest.raises(LedgerError, match=r"own\.txt.*its texts changed since this search started"):
        run(spec, Silent())


def test_a_worker_needs_neither_the_suite_nor_its_tasks_for_statistics(
    world: World, built: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another node: the tokens are part of its configuration."""
    from evosearch.moments import sampled_moments as moments

    prepared = prepare(load_spec(world("far", recipe=recipe("regmean"), **QUICK)), Silent())
    config = worker_config(prepared.spec.config.workers, prepared.models, prepared.suite, "float32")
    config = pickle.loads(pickle.dumps(config))
    monkeypatch.setattr(moments, "read_tokens", None)
    worker = Worker(config, harness=prepared.harness)
    assert len(built) == 2
    outcome = worker.run(Job("0@search", prepared.example, prepared.batches["search"]))
    assert outcome.card is not None, outcome.failure
