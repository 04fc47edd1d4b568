"""`check` finds every fault of a spec in one pass, with lines and the nearest known words; also from configs alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.preflight.check import CheckReport, check
from evosearch.preflight.line_numbers import key_lines, line_of
from evosearch.search.progress import Silent

World = Callable[..., Path]
Evosearch = Callable[..., tuple[int, str, str]]


def changed(spec: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    data = yaml.safe_load(spec.read_text())
    change(data)
    spec.write_text(yaml.safe_dump(data, sort_keys=False))
    return spec


def from_configs(spec: Path) -> CheckReport:
    return check(spec, False, Silent(), weights=False)


def five_typos(data: dict[str, Any]) -> None:
    data["optimzer"] = data.pop("optimizer")
    data["budget"] = {"candidats": 4, "candidates": 4}
    data["recipe"]["dtpye"] = "float32"
    data["recipe"]["models"][0]["parameters"]["wieght"] = 0.5
    data["recipe"]["models"][1]["parameters"]["weight"] = {"low": 0.0, "hihg": 1.0}


@pytest.mark.parametrize("weights", [True, False])
def test_five_typos_are_five_findings_with_lines_and_near_words(weights: bool, world: World) -> None:
    spec = changed(world(), five_typos)
    found = check(spec, False, Silent(), weights=weights).problems
    near = {problem.where.rpartition(".")[2]: problem.next for problem in found}
    assert {key.partition(": ")[2] or key: next for key, next in near.items()} == {
        "yaml: optimzer".partition(": ")[2]: "Did you mean 'optimizer'?",
        "candidats": "Did you mean 'candidates'?",
        "dtpye": "Did you mean 'dtype'?",
        "wieght": "Did you mean 'weight'?",
        "hihg": "Did you mean 'high'?",
    }
    lines = spec.read_text().splitlines()
    for problem in found:
        assert problem.line is not None
        assert problem.where.rpartition(".")[2].rpartition(" ")[2] in lines[problem.line - 1]


def test_two_misspelled_options_are_two_findings(world: World) -> None:
    spec = changed(world(), lambda data: data["optimizer"].update(sigam=0.3, ssed=1))
    assert [problem.next for problem in from_configs(spec).problems] == [
        "Did you mean 'sigma'?",
        "Did you mean 'seed'?",
    ]


@pytest.mark.parametrize(
    ("hole", "message"),
    [
        ({"low": 1.0, "high": 0.0}, "weight.low: got 1"),
        ({"low": 1.0, "high": 1.0}, "weight.low: got 1"),
        ({"low": 0.0, "high": 1.0, "per": "group", "groups": 9}, "weight.groups: got 9"),
        ({"low": 0.0, "high": 1.0, "per": "gradient", "points": 9}, "weight.points: got 9"),
        ({"choices": []}, "weight.choices: 0 given"),
    ],
)
def test_configs_show_bad_ranges(hole: dict[str, Any], message: str, world: World) -> None:
    def both(data: dict[str, Any]) -> None:
        for model in data["recipe"]["models"]:
            model["parameters"]["weight"] = hole

    found = from_configs(changed(world(), both)).problems
    assert len(found) == 2
    assert all(message in f"{problem.where}: {problem.what}" for problem in found)


def sliced(*ranges: tuple[int, int], weight: Any = 0.5) -> dict[str, Any]:
    def source(model: str, layers: tuple[int, int]) -> dict[str, Any]:
        return {"model": model, "layer_range": list(layers), "parameters": {"weight": weight}}

    slices = [{"sources": [source(f"./expert{i}", layers) for i in (1, 2)]} for layers in ranges]
    return {"merge_method": "linear", "slices": slices}


def test_configs_show_reversed_and_empty_layer_ranges(world: World) -> None:
    hole = {"low": 0.0, "high": 1.0}
    recipe = sliced((0, 1), (2, 1), (2, 2), weight=hole)
    found = from_configs(changed(world(), lambda data: data.update(recipe=recipe))).problems
    assert [problem.where.partition("slices")[2] for problem in found] == [
        f"[{index}].sources[{source}]" for index in (1, 2) for source in (0, 1)
    ]
    assert all("is empty: it starts at the first and ends before the second number" in one.what for one in found)
    assert all(problem.line for problem in found)


@pytest.mark.parametrize("groups", [4, 5])
def test_configs_show_numbers_per_group_of_slices(groups: int, world: World) -> None:
    """Four layers of models with three: any number of groups is refused."""
    hole = {"low": 0.0, "high": 1.0, "per": "group", "groups": groups}
    recipe = sliced((0, 3), (2, 3)) | {"parameters": {"weight": hole}}
    for part in recipe["slices"]:
        for source in part["sources"]:
            del source["parameters"]
    (problem,) = from_configs(changed(world(), lambda data: data.update(recipe=recipe))).problems
    assert problem.where.rpartition(": ")[2] == "recipe.parameters.weight.per"
    assert problem.what == "'group' counts the layers of a complete model"


def test_configs_show_the_optimizer_and_the_baselines_share(world: World) -> None:
    spec = changed(world(), lambda data: [data.pop(key) for key in ("optimizer", "baselines")] and None)
    notes = from_configs(spec).notes
    assert any(text.startswith("optimizer: gradient, because every searched number has a derivative") for text in notes)
    assert any("baselines come first: " in text and "% of all with the candidates'" in text for text in notes)


@pytest.mark.parametrize(
    ("change", "near"),
    [
        (lambda data: data["recipe"]["models"][0]["parameters"]["weight"].update(per="tenser"), "tensor"),
        (lambda data: data["optimizer"].update(start="best_baslines"), "best_baseline"),
        (lambda data: data["workers"].update(executor="lokal"), "local"),
        (lambda data: data["recipe"].update(merge_method="task_aritmetic"), "task_arithmetic"),
        (lambda data: data["recipe"].update(parameters={"normalise": True}), "normalize"),
        (lambda data: data["optimizer"].update(name="cma-es"), "cma_es"),
        (lambda data: data.update(objectives=["fitnes", "choice"]), "fitness"),
    ],
)
def test_the_nearest_allowed_word_is_named(change: Callable[[dict[str, Any]], None], near: str, world: World) -> None:
    found = from_configs(changed(world(), change)).problems
    assert f"Did you mean '{near}'?" in [problem.next for problem in found]


def test_the_line_is_printed_and_in_the_json(world: World, evosearch: Evosearch) -> None:
    spec = changed(world(), lambda data: data.update(nmae="x"))
    number = next(i for i, line in enumerate(spec.read_text().splitlines(), start=1) if line.startswith("nmae"))
    code, out, _ = evosearch("check", spec, "--no-weights")
    assert code == 2
    assert f"nmae: unknown key (line {number})" in out
    _, out, _ = evosearch("check", spec, "--no-weights", "--json")
    assert f'"line": {number}' in out


def test_lines_of_keys() -> None:
    lines = key_lines("a:\n  b: [1,\n      2]\n  c: {d: 1}\n# comment\ne: &x\n  f: 1\ng: *x\n")
    assert lines == {"a": 1, "a.b": 2, "a.b[0]": 2, "a.b[1]": 3, "a.c": 4, "a.c.d": 4, "e": 6, "e.f": 7, "g": 8}
    assert line_of("a.b[1]", lines) == 3
    assert line_of("a.c.missing", lines) == 4
    assert line_of("nothing", lines) is None
    assert key_lines("a: [") == {}


def test_lines_of_a_file_whose_aliases_would_expand_without_end() -> None:
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    assert len(key_lines(f"l0: &l0 [1]\n{levels}")) < 1000
