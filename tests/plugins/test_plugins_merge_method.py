"""A merge method from another package: in recipes, checks, errors, merges and the law tests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from evosearch.errors import RecipeError
from evosearch.merging.registry import method, specs
from evosearch.recipe.shapes import Param

FOLDER = Path(__file__).parent
LAWS = (
    FOLDER.parent / "merging" / "test_merging_laws.py",
    FOLDER.parent / "merging" / "test_merging_derivatives.py",
    FOLDER.parent / "search" / "test_search_derivatives.py",
)

pytestmark = pytest.mark.usefixtures("with_methods")


@pytest.fixture
def recipe(world: Callable[..., Path]) -> Callable[..., Path]:
    """`recipe(**changes)` writes a recipe of two models that uses the method, and returns its path."""
    folder = world().parent

    def write(**changes: object) -> Path:
        data = {"merge_method": "midrange", "models": [{"model": "./expert1"}, {"model": "./expert2"}]}
        path = folder / "midrange.yaml"
        path.write_text(yaml.safe_dump(data | changes))
        return path

    return write


def test_it_is_checked_and_merged(recipe, evosearch, tmp_path):
    path = recipe(parameters={"position": 0.25})
    code, out, err = evosearch("check", path)
    assert code == 0, out + err
    code, out, err = evosearch("merge", path, tmp_path / "merged")
    assert code == 0, out + err
    first, second, merged = (
        load_file(folder / "model.safetensors")
        for folder in (path.parent / "expert1", path.parent / "expert2", tmp_path / "merged")
    )
    for name, tensor in merged.items():
        low, high = torch.minimum(first[name], second[name]), torch.maximum(first[name], second[name])
        torch.testing.assert_close(tensor, 0.75 * low + 0.25 * high)


def test_errors_name_it_and_its_parameters(recipe, evosearch):
    def problem(path: Path) -> dict[str, str]:
        code, out, err = evosearch("check", path, "--json")
        assert code == 2, out + err
        first: dict[str, str] = json.loads(out)["problems"][0]
        return first

    found = problem(recipe(merge_method="midrang"))
    assert "midrange" in found["allowed"].split(", ")
    assert found["next"] == "Did you mean 'midrange'?"
    found = problem(recipe(parameters={"positon": 0.25}))
    assert (found["allowed"], found["next"]) == ("midrange takes position", "Did you mean 'position'?")


def test_it_has_a_spec_like_any_other():
    assert list(specs()) == sorted(specs())
    assert specs()["midrange"].summary.startswith("Averages")
    assert method("midrange").merge.__module__ == "evosearch_plugin_example.midrange"


def test_the_laws_are_tested_for_it_by_name():
    """In a process of its own, since tests are parametrized when they are collected."""
    path = os.pathsep.join([str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "midrange", *map(str, LAWS)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.rpartition(" passed")[0].rpartition("\n")[2]) >= 20


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("json.decoder", r"entry point 'broken' .*an unknown distribution.*registers no merge method.*@merge_method"),
        ("evosearch_plugin_example.gone", r"entry point 'broken' .*cannot load 'evosearch_plugin_example\.gone'"),
    ],
)
def test_an_entry_point_without_a_method_is_refused(value, message, monkeypatch):
    from importlib.metadata import EntryPoint, EntryPoints

    from evosearch import plugins

    point = EntryPoint("broken", value, "evosearch.merge_methods")
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints([point]))
    with pytest.raises(RecipeError, match=message):
        specs()


def test_a_method_cannot_take_the_name_of_another():
    from evosearch.merging.registry import merge_method

    with pytest.raises(ValueError, match="a merge method named 'ties' is already registered"):
        merge_method("ties", paper="-", summary="-", parameters={})


def test_a_derivative_names_the_float_parameters_that_it_is_in():
    from evosearch.merging.registry import merge_method

    known = {"weight": Param(0.0, 1.0), "normalize": Param(default=True, kind="bool")}
    for names, message in [
        (("wight",), "differentiable: 'wight' is not a float parameter of it"),
        (("normalize",), "differentiable: 'normalize' is not a float parameter of it"),
        (("weight",), "differentiable and derivative must be given together"),
    ]:
        with pytest.raises(ValueError, match=message):
            merge_method("new", paper="-", summary="-", parameters=known, differentiable=names)
    assert "new" not in specs()
