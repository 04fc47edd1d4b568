"""DARE and vocabularies in mergekit's YAML: differences are mapped, reported or refused."""

import pytest
import yaml

from evosearch.checkpoints.families.llama import FAMILY
from evosearch.errors import RecipeError
from evosearch.merging.registry import specs
from evosearch.recipe.mergekit import from_mergekit, to_mergekit
from evosearch.recipe.schema import Recipe

SHAPE = FAMILY.shape({"num_hidden_layers": 3})
MODELS = [{"model": "org/a", "parameters": {"weight": 0.5, "density": 0.4}}]
DARE = {"merge_method": "dare_ties", "base_model": "org/base", "models": MODELS}
SLICES = [{"sources": [{"model": "org/a", "layer_range": [0, 3], "parameters": {"weight": 1, "density": 0.4}}]}]


def exported(**changes: object) -> str:
    return to_mergekit(Recipe.model_validate(DARE | changes), SHAPE, specs())


@pytest.mark.parametrize(("ours", "theirs"), [("l1", True), (False, False), (True, True)])
def test_rescaling_is_written_in_mergekits_values(ours: object, theirs: object) -> None:
    text = exported(parameters={"rescale": ours})
    assert yaml.safe_load(text)["parameters"]["rescale"] is theirs
    assert "mergekit draws other masks" in text
    assert ("1/density in evosearch" in text) is (ours is True)


def test_the_default_divides_by_the_density_and_the_file_notes_it() -> None:
    assert "1/density in evosearch" in exported()
    ties = {**DARE, "merge_method": "ties"}
    assert "masks" not in to_mergekit(Recipe.model_validate(ties), SHAPE, specs())


@pytest.mark.parametrize(("theirs", "ours"), [({}, "l1"), ({"rescale": True}, "l1"), ({"rescale": False}, False)])
def test_mergekits_rescaling_is_read_as_what_it_is(theirs: dict[str, object], ours: object) -> None:
    data = DARE | ({"parameters": theirs} if theirs else {})
    assert from_mergekit(yaml.safe_dump(data), "dare.yml", specs()).parameters["rescale"] == ours


def test_mergekit_files_survive_a_round_trip() -> None:
    data = DARE | {"parameters": {"rescale": True}}
    back = yaml.safe_load(to_mergekit(from_mergekit(yaml.safe_dump(data), "dare.yml", specs()), SHAPE, specs()))
    assert back["parameters"] == {"rescale": True}


def test_tokens_without_a_source_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"tokenizer\.tokens\.<new>\.source: missing; mergekit requires it"):
        exported(tokenizer={"source": "union", "tokens": {"<new>": {"force": True}}})
    text = exported(tokenizer={"source": "union", "tokens": {"<new>": {"source": "org/a"}}})
    assert yaml.safe_load(text)["tokenizer"]["tokens"]["<new>"]["source"] == "org/a"


def test_slices_with_a_vocabulary_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"slices: mergekit takes missing tokens only from the models of one slice"):
        exported(models=[], slices=SLICES, tokenizer_source="union")
    assert yaml.safe_load(exported(tokenizer_source="union"))["tokenizer_source"] == "union"
