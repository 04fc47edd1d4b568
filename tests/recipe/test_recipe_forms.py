"""Every form of mergekit's YAML can be read and written; documents of other tools are rejected."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import RecipeError
from evosearch.merging.registry import specs
from evosearch.recipe import checks, files
from evosearch.recipe.blocks import blocks
from evosearch.recipe.files import RecipeFile

FORMS = sorted((Path(__file__).parent / "mergekit_forms").glob("*.yaml"))
OTHERS = Path(__file__).parent / "other_forms"
# Files with redundant content: a null, a single entry without its list, a default.
REDUNDANT = {"empty_parameters", "single_conditions", "tokenizer_defaults"}


def named(paths: list[Path]) -> Any:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def raw(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in data.items() if key != "name"} for data in yaml_documents(path)]


def yaml_documents(path: Path) -> list[dict[str, Any]]:
    """Load a file with PyYAML, but read `1e-5` as a number instead of text."""
    return [_numbers(data) for data in yaml.safe_load_all(path.read_text())]


def _numbers(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _numbers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_numbers(item) for item in node]
    return float(node) if node in ("1e-5", "1e-8") else node


@named(FORMS)
def test_a_recipe_survives_writing_and_reading(path: Path, tmp_path: Path) -> None:
    once = files.load_file(path)
    (tmp_path / "again.yaml").write_text(once.to_yaml())
    again = files.load_file(tmp_path / "again.yaml")
    assert again == once
    assert list(again.recipes) == list(once.recipes)
    assert again.to_yaml() == once.to_yaml()


@named([path for path in FORMS if path.stem not in REDUNDANT])
def test_a_recipe_is_what_its_file_says(path: Path) -> None:
    assert [recipe.to_dict() for recipe in files.load_file(path).recipes.values()] == raw(path)


def test_long_forms_are_written_in_short() -> None:
    written = {stem: _only(stem).to_dict() for stem in REDUNDANT}
    given = {stem: raw(FORMS[0].with_name(f"{stem}.yaml"))[0] for stem in REDUNDANT}
    del given["empty_parameters"]["parameters"], given["empty_parameters"]["tokenizer_source"]
    given["tokenizer_defaults"]["tokenizer"] = {"source": "acme/chat-8b"}
    for scope in (given["single_conditions"], given["single_conditions"]["models"][0]):
        scope["parameters"]["weight"] = [scope["parameters"]["weight"]]
    assert written == given


def _only(stem: str) -> Any:
    (recipe,) = files.load_file(FORMS[0].with_name(f"{stem}.yaml")).recipes.values()
    return recipe


@named(FORMS)
def test_an_invalid_form_names_its_method_or_module(path: Path) -> None:
    for recipe in files.load_file(path).recipes.values():
        if recipe.merge_method not in specs():
            with pytest.raises(
                RecipeError, match=f"merge_method: unknown method '{recipe.merge_method}'.*Known methods"
            ):
                checks.check(recipe, specs(), path.name)
        elif path.stem == "modules_of_others":
            with pytest.raises(RecipeError, match=r"modules\.text_decoder: unknown module.*'default'"):
                checks.check(recipe, specs(), path.name)
        else:
            notes = checks.check(recipe, specs(), path.name)
            assert all("has no effect" in note for note in notes)
            assert bool(notes) == any(key in recipe.to_yaml() for key in ("int8_mask", "residual_weight"))


def test_every_scope_reaches_its_tensors() -> None:
    first, second = blocks(_only("every_scope"))
    assert (first.base, second.base) == ("acme/base-7b", "acme/other-base-7b")
    assert [entry.layers for entry in second.entries] == [(8, 32), (8, 32)]
    assert first.entries[0].own["weight"] == [{"filter": "self_attn", "value": [0.1, 0.9]}]
    assert [sorted(scope) for scope in first.shared] == [["lambda", "weight"], ["lambda", "weight"]]
    assert first.keys == ("slices[0].parameters", "parameters")
    assert second.shared[0]["lambda"] == [{"filter": "norm", "value": 0.5}]


def test_a_modules_parameters_lie_between_the_slices_and_the_recipes() -> None:
    (block,) = blocks(_only("modules"))
    assert block.keys == ("modules.default.parameters", "parameters")
    assert [entry.where for entry in block.entries] == ["modules.default.models[0]", "modules.default.models[1]"]
    first, second = blocks(_only("modules_slices"))
    assert (first.where, second.where) == ("modules.default.slices[0]", "modules.default.slices[1]")


def test_models_are_listed_once_wherever_they_are_named() -> None:
    assert _only("every_scope").references() == (
        "acme/base-7b",
        "acme/alpha-7b",
        "acme/beta-7b",
        "acme/gamma-7b",
        "acme/other-base-7b",
    )
    assert _only("tokenizer").vocabulary.models() == ["acme/chat-8b"] * 4
    assert _only("tokenizer_defaults").tokenizer_model == "acme/chat-8b"


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        ("mixture", r"mixture\.yaml: experts: this is a mixture-of-experts document of mergekit-moe, not a recipe"),
        ("evolution", r"evolution\.yaml: genome: this is a search of mergekit-evolve, not a recipe.*a search spec"),
    ],
)
def test_documents_of_other_tools_are_refused_by_name(stem: str, message: str) -> None:
    for read in (files.load, files.load_file):
        with pytest.raises(RecipeError, match=message):
            read(OTHERS / f"{stem}.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("filter: self_attn", "pattern: self_attn", r"parameters\.t\[0\]\.pattern: unknown key.*filter, value"),
        ("dtype: float16", "out_path: ./here", r"out_path: unknown key"),
        ("layer_range", "layers", r"slices\[0\]\.sources\[0\]\.layers: unknown key.*layer_range"),
    ],
)
def test_keys_of_older_versions_are_refused_by_name(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = FORMS[0].with_name("slerp_slices.yaml").read_text()
    assert old in text
    (tmp_path / "old.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(RecipeError, match=message):
        files.load(tmp_path / "old.yaml")


def test_a_recipe_file_is_a_value() -> None:
    path = FORMS[0].with_name("two_steps.yaml")
    once = files.load_file(path)
    assert isinstance(once, RecipeFile)
    assert list(once.recipes) == ["blend", "turned", None]
    assert once.recipes["turned"].base_model == "blend"  # as written; `load` turns it into a reference
