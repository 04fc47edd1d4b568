"""`python -m benchmarks.coverage_fuzz`: its readers accept their first inputs, and findings are counted."""

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks._mutations.readers import NAMES, reader
from benchmarks.coverage_fuzz import _crashes, _word
from evosearch.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", NAMES)
def test_readers_accept_their_first_inputs_and_refuse_damage(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOSEARCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    under_test = reader(name, tmp_path / "work")
    assert under_test.seeds
    refused = 0
    for seed in under_test.seeds:
        try:
            under_test.read(seed)
        except InputError:
            refused += 1
    assert refused <= (len(under_test.seeds) // 2 if name == "recipe" else 0)  # forms with errors are among them
    draw, refused = random.Random(name), 0
    for _ in range(20):
        seed = draw.choice(under_test.seeds)
        at = draw.randrange(len(seed))
        try:
            under_test.read(seed[:at] + bytes([draw.randrange(256)]) + seed[at + draw.randint(0, 20) :])
        except InputError:
            refused += 1
    assert refused > 0 or name == "module pattern"  # of which most texts are names


def test_a_crash_is_a_finding_with_its_input(tmp_path: Path) -> None:
    (tmp_path / "artifact-crash-abc").write_bytes(b"{{ x }}\xff")
    said = "ERROR: libFuzzer: deadly signal\nSUMMARY: libFuzzer: deadly signal\n"
    assert dict(_crashes("group_by", tmp_path, 77, said)) == {"crash: ERROR: libFuzzer: deadly signal": "{{ x }}\\xff"}
    assert not list(tmp_path.iterdir())


def test_an_input_is_slow_by_processor_time_only(tmp_path: Path) -> None:
    """The process may have been suspended."""
    (tmp_path / "artifact-timeout-abc").write_bytes(b"{{ question }}")
    said = "ALARM: working on the last Unit for 689 seconds\nSUMMARY: libFuzzer: timeout\n"
    assert dict(_crashes("group_by", tmp_path, 70, said)) == {}
    assert not list(tmp_path.iterdir())


def test_a_dictionary_has_any_text() -> None:
    assert _word('a"\n\ud800') == '"\\x61\\x22\\x0A\\xED\\xA0\\x80"'


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_it_counts_executions_and_reports_nothing() -> None:
    command = [sys.executable, "-m", "benchmarks.coverage_fuzz", "--seconds", "20", "--readers", "module pattern"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    row = json.loads(done.stdout)["readers"]["module pattern"]
    assert row["executions"] > 100
    assert row["corpus"] > 5
    assert row["findings"] == {}
