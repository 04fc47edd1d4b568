"""Gradients of a loss in the coefficients of a merge, compared with central differences, in every family."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evosearch.checkpoints.families.registry import all_families
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import RecipeError
from evosearch.materialize import weight_gradients
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.inputs import Opener
from evosearch.recipe.dual import Dual
from evosearch.recipe.schema import Recipe

torch.set_num_threads(1)
TOKENS = torch.tensor([[5, 11, 2, 17, 39, 8, 30, 4, 22, 13], [7, 7, 1, 0, 33, 12, 28, 19, 3, 36]])
START = (0.7, 0.4, 0.9)
STEP = 1e-2  # of a central difference
SMALL_STEP = 4e-4  # with experts, so that the router chooses the same ones
WITH_EXPERTS = ("MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")  # torch groups no float64 products
Models = dict[str, Checkpoint]
Build = Callable[[Sequence[float]], Recipe]


def loss(model: Any) -> torch.Tensor:
    """The mean log-likelihood of fixed tokens, in float64."""
    logprobs = model(TOKENS).logits[:, :-1].double().log_softmax(-1)
    return logprobs.gather(-1, TOKENS[:, 1:, None]).mean()


def duals(values: Sequence[float]) -> list[Dual]:
    return [Dual(value, {index: 1.0}) for index, value in enumerate(values)]


def slopes_of(resident: ResidentModel, build: Build, values: Sequence[float]) -> tuple[float, ...]:
    recipe = build(duals(values))
    resident.materialize(recipe)
    with resident.differentiate(recipe, len(values)) as total:
        loss(resident.model).backward()
        return total()


def differences(resident: ResidentModel, build: Build, values: Sequence[float], step: float) -> list[float]:
    """Central differences with an error of order step⁴ (Richardson)."""

    @torch.no_grad()
    def at(index: int, shift: float) -> float:
        resident.materialize(build([value + shift * (k == index) for k, value in enumerate(values)]))
        return float(loss(resident.model))

    found = []
    for index in range(len(values)):
        far, near = ((at(index, size) - at(index, -size)) / (2 * size) for size in (2 * step, step))
        found.append((4 * near - far) / 3)
    return found


def check(resident: ResidentModel, build: Build, values: Sequence[float], step: float = STEP) -> None:
    got, expected = slopes_of(resident, build, values), differences(resident, build, values, step)
    assert max(map(abs, expected)) > 1e-4, "nothing to compare"
    noise = 1e-7 / step  # of float32
    assert got == pytest.approx(expected, rel=2e-3, abs=1e-3 * max(map(abs, expected)) + noise)
    assert not any(parameter.requires_grad for parameter in resident.model.parameters())
    assert all(parameter.grad is None for parameter in resident.model.parameters())


@pytest.fixture(scope="session")
def three(random_model: Callable[..., Path]) -> Callable[..., Models]:
    """Make base, a and b of a family, by the paths of their folders; cached by the arguments."""

    @cache
    def make(architecture: str, **changes: Any) -> Models:
        base = random_model(architecture, **changes)
        folders = [base, *(random_model(architecture, seed=seed, near=base, spread=0.05) for seed in (1, 2))]
        return {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}

    return make


def arithmetic(models: Mapping[str, Checkpoint]) -> Build:
    base, *parents = models

    def build(values: Sequence[float]) -> Recipe:
        entries = [{"model": name, "parameters": {"weight": w}} for name, w in zip(parents, values, strict=False)]
        data = {"merge_method": "task_arithmetic", "base_model": base, "models": entries}
        return Recipe.model_validate(data | {"parameters": {"lambda": values[2]}})

    return build


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", sorted(all_families()))
def test_every_family(architecture, tied, three):
    """Tied embeddings, transposed weights, and tensors on disk that are parts of one live parameter."""
    models = three(architecture, tie_word_embeddings=tied)
    dtype = torch.float32 if architecture in WITH_EXPERTS else torch.float64
    step = SMALL_STEP if architecture in WITH_EXPERTS else STEP
    check(ResidentModel(models, next(iter(models)), compute_dtype=dtype), arithmetic(models), START, step)


@pytest.mark.parametrize("tied", [True, False])
def test_the_padding_token_is_a_token_like_any_other(tied, three):
    models = three("LlamaForCausalLM", tie_word_embeddings=tied, pad_token_id=7)
    resident = ResidentModel(models, next(iter(models)), compute_dtype=torch.float64)
    assert resident.model.get_input_embeddings().padding_idx in TOKENS
    check(resident, arithmetic(models), START)
    assert resident.model.get_input_embeddings().padding_idx == 7


def per_layer(models: Mapping[str, Checkpoint]) -> Build:
    base, one, two = models
    weights = [{"filter": "mlp", "value": 0}, {"filter": "self_attn", "value": 1}, {"value": 2}]

    def build(values: Sequence[float]) -> Recipe:
        filters = [{**entry, "value": values[entry["value"]]} for entry in weights]
        parents = [
            {"model": one, "parameters": {"weight": filters}},
            {"model": two, "parameters": {"weight": [values[3], values[4]]}},
        ]
        data = {"merge_method": "ties", "base_model": base, "models": parents}
        return Recipe.model_validate(
            data | {"parameters": {"sign_method": "count"}}
        )  # elections independent of weights

    return build


def interpolation(models: Mapping[str, Checkpoint]) -> Build:
    base, one, _ = models

    def build(values: Sequence[float]) -> Recipe:
        data = {"merge_method": "slerp", "base_model": base, "models": [{"model": one}]}
        return Recipe.model_validate(data | {"parameters": {"t": list(values)}})

    return build


@pytest.mark.parametrize(("make", "values"), [(per_layer, (0.6, 0.8, 0.3, 0.5, 0.9)), (interpolation, (0.3, 0.6))])
def test_filters_gradients_over_depth_and_other_methods(make, values, three):
    models = three("LlamaForCausalLM")
    check(ResidentModel(models, next(iter(models)), compute_dtype=torch.float64), make(models), values)


def test_gradients_that_are_freed_at_once_give_the_same(three, monkeypatch):
    models = three("MixtralForCausalLM")
    resident = ResidentModel(models, next(iter(models)))
    held = slopes_of(resident, arithmetic(models), START)
    monkeypatch.setattr(weight_gradients, "HELD", 0)
    assert slopes_of(resident, arithmetic(models), START) == held


def test_without_a_derivative_it_is_refused(three):
    models = three("LlamaForCausalLM")
    base, one, two = models
    resident = ResidentModel(models, base)
    entries = [{"model": name, "parameters": {"weight": 0.5, "density": Dual(0.5, {0: 1.0})}} for name in (one, two)]
    recipe = Recipe.model_validate({"merge_method": "ties", "base_model": base, "models": entries})
    resident.materialize(recipe)
    refused = pytest.raises(RecipeError, match=r"no derivative in 'density'.*ties has derivatives in: ")
    with refused, resident.differentiate(recipe, 1):
        pass


def test_equal_recipes_are_written_once(three):
    models = three("LlamaForCausalLM")
    resident, build = ResidentModel(models, next(iter(models))), arithmetic(models)
    resident.materialize(build(START))
    parameter = next(resident.model.parameters())
    parameter.data += 1.0
    changed = parameter.clone()
    resident.materialize(build(duals(START)))
    assert torch.equal(parameter, changed), "the same numbers, with derivatives"
    resident.materialize(build((0.7, 0.4, -0.0)))
    zero = parameter.clone()
    resident.materialize(build((0.7, 0.4, 0.0)))
    assert not torch.equal(parameter, changed)
    assert torch.equal(zero.abs(), parameter.abs())


# --- adapters ---------------------------------------------------------------------------------------------------------


def make_lora(folder: Path, base: Checkpoint, modules: Sequence[str], seed: int, **config: Any) -> Path:
    """A random LoRA of rank 2 on every layer's `modules`."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    conv = base.family.transposed
    for name, info in base.tensors.items():
        if name.split(".")[-2] in modules and name.endswith(".weight"):
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            rows, columns = info.shape[::-1] if conv else info.shape
            tensors[f"{prefix}.lora_A.weight"] = 0.3 * torch.randn((2, columns), generator=generator)
            tensors[f"{prefix}.lora_B.weight"] = 0.3 * torch.randn((rows, 2), generator=generator)
            if config.get("use_dora"):
                tensors[f"{prefix}.lora_magnitude_vector"] = base.load(name).norm(dim=1) * 1.1
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": list(modules), "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


MODULES = {
    "LlamaForCausalLM": (["q_proj", "v_proj"], ["up_proj", "v_proj"], ["down_proj", "o_proj"]),
    "GPT2LMHeadModel": (["c_attn"], ["c_attn", "c_fc"], ["c_proj"]),
    "Phi3ForCausalLM": (["qkv_proj"], ["gate_up_proj", "qkv_proj"], ["o_proj"]),
}


@pytest.fixture
def adapted(random_model, tmp_path) -> Callable[..., tuple[ResidentModel, Build]]:
    """A model with three adapters in `task_arithmetic`, one weight for each."""

    def make(architecture: str, **config: Any) -> tuple[ResidentModel, Build]:
        folder = random_model(architecture, hidden_size=64, intermediate_size=96)
        base = Checkpoint.open(folder, str(folder))
        names = [
            f"{folder}+{make_lora(tmp_path / str(seed), base, modules, seed, **config)}"
            for seed, modules in enumerate(MODULES[architecture])
        ]

        def build(values: Sequence[float]) -> Recipe:
            entries = [{"model": name, "parameters": {"weight": w}} for name, w in zip(names, values, strict=True)]
            return Recipe.model_validate(
                {"merge_method": "task_arithmetic", "base_model": str(folder), "models": entries}
            )

        models = Opener(tmp_path / "cache").inputs(build(START))
        return ResidentModel(models, str(folder), compute_dtype=torch.float64), build

    return make


def asked(resident: ResidentModel, build: Build) -> set[str]:
    """Names of the parameters that require gradients."""
    recipe = build(duals(START))
    resident.materialize(recipe)
    with resident.differentiate(recipe, len(START)):
        return {name for name, parameter in resident.model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("architecture", MODULES)
def test_adapters_need_no_gradients_of_weights(architecture, adapted, monkeypatch):
    resident, build = adapted(architecture)
    assert asked(resident, build) == set()
    check(resident, build, START)
    from_activations = slopes_of(resident, build, START)
    monkeypatch.setattr(resident._gradients, "_adapted", lambda *_: None)
    assert asked(resident, build), "the dense form needs them"
    assert slopes_of(resident, build, START) == pytest.approx(from_activations, rel=1e-4)


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_adapters_of_equal_norms_are_differentiated_in_their_dense_form(scope, adapted):
    resident, plain = adapted("LlamaForCausalLM")

    def build(values: Sequence[float]) -> Recipe:
        recipe = plain(values)
        return recipe.model_copy(update={"parameters": {"norm": "equal", "norm_scope": scope}})

    recipe = Recipe.model_validate(build(START).to_dict())
    assert recipe.parameters["norm"] == "equal"
    assert asked(resident, build)
    check(resident, build, START)


def test_an_adapter_with_magnitudes_is_differentiated_in_its_dense_form(adapted):
    resident, build = adapted("LlamaForCausalLM", use_dora=True)
    assert {name.split(".")[-2] for name in asked(resident, build)} == set().union(*MODULES["LlamaForCausalLM"])
    check(resident, build, START)
