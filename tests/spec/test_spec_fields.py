"""Keys of a spec that would have no effect are refused, and defaults do not change the identity."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import LedgerError, SpecError
from evosearch.search.progress import Silent
from evosearch.setup.executors import worker_count
from evosearch.setup.prepare import prepare
from evosearch.setup.resume_check import check_same_search
from evosearch.spec.config import WorkersConfig
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
HOLE = {"low": 0.1, "high": 0.9}
LOCAL = {"executor": "local", "threads": 1}


@pytest.mark.parametrize(
    ("changes", "key", "what"),
    [
        ({"workers": LOCAL | {"gpus_per_worker": 1}}, "workers.gpus_per_worker", "is only valid with executor: ray"),
        ({"workers": LOCAL | {"address": "ray://head:10001"}}, "workers.address", "is only valid with executor: ray"),
        ({"workers": LOCAL | {"count": 2}}, "workers.count", "executor: local has one worker"),
        ({"workers": {"device": "cpu", "gpus_per_worker": 0.5}}, "workers.gpus_per_worker", "0.5 with device: cpu"),
        ({"workers": {"device": "cuda", "gpus_per_worker": 0}}, "workers.gpus_per_worker", "0 with device: cuda"),
        ({"workers": LOCAL | {"address": ""}}, "workers.address", ""),
        ({"tracking": {"uri": "jsonl:e.jsonl", "experiment": "x"}}, "tracking.experiment", "have no experiments"),
        ({"tracking": {"uri": ""}}, "tracking.uri", ""),
        ({"ledger": ""}, "ledger", ""),
        ({"baselines": {"scales": [0.3, float("inf")]}}, "baselines.scales[1]", "finite"),
        ({"optimizer": {"name": "random", "sigma": 0.2}}, "optimizer.sigma", "random has no option 'sigma'"),
        ({"optimizer": {"name": "tpe", "sigma": 0.17}}, "optimizer.sigma", "tpe has no option 'sigma'"),
        ({"optimizer": {"name": "nsga2", "asynchronous": True}}, "optimizer.asynchronous", "nsga2 is generational"),
        ({"optimizer": {"name": "tpe", "restarts": 1}}, "optimizer.restarts", "tpe has no option 'restarts'"),
        (
            {"optimizer": {"start": "init", "warm_start": "old"}},
            "optimizer.start",
            "got 'init' together with warm_start",
        ),
        (
            {"optimizer": {"start": "best_baseline", "warm_start": "old"}},
            "optimizer.start",
            "which is a starting point too",
        ),
        ({"budget": {}}, "budget", "target and patience alone may never end a search"),
    ],
)
def test_a_key_without_effect_is_refused_by_name(changes: dict[str, Any], key: str, what: str, world: World) -> None:
    spec = world("fields", **changes)
    with pytest.raises(SpecError) as caught:
        load_spec(spec)
    assert caught.value.where == f"{spec}: {key}"
    assert what in str(caught.value)


def test_a_missing_gpu_is_refused_for_every_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for executor in ("local", "ray"):
        with pytest.raises(SpecError, match=r"workers\.device: got 'cuda', and this machine has no GPU"):
            worker_count(WorkersConfig.model_validate({"executor": executor, "device": "cuda"}))


def slerp(**more: Any) -> dict[str, Any]:
    models = [{"model": "./expert1"}]
    return {"merge_method": "slerp", "base_model": "./base", "models": models, "parameters": {"t": HOLE}, **more}


def alone(model: str) -> dict[str, Any]:
    models = [{"model": model, "parameters": {"weight": HOLE}}]
    return {"merge_method": "linear", "parameters": {"normalize": False}, "models": models}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"recipe": slerp(), "optimizer": {"start": "parents"}},
            "got 'parents', which sets weights of parents, and no weight is searched",
        ),
        (
            {"recipe": alone("./expert1"), "optimizer": {"start": "best_baseline"}},
            "got 'best_baseline', and this search has no such baseline: there is only one parent",
        ),
    ],
)
def test_a_start_without_a_baseline_is_refused(changes: dict[str, Any], what: str, world: World) -> None:
    spec = world("start", **changes)
    with pytest.raises(SpecError) as caught:
        prepare(load_spec(spec), Silent())
    assert caught.value.where == f"{spec}: optimizer.start"
    assert what in str(caught.value)
    assert caught.value.next == "Remove it: search parameters then start at their own init"
    assert prepare(load_spec(world("start", **(changes | {"optimizer": {"name": "random"}}))), Silent()).baselines


DEFAULTS: dict[str, Any] = {"warm_start": None, "diagonal": False, "restarts": 0}


def test_a_written_default_does_not_change_the_identity(world: World) -> None:
    plain, written = (
        load_spec(world("same", optimizer={"name": "cma_es", "seed": 1} | more)) for more in ({}, DEFAULTS)
    )
    assert written.identity() == plain.identity()
    assert written.search_id() == plain.search_id()
    for changed in ({"diagonal": True}, {"restarts": 1}, {"warm_start": "old"}):
        other = load_spec(world("same", optimizer={"name": "cma_es", "seed": 1} | DEFAULTS | changed))
        assert other.search_id() != plain.search_id()
        assert other.identity()["optimizer"].items() >= changed.items()
        with pytest.raises(LedgerError, match=rf"optimizer\.{next(iter(changed))}: this is another search"):
            check_same_search(plain.identity(), other, "it")
    grid = load_spec(world("same", optimizer={"name": "grid", "points": 5}))
    assert grid.identity()["optimizer"]["points"] == 5
