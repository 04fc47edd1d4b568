"""`scripts/gpu_check`: says where there is no GPU; that its checks run, and find what is wrong, is seen on a CPU."""

import json
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

CHECKS = ("masks", "merges", "parity", "attention", "budget", "halving", "two_cards")


@pytest.fixture
def call(
    load_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Arguments → exit code, the JSON document, standard error."""

    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        script = load_script("gpu_check")
        monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments])
        code = script.main()
        out, err = capsys.readouterr()
        return code, json.loads(out) if out.strip() else {}, err

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_machine_without_a_gpu_is_told_so(call: Callable[..., tuple[int, dict[str, Any], str]]) -> None:
    code, document, err = call()
    assert code == 2
    assert document == {}
    assert "no GPU here: torch sees no CUDA device" in err
    assert "Run this on a machine that has one" in err


def test_every_check_but_rays_holds_on_a_cpu(call: Callable[..., tuple[int, dict[str, Any], str]]) -> None:
    found = {}
    for name in CHECKS:
        code, document, err = call("--device", "cpu", "--only", name)
        (found[name],) = document["checks"]
        assert (code, found[name]["state"]) == (0, "passed"), found[name]
        assert document["device"] == "cpu"
        assert "nothing about a GPU" in err
        assert f"| {name} | passed |" in err
    figures = {name: one["figures"] for name, one in found.items()}
    assert figures["masks"]["entries"] > 50_000
    assert figures["merges"].keys() >= {"ties_others", "dare_ties_cpu_seconds_over_device"}
    assert 0 < figures["parity"]["bfloat16_mean"] < figures["parity"]["bfloat16_most"], "bfloat16 was really used"
    assert figures["halving"]["halvings"] >= 3
    assert figures["halving"]["reasons"][0] == "out of memory at 8192 tokens a batch; 4096 from now on"
    assert figures["budget"]["batch_tokens"] == 2048


def test_checks_find_what_is_wrong(
    call: Callable[..., tuple[int, dict[str, Any], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from evosearch.merging import philox

    real = philox.torch_lanes
    monkeypatch.setattr(philox, "torch_lanes", lambda *args: real(*args) ^ 1)
    code, document, err = call("--device", "cpu", "--only", "masks")
    assert code == 1
    assert document["checks"][0]["state"] == "failed"
    assert document["checks"][0]["reason"] == "random bits from element 0 on are others than on a CPU"
    assert "masks: failed" in err
    from evosearch.materialize import in_memory

    monkeypatch.setattr(in_memory, "apply", lambda op, of, dtype: of(op.parents[0]).to(dtype) * torch.rand(()))
    code, document, _ = call("--device", "cpu", "--only", "merges")
    assert code == 1
    assert "entries differ" in document["checks"][0]["reason"]


@pytest.mark.ray
def test_two_workers_score_alike(
    call: Callable[..., tuple[int, dict[str, Any], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = dict(os.environ)
    try:
        code, document, _ = call("--device", "cpu", "--only", "two_workers")
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
    (found,) = document["checks"]
    assert (code, found["state"]) == (0, "passed"), found
    assert found["figures"]["workers"] == 2
    assert found["figures"]["jobs"] >= 8


def test_a_check_of_no_such_name_is_refused(call: Callable[..., tuple[int, dict[str, Any], str]]) -> None:
    with pytest.raises(SystemExit) as stop:
        call("--device", "cpu", "--only", "speed")
    assert stop.value.code == 2
