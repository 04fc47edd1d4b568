"""Fixtures for faults in real searches: models with a planted optimum, an MLflow server that can be killed."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.devcluster.processes import free_port
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger
from evosearch.spec.spec import load_spec
from tests.conftest import with_kernels

CHOICES = ["a", "b", "c", "d"]


@pytest.fixture
def models_folder(_models: Path) -> Path:
    """Read-only folder with the small world's `base`, `expert1` and `expert2`."""
    return _models


@pytest.fixture
def events() -> Callable[[Path], list[Event]]:
    """`events(spec)` → all events in the spec's ledger."""

    def read(spec: Path) -> list[Event]:
        run_dir = load_spec(spec).run_dir
        with Ledger.open(run_dir.ledger, read_only=True) as ledger:
            info = ledger.search_by_name(run_dir.name)
            assert info is not None
            return ledger.events(info.search_id)

    return read


@pytest.fixture(scope="session")
def _planted(_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models whose average answers every question correctly, so that a search ends with a promotion.

    The correct answers are those of a target model near the base; the experts are on opposite sides of the target.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("planted")
    for name in ("base", "expert1", "expert2"):
        shutil.copytree(_models / name, folder / name)
    base = load_file(folder / "base" / "model.safetensors")
    draw = torch.Generator().manual_seed(3)
    far = {name: 0.2 * torch.randn(tensor.shape, generator=draw) for name, tensor in base.items()}
    aside = {name: 0.2 * torch.randn(tensor.shape, generator=draw) for name, tensor in base.items()}
    for name, sign in (("expert1", 1.0), ("expert2", -1.0), ("target", 0.0)):
        if name == "target":
            shutil.copytree(_models / "base", folder / name)
        moved = {key: tensor + far[key] + sign * aside[key] for key, tensor in base.items()}
        save_file(moved, folder / name / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder / "target").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "target")
    answers = [tokenizer(choice, add_special_tokens=False)["input_ids"][0] for choice in CHOICES]
    words, rows = random.Random(7), []
    for _ in range(160):
        word = "".join(words.choices("abcdefghij", k=5))
        ids = torch.tensor([tokenizer(f"{word}?", add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            rows.append({"question": word, "gold": int(model(ids).logits[0, -1, answers].argmax())})
    shutil.rmtree(folder / "target")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "p_choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "p_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "p_choice.jsonl"}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "num_fewshot": 0,
        "target_delimiter": "",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}?",
        "doc_to_choice": CHOICES,
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "tasks" / "p_choice.yaml").write_text(yaml.safe_dump(task))
    suite = {
        "name": "planted",
        "include": ["tasks"],
        "tasks": [{"task": "p_choice", "name": "choice", "metric": "acc", "chance": 0.25}],
        "documents": {"search": 12, "validation": 20, "test": 100},
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    return folder


def planted_spec(models: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A spec on the planted models whose search promotes a winner."""
    experts = [str(models / expert) for expert in ("expert1", "expert2")]
    hole = {"low": 0.0, "high": 1.5}
    return {
        "name": name,
        "recipe": {
            "merge_method": "task_arithmetic",
            "base_model": str(models / "base"),
            "models": [{"model": expert, "parameters": {"weight": hole}} for expert in experts],
        },
        "optimizer": {"name": "random", "seed": 1},
        "suite": str(models / "suite.yaml"),
        "budget": {"candidates": 6},
        "workers": {"executor": "local", "threads": 1},
        "tracking": {"uri": "jsonl:events.jsonl"},
        "baselines": {"scales": [0.5]},
        "promotion": {"finalists": 1},
    } | changes


@pytest.fixture
def planted(_planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`planted(name, **changes)` writes a spec whose search promotes a winner, with runs in this test's folder."""
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVOSEARCH_CACHE", str(with_kernels(tmp_path / "cache")))

    def write(name: str, **changes: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(planted_spec(_planted, name, **changes), sort_keys=False))
        return path

    return write


class MlflowServer:
    """A real MLflow server on loopback with its own store, which can be killed and restarted."""

    def __init__(self, folder: Path) -> None:
        from evosearch.tracking.client import connect, default_uri

        self.store = default_uri(folder)
        connect(self.store)  # creates the tables, which takes seconds
        self._empty = shutil.copy(folder / "mlflow.db", folder / "empty.db")
        self.port = free_port()  # no outgoing connection is assigned this port while the server is down
        self.uri = f"http://127.0.0.1:{self.port}"
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server unless it is running, and wait until it answers."""
        from evosearch.tracking.mlflow import ui_command, ui_environment

        if self._process is None:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    ui_command(self.store, self.port),
                    env={**os.environ, **ui_environment(self.store)},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        until(self._answers, 400.0, self._log.read_text)

    def another_store(self, folder: Path) -> str:
        """Create an empty store in a new folder; return its URI."""
        folder.mkdir()
        shutil.copy(self._empty, folder / "mlflow.db")
        return f"sqlite:///{folder / 'mlflow.db'}"

    def kill(self) -> None:
        """Send SIGKILL to the server and its children."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(120)
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as connection:
                connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                return b" 200 " in connection.recv(100)
        except OSError:
            return False


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """The server, not started yet; tests start it when they need it. Named, since it stores artifacts in a folder."""
    made = MlflowServer(tmp_path_factory.mktemp("server"))
    with pytest.MonkeyPatch.context() as session:
        session.setenv("MLFLOW_TRACKING_URI", made.uri)
        yield made
    made.kill()


def until(condition: Callable[[], bool], timeout_s: float, problem: Callable[[], str] = str) -> None:
    """Wait until another process or thread has made a condition true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {timeout_s:g} s. {problem()}"
        time.sleep(0.05)


@pytest.fixture(name="until")
def _until() -> Callable[..., None]:
    return until
