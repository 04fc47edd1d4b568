"""Fuzzing of model folders: a merge ends in one of the package's errors, or in a checkpoint that transformers loads."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

FOLDERS, NIGHTLY = 300, 2000


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from benchmarks._mutations.model_folders import ModelFolders

    return ModelFolders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def outcomes(fuzzer: Any) -> list[tuple[str, Any]]:
    """What was changed, and the outcome."""
    draw = random.Random("models")  # the same folders each time; `python -m benchmarks.fuzz --seed` draws others
    return [fuzzer.try_one(draw) for _ in range(FOLDERS)]


def counted(outcomes: list[tuple[str, Any]]) -> Counter[str]:
    return Counter(outcome.kind for _, outcome in outcomes)


def of_kind(outcomes: list[tuple[str, Any]], kind: str) -> list[str]:
    return [f"{changed}\n  {outcome.said}" for changed, outcome in outcomes if outcome.kind == kind]


@pytest.mark.parametrize("recipe", ["linear", "union", "template", "adapter"])
def test_the_models_that_are_mutated_are_valid_themselves(recipe: str, fuzzer: Any) -> None:
    outcome = fuzzer.try_unchanged(recipe)
    assert outcome.kind == "accepted", outcome.said


def test_a_mutated_model_is_merged_or_refused_by_our_own_errors(outcomes: list[tuple[str, Any]]) -> None:
    assert not of_kind(outcomes, "foreign")
    assert counted(outcomes)["refused"] > FOLDERS // 3
    assert counted(outcomes)["accepted"] > FOLDERS // 10


def test_a_refusal_names_a_file_of_the_models(outcomes: list[tuple[str, Any]], fuzzer: Any) -> None:
    for changed, outcome in outcomes:
        if outcome.kind == "refused":
            assert str(fuzzer.models) in outcome.said, f"{changed}\n  {outcome.said}"


def test_what_was_merged_loads(outcomes: list[tuple[str, Any]]) -> None:
    assert not of_kind(outcomes, "unloadable")


@pytest.mark.nightly
def test_many_more_mutated_models(fuzzer: Any) -> None:
    draw = random.Random("nightly models")
    outcomes = [fuzzer.try_one(draw) for _ in range(NIGHTLY)]
    assert not of_kind(outcomes, "foreign")
    assert not of_kind(outcomes, "unloadable")


def test_a_leak_and_a_bug_would_be_found(fuzzer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from evosearch.service import merge as service

    real = service.merge

    def leaks(path: Path, out: Path, watcher: Any) -> object:
        report = real(path, out, watcher)
        (out / "vocab.json").write_text("{} TOPSECRET-4711")
        return report

    def breaks(path: Path, out: Path, watcher: Any) -> object:
        report = real(path, out, watcher)
        (out / "config.json").write_text("{}")
        return report

    monkeypatch.setattr(service, "merge", leaks)
    assert "vocab.json has the content of a file outside" in fuzzer.try_unchanged("linear").said
    monkeypatch.setattr(service, "merge", breaks)
    assert fuzzer.try_unchanged("linear").kind == "unloadable"
    monkeypatch.setattr(service, "merge", lambda *arguments: 1 / 0)
    assert fuzzer.try_unchanged("linear").said == "ZeroDivisionError: division by zero"
