"""Recipes as tags of runs: nothing is lost within MLflow's limits, and longer ones become artifacts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.tracking.client import connect
from evosearch.tracking.mlflow import MlflowMirror
from evosearch.tracking.recipe_tags import MOST, TAG_CHARACTERS, recipe_of, recipe_tags

LONG_S = 400.0


@pytest.mark.parametrize("length", [1, TAG_CHARACTERS, TAG_CHARACTERS + 1, MOST * TAG_CHARACTERS])
def test_a_recipe_is_divided_and_read_back(length: int) -> None:
    text = "".join(chr(97 + index % 26) for index in range(length))
    tags = recipe_tags(text)
    assert len(tags) == -(-length // TAG_CHARACTERS)
    assert max(map(len, tags.values())) <= TAG_CHARACTERS
    assert recipe_of({"kind": "candidate"} | tags) == text


def test_a_recipe_that_needs_too_many_tags_has_none() -> None:
    assert recipe_tags("x" * (MOST * TAG_CHARACTERS + 1)) == {}
    assert recipe_of({"kind": "candidate"}) is None


def test_long_recipes_are_complete_in_mlflow(story: Any, new_store: Callable[[str], str]) -> None:
    uri = new_store("store")
    story.begin()
    recipes = {}
    for candidate, count in (("0", 500), ("1", 5000)):  # about 20 and 200 kB
        models = [{"model": f"org/model-{index}", "parameters": {"weight": 0.1}} for index in range(count)]
        recipes[candidate] = {"merge_method": "linear", "models": models}
        asked = {"group": 0, "genome": {}, "recipe_id": f"id{candidate}"}
        story.add("asked", candidate=candidate, recipe=recipes[candidate], **asked)
    made = MlflowMirror(uri, "nights", story.url, story.search_id, "night")
    made.close(LONG_S)
    assert made.state == "up to date"
    runs = {name: connect(uri).get_run(run_id) for name, run_id in made.run_ids().items()}
    text = recipe_of(runs["0"].data.tags)
    assert text is not None
    assert len(text) > TAG_CHARACTERS
    assert yaml.safe_load(text) == recipes["0"]
    assert "recipe" not in runs["1"].data.tags
    folder = Path(runs["1"].info.artifact_uri.removeprefix("file://"))
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == recipes["1"]
