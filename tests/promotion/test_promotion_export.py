"""Exports are written atomically and read back equal."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from evosearch.errors import InputError, RecipeError
from evosearch.evaluation.statistics.intervals import Interval
from evosearch.promotion.disclosure import CONTAMINATED, opened
from evosearch.promotion.export_files import Format, Origin, export
from evosearch.recipe.files import load
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import ModelShape, Place, TensorSpec

SHAPE = ModelShape(
    "LlamaForCausalLM",
    2,
    (
        TensorSpec("model.embed_tokens.weight", Place.EMBEDDINGS),
        TensorSpec("model.layers.0.mlp.up_proj.weight", Place.LAYER, 0),
        TensorSpec("model.layers.1.mlp.up_proj.weight", Place.LAYER, 1),
        TensorSpec("model.norm.weight", Place.FINAL_NORM),
    ),
)


def made(base: str = "org/base@abc123", method: str = "task_arithmetic") -> Recipe:
    weight = [{"filter": "embed_tokens", "value": 0.1}, {"value": [0.1 + 0.2, 1e-05]}]
    return Recipe.model_validate(
        {
            "merge_method": method,
            "base_model": base,
            "models": [
                {"model": "zoo:tiny/sort", "parameters": {"weight": weight}},
                {"model": "org/math", "parameters": {"weight": 0.3}},
            ],
            "parameters": {"normalize": False},
            "out_dtype": "bfloat16",
        }
    )


def provenance(inputs: Mapping[str, str] | None = None, contaminated: bool = False) -> Origin:
    scores = {"test": Interval(81.234, 1.0, 79.2, 83.1, 400), "validation": Interval(80.0, 1.0, 78.0, 82.0, 400)}
    return Origin("night", "5e" * 32, "17", "ab" * 32, inputs or {"org/math": "cd" * 32}, scores, 3, contaminated)


def write(recipe: Recipe, out: Path) -> None:
    """Stand in for materialize.on_disk: write a folder with a model in it."""
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "model.safetensors").write_bytes(b"weights")


def test_a_recipe_reads_back_equal_and_says_where_it_comes_from(tmp_path: Path) -> None:
    out = export(made(), "recipe", tmp_path / "new" / "winner.yaml", provenance())
    assert load(out) == made()
    text = out.read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert head == [
        "# Candidate 17 of the evosearch search 'night'",
        f"# search_id: {'5e' * 32}",
        f"# recipe_id: {'ab' * 32}",
        f"# input: org/math  content_sha256 {'cd' * 32}",
        "# score on test: 81.23 (95% interval 79.20 to 83.10, 400 items)",
        "# score on validation: 80.00 (95% interval 78.00 to 82.00, 400 items)",
        "# This test set has been opened 3 time(s) on record, by all searches.",
        "# Rebuild it with:  evosearch merge winner.yaml OUTPUT_FOLDER",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["winner.yaml"]


def test_test_figures_never_stand_alone(tmp_path: Path) -> None:
    """A test score comes with the number of openings and with the suite's contamination."""
    text = export(made(), "mergekit", tmp_path / "a.yaml", provenance(contaminated=True), shape=SHAPE).read_text()
    assert f"# {opened(3)}\n# {CONTAMINATED}\n" in text
    untested = replace(provenance(), scores={})
    assert "opened" not in export(made(), "recipe", tmp_path / "b.yaml", untested).read_text()
    assert load(export(made(), "recipe", tmp_path / "c.yaml", provenance(contaminated=True))) == made()


def test_comments_hold_no_folders_and_cannot_be_escaped(tmp_path: Path) -> None:
    inputs = {"/tmp/secret/place/math+/tmp/secret/lora": "ab", "x\nmerge_method: evil": "cd"}
    text = export(made(), "recipe", tmp_path / "winner.yaml", provenance(inputs)).read_text()
    assert "secret" not in text
    assert "# input: math+lora  content_sha256 ab\n" in text
    assert "# input: x merge_method: evil  content_sha256 cd\n" in text
    assert load(tmp_path / "winner.yaml") == made()


def test_a_folder_with_a_plus_in_its_name_is_one_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine's folders are removed, and references are split as the model loader splits them."""
    (tmp_path / "home" / "a+b" / "math").mkdir(parents=True)
    model = str(tmp_path / "home" / "a+b" / "math")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    inputs = {f"{model}+org/lora": "ab", "~/a+b/math": "cd", f"{tmp_path}/gone+{tmp_path}/lora": "ef", "org/a+b/c": "0"}
    text = export(made(), "recipe", tmp_path / "winner.yaml", provenance(inputs)).read_text()
    shown = [line.split()[2] for line in text.splitlines() if line.startswith("# input:")]
    assert shown == ["math+org/lora", "math", "gone+lora", "org/a+b/c"]


def test_mergekit_yaml(tmp_path: Path) -> None:
    out = export(made(), "mergekit", tmp_path / "mergekit.yaml", provenance(), shape=SHAPE)
    assert out.read_text().startswith("# Candidate 17 of the evosearch search 'night'\n")
    data = yaml.safe_load(out.read_text())
    assert data["merge_method"] == "task_arithmetic"
    assert data["out_dtype"] == "bfloat16"
    weight = next(entry for entry in data["models"] if entry["model"] == "zoo:tiny/sort")["parameters"]["weight"]
    assert weight[-1]["value"] == [0.1 + 0.2, 1e-05]


def test_what_mergekit_cannot_express_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="mergekit has no"):
        export(made(method="unknown"), "mergekit", tmp_path / "mergekit.yaml", provenance(), shape=SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_has_its_recipe_beside_the_weights(tmp_path: Path) -> None:
    out = export(made(), "checkpoint", tmp_path / "model", provenance(), write_checkpoint=write)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "recipe.yaml"]
    assert load(out / "recipe.yaml") == made()


def test_a_checkpoint_that_fails_leaves_nothing_and_the_old_one(tmp_path: Path) -> None:
    def fails(recipe: Recipe, out: Path) -> None:
        write(recipe, out)
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"model: No space left on device"):
        export(made(), "checkpoint", tmp_path / "model", provenance(), write_checkpoint=fails)
    assert list(tmp_path.iterdir()) == []
    old = export(made(), "checkpoint", tmp_path / "model", provenance(), write_checkpoint=write)
    (old / "old").touch()
    with pytest.raises(InputError, match="No space left"):
        export(made(), "checkpoint", old, provenance(), write_checkpoint=fails, overwrite=True)
    assert (old / "old").exists()
    export(made(), "checkpoint", old, provenance(), write_checkpoint=write, overwrite=True)
    assert not (old / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("fmt", ["recipe", "mergekit"])
def test_exports_are_replaced_only_when_asked_and_other_files_never(tmp_path: Path, fmt: Format) -> None:
    out = tmp_path / "winner.yaml"
    out.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=f"existing file is not an exported {fmt}"):
            export(made(), fmt, out, provenance(), shape=SHAPE, overwrite=overwrite)
    assert out.read_text() == "mine"
    out.write_text("# Candidate 3 of the evosearch search 'night'\n")
    with pytest.raises(InputError, match="already exists"):
        export(made(), fmt, out, provenance(), shape=SHAPE)
    export(made(), fmt, out, provenance(), shape=SHAPE, overwrite=True)
    assert "Candidate 17" in out.read_text()


def test_a_model_that_is_no_export_is_never_replaced(tmp_path: Path) -> None:
    write(made(), tmp_path / "base")
    before = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    with pytest.raises(InputError, match="existing folder is not an exported checkpoint"):
        export(made(), "checkpoint", tmp_path / "base", provenance(), write_checkpoint=write, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()} == before


def test_folders_that_hold_something_else_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="existing folder is not an exported checkpoint"):
        export(made(), "checkpoint", tmp_path, provenance(), write_checkpoint=write, overwrite=True)
    with pytest.raises(InputError, match="existing folder is not an exported recipe"):
        export(made(), "recipe", tmp_path, provenance(), overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
