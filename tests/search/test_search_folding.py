"""Summaries of holes with many numbers."""

import pytest

from evosearch.search.space.folding import Folded, fold

RECIPE = {"models": [{"model": "zoo:tiny/reverse"}, {"model": "./experts/sort/"}, {"model": "org/copy"}]}
MANY = {f"models[0].weight[q_proj {n}]": 0.1 * n for n in range(13)}


def test_a_hole_with_many_numbers_is_one_entry_in_its_place() -> None:
    few = {f"models[1].weight[layer {n}]": 0.5 for n in range(12)}
    genome = {"merge_method": "ties"} | MANY | few | {"lambda": 1.0, "flag": True}
    folded = fold(genome, RECIPE)
    assert list(folded) == ["merge_method", "models[0].weight", *few, "lambda", "flag"]
    assert folded["models[0].weight"] == Folded("reverse.weight", 13, pytest.approx(0.6), 0.0, pytest.approx(1.2))
    assert str(folded["models[0].weight"]) == "0.6 (0 to 1.2) over 13 numbers"
    assert {name: value for name, value in folded.items() if name != "models[0].weight"} == {
        name: value for name, value in genome.items() if name not in MANY
    }


@pytest.mark.parametrize(
    ("hole", "title"),
    [
        ("models[0].weight", "reverse.weight"),
        ("models[1].weight[mlp]", "sort.weight[mlp]"),
        ("models[2].density", "copy.density"),
        ("models[7].weight", "models[7].weight"),
        ("slices[0].sources[1].weight", "slices[0].sources[1].weight"),
        ("shared", "shared"),
    ],
)
def test_titles_name_the_model(hole: str, title: str) -> None:
    (folded,) = fold({f"{hole}[down_proj {n}]": float(n) for n in range(20)}, RECIPE).values()
    assert isinstance(folded, Folded)
    assert folded.title == title


def test_words_are_counted() -> None:
    models = {f"slices[0].model[layer {n}]": "sort" if n % 3 else "reverse" for n in range(20)}
    few = {f"slices[1].model[layer {n}]": "sort" for n in range(12)}
    assert fold(models | few, {}) == {"slices[0].model": "sort 13, reverse 7"} | few


def test_switches_are_never_folded() -> None:
    genome = {f"models[0].rule[{n}]": n > 3 for n in range(20)}
    assert fold(genome, {}) == genome
    assert fold({}, RECIPE) == {}
