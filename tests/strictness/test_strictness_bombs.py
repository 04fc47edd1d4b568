"""YAML bombs: short texts that expand to very much, or to themselves, are rejected quickly."""

from typing import Any

import pytest

SLOW_S = 30.0  # a bomb that is expanded takes forever


@pytest.mark.parametrize("name", ["recipe", "spec", "suite"])
def test_a_yaml_bomb_is_refused(name: str, loaders: dict[str, Any]) -> None:
    from benchmarks._mutations.mutate import bombs

    texts = bombs() if name == "recipe" else bombs()[:6]  # nesting is read by the same code in all documents
    for text in texts:
        outcome = loaders[name].try_text(text)
        assert outcome.kind == "refused", f"{outcome.said}\n{text[:80]}"
        assert str(loaders[name].file) in outcome.said
        assert outcome.seconds < SLOW_S, text[:80]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "line 1: an alias refers to itself"),
        ("a: " + "[" * 70 + "]" * 70, "line 1: nested more than 64 levels deep"),
        ("a: !!binary aGk=", "unknown tag tag:yaml.org,2002:binary"),
        ("a: !!bool maybe", "line 1: 'maybe' is not a valid bool"),
        ('a: "\\0"', "invalid character"),
        ("1: 2", "line 1: key 1 is not text; put it in quotes"),
        ("a: 1\na: 2", "line 2: duplicate key 'a'"),
    ],
)
def test_the_reason_is_named(text: str, message: str, loaders: dict[str, Any]) -> None:
    assert message in loaders["recipe"].try_text(text).said


def test_dates_are_text_and_shared_values_are_read(loaders: dict[str, Any]) -> None:
    text = "merge_method: linear\nseed: &n 7\nmodels:\n- {model: 2026-01-01, parameters: {weight: *n}}\n"
    assert loaders["recipe"].try_text(text).kind == "accepted"
