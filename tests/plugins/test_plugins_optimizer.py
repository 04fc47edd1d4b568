"""An optimizer from another package: in specs, checks, errors, searches and the law tests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.documents import validate
from evosearch.errors import SpecError
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.optimizers.registry import names, optimizer
from evosearch.search.space.dimensions import Dimension

FOLDER = Path(__file__).parent
LAWS = [FOLDER.parent / "search" / name for name in ("test_search_optimizers.py", "test_search_replay.py")]
NAME = "one_plus_lambda"

pytestmark = pytest.mark.usefixtures("with_optimizers")


def test_a_spec_that_names_it_is_checked_and_run(world: Callable[..., Path], evosearch: Callable[..., Any]) -> None:
    spec = world(optimizer={"name": NAME, "step": 0.3, "population": 3}, budget={"candidates": 4})
    code, out, err = evosearch("check", spec)
    assert code == 0, out + err
    _, out, err = evosearch("run", spec, "--json")
    assert json.loads(out)["candidates"]["scored"] == 4, out + err


def test_it_is_listed_and_its_options_are_checked() -> None:
    assert NAME in names()
    assert list(names()) == sorted(names())
    config = OptimizerConfig.model_validate({"name": NAME, "elite": 2, "step": 0.2})
    assert config.options == {"step": 0.2, "elite": 2}
    assert config.model_dump(exclude_defaults=True) == {"name": NAME, "elite": 2}, "defaults are not in the identity"
    for given, said in (
        (
            {"name": NAME, "elit": 2},
            rf"optimizer.elit: {NAME} has no option 'elit'.*step, elite\. Did you mean 'elite'",
        ),
        ({"name": NAME, "step": 2.0}, r"optimizer.step: .*less than or equal to 1"),
        ({"name": NAME, "elite": True}, r"optimizer.elite: got True. A whole number"),
        ({"name": "one_plus_lamda"}, rf"unknown optimizer .*{NAME}.*Did you mean '{NAME}'"),
        ({"name": NAME, "asynchronous": True}, rf"optimizer.asynchronous: {NAME} is generational"),
    ):
        with pytest.raises(SpecError, match=said):
            validate(OptimizerConfig, given, "night.yaml: optimizer", SpecError)


def test_the_registry_answers_for_it_as_for_any_other() -> None:
    dimensions = (Dimension("w0", "float", 0.5), Dimension("w1", "float", 0.5))
    config = OptimizerConfig(name=NAME)
    assert config.population_for(dimensions) == 8
    made = create(config, dimensions, {"w0": 0.5, "w1": 0.5})
    assert made.population == 8
    assert type(made).__module__ == "evosearch_plugin_example.one_plus_lambda"
    schema = OptimizerConfig.model_json_schema()["properties"]
    assert schema["elite"]["description"].startswith("Number of best candidates")


def test_the_laws_are_tested_for_it_by_name() -> None:
    """In a process of its own, since tests are parametrized when they are collected."""
    path = os.pathsep.join([str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", NAME, *map(str, LAWS)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.rpartition(" passed")[0].rpartition("\n")[2]) >= 30


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("json.decoder", r"entry point 'broken' .*an unknown distribution.*registers no optimizer.*@optimizer"),
        ("evosearch_plugin_example.gone", r"entry point 'broken' .*cannot load 'evosearch_plugin_example\.gone'"),
    ],
)
def test_an_entry_point_without_an_optimizer_is_refused(
    value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import EntryPoint, EntryPoints

    from evosearch import plugins

    point = EntryPoint("broken", value, "evosearch.optimizers")
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints([point]))
    with pytest.raises(SpecError, match=message):
        names()


def test_an_optimizer_cannot_take_the_name_of_another() -> None:
    with pytest.raises(ValueError, match="an optimizer named 'tpe' is already registered"):

        @optimizer("tpe", population=4)
        class Other:
            """Never registered."""
