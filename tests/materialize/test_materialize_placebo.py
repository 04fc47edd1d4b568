"""Placebos: random task vectors with the norms of real ones, the same on every machine and in every order."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evosearch.checkpoints.overlay import Overlay
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError
from evosearch.materialize.inputs import Opener
from evosearch.materialize.random_vectors import product_norm
from evosearch.merging import gaussian
from evosearch.merging.gaussian import noise, normal
from evosearch.merging.philox import key_of
from evosearch.recipe import files, placebo_reference
from evosearch.recipe.placebo_reference import PlaceboReference

KEY = key_of(0, "content", "tensor")


def placebo(model: str, base: str, seed: int = 0) -> str:
    return str(PlaceboReference(model, base, seed))


def vectors(cache: Path, reference: str, base: str) -> dict[str, torch.Tensor]:
    """Task vector of each tensor that a model does not share with its base."""
    opener = Opener(cache)
    origin, model = opener.open(base), opener.open(reference)
    own = [name for name in model.tensors if model.shares(name) is None]
    return {name: model.load(name).double() - origin.load(name).double() for name in own}


def make_lora(folder: Path, base: Checkpoint, modules: list[str], **config: object) -> Path:
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name, info in base.tensors.items():
        if name.split(".")[-2] in modules:
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn((3, info.shape[1]), generator=generator).bfloat16()
            tensors[f"{prefix}.lora_B.weight"] = 0.1 * torch.randn((info.shape[0], 3), generator=generator).bfloat16()
            if config.get("use_dora"):
                tensors[f"{prefix}.lora_magnitude_vector"] = base.load(name).norm(dim=1) * 1.1
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": modules, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


def test_noise_is_standard_normal_and_independent_of_chunks(monkeypatch):
    whole = normal(KEY, 0, 100_000)
    assert abs(float(whole.mean())) < 0.02
    assert abs(float(whole.std()) - 1.0) < 0.02
    assert float((whole.abs() < 1.0).double().mean()) == pytest.approx(0.6827, abs=0.01)
    assert float((whole[1:] * whole[:-1]).mean()) == pytest.approx(0.0, abs=0.02)
    assert torch.equal(torch.cat([normal(KEY, 0, 12), normal(KEY, 12, 8), normal(KEY, 20, 80)]), whole[:100])
    one = noise(KEY, (30, 50), 2.5)
    assert float(one.norm()) == pytest.approx(2.5, rel=1e-5)
    monkeypatch.setattr(gaussian, "CHUNK", 64)
    assert torch.allclose(noise(KEY, (30, 50), 2.5), one, rtol=1e-6, atol=0)
    assert noise(KEY, (3, 4), 0.0).eq(0.0).all()
    assert not torch.equal(noise(key_of(1, "content", "tensor"), (30, 50), 2.5), one)


def test_a_dense_placebo_has_the_norms_of_the_original_and_nothing_else_of_it(untied, tmp_path):
    base, parent, other, *_ = untied
    real, made = vectors(tmp_path, parent, base), vectors(tmp_path, placebo(parent, base), base)
    assert {name for name, tau in made.items() if tau.norm() > 0} == {n for n, tau in real.items() if tau.norm() > 0}
    for name, tau in real.items():
        assert float(made[name].norm()) == pytest.approx(float(tau.norm()), rel=1e-3)
        if tau.numel() > 1000:
            assert abs(float((tau * made[name]).sum() / tau.norm() ** 2)) < 0.15
    again, third = vectors(tmp_path, placebo(parent, base), base), vectors(tmp_path, placebo(parent, base, 1), base)
    name = max(real, key=lambda key: real[key].numel())
    assert torch.equal(again[name], made[name])
    assert not torch.equal(third[name], made[name])
    second = vectors(tmp_path, placebo(other, base), base)
    assert abs(float((second[name] * made[name]).sum() / made[name].norm() ** 2)) < 0.15


def test_contents_differ_by_seed_and_model_and_settings_are_the_originals(untied, tmp_path):
    base, parent, other, *_ = untied
    opener = Opener(tmp_path)
    named = [placebo(parent, base), placebo(parent, base, 1), placebo(other, base), parent, base]
    contents = {name: opener.open(name).content_sha256() for name in named}
    assert len(set(contents.values())) == len(named)
    assert contents[named[0]] == Opener(tmp_path / "elsewhere").open(named[0]).content_sha256()
    opened = opener.open(named[0])
    assert isinstance(opened, Overlay)
    assert (opened.reference, opened.folder, opened.config) == (named[0], Path(parent), opener.open(parent).config)
    assert opener.folder(named[0]) == Path(parent)
    assert {info.dtype for info in opened.tensors.values()} == {"F32"}


def test_a_lora_stays_a_lora_of_the_same_rank_and_norms(untied, tmp_path):
    base, *_ = untied
    lora = make_lora(tmp_path / "lora", untied[base], ["q_proj", "down_proj"])
    reference = f"{base}+{lora}"
    real, made = vectors(tmp_path, reference, base), vectors(tmp_path, placebo(reference, base), base)
    assert real.keys() == made.keys()
    assert len(real) == 8
    for name, tau in real.items():
        assert float(made[name].norm()) == pytest.approx(float(tau.norm()), rel=1e-3)
        assert torch.linalg.matrix_rank(made[name], rtol=1e-4) == 3
        assert abs(float((tau * made[name]).sum() / tau.norm() ** 2)) < 0.5
    assert all(torch.equal(tau, made[name]) for name, tau in vectors(tmp_path, placebo(reference, base), base).items())


@pytest.mark.parametrize("kind", ["dora", "another base"])
def test_other_adapters_get_dense_noise(kind, untied, tmp_path):
    base, parent, *_ = untied
    lora = make_lora(tmp_path / "lora", untied[base], ["q_proj"], **({"use_dora": True} if kind == "dora" else {}))
    reference = f"{base if kind == 'dora' else parent}+{lora}"
    real, made = vectors(tmp_path, reference, base), vectors(tmp_path, placebo(reference, base), base)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert float(made[name].norm()) == pytest.approx(float(real[name].norm()), rel=1e-3)
    assert torch.linalg.matrix_rank(made[name]) == 32
    assert len(made) == (4 if kind == "dora" else len(untied[parent].tensors))


def test_a_model_with_other_tensors_than_the_base_is_refused(untied, make_family, tmp_path):
    base, *_ = untied
    wider, *_ = make_family(vocab_size=104)
    with pytest.raises(
        CheckpointError, match=r"'model\.embed_tokens\.weight' has no task vector: .*100×32 instead of 1"
    ):
        Opener(tmp_path).open(placebo(wider, base))


def test_references_are_one_piece():
    reference = placebo("org/base@v1+./a?b&c", "org/base@v1", 12)
    assert reference == "placebo:org/base@v1+./a?b&c?base=org/base@v1&seed=12"
    assert placebo_reference.parse(reference) == PlaceboReference("org/base@v1+./a?b&c", "org/base@v1", 12)
    assert placebo_reference.parse("zoo:tiny/base") is None
    assert placebo_reference.parse("placebo:nothing") is None
    assert files.pieces(reference, files.exists) == (reference,)
    assert not files.is_recipe(placebo("base", "night.yaml"))
    assert not files.is_recipe("placebo:night.yaml")
    assert files.anchor({"model": reference}, Path("/models")) == {"model": reference}


@pytest.mark.parametrize(("rows", "columns", "rank"), [(5, 7, 3), (40, 3, 2)])
def test_the_norm_of_a_product(rows, columns, rank):
    b, a = torch.randn(rows, rank), torch.randn(rank, columns)
    assert product_norm(b, a) == pytest.approx(float((b @ a).norm()), rel=1e-5)
