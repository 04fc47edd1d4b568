"""Module patterns agree with peft's regular expressions, and take little time whatever they are."""

import random
import re
import time

import pytest

from evosearch.checkpoints.adapters.module_pattern import ModulePattern, UnsafePatternError

MODULES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.10.self_attn.k_proj",
    "model.layers.1.mlp.up_proj",
    "transformer.h.11.attn.c_attn",
    "lm_head",
    "q_proj",
    "",
]
PATTERNS = [
    "q_proj",
    "self_attn.q_proj",
    "model.layers.0.self_attn.q_proj",
    r"layers\.\d+\.self_attn\.(q|k|v)_proj",
    r"layers\.(0|1|2)\..*",
    "layers.0.*",
    r"^model\.layers\.[0-9]{1,2}\.mlp\.\w+$",
    r".*\.(?:q_proj|up_proj)",
    r"(.*\.)?q_proj",
    "[^.]+",
    "[^l]m_head|c_attn",
    r"h\.1{2}\.attn\.\S*?n",
    r"(\d|\w|\.)+",
    r"(a?){3}q_proj",
    r"\Dm_head",
    ".*",
    "^$",
    "x{0}lm_head",
    r"[\w.-]+_proj",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_as_in_peft(pattern: str) -> None:
    made = ModulePattern.of(pattern)
    for module in MODULES:
        assert made.matches(module) == bool(re.match(rf"(.*\.)?({pattern})$", module)), module
        assert made.matches_all(module) == bool(re.fullmatch(pattern, module)), module


def test_random_expressions_match_as_those_of_python() -> None:
    draw = random.Random(0)

    def expression(depth: int) -> str:
        kind = draw.randrange(8 if depth else 4)
        if kind < 3:
            return draw.choice(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\w", r"\d"])
        if kind == 3:
            return draw.choice(["^", "$", "a", "ab"])
        inner = expression(depth - 1)
        if kind == 4:
            return f"({inner}|{expression(depth - 1)})"
        if kind == 5:
            return f"(?:{inner}){draw.choice(['*', '+', '?', '{2}', '{1,2}', '*?'])}"
        return inner + expression(depth - 1)

    compared = 0
    for _ in range(3000):
        text = expression(3)
        try:
            made = ModulePattern.of(text)
        except UnsafePatternError:  # nests repetitions
            continue
        if made.parts is None:  # a name, of which a dot matches only itself
            continue
        for module in ("", "a", "ab", "ba", "a.b", "aab", "a.ab.b", "1.b"):
            assert made.matches_all(module) == bool(re.fullmatch(text, module)), (text, module)
            compared += 1
    assert compared > 10_000


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+!", "([a-z_.0-9]+)+!", "(a|a)*!", "(a|ab|b)*c", ".*.*.*.*.*.*.*.*!", "(.*a){20}!", "(a{1,99}){1,99}!"],
)
def test_expressions_that_take_python_forever(pattern: str) -> None:
    began = time.process_time()
    assert not ModulePattern.of(pattern).matches("a" * 120)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "is not a valid regular expression"),
        ("a{99999999999}", "is not a valid regular expression"),
        ("(?i)a", "has flags"),
        ("(?i:a)", "has flags"),
        (r"(a)\1", "has lookaround, backreferences or conditions"),
        ("(?=a)a", "has lookaround"),
        ("(?!a)b", "has lookaround"),
        ("(?>a)b", "has lookaround"),
        (r"\bq_proj", "has word boundaries"),
        ("(((a*)*)*)*", "nests repetitions more than 2 deep"),
        ("a*" * 300, "is longer than 500 characters"),
    ],
)
def test_other_expressions_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(UnsafePatternError, match=re.escape(message)):
        ModulePattern.of(pattern)
