"""Titles of candidates and baselines: one name for a thing everywhere."""

from evosearch.search.titles import dimension_title, title

REFERENCES = ("zoo:tiny/base", "zoo:tiny/sort", "one/reverse", "other/reverse")


def single(model: str) -> dict[str, object]:
    return {"models": [{"model": model}]}


def test_every_kind_of_model_has_words() -> None:
    assert title("90") == "#90"
    assert title("base", single("zoo:tiny/base"), REFERENCES) == "base"
    assert title("base", single("org/tiny-llm"), REFERENCES) == "base tiny-llm"
    assert title("parent:0", single("zoo:tiny/sort"), REFERENCES) == "parent sort"
    assert title("parent:2", single("other/reverse"), REFERENCES) == "parent reverse~3"
    assert title("parent:1", single("/models/on/disk"), REFERENCES) == "parent disk"
    assert title("uniform") == "uniform average"
    assert title("scale:0.60") == "scale 0.6"
    assert title("scale:-1.00") == "scale -1"
    assert title("stage:heads") == "winner of stage heads"
    assert title("trained:4000") == "fine-tuned best scale"
    assert title("placebo:12") == "placebo: random task vectors"
    assert title("reseeded:17:1") == "#17, mask seed 1"
    assert title("champion") == "champion of the registry"


def test_a_skipped_parent_has_its_name() -> None:
    assert title("parent:0", None, REFERENCES) == "parent:0"


def test_dimensions_name_models_instead_of_indexes() -> None:
    recipe = {"models": [{"model": "zoo:tiny/sort"}, {"model": "a/reverse"}, {"model": "b/reverse"}]}
    assert dimension_title("models[0].weight[layers 0-1]", recipe) == "sort.weight[layers 0-1]"
    assert dimension_title("models[2].density", recipe) == "reverse~2.density"
    for name in ("models[3].weight", "lambda", "slices[0].model[layer 3]", "merge_method"):
        assert dimension_title(name, recipe) == name
    twice = {"models": [{"model": "zoo:tiny/sort"}, {"model": "zoo:tiny/sort"}]}
    assert dimension_title("models[1].weight", twice) == "models[1].weight"
