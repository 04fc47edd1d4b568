"""Holes with a number for every tensor or module, on the shapes of every family."""

import re
from typing import Any

import pytest
import transformers
import yaml

from evosearch.checkpoints.families.registry import all_families
from evosearch.errors import Problems, RecipeError
from evosearch.merging.registry import specs
from evosearch.recipe.parameters import evaluate
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import ModelShape, Place, TensorSpec
from evosearch.search.space.dimensions import Genome
from evosearch.search.space.space import SearchSpace

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
}
BIASES = {"attention_bias": True, "mlp_bias": True, "qkv_bias": True, "qk_layernorm": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "tied": {"tie_word_embeddings": True},
    "biases": BIASES | {"tie_word_embeddings": False},
    "no biases": {"attention_bias": False, "mlp_bias": False, "qkv_bias": False},
    "one dense layer": {"mlp_only_layers": [1]},
    "one layer": {"num_hidden_layers": 1},
    "deep": {"num_hidden_layers": 12, "num_experts": 12, "decoder_sparse_step": 2},
}
HOLE = {"low": 0.0, "high": 1.5}
PERS = ("tensor", "module")
FILTERS = ("mlp", "norm", "weight", "bias", ".1.", "q", "a", "proj", "e.norm.weight")


def shape_of(architecture: str, variant: str = "default") -> ModelShape:
    config = getattr(transformers, architecture).config_class(**SMALL | VARIANTS[variant]).to_dict()
    return all_families()[architecture].shape(config)


def space(weight: Any, shape: ModelShape) -> SearchSpace:
    first = {"model": "a", "parameters": {"weight": weight}}
    second = {"model": "b", "parameters": {"weight": 0.5}}
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": [first, second]}
    return SearchSpace.from_template(recipe, shape, specs())


def numbered(laid_out: SearchSpace) -> Genome:
    count = len(laid_out.dimensions)
    return {d.name: 1.5 * (i + 1) / (count + 1) for i, d in enumerate(laid_out.dimensions)}


def read_back(recipe: Recipe) -> Recipe:
    """The recipe as written to a file and read."""
    return Recipe.model_validate(yaml.safe_load(recipe.to_yaml()))


def at(filled: Recipe, tensor: TensorSpec, shape: ModelShape) -> float | None:
    """The weight of a tensor, as `materialize.plan` and mergekit look it up."""
    position = 0.0 if tensor.place is Place.EMBEDDINGS else 1.0
    if tensor.layer is not None and shape.num_layers > 1:
        position = tensor.layer / (shape.num_layers - 1)
    found = evaluate(filled.models[0].parameters["weight"], tensor.name, position)
    assert found is None or isinstance(found, float)
    return found


def group_of(tensor: TensorSpec, per: str) -> Any:
    """What a tensor shares its number with, by the words of the docs, implemented independently of the code."""
    if per == "tensor":
        return tensor.name
    module = re.sub(r"\.(weight|bias)$", "", tensor.name)
    if tensor.layer is None:
        return module
    if re.search(r"(norm|\.ln_\d)$", module):
        return tensor.layer, "norms"
    return tensor.layer, re.sub(r"experts\.\d+\.", "experts.", module)


def check_numbers(weight: Any, shape: ModelShape, per: str, reached: list[TensorSpec]) -> None:
    """Every tensor that the hole affects has exactly the number of its group, and no number is without a tensor."""
    laid_out = space(weight, shape)
    genome = numbered(laid_out)
    filled = read_back(laid_out.fill(genome))
    of_group: dict[Any, float] = {}
    for tensor in reached:
        found = at(filled, tensor, shape)
        assert found is not None, tensor.name
        assert found == pytest.approx(of_group.setdefault(group_of(tensor, per), found), rel=1e-12), tensor.name
    given = sorted(genome.values())
    assert sorted(of_group.values()) == pytest.approx(given, rel=1e-12), "every group has its own number"
    for tensor in shape.tensors:
        if tensor not in reached:
            fixed = next((e for e in weight if isinstance(e, dict) and not isinstance(e.get("value"), dict)), None)
            assert at(filled, tensor, shape) == (fixed["value"] if fixed else None), tensor.name


@pytest.mark.parametrize("architecture", sorted(all_families()))
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("per", PERS)
def test_every_tensor_has_exactly_the_number_meant(architecture: str, variant: str, per: str) -> None:
    shape, hole = shape_of(architecture, variant), HOLE | {"per": per}
    check_numbers(hole, shape, per, list(shape.tensors))
    for pattern in FILTERS:
        reached = [tensor for tensor in shape.tensors if pattern in tensor.name]
        if reached:
            check_numbers([{"filter": pattern, "value": hole}, {"value": 0.25}], shape, per, reached)
        others = [tensor for tensor in shape.tensors if pattern not in tensor.name]
        if reached and others:
            check_numbers([{"filter": pattern, "value": 0.25}, {"value": hole}], shape, per, others)


@pytest.mark.parametrize("per", PERS)
def test_names_within_others_are_told_apart(per: str) -> None:
    """`norm.weight` is part of `input_norm.weight`, `mlp.gate` of `mlp.gate_proj`, `h.1.` of `h.11.`."""
    inside = ["norm.weight", "attn.norm.weight", "attn.norm.weight_scale", "mlp.gate.weight", "mlp.gate_proj.weight"]
    inside += ["mlp.gate_proj.bias", "A_log", "mixer.A_log", "mixer.D", "e.experts.1.gate.weight"]
    inside += ["e.experts.11.gate.weight", "mixer.in_proj.weight"]
    tensors = [TensorSpec("embed.weight", Place.EMBEDDINGS)]
    for layer in range(12):
        own = inside if layer % 3 else inside[:7]
        tensors += [TensorSpec(f"h.{layer}.{name}", Place.LAYER, layer) for name in own]
    tensors += [TensorSpec("norm.weight", Place.FINAL_NORM), TensorSpec("gate.weight", Place.HEAD)]
    shape = ModelShape("X", 12, tuple(tensors))
    laid_out = space(HOLE | {"per": per}, shape)
    genome = numbered(laid_out)
    filled = read_back(laid_out.fill(genome))
    found = {tensor.name: at(filled, tensor, shape) for tensor in tensors}
    assert None not in found.values()
    if per == "tensor":
        assert sorted(found.values()) == pytest.approx(sorted(genome.values()), rel=1e-12)
        return
    assert found["h.4.norm.weight"] == found["h.4.attn.norm.weight"] == found["h.4.attn.norm.weight_scale"]
    assert found["h.4.e.experts.1.gate.weight"] == found["h.4.e.experts.11.gate.weight"]
    assert found["h.4.mlp.gate_proj.weight"] == found["h.4.mlp.gate_proj.bias"]
    assert found["h.4.mixer.A_log"] == found["h.4.mixer.D"]
    apart = [f"h.4.{name}" for name in (*inside[:1], *inside[3:5], "A_log", "mixer.A_log", inside[9], inside[11])]
    assert len({found[name] for name in (*apart, "norm.weight", "gate.weight", "embed.weight")}) == len(apart) + 3


# --- names and written form -------------------------------------------------------------------------------------------


def test_names_are_short_and_in_the_order_of_the_model() -> None:
    names = [d.name for d in space(HOLE | {"per": "tensor"}, shape_of("LlamaForCausalLM", "one layer")).dimensions]
    assert [name.removeprefix("models[0].weight") for name in names] == [
        *("[embed_tokens]", "[input_layernorm 0]", "[post_attention_layernorm 0]", "[q_proj 0]", "[k_proj 0]"),
        *("[v_proj 0]", "[o_proj 0]", "[gate_proj 0]", "[up_proj 0]", "[down_proj 0]", "[norm]", "[lm_head]"),
    ]
    names = [d.name for d in space(HOLE | {"per": "module"}, shape_of("MixtralForCausalLM", "one layer")).dimensions]
    assert [name.removeprefix("models[0].weight") for name in names] == [
        *("[embed_tokens]", "[norms 0]", "[q_proj 0]", "[k_proj 0]", "[v_proj 0]", "[o_proj 0]"),
        *("[gate 0]", "[w1 0]", "[w3 0]", "[w2 0]", "[norm]", "[lm_head]"),
    ]
    names = [d.name for d in space(HOLE | {"per": "tensor"}, shape_of("GPT2LMHeadModel", "one layer")).dimensions]
    assert {"models[0].weight[attn.c_proj.bias 0]", "models[0].weight[wpe]"} < set(names)
    names = [d.name for d in space(HOLE | {"per": "tensor"}, shape_of("Qwen2MoeForCausalLM")).dimensions]
    assert {"models[0].weight[experts.0.gate_proj 2]", "models[0].weight[shared_expert.gate_proj 2]"} < set(names)


def test_a_tied_head_has_the_number_of_the_embeddings() -> None:
    for per in PERS:
        names = [d.name for d in space(HOLE | {"per": per}, shape_of("LlamaForCausalLM", "tied")).dimensions]
        assert "models[0].weight[embed_tokens]" in names
        assert not any("lm_head" in name for name in names)


def test_a_shared_name_is_one_number_of_all_models() -> None:
    shape, hole = shape_of("LlamaForCausalLM"), HOLE | {"per": "module", "name": "w"}
    models = [{"model": name, "parameters": {"weight": hole}} for name in "abc"]
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    laid_out = SearchSpace.from_template(recipe, shape, specs())
    assert [d.name for d in laid_out.dimensions][:3] == ["w[embed_tokens]", "w[norms 0]", "w[q_proj 0]"]
    filled = laid_out.fill(numbered(laid_out))
    assert filled.models[0].parameters == filled.models[2].parameters


def test_the_written_form_is_a_filter_for_each_kind_with_a_list_over_the_layers() -> None:
    shape = shape_of("LlamaForCausalLM")
    laid_out = space(HOLE | {"per": "module"}, shape)
    written = laid_out.fill(numbered(laid_out)).to_dict()["models"][0]["parameters"]["weight"]
    assert [entry["filter"] for entry in written] == [
        *("post_attention_layernorm", "model.embed_tokens", "self_attn.q_proj", "self_attn.k_proj"),
        *("self_attn.v_proj", "self_attn.o_proj", "input_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"),
        *("model.norm", "lm_head"),
    ]
    assert all(len(entry["value"]) == 3 for entry in written if "proj" in entry["filter"])
    assert written[0]["value"] == written[6]["value"], "the norms of a layer share a number"
    assert isinstance(written[1]["value"], float)


def test_a_layer_without_the_kind_takes_no_number() -> None:
    laid_out = space(HOLE | {"per": "module"}, shape_of("Qwen2MoeForCausalLM", "one dense layer"))
    names = [d.name.removeprefix("models[0].weight") for d in laid_out.dimensions]
    assert [name for name in names if "mlp.gate_proj" in name] == ["[mlp.gate_proj 1]"]
    assert [name for name in names if "experts.up_proj" in name] == ["[experts.up_proj 0]", "[experts.up_proj 2]"]


def test_baselines_and_other_genomes() -> None:
    laid_out = space(HOLE | {"per": "tensor"}, shape_of("LlamaForCausalLM"))
    assert laid_out.has_weights
    assert set(laid_out.with_weight(0.5).values()) == {0.5}
    assert set(laid_out.with_weight(9.0).values()) == {1.5}
    assert set(laid_out.clip({"models[0].weight[norm]": 7.0, "other": 1.0}).values()) == {0.75, 1.5}
    assert len(laid_out.with_weight((0.1, 0.9))) == len(laid_out.dimensions)
    assert set(laid_out.with_weight((0.1, 0.9)).values()) == {0.1}


@pytest.mark.parametrize("per", PERS)
def test_inert_numbers_are_not_searched(per: str) -> None:
    shape = shape_of("LlamaForCausalLM")
    weights = [{"filter": "mlp", "value": 0.5}, {"value": HOLE | {"per": per}}]
    names = [d.name for d in space(weights, shape).dimensions]
    assert names
    assert not any("gate_proj" in name for name in names)
    both = [{"model": name, "parameters": {"weight": 0.5}} for name in "ab"]
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": both}
    with pytest.raises(RecipeError, match="every model has its own weight"):
        SearchSpace.from_template(recipe | {"parameters": {"weight": HOLE | {"per": per}}}, shape, specs())


def test_mistakes_are_named() -> None:
    shape = shape_of("LlamaForCausalLM")
    with pytest.raises(RecipeError, match=r"weight\.per: .*'layer', 'group', 'gradient', 'module' or 'tensor'"):
        space(HOLE | {"per": "tensors"}, shape)
    with pytest.raises(RecipeError, match=r"weight\.ends: only valid with per: layer or per: group"):
        space(HOLE | {"per": "tensor", "ends": "shared"}, shape)
    with pytest.raises(RecipeError, match=r"weight\.points: only valid with per: gradient"):
        space(HOLE | {"per": "module", "points": 3}, shape)
    own = {"layer_range": [0, 3], "parameters": {"weight": HOLE | {"per": "tensor"}}}
    sources = [{"model": name, **own} for name in "ab"]
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "slices": [{"sources": sources}]}
    said = r"'tensor' counts the layers of a complete model.*One number per slice"
    with pytest.raises(Problems) as several:  # one of each source
        SearchSpace.from_template(recipe, shape, specs())
    places = [f"recipe.slices[0].sources[{index}].parameters.weight.per" for index in (0, 1)]
    assert [problem.where for problem in several.value.problems] == places
    for problem in several.value.problems:
        assert isinstance(problem, RecipeError)
        assert re.search(said, str(problem))
    del sources[1]["parameters"]
    with pytest.raises(RecipeError, match=said):
        SearchSpace.from_template(recipe, shape, specs())
    assert len(space({"filter": "embed_tokens", "value": HOLE | {"per": "tensor"}}, shape).dimensions) == 1
