"""Bundling of nested recipe files into one file that can be moved."""

from pathlib import Path

import pytest

from evosearch.errors import RecipeError
from evosearch.recipe import files
from evosearch.recipe.bundle import bundle
from evosearch.recipe.schema import Recipe


def linear(*models: str, name: str | None = None) -> str:
    listed = "".join(f"  - {{model: {model}, parameters: {{weight: 1.0}}}}\n" for model in models)
    return (f"name: {name}\n" if name else "") + f"merge_method: linear\nmodels:\n{listed}"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def leaves(recipe: Recipe) -> list[object]:
    """Return a recipe as a tree of models."""
    return [leaves(files.load_reference(m.model)) if files.is_recipe(m.model) else m.model for m in recipe.models]


def test_nested_recipes_are_in_the_file(tmp_path: Path) -> None:
    write(tmp_path / "inner" / "winner.yaml", linear("org/a", "org/b"))
    write(tmp_path / "other" / "winner.yaml", linear("../inner/winner.yaml", "org/c"))
    write(tmp_path / "parts.yaml", linear("org/d", "org/e", name="base") + "---\n" + linear("base"))
    outer = files.load(
        write(tmp_path / "o.yaml", linear("./inner/winner.yaml", "./other/winner.yaml", "./parts.yaml#base", "org/x"))
    )
    found = bundle(outer)
    assert list(found.recipes) == ["winner", "winner-2", "base-2", None]  # `base` is reserved as a tokenizer source
    moved = write(tmp_path / "elsewhere" / "one.yaml", found.to_yaml())
    before = leaves(outer)
    for name in ("inner/winner.yaml", "other/winner.yaml", "parts.yaml"):
        (tmp_path / name).unlink()
    assert (
        leaves(files.load(moved))
        == before
        == [["org/a", "org/b"], [["org/a", "org/b"], "org/c"], ["org/d", "org/e"], "org/x"]
    )


def test_a_recipes_name_is_not_a_models(tmp_path: Path) -> None:
    """Names in the file avoid all models and adapters that its recipes name, here `gpt2` and `lora`."""
    write(tmp_path / "gpt2.yaml", linear("org/a", "org/b"))
    write(tmp_path / "lora.yaml", linear("org/c", "org/d"))
    write(tmp_path / "deep.yaml", linear("./lora.yaml", "gpt2+lora"))
    recipe = files.load(write(tmp_path / "o.yaml", linear("./gpt2.yaml", "./deep.yaml")))
    found = bundle(recipe)
    assert list(found.recipes) == ["gpt2-2", "lora-2", "deep", None]
    before = leaves(recipe)
    assert leaves(files.load(write(tmp_path / "elsewhere" / "one.yaml", found.to_yaml()))) == before
    assert before == [["org/a", "org/b"], [["org/c", "org/d"], "gpt2+lora"]]


def test_a_recipe_of_models_alone_stays_one_document(tmp_path: Path) -> None:
    recipe = files.load(write(tmp_path / "r.yaml", linear("org/a", "./local")))
    assert bundle(recipe).to_yaml() == recipe.to_yaml()


def test_an_adapter_on_a_recipe_keeps_its_place(tmp_path: Path) -> None:
    inner = write(tmp_path / "inner.yaml", linear("org/a", "org/b"))
    recipe = files.load(write(tmp_path / "r.yaml", linear(f"{inner}+org/lora", "org/c")))
    assert [entry.model for entry in bundle(recipe).recipes[None].models] == ["inner+org/lora", "org/c"]


def test_a_missing_nested_recipe_is_named(tmp_path: Path) -> None:
    inner = write(tmp_path / "inner.yaml", linear("org/a", "org/b"))
    recipe = files.load(write(tmp_path / "r.yaml", linear(str(inner), "org/c")))
    inner.unlink()
    with pytest.raises(RecipeError, match=r"inner\.yaml: No such file"):
        bundle(recipe)
