"""Nested recipes: merged once, identified by content, rejected if they contain themselves."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError, Problems, RecipeError
from evosearch.materialize.inputs import MAX_NESTED, Opener
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.plan import donor_of
from evosearch.recipe import files

Write = Callable[..., Path]


def linear(*models: str, name: str | None = None, weight: float = 1.0) -> str:
    listed = "".join(f"  - {{model: {model}, parameters: {{weight: {weight}}}}}\n" for model in models)
    return (f"name: {name}\n" if name else "") + f"merge_method: linear\nmodels:\n{listed}"


def halves(base: str, other: str, t: float = 0.5, **extra: str) -> str:
    text = f"merge_method: slerp\nbase_model: {base}\nmodels: [{{model: {other}}}]\nparameters: {{t: {t}}}\n"
    return text + "".join(f"{key}: {value}\n" for key, value in extra.items())


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "r.yaml") -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    return Opener(tmp_path / "cache")


def merged(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "merged").iterdir()) if (folder / "cache" / "merged").is_dir() else []


def test_a_merge_of_a_merge_is_the_merge_of_its_weights(untied, write, opener, tmp_path):
    _, a, b, c = untied
    path = write(linear(a, b, name="step") + "---\n" + linear("step", c))
    recipe = files.load(path)
    inputs = opener.inputs(recipe)
    write_checkpoint(recipe, inputs, tmp_path / "out", donor_of(recipe))
    written = Checkpoint.open(tmp_path / "out")
    for name in written.tensors:
        first = (untied[a].load(name) + untied[b].load(name)) / 2
        torch.testing.assert_close(written.load(name), (first + untied[c].load(name)) / 2, rtol=0, atol=1e-6)


def test_an_intermediate_merge_is_made_once_and_found_again(untied, write, tmp_path, monkeypatch):
    _, a, b, c = untied
    path = write(linear(a, b, name="step") + "---\n" + linear("step", c))
    told: list[tuple[str, float]] = []
    first = Opener(tmp_path / "cache", lambda what, part: told.append((what, part)))
    one = first.inputs(files.load(path))[f"{path}#step"]
    assert told == [(f"merging {path}#step", 0.0), (f"merging {path}#step", 1.0)]
    (folder,) = merged(tmp_path)
    recipe = files.load(path, "step")
    assert one.folder == folder
    assert one.content_sha256() == first.identify(recipe, first.inputs(recipe))

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("merged again")

    monkeypatch.setattr("evosearch.materialize.inputs.write_checkpoint", forbidden)
    again = Opener(tmp_path / "cache").inputs(files.load(path))[f"{path}#step"]
    assert again.content_sha256() == one.content_sha256()
    assert first.inputs(files.load(path))[f"{path}#step"] is one


def test_the_id_follows_what_is_merged_and_not_what_it_is_called(untied, write, tmp_path):
    _, a, b, c = untied

    def identity(path: Path) -> str:
        opener = Opener(tmp_path / "cache")
        recipe = files.load(path)
        return opener.identify(recipe, opener.inputs(recipe))

    inner = write(halves(a, b), "inner.yaml")
    outer = write(linear("./inner.yaml", c))
    known = identity(outer)
    inner.rename(tmp_path / "renamed.yaml")
    assert identity(write(linear("./renamed.yaml", c))) == known
    assert identity(write(halves(a, b).replace("merge", "name: step\nmerge", 1) + "---\n" + linear("step", c))) == known
    write(halves(a, b, t=0.25), "renamed.yaml")
    assert identity(write(linear("./renamed.yaml", c))) != known
    assert len(merged(tmp_path)) == 2  # one per weight, independent of names


def test_a_nested_recipe_is_base_donor_and_tokenizer_alike(untied, write, opener, tmp_path):
    base, a, b, _ = untied
    write(halves(base, a, out_dtype="bfloat16"), "inner.yaml")
    recipe = files.load(write(halves("./inner.yaml", b, t=0.0)))
    inputs = opener.inputs(recipe)
    assert next(iter(inputs)) == donor_of(recipe) == f"{tmp_path}/inner.yaml"
    write_checkpoint(recipe, inputs, tmp_path / "out", donor_of(recipe))
    written, inner = Checkpoint.open(tmp_path / "out"), inputs[f"{tmp_path}/inner.yaml"]
    assert inner.dtype is torch.bfloat16  # rounded to its own out_dtype before the outer merge
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(written.load(name), inner.load(name).float(), rtol=0, atol=1e-6)


def test_a_recipe_that_contains_itself_is_refused_with_the_chain(write, opener, tmp_path):
    path = write(linear("two", name="one") + "---\n" + linear("one", name="two"))
    chain = " → ".join(f"{path}#{name}" for name in ("one", "two", "one"))
    with pytest.raises(RecipeError) as caught:
        opener.open(f"{path}#one")
    assert chain in str(caught.value)
    assert "Break the cycle" in str(caught.value)
    for text, name in ((linear("./self.yaml"), "self.yaml"), (linear("me", name="me"), "me.yaml")):
        with pytest.raises(RecipeError, match="the recipe contains itself"):
            opener.inputs(files.load(write(text, name)))
    write(linear("./b.yaml"), "a.yaml")
    with pytest.raises(RecipeError, match=r"contains itself: \S*a\.yaml → \S*b\.yaml → \S*a\.yaml"):
        opener.inputs(files.load(write(linear("./a.yaml"), "b.yaml")))
    assert merged(tmp_path) == []


def test_the_depth_of_nested_recipes_is_limited(write, opener):
    count = MAX_NESTED + 1
    steps = [linear("org/none", name="step0")] + [linear(f"step{i}", name=f"step{i + 1}") for i in range(count)]
    path = write("---\n".join(steps))
    with pytest.raises(RecipeError, match=rf"recipes are nested more than {MAX_NESTED} deep"):
        opener.open(f"{path}#step{count}")


def test_errors_in_nested_documents_name_the_key(untied, write, opener, tmp_path):
    a = list(untied)[1]
    for inner, error, message in (
        (linear(a) + "sead: 1\n", RecipeError, r"inner\.yaml: sead: unknown key.*'seed'"),
        (
            halves(a, a).replace("slerp", "slurp"),
            RecipeError,
            r"inner\.yaml: merge_method: unknown method 'slurp'.*'slerp'",
        ),
        (linear(str(tmp_path / "none")), CheckpointError, "none: no such folder"),
    ):
        write(inner, "inner.yaml")
        with pytest.raises(error, match=message):
            opener.inputs(files.load(write(linear("./inner.yaml", a))))
    with pytest.raises(RecipeError, match=r"gone\.yaml: No such file"):
        opener.inputs(files.load(write(linear("./gone.yaml", a))))
    assert merged(tmp_path) == []


def test_every_model_that_does_not_fit_a_nested_recipe_is_named_with_its_file(
    untied, make_family, write, opener, tmp_path
):
    a, others = list(untied)[1], list(make_family(vocab_size=44))[1:3]
    file = write(linear(a, *others), "inner.yaml")
    with pytest.raises(Problems) as several:
        opener.inputs(files.load(write(linear("./inner.yaml", a))))
    assert [problem.where for problem in several.value.problems] == [f"{file}: recipe"] * 2
    for problem, other in zip(several.value.problems, others, strict=True):
        assert isinstance(problem, CheckpointError)
        assert f"and '{other}' cannot be merged: vocabularies of 100 and 44 tokens" in problem.what
    write(linear(a, others[0]), "inner.yaml")
    with pytest.raises(CheckpointError, match=r"inner\.yaml: recipe: .* cannot be merged"):
        opener.inputs(files.load(write(linear("./inner.yaml", a))))
    assert merged(tmp_path) == []
