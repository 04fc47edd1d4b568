"""`benchmarks.gpu_check`: its message without a GPU; on a CPU, its checks run and detect faults."""

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

CHECKS = ("masks", "merges", "derivatives", "parity", "attention", "budget", "halving", "two_cards")


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Arguments → exit code, JSON document, standard error."""
    for name in ("HF_XET_HIGH_PERFORMANCE", "HF_HUB_DISABLE_TELEMETRY", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, "0")  # set by lm-eval and Ray; monkeypatch restores them
    from benchmarks import gpu_check

    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments])
        code = gpu_check.main()
        out, err = capsys.readouterr()
        return code, json.loads(out) if out.strip() else {}, err

    return run


def test_a_machine_without_a_gpu_is_rejected(
    call: Callable[..., tuple[int, dict[str, Any], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, document, err = call()
    assert code == 2
    assert document == {}
    assert "no GPU found: torch sees no CUDA device" in err
    assert "Run this on a machine with a GPU" in err


def test_every_check_without_ray_passes_on_a_cpu(call: Callable[..., tuple[int, dict[str, Any], str]]) -> None:
    found = {}
    for name in CHECKS:
        code, document, err = call("--device", "cpu", "--only", name)
        (found[name],) = document["checks"]
        assert (code, found[name]["state"]) == (0, "passed"), found[name]
        assert document["device"] == "cpu"
        assert "this tests the checks, not a GPU" in err
        assert f"| {name} | passed |" in err
    figures = {name: one["figures"] for name, one in found.items()}
    assert figures["masks"]["entries"] > 50_000
    assert figures["merges"].keys() >= {"ties_others", "dare_ties_cpu_seconds_over_device"}
    assert figures["derivatives"].keys() >= {"ties_most", "slerp_most", "linear_most"}
    assert 0 < figures["parity"]["bfloat16_mean"] < figures["parity"]["bfloat16_most"], "bfloat16 was really used"
    assert figures["halving"]["halvings"] >= 3
    assert figures["halving"]["reasons"][0] == "out of memory at 8192 tokens per batch; 4096 from now on"
    assert figures["budget"]["batch_tokens"] == 2048


def test_checks_find_faults(
    call: Callable[..., tuple[int, dict[str, Any], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from evosearch.materialize import in_memory
    from evosearch.merging import philox
    from evosearch.merging.sink import Sink

    def noisy(op: Any, of: Any, dtype: torch.dtype, into: torch.Tensor) -> Sink:
        sink = Sink(into, dtype)
        sink.take(of(op.parents[0]) * torch.rand(()))
        return sink

    real = philox.torch_lanes
    monkeypatch.setattr(philox, "torch_lanes", lambda *args: real(*args) ^ 1)
    code, document, err = call("--device", "cpu", "--only", "masks")
    assert code == 1
    assert document["checks"][0]["state"] == "failed"
    assert document["checks"][0]["reason"] == "random bits from element 0 on differ from the CPU's"
    assert "masks: failed" in err
    monkeypatch.setattr(in_memory, "merge", noisy)
    code, document, _ = call("--device", "cpu", "--only", "merges")
    assert code == 1
    assert "entries differ" in document["checks"][0]["reason"]


@pytest.mark.nightly
@pytest.mark.ray
def test_two_workers_give_the_same_scores(
    call: Callable[..., tuple[int, dict[str, Any], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # for monkeypatch to restore it
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, document, _ = call("--device", "cpu", "--only", "two_workers")
    (found,) = document["checks"]
    assert (code, found["state"]) == (0, "passed"), found
    assert found["figures"]["workers"] == 2
    assert found["figures"]["jobs"] >= 8


def test_an_unknown_check_is_rejected(call: Callable[..., tuple[int, dict[str, Any], str]]) -> None:
    with pytest.raises(SystemExit) as stop:
        call("--device", "cpu", "--only", "speed")
    assert stop.value.code == 2
