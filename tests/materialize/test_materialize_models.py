"""Models in memory and on disk: equal bits and logits, and no file opened or module built per candidate."""

import builtins
import os
from pathlib import Path

import pytest
import torch
import transformers

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CandidateError, CheckpointError, RecipeError
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.merging.registry import specs
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import PROPAGATED

# Statistics behind merged layers are those of one recipe: tests/moments compares memory and disk
METHODS = sorted(name for name, spec in specs().items() if spec.statistic != PROPAGATED)


def recipe(family: dict[str, Checkpoint], method: str, scale: float = 1.0, **extra: object) -> Recipe:
    """Make a recipe of any registered method, with gradients for its weights and for parameters without a default."""
    spec, (base, *parents) = specs()[method], family
    per_model = [name for name, p in spec.parameters.items() if p.per_model and not p.strict]
    shared = [name for name, p in spec.parameters.items() if not p.per_model and p.default is None]
    models = []
    for index, name in enumerate(parents[: spec.models[1]]):
        gradient = [scale * (index + 1) / 3, scale * (3 - index) / 3]
        models.append({"model": name, "parameters": {parameter: list(gradient) for parameter in per_model}})
    data: dict[str, object] = {"merge_method": method, "base_model": base if spec.takes_base else None}
    data |= {"models": models, "parameters": {parameter: [0.2, 0.9] for parameter in shared}}
    if spec.statistic:
        data["sample"] = {"text": "drawn tokens"}  # as in conftest.py
    return Recipe.model_validate(data | extra)


@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_memory_and_disk_have_the_same_bits(method, kind, out_dtype, tmp_path, request):
    family = request.getfixturevalue(kind)
    wanted = recipe(family, method, out_dtype=out_dtype)
    resident = ResidentModel(family, next(iter(family)))
    assert resident.materialize(wanted) > 0
    report = write_checkpoint(wanted, family, tmp_path / "out", next(iter(family)))
    written = Checkpoint.open(tmp_path / "out")
    live = resident.model.state_dict()
    assert written.dtype == getattr(torch, out_dtype)
    for name in written.tensors:
        assert torch.equal(written.load(name).float(), live[name]), name
    assert report.weights_sha256 == written.content_sha256()
    assert (report.out, report.tensors) == (tmp_path / "out", len(written.tensors))
    assert report.bytes == sum(written.load(name).nbytes for name in written.tensors)
    assert report.seconds.keys() == {"read", "merge", "write", "total"}
    assert sum(report.seconds.values()) <= 2 * report.seconds["total"] + 1e-3
    assert report.peak_rss_gib > 0


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_the_live_model_answers_as_the_written_one(kind, tmp_path, request):
    family = request.getfixturevalue(kind)
    wanted, tokens = recipe(family, "ties", parameters={"density": 0.4}), torch.arange(12)[None]
    resident = ResidentModel(family, next(iter(family)))
    resident.materialize(wanted)
    write_checkpoint(wanted, family, tmp_path / "out", next(iter(family)))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(resident.model(tokens).logits, loaded(tokens).logits)
    head, embeddings = resident.model.get_output_embeddings().weight, resident.model.get_input_embeddings().weight
    assert (head is embeddings) == (kind == "tied")


def test_candidates_leave_no_trace_in_one_another_or_in_the_parents(untied):
    base = next(iter(untied))
    hashes = {name: checkpoint.content_sha256() for name, checkpoint in untied.items()}
    resident = ResidentModel(untied, base)
    first, second = recipe(untied, "ties"), recipe(untied, "linear")
    resident.materialize(first)
    before = {name: tensor.clone() for name, tensor in resident.model.state_dict().items()}
    resident.materialize(second)
    assert not torch.equal(resident.model.model.norm.weight, before["model.norm.weight"])
    resident.materialize(first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in resident.model.state_dict().items())
    for name, checkpoint in untied.items():
        assert Checkpoint.open(checkpoint.folder).content_sha256() == hashes[name]
        assert torch.equal(
            checkpoint.load("model.norm.weight"), Checkpoint.open(checkpoint.folder).load("model.norm.weight")
        )


def test_a_candidate_builds_no_model_and_opens_no_file(untied, monkeypatch):
    resident = ResidentModel(untied, next(iter(untied)))
    resident.materialize(recipe(untied, "dare_ties"))  # the first recipe with masks hashes the models once
    for method in METHODS:
        if specs()[method].statistic:  # and the first one with statistics computes and maps them
            resident.materialize(recipe(untied, method))

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a candidate did this")

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", forbidden)
        patch.setattr(os, "open", forbidden)
        patch.setattr(Path, "open", forbidden)
        patch.setattr(torch.nn.Module, "__init__", forbidden)
        patch.setattr(Checkpoint, "load", forbidden)
        patch.setattr("evosearch.checkpoints.tensor_files.safe_open", forbidden)
        for method in METHODS:
            resident.materialize(recipe(untied, method))


def test_the_model_is_ready_to_score(untied):
    resident = ResidentModel(untied, next(iter(untied)), compute_dtype=torch.bfloat16)
    assert not resident.model.training
    assert not any(parameter.requires_grad for parameter in resident.model.parameters())
    assert resident.model.dtype == torch.bfloat16
    assert resident.model.config._attn_implementation == "sdpa"
    resident.materialize(recipe(untied, "linear", out_dtype="bfloat16"))
    assert resident.model.model.norm.weight.dtype == torch.bfloat16


def test_parents_in_bfloat16_are_merged_in_float32(make_family, tmp_path):
    family = make_family(dtype=torch.bfloat16)
    base, a, *_ = family
    wanted = Recipe.model_validate(
        {"merge_method": "task_arithmetic", "base_model": base, "models": [{"model": a, "parameters": {"weight": 0.3}}]}
    )
    resident = ResidentModel(family, base)
    resident.materialize(wanted)
    name = "model.layers.1.mlp.up_proj.weight"
    theta_0, theta = family[base].load(name).float(), family[a].load(name).float()
    assert torch.equal(resident.model.state_dict()[name], (theta - theta_0).mul(0.3).add(theta_0))


def test_weights_that_are_not_finite_fail_the_candidate_and_write_nothing(untied, tmp_path):
    base = next(iter(untied))
    resident, huge = ResidentModel(untied, base), recipe(untied, "task_arithmetic", scale=1e8, out_dtype="float16")
    with pytest.raises(
        CandidateError, match=r"materialize: tensor 'model\.embed_tokens\.weight' is not finite in float16"
    ):
        resident.materialize(huge)
    with pytest.raises(CandidateError, match="is not finite in float16"):
        write_checkpoint(huge, untied, tmp_path / "out", base)
    assert list(tmp_path.iterdir()) == []
    resident.materialize(recipe(untied, "ties"))
    assert all(tensor.isfinite().all() for tensor in resident.model.state_dict().values())


def test_parameters_without_a_merge_fail_the_candidate(untied):
    base, a, b, _ = untied
    models = [{"model": a, "parameters": {"weight": 1}}, {"model": b, "parameters": {"weight": -1}}]
    with pytest.raises(CandidateError, match="materialize: linear: weights"):
        ResidentModel(untied, base).materialize(Recipe.model_validate({"merge_method": "linear", "models": models}))


def test_a_model_that_is_not_loaded_is_named(untied):
    models = [{"model": "org/other", "parameters": {"weight": 1}}]
    with pytest.raises(RecipeError, match="'org/other' is not loaded"):
        ResidentModel(untied, next(iter(untied))).materialize(
            Recipe.model_validate({"merge_method": "linear", "models": models})
        )


def test_models_of_different_depth_never_get_that_far(untied, make_family, tmp_path):
    other = make_family(num_hidden_layers=3)
    mixed = {"a": next(iter(untied.values())), "b": next(iter(other.values()))}
    with pytest.raises(CheckpointError, match="4 and 3 layers"):
        ResidentModel(mixed, "a")
    models = [{"model": name, "parameters": {"weight": 1}} for name in mixed]
    with pytest.raises(CheckpointError, match="4 and 3 layers"):
        write_checkpoint(
            Recipe.model_validate({"merge_method": "linear", "models": models}), mixed, tmp_path / "out", "a"
        )
    assert list(tmp_path.iterdir()) == []
