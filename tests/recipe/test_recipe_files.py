"""Recipe files: several documents, names, and recipes as references."""

from pathlib import Path

import pytest

from evosearch.errors import RecipeError
from evosearch.recipe import files
from evosearch.recipe.files import anchor, exists, is_recipe, load, load_reference, pieces

STEP = "name: step\nmerge_method: linear\nmodels: [{model: ./a, parameters: {weight: 1}}]\n"
LAST = "merge_method: linear\nmodels: [{model: step, parameters: {weight: 1}}]\n"


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(text)
    return folder / name


def test_a_name_refers_to_a_recipe_within_its_file_only(tmp_path: Path) -> None:
    path = write(tmp_path, STEP + "---\n" + LAST)
    assert load(path).references() == (f"{path}#step",)
    assert load(path, "step").references() == (str(tmp_path / "a"),)
    assert load_reference(f"{path}#step") == load(path, "step")
    alone = write(tmp_path, LAST, "alone.yaml")
    assert load(alone).references() == ("step",)


def test_without_an_unnamed_document_the_last_is_meant(tmp_path: Path) -> None:
    path = write(tmp_path, STEP + "---\nname: other\n" + LAST)
    assert load(path).references() == (f"{path}#step",)
    assert load(path) == load(path, "other")


def test_names_may_be_those_of_tokenizers(tmp_path: Path) -> None:
    text = STEP.replace("step", "base") + "---\n" + LAST.replace("step", "base") + "tokenizer_source: base\n"
    recipe = load(write(tmp_path, text))
    assert (recipe.models[0].model, recipe.tokenizer_source) == (f"{tmp_path}/r.yaml#base", "base")


def test_a_recipe_is_a_reference_by_its_file_and_its_name(tmp_path: Path) -> None:
    text = "merge_method: linear\nmodels: [{model: ../steps/s.yaml#step, parameters: {weight: 1}}, {model: s.yml}]\n"
    recipe = load(write(tmp_path / "mixes", text + "parameters: {weight: 1}"))
    assert recipe.references() == (f"{tmp_path}/steps/s.yaml#step", f"{tmp_path}/mixes/s.yml")
    assert all(map(is_recipe, recipe.references()))
    assert not any(map(is_recipe, ("org/model", "./folder", "zoo:tiny/base", "org/yaml", "a.yaml/b", "x.json#y")))


def test_folders_may_have_a_number_sign(tmp_path: Path) -> None:
    path = write(tmp_path / "a#b", STEP)
    assert load_reference(str(path)) == load_reference(f"{path}#step") == load(path)


def test_relative_parts_of_model_and_adapter_are_anchored() -> None:
    data = {"base_model": "./m+../l", "tokenizer": {"source": "union", "tokens": {"x": {"source": "./t"}}}}
    data |= {"slices": [{"base_model": "..", "sources": [{"model": "."}, {"model": "org/m@rev+org/l"}]}]}
    found = anchor(data, Path("/r/f"))
    assert (found["base_model"], found["tokenizer"]["tokens"]["x"]["source"]) == ("/r/f/m+/r/l", "/r/f/t")
    assert found["tokenizer"]["source"] == "union"
    assert found["slices"][0] == {"base_model": "/r", "sources": [{"model": "/r/f"}, {"model": "org/m@rev+org/l"}]}
    assert data["base_model"] == "./m+../l"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STEP + "---\n" + STEP, r"r\.yaml: document 2\.name: 'step' is already the name of an earlier document"),
        (LAST + "---\n" + LAST, r"r\.yaml: document 2\.name: a second document without a name"),
        (STEP.replace("step", "a#b"), r"r\.yaml: name: got 'a#b'.*without '#' and '\+'"),
        (STEP.replace("step", "[]"), r"r\.yaml: name: got \[\]"),
        ("---\n---\n", r"r\.yaml: got an empty file"),
        (STEP + "---\n- 1\n", r"r\.yaml: got a list"),
        (STEP + "---\n" + LAST + "sead: 1\n", r"r\.yaml: document 2\.sead: unknown key.*Did you mean 'seed'\?"),
        (STEP + "sead: 1\n---\n" + LAST, r"r\.yaml: document 1\.sead: unknown key.*Did you mean 'seed'\?"),
    ],
)
def test_inconsistent_documents_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load(write(tmp_path, text))


def test_a_missing_name_is_refused_with_the_existing_ones(tmp_path: Path) -> None:
    path = write(tmp_path, STEP + "---\n" + LAST)
    with pytest.raises(
        RecipeError, match=r"r\.yaml: no recipe named 'stpe'\. Named here: step\. Did you mean 'step'\?"
    ):
        load_reference(f"{path}#stpe")
    with pytest.raises(RecipeError, match="Named here: none"):
        load(write(tmp_path, LAST, "alone.yaml"), "step")


def test_a_file_is_written_as_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, STEP + "---\n" + LAST)
    once = files.load_file(path)
    assert files.load_file(write(tmp_path / "elsewhere", once.to_yaml())) == once
    assert once.recipes[None].references() == ("step",)


def test_a_path_that_exists_is_one_piece_though_it_has_a_plus(tmp_path: Path) -> None:
    for name in ("a+b", "a+b+adapter", "m", "deep+er/a+b"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "a+b", STEP, "s.yaml")
    given = {
        "./a+b": f"{tmp_path}/a+b",
        "./a+b/s.yaml#step": f"{tmp_path}/a+b/s.yaml#step",
        "a+b/s.yaml": f"{tmp_path}/a+b/s.yaml",
        "./a+b+adapter": f"{tmp_path}/a+b+adapter",  # the longest, not a+b with an adapter
        "./a+b+./m": f"{tmp_path}/a+b+{tmp_path}/m",
        "./m+./a+b+adapter": f"{tmp_path}/m+{tmp_path}/a+b+adapter",
        "org/m+./a+b": f"org/m+{tmp_path}/a+b",
        "./deep+er/a+b+./a+b": f"{tmp_path}/deep+er/a+b+{tmp_path}/a+b",
        "./c+d": f"{tmp_path}/c+d",  # no such folder: it could be a model and an adapter
    }
    for reference, absolute in given.items():
        assert anchor({"model": reference}, tmp_path) == {"model": absolute}, reference


def test_a_recipe_is_found_in_a_folder_with_a_plus(tmp_path: Path) -> None:
    write(tmp_path / "a+b", STEP, "s.yaml")
    outer = write(tmp_path, LAST.replace("step", "./a+b/s.yaml#step"), "outer.yaml")
    (reference,) = load(outer).references()
    assert load_reference(reference).references() == (f"{tmp_path}/a+b/a",)
    assert pieces(reference, exists) == (reference,)
    assert pieces(f"{reference}+org/lora", exists) == (reference, "org/lora")
