"""Short texts that stand for very much, or for themselves, are refused at once."""

from typing import Any

import pytest

SLOW_S = 30.0  # a bomb that goes off takes for ever


@pytest.mark.parametrize("name", ["recipe", "spec", "suite"])
def test_a_bomb_does_not_go_off(name: str, loaders: dict[str, Any]) -> None:
    from benchmarks._mutations.accidents import bombs

    texts = bombs() if name == "recipe" else bombs()[:6]  # what is nested is read by the same code for all
    for text in texts:
        outcome = loaders[name].try_text(text)
        assert outcome.kind == "refused", f"{outcome.said}\n{text[:80]}"
        assert str(loaders[name].file) in outcome.said
        assert outcome.seconds < SLOW_S, text[:80]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "line 1: an alias stands inside of what it repeats"),
        ("a: " + "[" * 70 + "]" * 70, "line 1: nested more than 64 deep"),
        ("a: !!binary aGk=", "the tag tag:yaml.org,2002:binary is not known here"),
        ("a: !!bool maybe", "line 1: 'maybe' is no bool"),
        ('a: "\\0"', "a character that no file name and no text has"),
        ("1: 2", "line 1: key 1 is not text; put it in quotes"),
        ("a: 1\na: 2", "line 2: key 'a' is given twice"),
    ],
)
def test_the_reason_is_said(text: str, message: str, loaders: dict[str, Any]) -> None:
    assert message in loaders["recipe"].try_text(text).said


def test_dates_are_text_and_shared_values_are_read(loaders: dict[str, Any]) -> None:
    text = "merge_method: linear\nseed: &n 7\nmodels:\n- {model: 2026-01-01, parameters: {weight: *n}}\n"
    assert loaders["recipe"].try_text(text).kind == "accepted"
