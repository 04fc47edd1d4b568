"""`benchmarks.methods`: sweeps from the registry, resumable results, the table, and one cell on the built-in models."""

import json
from pathlib import Path

import pytest

from benchmarks.methods import __main__ as program
from benchmarks.methods.measuring import digest
from benchmarks.methods.sweep import allowed, default, recipe_of, sweep
from benchmarks.methods.table import page
from benchmarks.methods.worlds import PROBLEMS
from evosearch.errors import InputError
from evosearch.merging.registry import specs
from evosearch.recipe.shapes import MethodSpec, Param

EXPERTS = ("one", "two", "three", "four")


@pytest.mark.parametrize("name", sorted(specs()))
def test_every_method_has_defaults_and_a_sweep_within_its_bounds(name: str) -> None:
    spec = specs()[name]
    settings = sweep(spec, 9)
    assert settings[0] == default(spec)
    assert 1 <= len(settings) <= 9
    assert all(setting not in settings[:index] for index, setting in enumerate(settings))
    assert len(settings) == 9 or all(param.kind in ("bool", "choice") for param in spec.parameters.values())
    if spec.statistic:
        assert allowed(spec, "base", EXPERTS, 3, 9) == [], "the table says that it is not measured"
        return
    recipe = recipe_of(spec, settings[0], "base", EXPERTS, 3)
    assert len(recipe.models) == min(4, spec.models[1] or 4)
    assert recipe.seed == (3 if spec.random else 0)
    found = allowed(spec, "base", EXPERTS, 3, 9)
    assert len(found) >= (len(settings) + 1) // 2, "at most half of a sweep is refused"


def test_a_new_method_needs_no_entry() -> None:
    parameters = {
        "weight": Param(0.0, 1.5, per_model=True),
        "share": Param(0.2, 0.4),
        "steps": Param(1, 9, default=3, kind="int"),
        "rule": Param(default="a", kind="choice", choices=("a", "b")),
        "endless": Param(0.0, None, default=2.0),
    }
    spec = MethodSpec("new", "", parameters)
    assert default(spec) == {"weight": 1.0, "share": pytest.approx(0.3)}
    first, *drawn = sweep(spec, 9)
    assert first == default(spec)
    assert len({setting["weight"] for setting in drawn}) == 8
    assert all(0.2 < setting["share"] < 0.4 and setting["steps"] in range(1, 10) for setting in drawn)
    assert {setting["rule"] for setting in drawn} == {"a", "b"}
    assert not any("endless" in setting for setting in drawn)
    assert digest(spec, {"test": 9}, 9) != digest(spec, {"test": 9}, 8)


def result(method: str, seed: int, test: float, lead: float) -> dict[str, object]:
    scored = {"setting": {}, "validation": test, "test": {"score": [test, test - 1, test + 1], "tasks": {}}}
    about = {"problem": "zoo", "method": method, "seed": seed, "date": "2026-11-30 22:00 UTC", "models": 4, "of": 4}
    gain, leads = [0.0, -1.0, 1.0], [lead, lead - 1, lead + 1]
    return about | {"digest": "d", "best": scored, "default": scored, "gain": gain, "lead": leads, "seconds": 9.0}


def test_the_table_lists_losers_and_what_was_refused() -> None:
    refused = {"problem": "zoo", "method": "slow", "seed": 0, "date": "2026-11-29 22:00 UTC", "refused": "too few"}
    found = [result("bad", 0, 10.0, -30.0), result("good", 0, 50.0, 3.0), result("good", 1, 60.0, 0.5), refused]
    text = page(found, "python -m benchmarks.methods")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `good` | 4 of 4 | 2 | 55.0 [50.0, 60.0] | 55.0 [50.0, 60.0] | +0.0 [+0.0, +0.0] "
        "| +1.8 [+0.5, +3.0] | 1 of 2 |",
        "| `bad` | 4 of 4 | 1 | 10.0 | 10.0 | +0.0 | -30.0 | 0 of 1 |",
    ]
    assert "*2026-11-29 to 2026-11-30 · `python -m benchmarks.methods --problem zoo`*" in text
    assert "- `slow`: too few" in text


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(result("good", 0, 50.0, 3.0)) + "\n{}\n")
    with pytest.raises(InputError, match=r"results\.jsonl: line 2: not a result"):
        program.read(file)


@pytest.mark.parametrize("arguments", [["--methods", "tise"], ["--settings", "0"], ["--documents", "search=3"]])
def test_a_mistake_on_the_command_line_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        program.main(arguments)
    assert stop.value.code == 2


def test_a_cell_is_measured_once(tmp_path: Path, zoo_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ties` on the zoo of seed 0, with few documents; the second run finds its result."""
    for name in ("EVOSEARCH_DATA", "EVOSEARCH_TASKS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")  # put back what the program changes
    few = ["--problem", "zoo", "--methods", "ties", "--seeds", "0", "--settings", "3"]
    places = ["--results", str(tmp_path / "results.jsonl"), "--work", str(tmp_path / "work")]
    arguments = [*few, "--documents", "validation=10,test=20", *places, "--page", str(tmp_path / "page.md")]
    assert program.main(arguments) == 0
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert (found["settings"], found["models"], found["failed"]) == (3, 4, [])
    assert found["best"]["validation"] >= found["default"]["validation"]
    low, high = found["best"]["test"]["score"][1:]
    assert low <= found["best"]["test"]["score"][0] <= high
    assert set(found["best"]["test"]["tasks"]) == {"reverse", "sort", "deal", "median"}
    before = PROBLEMS["zoo"].text
    assert before in (tmp_path / "page.md").read_text()
    assert program.main(arguments) == 0
    assert (tmp_path / "results.jsonl").read_text().splitlines() == [line]
