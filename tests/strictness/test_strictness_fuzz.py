"""Fuzzing of recipes, specs and suites: any content is accepted, or rejected by our own errors, quickly."""

import random
from collections import Counter
from typing import Any

import pytest

DOCUMENTS = {"recipe": 900, "spec": 450, "suite": 650}  # a spec is read with its suite
NAMES = tuple(DOCUMENTS)


@pytest.mark.parametrize("name", NAMES)
def test_a_mutated_document_is_accepted_or_refused_by_our_own_errors(name: str, loaders: dict[str, Any]) -> None:
    from benchmarks._mutations.mutate import mutate

    loader, seen = loaders[name], Counter[str]()
    draw = random.Random(name)  # the same documents each time; `python -m benchmarks.fuzz --seed` draws others
    for _ in range(DOCUMENTS[name]):
        text = mutate(draw.choice(loader.seeds), draw)
        outcome = loader.try_text(text)
        seen[outcome.kind] += 1
        assert outcome.kind != "foreign", f"{outcome.said}\n{text}"
        if outcome.kind == "refused":
            assert str(loader.file.parent.parent) in outcome.said, f"no file is named: {outcome.said}"
    assert seen["refused"] > DOCUMENTS[name] // 3
    assert seen["accepted"] > DOCUMENTS[name] // 100


@pytest.mark.parametrize("name", NAMES)
def test_the_files_that_are_mutated_are_valid_themselves(name: str, loaders: dict[str, Any]) -> None:
    import yaml

    other_tools = ("genome", "experts", "text_decoder")
    for seed in loaders[name].seeds:
        text = yaml.safe_dump_all(seed, sort_keys=False)
        outcome = loaders[name].try_text(text)
        if name != "recipe":
            assert outcome.kind == "accepted", outcome.said
        elif any(word in text for word in other_tools) or "unknown method" in outcome.said:
            assert outcome.kind == "refused"
        else:
            assert outcome.kind == "accepted", outcome.said
